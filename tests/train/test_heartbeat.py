import json
import time

import pytest
import torch

from openhunyuan.train.heartbeat import Beat, Heartbeat, forget_beats, probe, read_beats, rows, standings
from openhunyuan.train.report import write_report

CPU = torch.device("cpu")


def beat(rank, **changes):
    values = {
        "rank": rank, "host": "h", "pid": 1, "restarts": 0, "time": 100.0, "next": 130.0, "step": 5, "total_steps": 9,
        "doing": "training", "last_step": 2.0, "median_step": 2.0, "data_wait": 0.1, "probe": 0.01,
    }  # fmt: skip
    return Beat(**values | changes)


def test_a_process_says_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    heart = Heartbeat(tmp_path, 40, every=1000.0, device=CPU, rank=3)
    before = time.time()
    for step, seconds in enumerate((5.0, 1.0, 1.0), start=1):
        heart.step(step, seconds, 0.25)
    (first,) = read_beats(tmp_path)
    assert (first.rank, first.step, first.restarts, first.last_step) == (3, 1, 2, 5.0)  # the later ones are not due
    assert before <= first.time <= time.time() and first.next == pytest.approx(first.time + 3000)
    heart.say(3, "saving")
    (second,) = read_beats(tmp_path)
    assert (second.step, second.doing, second.median_step, second.data_wait) == (3, "saving", 1.0, 0.25)
    heart.step(4, 1.0, 0.25)
    assert read_beats(tmp_path)[0].doing == "training"  # back at work, whatever is due
    assert [path.name for path in (tmp_path / "heartbeats").iterdir()] == ["rank_00003.json"]
    forget_beats(tmp_path)
    assert read_beats(tmp_path) == []
    Heartbeat(tmp_path, 40, every=0.0, device=CPU).step(1, 1.0, 0.0)
    assert read_beats(tmp_path) == []


def test_who_is_silent_and_who_is_waited_for():
    def notes(*beats, now=110.0):
        return [standing.note for standing in standings(beats, now)]

    assert notes(beat(0), beat(1), beat(2)) == ["", "", ""]
    assert notes(beat(0), beat(1, next=105.0), beat(2, doing="ended", next=0.0)) == ["", "silent", ""]
    assert notes(beat(0), beat(1, data_wait=0.5), beat(2)) == ["", "slowest: data", ""]
    assert notes(beat(0), beat(1, data_wait=0.25), beat(2)) == ["", "", ""]  # within a tenth of a step
    assert notes(beat(0), beat(1), beat(2, probe=0.015, data_wait=0.4)) == ["", "", "slowest: compute"]
    assert notes(beat(0, probe=0.02), beat(1)) == ["slowest: compute", ""]  # of two, the faster one is usual
    assert notes(beat(0, data_wait=1.9)) == [""]  # alone, nobody waits
    assert notes(beat(0, median_step=None, data_wait=None, probe=None), beat(1, restarts=1)) == ["", "restarted 1x"]
    (row,) = rows(standings([beat(7, last_step=None)], 104.0))
    assert row == ("7", "h", "1", "5/9", "training", "4 s ago", "–", "2 s", "0.1 s", "0.01 s", "")


def test_the_report_has_the_table(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"train": {"name": "n", "stages": [{"steps": 9}]}}))
    (tmp_path / "heartbeats").mkdir()
    for rank in range(3):
        value = beat(rank, host="<host>", data_wait=1.0 if rank == 1 else 0.1)
        (tmp_path / "heartbeats" / f"rank_{rank:05d}.json").write_text(value.model_dump_json())
    (tmp_path / "heartbeats" / "rank_00009.json").write_text('{"of": "another version"}')
    page = write_report(tmp_path).read_text()
    assert page.count("&lt;host&gt;") == 3 and page.count("slowest: data") == 1 and page.count("silent") == 3


def test_the_probe_is_a_time_and_leaves_random_numbers_alone():
    torch.manual_seed(3)
    wanted = torch.randn(1)
    torch.manual_seed(3)
    assert 0 < probe(CPU) < 10
    assert torch.equal(torch.randn(1), wanted)
