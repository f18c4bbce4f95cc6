"""Lab against scikit-image, and names with a reject radius."""

from __future__ import annotations

import numpy as np
import pytest

from openhunyuan.evals.alignment import SUBJECT_RADIUS
from openhunyuan.evals.background import name_background_colour
from openhunyuan.evals.colour import lab_to_rgb, name_colour, rgb_to_lab
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, COLORS


def test_lab_is_scikit_images() -> None:
    color = pytest.importorskip("skimage.color", reason="scikit-image (extra 'train') is not installed")
    rgb = np.random.default_rng(0).integers(0, 256, (50, 3))
    assert np.abs(rgb_to_lab(rgb) - color.rgb2lab(rgb / 255.0)).max() < 0.02


def test_lab_and_back() -> None:
    rgb = np.random.default_rng(1).uniform(0, 255, (50, 3))
    assert np.abs(lab_to_rgb(rgb_to_lab(rgb)) - rgb).max() < 1e-3


def test_palette_colours_and_small_shifts_keep_their_names() -> None:
    rng = np.random.default_rng(2)
    for name, rgb in COLORS.items():
        for shift in rng.uniform(-10, 10, (50, 3)):
            assert name_colour(np.clip(rgb + shift, 0, 255), COLORS, SUBJECT_RADIUS) == name


def test_greys_and_half_way_colours_have_no_name() -> None:
    for level in range(0, 200, 10):
        assert name_colour(np.full(3, level), COLORS, SUBJECT_RADIUS) is None
    middle = (np.array(COLORS["red"]) + np.array(COLORS["orange"])) / 2
    assert name_colour(middle, COLORS, SUBJECT_RADIUS) is None


def test_background_colours_are_named_and_subject_colours_are_not() -> None:
    rng = np.random.default_rng(3)
    for name, rgb in BACKGROUND_COLORS.items():
        for shift in rng.uniform(-10, 10, (20, 3)):
            assert name_background_colour(np.clip(rgb + shift, 0, 255)) == name
    assert [name_background_colour(np.array(rgb)) for rgb in COLORS.values()] == [None] * len(COLORS)
