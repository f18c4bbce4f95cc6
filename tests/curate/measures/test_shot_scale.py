"""Shot scales: what a clip's heads say, and what they do not."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import write_video
from openhunyuan.caption.tags import shot_word
from openhunyuan.curate.measures import shot_scale
from openhunyuan.curate.measures.shot_scale import Head, ShotScale, scale_row
from openhunyuan.tiny.pictures import photograph


def heads(*sizes: float | None, x: float = 0.5) -> list[Head | None]:
    return [None if size is None else Head(x, 0.4, size, 16 / 9) for size in sizes]


def word(found: list[Head | None], lines: int = 100, shown: int = 100) -> str:
    row = scale_row(found, lines, 0.6)
    return shot_word({f"shot_scale.{name}": value for name, value in row.items() if value is not None}, shown)


def test_the_scale_is_the_size_of_a_head_that_lasts() -> None:
    assert word(heads(*[0.7] * 5)) == "close-up"
    assert word(heads(*[0.5] * 5)) == "medium close-up"
    assert word(heads(*[0.3] * 4, None)) == "medium shot"
    assert word(heads(*[0.2] * 3, None, None)) == "medium full shot"
    assert word(heads(*[0.1] * 5)) == ""  # too small for the detector to be relied on
    assert word(heads(*[0.3] * 5), shown=60) == "medium close-up"  # bars are cropped away


def test_nothing_is_said_of_a_head_that_comes_and_goes_grows_or_is_another() -> None:
    assert word(heads(0.3, 0.3, None, None, None)) == ""
    assert word(heads(*[0.3] * 4)) == ""  # too few looks
    assert word(heads(0.36, 0.4, 0.44, 0.48, 0.5)) == ""  # from one scale to the next
    assert word([*heads(0.3, 0.3, x=0.1), *heads(0.3, 0.3, x=0.9), None]) == ""
    assert word(heads(None, None, None, None, None)) == ""
    assert scale_row([], 100, 0.6)["head"] is None


def film(path: Path, picture: np.ndarray) -> Path:
    write_video(path, np.stack([np.roll(picture, i, axis=1) for i in range(36)]), 24)
    return path


def row_of(path: Path) -> dict:
    from openhunyuan.curate.footage import Footage
    from openhunyuan.curate.measures.measure import ClipSpan, View

    clip = ClipSpan("x", 0, 36, 24.0)
    reader = ShotScale().begin(clip)
    with Footage(path) as footage:
        for frame in footage.frames():
            if clip.wants(frame.number):
                reader.add(View(frame, clip))
    return reader.finish()


def test_a_real_face_is_found_and_a_cup_is_none(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="dlib-bin is not installed (the extra faces)")
    row = row_of(film(tmp_path / "face.mp4", photograph("astronaut")[0:380, 60:440]))
    assert row["lasts"] == 1.0 and 0.24 < row["head"] / 380 < 0.42
    assert row_of(film(tmp_path / "cup.mp4", photograph("coffee")[:380, :380]))["head"] is None


def test_the_largest_sure_face_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def box(left: int, size: int) -> SimpleNamespace:
        return SimpleNamespace(
            left=lambda: left, right=lambda: left + size, top=lambda: 0, bottom=lambda: size, height=lambda: size
        )

    found = [box(0, 100), box(300, 200), box(600, 400)], [1.0, 0.5, 0.1], [0, 0, 0]
    monkeypatch.setattr(shot_scale, "_detector", lambda: SimpleNamespace(run=lambda *_: found))
    head = shot_scale.largest_face(np.zeros((720, 1280, 3), np.uint8), 0.3)
    assert head is not None and head.height == pytest.approx(1.5 * 200 / 720) and head.x == pytest.approx(400 / 1280)


def test_a_missing_detector_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    shot_scale._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match=r"openhunyuan\[faces\]"):
        ShotScale().check()
