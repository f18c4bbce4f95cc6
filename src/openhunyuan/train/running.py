"""How a run is looked after: what may differ between two starts of one run, because its results do not depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from pydantic import Field

from openhunyuan.base.record import Record


class Running(Record):
    """Saving, watching and giving up; not part of ``run.json``."""

    async_save: bool = Field(
        default=True,
        description="write checkpoints in a thread while training goes on; needs host memory for one more state",
    )
    log: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=("tensorboard",), description="where metrics go beside metrics.jsonl"
    )
    heartbeat_seconds: float = Field(
        default=10.0, ge=0, description="time between signs of life of a process; 0 = none"
    )
    stall_seconds: float = Field(
        default=1800.0,
        ge=0,
        description="under torchrun, a process that ends no step, save or validation in this time ends itself with its "
        "stack on stderr, so that the job starts again; 0 = it may hang for ever",
    )


_CHOSEN: ContextVar[Running] = ContextVar("running")


def chosen_running() -> Running:
    """What the command line chose, or the defaults."""
    return _CHOSEN.get(Running())


@contextmanager
def run_with(running: Running) -> Iterator[None]:
    """Within, trainers that are given no ``Running`` of their own take this one."""
    token = _CHOSEN.set(running)
    try:
        yield
    finally:
        _CHOSEN.reset(token)
