"""Running a function over many inputs in workers, any of which may die.

Every worker works on one input at a time, so that when one is killed (a codec that crashes, a lack of memory) or does
not come back in time, it is known which input it was at. An input whose worker died is tried once more, in another
worker; the second death is the input's, and becomes its error. All others go on, and results come in the order in which
they are finished.

`Engine` is that loop; where a worker lives is the business of its subclasses: `Processes` here, `RayEngine` in
`curate.ray_engine`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from openhunyuan.base.errors import UserError
from openhunyuan.curate.stage import Resources

_POLL = 0.5
_TRIES = 2
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_MANY_DEATHS = 3
"""Workers that may die one after the other before one of them has begun; then it is no accident."""

log = logging.getLogger(__name__)

Answer = tuple[Any, str | None, OSError | None]
"""(value, error sentence, the disk's failure) of one call."""


@dataclass(frozen=True)
class Result:
    """What a call gave for `item`: a value, or one sentence about why there is none."""

    item: Any
    value: Any = None
    error: str | None = None


class Died(Exception):
    """A worker is gone; the text says how."""


class Worker(ABC):
    """One place where functions run. `state` is "starting", "idle" or "busy"."""

    def __init__(self) -> None:
        self.state, self.item, self.tries, self.since = "starting", None, 0, 0.0

    def give(self, function: Callable[[Any], Any], item: Any, tries: int) -> None:
        """Have an idle worker begin with an input."""
        self.state, self.item, self.tries, self.since = "busy", item, tries, time.monotonic()
        self.send(function, item)

    @abstractmethod
    def send(self, function: Callable[[Any], Any], item: Any) -> None:
        """Pass on the work; that the worker has died meanwhile is found by `receive`."""

    @abstractmethod
    def receive(self) -> Answer | None:
        """What a worker that is ready has to say: its answer, None for having started (itself, or an input). An answer
        of one that is starting says why it cannot.

        Raises Died.
        """

    @abstractmethod
    def close(self) -> None:
        """End the worker, whatever it is at."""


class Engine(ABC):
    """The loop that all engines share. Workers stay for the next `map`; close the engine, or use it in a `with`.

    workers: inputs in work at once. timeout: seconds for one input.
    """

    def __init__(self, workers: int, timeout: float = 3600.0) -> None:
        if workers < 0:
            raise UserError(f"workers is {workers}, but it must be 0 or more.")
        self.size, self.timeout = workers, timeout
        self._workers: list[Worker] = []
        self._resources = Resources()

    @abstractmethod
    def start(self, resources: Resources) -> Worker:
        """A new worker with so much to itself; it may take its time to come up."""

    @abstractmethod
    def ready(self, workers: Sequence[Worker], seconds: float) -> list[Worker]:
        """Those of the workers that have something to say, after at most so many seconds."""

    def prepare(self, raw: str, data: str) -> None:  # noqa: B027
        """Make sure that workers can read `raw` and write to `data`, before any work. Raises UserError.

        Workers on this machine can.
        """

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers):
            self._drop(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], resources: Resources | None = None
    ) -> Iterator[Result]:
        """One result an input, as they are finished.

        function: importable (it is sent to other processes), and so are its argument and its result. items: a deque is
        worked off itself, and may be added to whenever a result has come.
        Raises OSError when the disk is full (no input is to blame), UserError when no worker can start.
        """
        items = items if isinstance(items, deque) else deque(items)
        again: deque[Any] = deque()
        resources = resources or Resources()
        if resources != self._resources:
            Engine.close(self)
            self._resources = resources
        deaths = 0
        try:
            while items or again or self._in("busy"):
                self._hand_out(function, items, again)
                for worker in self.ready(self._in("starting", "busy"), _POLL):
                    began = worker.state == "busy"
                    try:
                        answer = worker.receive()
                    except Died as death:
                        self._drop(worker)
                        log.warning("a worker died (%s)%s", death, f" at {worker.item}" if began else "")
                        deaths = 0 if began else deaths + 1
                        if deaths == _MANY_DEATHS:
                            raise UserError(f"Workers cannot start: {deaths} died at once ({death}).") from None
                        if began and worker.tries < _TRIES:
                            again.append(worker.item)
                        elif began:
                            yield Result(worker.item, error="the process that read it died twice")
                        continue
                    deaths = 0
                    if began and answer is None:
                        worker.since = time.monotonic()
                        continue
                    worker.state = "idle"
                    if answer is not None:
                        result = _unpack(worker.item, answer)
                        if not began:
                            raise UserError(str(result.error))
                        yield result
                for worker in self._in("busy"):
                    if time.monotonic() - worker.since > self.timeout:
                        self._drop(worker)
                        yield Result(worker.item, error=f"took longer than {self.timeout:g} s")
        finally:
            for worker in self._in("busy"):
                self._drop(worker)

    def _hand_out(self, function: Callable[[Any], Any], items: deque[Any], again: deque[Any]) -> None:
        """As many workers as there is work for, and an input for each that is idle; those that are tried again last."""
        waiting = len(items) + len(again) + len(self._in("busy"))
        wanted = min(max(1, self.size // self._resources.cpus), waiting)
        while len(self._workers) < wanted:
            self._workers.append(self.start(self._resources))
        for worker in self._in("idle"):
            if items:
                worker.give(function, items.popleft(), 1)
            elif again:
                worker.give(function, again.popleft(), _TRIES)

    def _in(self, *states: str) -> list[Worker]:
        return [worker for worker in self._workers if worker.state in states]

    def _drop(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.close()


class Processes(Engine):
    """Processes of one thread on this machine; 0 of them: everything is called here. They are given no GPU to
    themselves: stages that want one share them all.

    begin: called in every process before it is given an input, with the process's number (0, 1, …; one that takes the
    place of another has its number). That it dies or fails is no input's fault.
    """

    def __init__(self, workers: int, timeout: float = 3600.0, begin: Callable[[int], object] | None = None) -> None:
        super().__init__(workers, timeout)
        self.begin = begin

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], resources: Resources | None = None
    ) -> Iterator[Result]:
        """As in `Engine`."""
        if self.size:
            yield from super().map(function, items, resources)
            return
        items = items if isinstance(items, deque) else deque(items)
        while items:
            item = items.popleft()
            yield _unpack(item, call(function, item))

    def start(self, resources: Resources) -> Worker:
        taken = {worker.number for worker in self._workers if isinstance(worker, _Process)}
        return _Process(min({*range(self.size)} - taken), self.begin)

    def ready(self, workers: Sequence[Worker], seconds: float) -> list[Worker]:
        found = set(wait([w.pipe for w in workers if isinstance(w, _Process)], timeout=seconds))
        return [w for w in workers if isinstance(w, _Process) and w.pipe in found]


class _Process(Worker):
    """A process with a pipe of its own."""

    def __init__(self, number: int, begin: Callable[[int], object] | None) -> None:
        super().__init__()
        self.number = number
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, number, begin), daemon=True)
        self.process.start()
        other.close()

    def send(self, function: Callable[[Any], Any], item: Any) -> None:
        self.since = float("inf")  # until it says that it has begun: importing the function is not the input's fault
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((function, item))

    def receive(self) -> Answer | None:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            raise Died(f"signal {-code}" if code is not None and code < 0 else f"exit code {code}") from None

    def close(self) -> None:
        self.pipe.close()
        if self.state == "idle":
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def call(function: Callable[[Any], Any], item: Any) -> Answer:
    """One call. Anything an input can cause becomes a sentence."""
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


def _unpack(item: Any, answer: Answer) -> Result:
    value, error, disk = answer
    if disk is not None:
        raise disk
    return Result(item, value, error)


def one_thread() -> None:
    """Have the libraries of this process compute in one thread: workers are many."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.suppress(ModuleNotFoundError):
        import cv2

        cv2.setNumThreads(1)


def _serve(pipe: Connection, number: int, begin: Callable[[int], object] | None) -> None:
    """The life of a worker: until the other end of the pipe is gone."""
    one_thread()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        _, error, disk = call(begin, number) if begin else (None, None, None)
        pipe.send((None, error, disk) if error or disk else None)
        while True:
            function, item = pipe.recv()
            pipe.send(None)
            pipe.send(call(function, item))


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even in the middle of an input."""
    while os.getppid() == parent:
        time.sleep(_POLL)
    os._exit(1)
