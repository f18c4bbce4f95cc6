"""Saving while training goes on: the state is copied to the host, and a thread writes the copy.

What is written, and how it is published, is ``train.checkpoint``'s matter. Of several processes all take part in
gathering, a tensor at a time; the main one keeps the copy and writes the whole state, so that a checkpoint is the same
for every layout.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openhunyuan.base.log import get_logger
from openhunyuan.parallel.apply import whole
from openhunyuan.parallel.world import World
from openhunyuan.train import checkpoint

Place = tuple[str, ...]


class Saver:
    """Writes a run's checkpoints, at most one at a time. Every method but ``failed`` and ``close`` is called by all
    processes together, and what went wrong in writing is raised in all of them."""

    def __init__(
        self, run_dir: Path, keep: int, about: Mapping[str, Any], world: World | None = None, background: bool = True
    ) -> None:
        self.run_dir, self.keep, self.about = run_dir, keep, about
        self.world, self.background = world or World(), background
        self.pool: ThreadPoolExecutor | None = None
        self.writing: Future[Path] | None = None
        self.host: dict[Place, Tensor] = {}  # kept from save to save: fresh memory costs more than the copy

    def save(self, step: int, state: Mapping[str, Any]) -> float:
        """Save ``state`` as that after ``step`` steps; returns the seconds for which training stood still.

        With ``background`` the checkpoint is there when ``wait`` returns, and not before.

        Raises:
            OSError: this checkpoint, or with ``background`` the one before it, cannot be written.
        """
        started = time.perf_counter()
        self.wait()
        if self.background or self.world.size > 1:
            state = on_host(state, self.host, keep=self.world.is_main)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        write = lambda: checkpoint.save(self.run_dir, step, state, self.keep, self.about)  # noqa: E731
        if not self.background:
            self.world.once(write)
        elif self.world.is_main:
            self.pool = self.pool or ThreadPoolExecutor(1, "checkpoint")
            self.writing = self.pool.submit(write)
        return time.perf_counter() - started

    @property
    def failed(self) -> bool:
        """Whether this process's thread has ended without a checkpoint; ``wait`` says why."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def wait(self) -> None:
        """Until the last checkpoint is written.

        Raises:
            OSError: it could not be.
        """
        if self.background:
            self.world.once(self._result)

    def _result(self) -> None:
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let a file that is being written become whole, also when the run ends in an error of its own."""
        if self.pool is not None:
            try:
                self._result()
            except Exception as error:  # the run's own error is the one to be raised
                get_logger("train").error("%s", error)
            self.pool.shutdown()
            self.pool = None


def on_host(state: Any, host: dict[Place, Tensor], keep: bool = True, place: Place = ()) -> Any:
    """A nested state with every tensor whole and copied to CPU memory, which ``host`` remembers by its place.

    All processes have to ask for it together; one that does not ``keep`` it gets None for every tensor. Copies from a
    GPU go on when this returns: synchronise before they are read.
    """
    if isinstance(state, Tensor):
        tensor = whole(state).detach()
        if not keep:
            return None
        held = host.get(place)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = host[place] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return held.copy_(tensor, non_blocking=True)
    if isinstance(state, Mapping):
        return {key: on_host(value, host, keep, (*place, str(key))) for key, value in state.items()}
    if isinstance(state, list | tuple):
        copied = [on_host(value, host, keep, (*place, str(number))) for number, value in enumerate(state)]
        return copied if isinstance(state, list) else tuple(copied)
    return state
