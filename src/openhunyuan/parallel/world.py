"""The processes of one run: who this one is, and how they agree. Alone, everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

TIMEOUT = 1800.0
"""Seconds. Longer than the longest thing that one process does while the others wait."""


@dataclass(frozen=True)
class World:
    """This process and how many there are."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """the connections that are used; None: those of the whole job"""

    @classmethod
    def join(cls, device: torch.device, timeout: float = TIMEOUT) -> World:
        """The world that ``torchrun`` describes (RANK, WORLD_SIZE, …): gloo on CPUs, NCCL on GPUs; alone without it.
        Where this process pretends (``pretend``), that one.

        timeout: seconds that a process waits for the others before it gives up; of the first call.
        """
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend, limit = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout)
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if restarts is None or os.environ.get("LOCAL_WORLD_SIZE") != str(size):
            dist.init_process_group(backend, timeout=limit)
        else:
            # torchrun's store outlives the processes, and with it the addresses of those before a restart: whoever
            # is first would call them. On several machines the count differs; see docs/guides/cluster.md.
            store, rank, _ = next(dist.rendezvous("env://", timeout=limit))
            store = dist.PrefixStore(f"restart_{restarts}", store)
            dist.init_process_group(backend, timeout=limit, store=store, rank=rank, world_size=size)
        return cls(dist.get_rank(), size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values by name added over all processes, the same everywhere; a name may be missing in some."""
        if self.size == 1:
            return dict(values)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(values), group=self.group)
        total: dict[str, float] = {}
        for held in gathered:
            for name, value in held.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def once(self, work: Callable[[], T]) -> T:
        """``work()`` done by the main process; every process gets its result, or its exception."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def every(self, work: Callable[[], T]) -> list[T]:
        """``work()`` done by every process; each gets all results, by rank, or the first exception."""
        if self.size == 1:
            return [work()]
        mine: tuple[Any, Exception | None] = (None, None)
        try:
            mine = work(), None
        except Exception as error:
            mine = None, error
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, mine, group=self.group)
        for _, error in gathered:
            if error is not None:
                raise error
        return [result for result, _ in gathered]

    def apart(self) -> World:
        """The same processes with connections of their own (gloo), for a thread: what it agrees on with its like does
        not meet what the main threads do. Called by all processes together."""
        if self.size == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT)))

    def leave(self) -> None:
        """End the connections, once all processes are here: who leaves early takes those of the others along."""
        if self.size > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def pretend(size: int) -> None:
    """From now on this process takes itself for the first of ``size``, the one whose parts are the largest.

    Collectives return at once, and stand for the others with this process's own values or with anything: sizes and
    memory are those of a real run, values are not. For a process that does nothing else and ends, such as a forked
    child: connections that it has from its parent are left alone, neither used nor closed.
    """
    dist.GroupMember.WORLD = None
    dist.init_process_group("fake", rank=0, world_size=size)
