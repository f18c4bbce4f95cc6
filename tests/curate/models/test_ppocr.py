"""PP-OCR's detectors: lines from maps of chances, and a folder that `transformers` opens."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers import PPOCRV5MobileDetForObjectDetection

from openhunyuan.base.errors import UserError
from openhunyuan.curate.models.ppocr import Finder, Limits, PPOcr, text_boxes
from tests.curate.measures.test_measures import measured
from tests.curate.models import folders


def test_lines_are_widened_by_area_over_circumference() -> None:
    chances = np.zeros((96, 200), np.float32)
    chances[20:31, 40:101] = 0.9  # the outline is 60 × 10
    chances[50:61, 40:101] = 0.5  # not sure enough
    chances[80:82, 10:190] = 0.9  # too thin
    ((left, top, right, bottom),) = text_boxes(chances, 0.3, 0.6, 1.5)
    more = 1.5 * 60 * 10 / (2 * (60 + 10))
    np.testing.assert_allclose(
        [left * 200, top * 96, right * 200, bottom * 96], [40 - more, 20 - more, 100 + more, 30 + more], atol=0.01
    )


def test_boxes_are_those_that_the_library_gives() -> None:
    """The wanted numbers are of the processor of transformers 5.23 (whole pixels), for slanted and soft lines too."""
    chances = np.zeros((192, 320), np.float32)
    lines = ((80, 40, 90, 14, 0, 0.9), (220, 60, 60, 20, 12, 0.85), (160, 150, 200, 18, 0, 0.95))
    for x, y, w, h, angle, chance in (*lines, (30, 120, 20, 6, 0, 0.5), (280, 120, 30, 10, -30, 0.8)):
        cv2.fillPoly(chances, [cv2.boxPoints(((x, y), (w, h), angle)).astype(np.int32)], chance)
    found = sorted(text_boxes(cv2.GaussianBlur(chances, (5, 5), 0), 0.3, 0.6, 1.5))
    wanted = [(26, 24, 134, 56), (48, 129, 272, 171), (173, 28, 266, 91), (255, 99, 304, 141)]
    np.testing.assert_allclose(np.array(found) * [320, 192, 320, 192], wanted, atol=1.0)


def test_pictures_are_prepared_as_published() -> None:
    assert Limits().size(1080, 1920) == (544, 960)
    assert Limits().size(31, 2000) == (32, 960)
    assert Limits(side=736, kind="min").size(360, 640) == (736, 1312)
    red = np.zeros((32, 64, 3), np.uint8)
    red[..., 0] = 255
    prepared = Limits()(red)  # blue, green, red, each less its own mean
    np.testing.assert_allclose(
        prepared[:, 0, 0].numpy(), [-0.485 / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225], rtol=1e-5
    )


def test_a_folder_gives_the_librarys_chances(tmp_path: Path) -> None:
    folder = folders.ppocr(tmp_path / "det")
    shown = list(folders.frames(3, 64, 96))
    finder = PPOcr(path=str(folder)).load()
    model = PPOCRV5MobileDetForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(pixel_values=torch.stack([Limits()(frame) for frame in shown])).last_hidden_state[:, 0]
    np.testing.assert_allclose(finder.chances(shown), wanted.numpy(), atol=1e-6)
    assert finder.chances(shown).shape == (3, 64, 96)


def test_subtitles_and_other_lines_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.ppocr(tmp_path / "det")
    maps = np.zeros((3, 64, 128), np.float32)
    maps[1:, 50:56, 34:95] = 1.0  # centred, low
    maps[2, 5:11, 4:45] = 1.0
    calls: list[int] = []

    def chances(self: Finder, frames: list[np.ndarray]) -> np.ndarray:
        calls.append(len(frames))
        return maps[sum(calls[:-1]) :][: len(frames)]

    monkeypatch.setattr(Finder, "chances", chances)
    row = measured(PPOcr(path=str(folder), batch=2, device="cpu"), folders.frames(56, 64, 128))  # a look a second
    assert calls == [2, 1]
    assert row["lines"] == 2 and len(row["boxes"]) == 3 * 4
    assert row["subtitle_top"] == pytest.approx((50 - 1.5 * 60 * 5 / 130) / 64, abs=0.01)
    assert 0 < row["other_share"] < row["share"] < 0.3
    maps[:] = 0
    calls.clear()
    empty = measured(PPOcr(path=str(folder), batch=2, device="cpu"), folders.frames(30, 64, 128))
    assert (empty["share"], empty["subtitle_top"], empty["boxes"]) == (0.0, 1.0, [])


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no PP-OCR text detector: Unknown model type siglip"):
        PPOcr(path=str(folders.siglip(tmp_path / "tower"))).check()
