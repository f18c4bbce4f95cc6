"""A run as a whole: what is known is not computed again, what changed is, and nothing vanishes."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate import run as module
from openhunyuan.curate.clip import read_manifest
from openhunyuan.curate.decide import Filter
from openhunyuan.curate.measures.clear_start import ClearStart
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.measures.strip import Strip
from openhunyuan.curate.report import write_report
from openhunyuan.curate.run import Plan, curate, find_videos, read_clips
from openhunyuan.curate.split import Split
from tests.curate.films import save, shot

MOVING = Filter(name="motion", score="motion.speed", at_least=0.5, reason="hardly moves")
PLAN = Plan(measures=(ClearStart(), Motion(), Quality(), Strip()), filters=(MOVING,))


def still(seed: int, count: int) -> np.ndarray:
    return np.repeat(shot(seed, 1), count, axis=0)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    save(folder / "a.mp4", shot(1, 24), still(2, 20))
    save(folder / "sub/ü b.mp4", shot(3, 20))
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the steps run, by name."""
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        function = getattr(module, name)

        def wrapped(*args: object) -> object:
            calls[name] += 1
            return function(*args)

        monkeypatch.setattr(module, name, wrapped)

    for name in ("_hash", "_find_shots", "analyse", "_cut"):
        count(name)
    return calls


def test_nothing_vanishes(raw: Path, tmp_path: Path) -> None:
    result = curate(raw, tmp_path / "data", PLAN)
    clips = read_clips(tmp_path / "data")
    assert clips == list(result.clips)
    assert [(Path(c.source).name, c.start_frame, c.end_frame) for c in clips] == [
        ("a.mp4", 0, 24),
        ("a.mp4", 24, 44),
        ("ü b.mp4", 0, 20),
    ]
    dropped = clips[1].dropped
    assert dropped is not None
    assert (dropped.stage, dropped.reason) == ("motion", "hardly moves")
    assert dropped.score is not None
    assert dropped.score < 0.5
    for clip in result.kept:
        assert clip.path is not None
        assert (tmp_path / "data" / clip.path).is_file()
        assert clip.decisions[0].passed
        assert clip.scores["motion.speed"] == clip.decisions[0].value or clip.decisions[0].value is not None
    drops = [json.loads(line) for line in (tmp_path / "data/drops.jsonl").read_text().splitlines()]
    assert [d["clip"] for d in drops] == [clips[1].id]
    rows = json.loads((tmp_path / "data/funnel.json").read_text())
    funnel = {row["stage"]: (row["seen"], row["kept"]) for row in rows}
    assert funnel == {"split": (3, 3), "measured": (3, 3), "motion": (3, 2), "cut": (2, 2)}


def test_a_second_run_computes_nothing_and_gives_the_same(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    curate(raw, tmp_path / "data", PLAN)
    before = (tmp_path / "data/manifest.jsonl").read_bytes()
    assert counted == {"_hash": 2, "_find_shots": 2, "analyse": 2, "_cut": 2}
    counted.clear()
    curate(raw, tmp_path / "data", PLAN)
    assert counted == {}
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == before


def test_a_changed_threshold_decides_anew_without_measuring(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    curate(raw, tmp_path / "data", PLAN)
    counted.clear()
    softer = replace(PLAN, filters=(MOVING.model_copy(update={"at_least": 0.0}),))
    assert len(curate(raw, tmp_path / "data", softer).kept) == 3
    assert counted == {"_cut": 1}, "only the clip that was let in is cut"


def test_a_changed_parameter_runs_its_own_stage_again(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    curate(raw, tmp_path / "data", PLAN)
    counted.clear()
    changed = replace(PLAN, measures=(ClearStart(share=0.5), *PLAN.measures[1:]))
    curate(raw, tmp_path / "data", changed)
    assert counted["analyse"] == 2
    assert counted["_find_shots"] == counted["_hash"] == 0
    tables = list((tmp_path / "data/tables/motion").iterdir())
    assert len(list(tables[0].glob("*.parquet"))) == 2, "motion was not written again"


def test_a_changed_file_is_noticed_and_a_renamed_one_costs_nothing(
    raw: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    first = curate(raw, tmp_path / "data", PLAN)
    counted.clear()
    save(raw / "a.mp4", shot(7, 24))
    (raw / "sub/ü b.mp4").rename(raw / "z.mp4")
    second = curate(raw, tmp_path / "data", PLAN)
    assert counted == {"_hash": 2, "_find_shots": 1, "analyse": 1, "_cut": 1}
    assert second.clips[0].id != first.clips[0].id
    assert second.clips[-1].id == first.clips[-1].id


def test_the_same_bytes_under_two_names_are_one_source(raw: Path, tmp_path: Path) -> None:
    shutil.copy(raw / "a.mp4", raw / "copy.mp4")
    result = curate(raw, tmp_path / "data", PLAN)
    assert (result.sources, result.repeated, len(result.clips)) == (3, 1, 3)


def test_a_lost_clip_file_is_made_again(raw: Path, tmp_path: Path) -> None:
    result = curate(raw, tmp_path / "data", PLAN)
    path = tmp_path / "data" / str(result.kept[0].path)
    before = path.read_bytes()
    path.unlink()
    curate(raw, tmp_path / "data", PLAN)
    assert path.read_bytes() == before


def test_poison_is_quarantined_counted_and_not_read_again(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    (raw / "empty.mp4").write_bytes(b"")
    (raw / "text.mp4").write_text("not a video")
    whole = (raw / "a.mp4").read_bytes()
    (raw / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    save(raw / "one-frame.mp4", shot(5, 1))
    result = curate(raw, tmp_path / "data", PLAN)
    names = {Path(f.source).name for f in result.failures}
    assert names == {"empty.mp4", "text.mp4", "truncated.mp4"}
    assert len(result.kept) == 2
    one = next(c for c in result.clips if Path(c.source).name == "one-frame.mp4")
    assert one.dropped is not None
    assert one.dropped.stage == "split"
    lines = (tmp_path / "data/quarantine.jsonl").read_text().splitlines()
    assert {Path(json.loads(line)["source"]).name for line in lines} == names
    counted.clear()
    assert len(curate(raw, tmp_path / "data", PLAN).failures) == 3
    assert counted == {}
    curate(raw, tmp_path / "data", PLAN, retry=True)
    assert counted["_find_shots"] == 3


def test_no_clip_is_an_error_after_everything_is_written(tmp_path: Path) -> None:
    save(tmp_path / "raw/a.mp4", still(1, 30))
    with pytest.raises(UserError, match=r"No clip was kept of 1 videos.*motion"):
        curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert len(read_clips(tmp_path / "data")) == 1
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="unreadable"):
        curate(tmp_path / "bad", tmp_path / "other", PLAN)
    with pytest.raises(UserError, match="No video"):
        find_videos(tmp_path / "data")


def test_a_folder_that_cannot_be_read_is_reported(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path):  # noqa: ANN001, ANN202
        if not isinstance(path, int) and Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = curate(raw, tmp_path / "data", PLAN)
    assert [(Path(f.source).name, f.stage) for f in result.failures] == [("sub", "find")]


KILLED = """
import os, signal, sys
from tests.curate.test_run import PLAN
from openhunyuan.curate.run import curate
def progress(step, done, total):
    if step == sys.argv[3] and done == 1:
        os.kill(os.getpid(), signal.SIGKILL)
curate(sys.argv[1], sys.argv[2], PLAN, on_progress=progress)
"""


@pytest.mark.parametrize("step", ["shots", "measuring", "cutting"])
def test_a_killed_run_loses_only_what_it_was_at(raw: Path, tmp_path: Path, counted: Counter[str], step: str) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(raw), str(tmp_path / "data"), step], env=environment, check=False
    )
    assert killed.returncode == -9
    curate(raw, tmp_path / "data", PLAN)
    done = {"shots": "_find_shots", "measuring": "analyse", "cutting": "_cut"}[step]
    assert counted[done] == 1, "the first of two was kept"
    curate(raw, tmp_path / "whole", PLAN)
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == (tmp_path / "whole/manifest.jsonl").read_bytes()


def test_processes_give_the_same_manifest(raw: Path, tmp_path: Path) -> None:
    (raw / "text.mp4").write_text("not a video")
    for name, workers in (("here", 0), ("there", 1)):
        curate(raw, tmp_path / name, PLAN, workers=workers)
    for name in ("manifest.jsonl", "quarantine.jsonl", "funnel.json", "run.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_plan_has_each_measure_once() -> None:
    with pytest.raises(UserError, match="once"):
        Plan(measures=(Motion(), Motion(method="h264")))
    with pytest.raises(UserError):
        Split(max_seconds=0)


def test_the_report_shows_what_was_dropped_and_why(raw: Path, tmp_path: Path) -> None:
    (raw / "<text>.mp4").write_text("not a video")
    curate(raw, tmp_path / "data", PLAN)
    page = write_report(tmp_path / "data").read_text()
    assert "Dropped by motion" in page
    assert "hardly moves" in page
    assert page.count("<img") == 3
    assert "<b>motion.speed</b> <span class='muted'>1 of 3 fail; median" in page
    assert "hardly moves (" in page and ", at least 0.5" in page
    assert "&lt;text&gt;.mp4" in page
    assert "<text>" not in page
    with pytest.raises(UserError, match="holds no"):
        write_report(tmp_path)


def test_the_manifest_reads_back(raw: Path, tmp_path: Path) -> None:
    curate(raw, tmp_path / "data", Plan())
    path = tmp_path / "data/manifest.jsonl"
    assert len(read_manifest(path)) == 3
    path.write_text(path.read_text() + '{"id": 3}\n')
    with pytest.raises(UserError, match="Line 4"):
        read_manifest(path)
