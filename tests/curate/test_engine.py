"""Workers that die, hang or fail cost one input each, and nothing else."""

import errno
import os
import signal
import time

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.engine import Pool


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


def test_every_input_has_one_result_and_the_poison_is_named() -> None:
    items = ["a", "dies", "b", "bad", "hangs", "c", "bug"]
    results = {r.item: r for r in Pool(work, workers=1, timeout=2.0).map(items)}
    assert set(results) == set(items)
    assert {i: r.value for i, r in results.items() if r.error is None} == {"a": "A", "b": "B", "c": "C"}
    assert results["dies"].error == "the process that read it died (signal 9)"
    assert results["bad"].error == "this one is bad"
    assert "KeyError" in str(results["bug"].error)
    assert "longer than 2 s" in str(results["hangs"].error)


def test_without_processes_the_answers_are_the_same() -> None:
    results = list(Pool(work, workers=0).map(["a", "bad"]))
    assert [(r.value, r.error) for r in results] == [("A", None), (None, "this one is bad")]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_stops_the_run_and_blames_no_input(workers: int) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        list(Pool(work, workers).map(["a", "full"]))
    assert caught.value.errno == errno.ENOSPC
