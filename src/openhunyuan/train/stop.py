"""What ends a run early: a signal, and a step that does not end."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT, so that the step ends and a checkpoint is written; a second Ctrl-C does not wait."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    try:
        previous = {s: signal.signal(s, receive) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: nothing to catch
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StallGuard:
    """Ends this process when it says nothing for ``seconds``, wherever it hangs: in a collective that another process
    never joins, in its data, in a kernel.

    Every thread's stack goes to stderr and the exit status is 1, which torchrun's agent answers by starting all
    processes again. Where no agent watches, nothing would start the run again, and the guard does nothing.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds if dist.is_available() and dist.is_torchelastic_launched() else 0.0

    def alive(self) -> None:
        """From now on ``seconds`` count again."""
        if self.seconds:  # a thread of C code: it comes through where Python's lock is held
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or 2)

    def close(self) -> None:
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
