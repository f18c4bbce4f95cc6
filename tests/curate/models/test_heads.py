"""Sizes of heads by detectors from local folders."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.measures.measure import ClipSpan, View
from openhunyuan.curate.models.heads import HeadDetector
from tests.curate.measures.test_measures import Shown
from tests.curate.models import folders


def row_of(measure: HeadDetector) -> tuple[dict, list]:
    clip, frames = ClipSpan("x", 0, 48, 24.0), folders.frames(48, 90, 120)
    reader = measure.begin(clip)
    for number, pixels in enumerate(frames):
        shown = Shown(number, pixels)
        shown.media = SimpleNamespace(height=90)  # pyright: ignore[reportAttributeAccessIssue]
        if clip.wants(number):
            reader.add(View(shown, clip))  # type: ignore[arg-type]
    return reader.finish(), [frames[n] for n in range(0, 48, 8)]


def test_a_folder_gives_the_row_of_a_shot_scale(tmp_path: Path) -> None:
    folder = folders.detector(tmp_path / "heads", {0: "person", 1: "Human face", 2: "cat"})
    measure = HeadDetector(path=str(folder), sure=0.0, device="cpu", batch=2)
    assert list(measure.model.names.values()) == ["Human face"]
    row, shown = row_of(measure)
    assert row["lasts"] >= 0.6 and row["head_low"] <= row["head"] <= row["head_high"]
    boxes = [box for _, _, box in measure.model.surest(shown)]
    tall = [1.25 * 90 * (box[3] - box[1]) for box in boxes]
    assert min(tall) - 1e-4 <= row["head"] <= max(tall) + 1e-4
    assert row_of(HeadDetector(path=str(folder), sure=1.0, device="cpu"))[0]["head"] is None


def test_a_detector_of_persons_is_refused(tmp_path: Path) -> None:
    folder = folders.detector(tmp_path / "persons", {0: "person", 1: "dog"})
    with pytest.raises(UserError, match="nothing called face or head"):
        HeadDetector(path=str(folder)).check()
