"""The batch after this one, fetched in a thread meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

Batch = dict[str, Any]


class Ahead:
    """Batches by step, one ahead; not ``at_hand`` ones (see ``train.loop.Source``)."""

    def __init__(self, fetch: Callable[[int], Batch], last: int, at_hand: bool) -> None:
        self.fetch, self.last, self.at_hand = fetch, last, at_hand
        self.pool = ThreadPoolExecutor(1)
        self.waiting: tuple[int, Future[Batch]] | None = None

    def take(self, step: int) -> Batch:
        """The batch of ``step``; the next one is asked for."""
        if self.at_hand:
            return self.fetch(step)
        if self.waiting is None or self.waiting[0] != step:
            self._ask(step)
        assert self.waiting is not None
        batch = self.waiting[1].result()
        self.waiting = None
        if step < self.last:
            self._ask(step + 1)
        return batch

    def _ask(self, step: int) -> None:
        self.close(wait=False)
        self.waiting = step, self.pool.submit(self.fetch, step)

    def close(self, wait: bool = True) -> None:
        if self.waiting:
            self.waiting[1].cancel()
        if wait:
            self.pool.shutdown()
