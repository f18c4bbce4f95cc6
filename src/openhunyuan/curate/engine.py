"""Running a function over many inputs in worker processes, one of which may die.

Each worker is a process of one thread with a pipe of its own, so that when one is killed (a codec that crashes, a lack
of memory) or does not come back in time, it is known which input it was at: that input becomes an error, a new worker
is started, and all others go on. Results come in the order in which they are finished.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from openhunyuan.base.errors import UserError

_POLL = 0.5
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Result:
    """What a call gave for `item`: a value, or one sentence about why there is none."""

    item: Any
    value: Any = None
    error: str | None = None


class Pool:
    """`workers` processes that call `function`; 0 calls it here.

    function: importable (it is sent to other processes), and so are its argument and its result.
    timeout: seconds for one input.
    """

    def __init__(self, function: Callable[[Any], Any], workers: int, timeout: float = 3600.0) -> None:
        if workers < 0:
            raise UserError(f"workers is {workers}, but it must be 0 or more.")
        self.function, self.workers, self.timeout = function, workers, timeout

    def map(self, items: Iterable[Any]) -> Iterator[Result]:
        """One result an input, as they are finished. Raises OSError when the disk is full: no input is to blame."""
        if self.workers == 0:
            for item in items:
                yield _unpack(item, *call(self.function, item))
            return
        yield from self._in_processes(deque(items))

    def _in_processes(self, waiting: deque[Any]) -> Iterator[Result]:
        context = multiprocessing.get_context("spawn")
        workers = [_Worker(context, self.function) for _ in range(min(self.workers, len(waiting)))]
        try:
            while waiting or any(worker.busy for worker in workers):
                for number, worker in enumerate(workers):
                    if waiting and not worker.busy:
                        if not worker.process.is_alive():
                            workers[number] = worker = _Worker(context, self.function)
                        worker.give(waiting.popleft())
                busy = {worker.pipe: worker for worker in workers if worker.busy}
                ready = wait(list(busy), timeout=_POLL)
                for pipe in ready:
                    if result := busy[pipe].take():  # type: ignore[index]
                        yield result
                for worker in busy.values():
                    if worker.busy and time.monotonic() - worker.since > self.timeout:
                        yield worker.stop(f"took longer than {self.timeout:g} s")
        finally:
            for worker in workers:
                worker.close()


class _Worker:
    def __init__(self, context: Any, function: Callable[[Any], Any]) -> None:
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
        self.process.start()
        other.close()
        self.busy, self.item, self.since = False, None, 0.0

    def give(self, item: Any) -> None:
        self.item, self.busy, self.since = item, True, float("inf")
        with contextlib.suppress(OSError):  # a worker that died at its start is noticed by `take`
            self.pipe.send(item)

    def take(self) -> Result | None:
        """The result, or None for the word that the worker has begun: a slow start is not the input's fault."""
        try:
            message = self.pipe.recv()
            if message is None:
                self.since = time.monotonic()
                return None
            self.busy = False
            return _unpack(self.item, *message)
        except (EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
                raise
            self.busy = False
            self.process.join(5)
            code = self.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            return Result(self.item, error=f"the process that read it died ({how})")

    def stop(self, why: str) -> Result:
        self.process.kill()
        self.process.join()
        self.busy = False
        return Result(self.item, error=why)

    def close(self) -> None:
        self.pipe.close()
        if self.busy:
            self.process.kill()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def call(function: Callable[[Any], Any], item: Any) -> tuple[Any, str | None, OSError | None]:
    """(value, error sentence, the disk's failure) of one call. Anything an input can cause becomes a sentence."""
    try:
        return function(item), None, None
    except UserError as error:
        return None, str(error), None
    except OSError as error:
        if error.errno in _NO_SPACE:
            return None, None, OSError(error.errno, os.strerror(error.errno or 0), str(error.filename or ""))
        return None, f"{type(error).__name__}: {error}", None
    except Exception as error:  # a codec or a stage may raise anything; the input is recorded with it
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", None


def _unpack(item: Any, value: Any, error: str | None, disk: OSError | None) -> Result:
    if disk is not None:
        raise disk
    return Result(item, value, error)


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker: until the other end of the pipe is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.suppress(ModuleNotFoundError):
        import cv2

        cv2.setNumThreads(1)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        while True:
            item = pipe.recv()
            pipe.send(None)
            pipe.send(call(function, item))
