"""Marks that are drawn and pasted, and the clips that carry them."""

import numpy as np
import pytest

from openhunyuan.recipes.watermark import make_pairs, targets
from openhunyuan.tiny.marks import Mark, MarkedClip, draw_mark, marked_clip, paste, place


def test_marks_are_small_lie_inside_and_hide_something() -> None:
    rng = np.random.default_rng(1)
    near_a_corner = 0
    for _ in range(60):
        mark = draw_mark(rng, 180, 320)
        h, w = mark.cover.shape
        assert mark.levels.shape == (h, w, 3)
        assert 0.1 < mark.cover.max() <= 1.0
        assert mark.cover.min() >= 0
        left, top = place(rng, mark, 180, 320)
        assert left >= 0 and top >= 0 and left + w <= 321 and top + h <= 181
        near_a_corner += min(left, 320 - left - w) < 40 and min(top, 180 - top - h) < 40
    assert near_a_corner > 25


def test_pasting_mixes_by_cover_and_stays_inside() -> None:
    frames = np.full((2, 20, 30, 3), 100, np.uint8)
    paste(frames, Mark(np.full((6, 8, 3), 200, np.uint8), np.full((6, 8), 0.5, np.float32)), 26, -2)
    assert (frames[:, :4, 26:] == 150).all()
    assert (frames[:, 4:] == 100).all()
    assert (frames[:, :, :26] == 100).all()
    paste(frames, Mark(np.zeros((3, 3, 3), np.uint8), np.ones((3, 3), np.float32)), 40, 40)


def test_clips_are_the_same_for_the_same_seed_and_marks_stay() -> None:
    clips = [marked_clip(np.random.default_rng([3, n]), 128, []) for n in range(16)]
    again = marked_clip(np.random.default_rng([3, 5]), 128, [])
    assert np.array_equal(again.frames, clips[5].frames)
    marked = [clip for clip in clips if clip.cover.max() > 0]
    assert 3 < len(marked) < 14
    for clip in clips:
        assert clip.frames.shape[1:] == (128, 128, 3)
        left, top, right, bottom = clip.box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def test_targets_leave_out_the_rim_of_a_mark() -> None:
    cover = np.zeros((64, 64), np.float32)
    cover[16:32, 16:40] = 0.6
    cover[32, 16:40] = 0.6  # one row of the next cells: too little to be a mark's, too much to be none
    wanted, weight = targets(MarkedClip(np.zeros((1, 64, 64, 3), np.uint8), (0, 0, 1, 1), cover))
    assert wanted.sum() == 2 * 3 + 3
    assert (weight[wanted == 1] == 1).all()
    assert weight[1, 1] == 0  # beside the mark
    assert weight[7, 7] == 1


def test_pairs_are_features_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    inputs, wanted = make_pairs(0, 6, 128, worlds=1)
    assert "6/6" in capsys.readouterr().err, "thousands take minutes"
    assert inputs.shape == (6, 8, 128, 128)
    assert inputs.dtype == np.int8
    assert wanted.shape == (6, 2, 16, 16)
    assert set(np.unique(wanted)) <= {0.0, 1.0}
    other, _ = make_pairs(0, 6, 128, worlds=1)
    assert np.array_equal(other, inputs)


@pytest.mark.parametrize("kind", range(4))
def test_a_mark_near_the_side_of_a_narrow_picture_is_inside_the_crop(kind: int) -> None:
    clip = marked_clip(np.random.default_rng([11, kind]), 128, [])
    assert clip.cover.shape == (128, 128)
    assert float(clip.cover.max()) <= 1.0
