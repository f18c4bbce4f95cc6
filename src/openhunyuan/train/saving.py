"""Saving while training goes on: the state is copied to the host, and a thread writes the copy.

What is written, and how it is published, is ``train.checkpoint``'s matter. Of several processes each copies and writes
its own part. Their threads agree over connections of their own, so that they and training never wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openhunyuan.base.log import get_logger
from openhunyuan.parallel.world import World
from openhunyuan.train import checkpoint


class Saver:
    """Writes a run's checkpoints, at most one at a time. Every method but ``failed`` and ``close`` is called by all
    processes together, and what went wrong in writing is raised in all of them."""

    def __init__(
        self, run_dir: Path, keep: int, about: Mapping[str, Any], world: World | None = None, background: bool = True
    ) -> None:
        self.run_dir, self.keep, self.about = run_dir, keep, about
        self.world, self.background = world or World(), background
        self.threads = self.world.apart() if background else self.world
        self.pool: ThreadPoolExecutor | None = None
        self.writing: Future[Path] | None = None
        self.host = HostMemory()

    def save(self, step: int, gather: Callable[[Callable[[Tensor], Any]], Mapping[str, Any]]) -> float:
        """Save the state after ``step`` steps; returns the seconds for which training stood still.

        gather: makes the state of what the given function returns for each tensor that this process writes
        (``parallel.resharding.parts``). With ``background`` the checkpoint is there when ``wait`` returns, and not
        before.

        Raises:
            OSError: this checkpoint, or with ``background`` the one before it, cannot be written.
        """
        started = time.perf_counter()
        self.wait()
        state = gather(self.host.copies() if self.background else lambda tensor: tensor)
        write = partial(checkpoint.save, self.run_dir, step, state, self.keep, self.about, self.threads)
        if self.background:
            self.host.ready()
            self.pool = self.pool or ThreadPoolExecutor(1, "checkpoint")
            self.writing = self.pool.submit(write)
        else:
            write()
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
            self.world.every(self._result)

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


class HostMemory:
    """Copies of tensors in CPU memory that is kept: fresh memory costs more than the copy."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self.device: torch.device | None = None

    def copies(self) -> Callable[[Tensor], Tensor]:
        """A function that copies one tensor after another, into the memory of the ones before where it fits."""
        count = 0

        def copy(tensor: Tensor) -> Tensor:
            nonlocal count
            held = self.held[count] if count < len(self.held) else None
            if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
                held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self.held[count : count + 1] = [held]
            count += 1
            if tensor.is_cuda:
                self.device = tensor.device
            return held.copy_(tensor.detach(), non_blocking=True)

        return copy

    def ready(self) -> None:
        """Copies from a GPU go on while others are asked for; wait until all are there."""
        if self.device is not None:
            torch.cuda.synchronize(self.device)
