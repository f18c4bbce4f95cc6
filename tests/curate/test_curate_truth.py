"""The benchmark of curation against planted truth, in small: one command, one table, nothing planted goes unseen."""

from pathlib import Path

import pytest

from benchmarks.curate_truth import COPIES, copy_name, originals, run, table, write_copies
from openhunyuan.tiny.raw import write_raw_footage

KINDS = ("static", "blur", "subtitles", "logo", "letterbox", "low_contrast", "near_duplicate")


@pytest.mark.slow
def test_what_is_planted_is_found(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    truth = write_raw_footage(raw / "a.mp4", seed=21, duration_s=38.0, defects=KINDS, split="any")
    chosen = originals(truth, 1)
    write_copies(raw / "a.mp4", truth, chosen)
    assert all(copy_name(raw / "a.mp4", chosen[0], copy).is_file() for copy in COPIES)
    lines = {line.what: line for line in run(tmp_path)}
    assert all(lines[name].planted for name in ("hard cuts", "blur", "border", "subtitle", "duplicates"))
    missed = {name: line.recall for name, line in lines.items() if line.planted and line.recall < 1.0}
    assert missed == {}
    assert lines["duplicates"].false_alarms <= 0.02
    assert all(line.false_alarms <= 0.25 for line in lines.values())
    assert table(list(lines.values())).count("\n") == len(lines) + 1
