"""Blur of known width: kernels measured on a clean step, and training pairs."""

import numpy as np
import pytest

from openhunyuan.tiny.blurs import KINDS, SHARP, blur_pair, blurred, kernel_of


def step_width(kind: str, width: float) -> float:
    """Width of an upright step after the kernel: its height over its steepest slope, in pixels."""
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[:, 48:] = 240
    row = blurred(picture, kernel_of(kind, width, 0.0))[48, :, 0].astype(float)
    return 240 / np.abs(np.diff(row)).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [3.0, 8.0, 20.0])
def test_a_kernel_makes_a_step_as_wide_as_it_says(kind: str, width: float) -> None:
    assert step_width(kind, width) == pytest.approx(width, rel=0.12, abs=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_keep_the_light_and_the_place(kind: str) -> None:
    kernel = kernel_of(kind, 9.0, 1.0)
    weights = kernel.weights.astype(np.float64)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(weights, weights[::-1, ::-1], atol=1e-6)
    assert kernel.motion == (kind == "motion")


def test_motion_leaves_edges_along_it_sharp() -> None:
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[48:] = 240
    column = blurred(picture, kernel_of("motion", 15.0, 0.0))[:, 48, 0].astype(float)
    assert np.abs(np.diff(column)).max() > 200


def test_pairs_are_the_same_for_the_same_seed_and_say_what_they_are() -> None:
    pairs = [blur_pair(np.random.default_rng([7, n]), 64) for n in range(12)]
    again = blur_pair(np.random.default_rng([7, 3]), 64)
    assert np.array_equal(again.picture, pairs[3].picture)
    assert np.array_equal(again.targets, pairs[3].targets)
    for pair in pairs:
        assert pair.picture.shape == (64, 64, 3)
        assert pair.targets.shape == (3, 8, 8)
        widths = np.exp(pair.targets[0])
        assert widths.min() >= SHARP - 1e-3
        assert widths.max() < 30
        assert set(np.unique(pair.targets[1:])) <= {0.0, 1.0}
    assert len({float(p.targets[0].max()) for p in pairs}) > 4
