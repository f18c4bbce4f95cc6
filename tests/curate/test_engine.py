"""Workers that die, hang or fail cost one input each, and nothing else, wherever they live."""

import errno
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.engine import Died, Engine, Processes, Worker
from openhunyuan.curate.stage import Resources, together
from tests.curate.conftest import OpenEngine
from tests.curate.processes import in_a_process, is_alive


def work(item: str) -> str:
    if item == "bad":
        raise UserError("this one is bad")
    if item == "bug":
        raise KeyError("oops")
    if item == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hangs":
        time.sleep(60)
    if item == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    return item.upper()


def dies_once(path: str) -> str:
    """As a process that was killed for lack of memory, while others used it up."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "came through"


def remember(path: str) -> None:
    """Writes down who works, and then is at it for long."""
    Path(path + ".part").write_text(str(os.getpid()))
    os.replace(path + ".part", path)
    time.sleep(300)


def test_every_input_has_one_result_and_the_poison_is_named(open_engine: OpenEngine) -> None:
    items = ["a", "dies", "b", "bad", "hangs", "c", "bug"]
    with open_engine(2, 60.0) as engine:
        assert [r.error for r in engine.map(work, ["w", "w"])] == [None, None]  # they are up: from here on time counts
        engine.timeout = 4.0
        results = {r.item: r for r in engine.map(work, items)}
        assert set(results) == set(items)
        assert {i: r.value for i, r in results.items() if r.error is None} == {"a": "A", "b": "B", "c": "C"}
        assert results["dies"].error == "the process that read it died twice"
        assert results["bad"].error == "this one is bad"
        assert "KeyError" in str(results["bug"].error)
        assert "longer than 4 s" in str(results["hangs"].error)
        assert [r.value for r in engine.map(work, ["d"])] == ["D"], "the workers serve the next step"


def test_what_dies_by_accident_is_tried_again(tmp_path: Path, open_engine: OpenEngine) -> None:
    with open_engine(1, 60.0) as engine:
        (result,) = engine.map(dies_once, [str(tmp_path / "was here")])
    assert (result.value, result.error) == ("came through", None)


def test_a_full_disk_stops_the_run_and_blames_no_input(open_engine: OpenEngine) -> None:
    with open_engine(1, 60.0) as engine:
        with pytest.raises(OSError, match="No space") as caught:
            list(engine.map(work, ["a", "full"]))
        assert caught.value.errno == errno.ENOSPC


def test_without_processes_the_answers_are_the_same() -> None:
    engine = Processes(0)
    assert [(r.value, r.error) for r in engine.map(work, ["a", "bad"])] == [("A", None), (None, "this one is bad")]
    with pytest.raises(OSError, match="No space"):
        list(engine.map(work, ["full"]))
    with pytest.raises(UserError, match="0 or more"):
        Processes(-1)


def begins(folder: str, number: int) -> None:
    Path(folder, f"{number}.{os.getpid()}").touch()
    if not Path(folder, "good").exists():
        raise UserError("nothing to begin with")


def test_processes_begin_with_their_number_and_say_why_they_cannot(tmp_path: Path) -> None:
    with (
        Processes(1, begin=partial(begins, str(tmp_path))) as engine,
        pytest.raises(UserError, match="nothing to begin"),
    ):
        list(engine.map(work, ["a"]))
    (tmp_path / "good").touch()
    with Processes(1, begin=partial(begins, str(tmp_path))) as engine:
        assert [r.error is None for r in engine.map(work, ["dies", "a"])] == [True, False]
    assert len([*tmp_path.glob("0.*")]) == 3  # one that could not, and two that died


@pytest.mark.parametrize("workers", [0, 1])
def test_inputs_may_be_added_when_a_result_has_come(workers: int) -> None:
    items = deque(["a", "b"])
    found = []
    with Processes(workers) as engine:
        for result in engine.map(work, items):
            found.append(result.value)
            if result.item == "a":
                items.appendleft("c")
    assert found in (["A", "C", "B"], ["A", "B", "C"])  # a worker may have been given the next one before


class Broken(Worker):
    """A worker that never comes up."""

    def send(self, function: object, item: object) -> None: ...

    def close(self) -> None: ...

    def receive(self) -> None:
        raise Died("exit code 1")


class BrokenEngine(Engine):
    def start(self, resources: Resources) -> Worker:
        return Broken()

    def ready(self, workers: Sequence[Worker], seconds: float) -> list[Worker]:
        return list(workers)


def test_workers_that_cannot_start_are_not_the_inputs_fault() -> None:
    with pytest.raises(UserError, match=r"Workers cannot start: 3 died at once \(exit code 1\)"):
        list(BrokenEngine(2).map(work, ["a", "b"]))


def test_a_stage_that_needs_more_cores_has_fewer_workers() -> None:
    started: list[Resources] = []

    class Counting(BrokenEngine):
        def start(self, resources: Resources) -> Worker:
            started.append(resources)
            return Broken()

    with pytest.raises(UserError):
        list(Counting(4).map(work, range(9), together([Resources(1, 0), Resources(3, 1)])))
    assert started[0] == Resources(3, 1)
    assert len(started) == 3, "one at a time: four cores have room for one"


KILLED = """
import os, signal, sys, threading, time
from openhunyuan.curate.engine import Processes
from tests.curate.test_engine import remember

def kill_myself():
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill_myself, daemon=True).start()
list(Processes(1).map(remember, [sys.argv[1]]))
"""


def test_a_worker_ends_in_the_middle_of_its_work_when_its_run_is_killed(tmp_path: Path) -> None:
    assert in_a_process(KILLED, tmp_path / "pid").returncode == -9
    until = time.monotonic() + 60
    while is_alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < until, "the worker goes on without its run"
        time.sleep(0.1)
