"""Blur of known width: kernels measured on a clean step, and training pairs."""

import numpy as np
import pytest

from openhunyuan.curate.models.small_forward import DIRECTIONS
from openhunyuan.tiny.blurs import AROUND, KINDS, SHARP, Kernel, blur_pair, blurred, kernel_of


def step_width(kernel: Kernel, direction: int) -> float:
    """Width of a step that goes in a direction after the kernel: its height over its steepest slope, in pixels."""
    towards = np.pi * direction / DIRECTIONS
    y, x = np.mgrid[:96, :96] - 47.5
    step = np.clip(x * np.cos(towards) + y * np.sin(towards) + 0.5, 0, 1)
    picture = np.repeat((240 * step)[..., None], 3, axis=2).round().astype(np.uint8)
    soft = blurred(picture, kernel)[..., 0].astype(float)
    slopes = np.hypot(*np.gradient(soft[24:72, 24:72]))
    return 240 / float(slopes.max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [8.0, 20.0])
def test_a_kernel_makes_a_step_as_wide_as_it_says_in_each_direction(kind: str, width: float) -> None:
    kernel = kernel_of(kind, width, np.pi / 4)
    for direction in range(DIRECTIONS):
        wanted = np.hypot(1.5, kernel.widths[direction])
        assert step_width(kernel, direction) == pytest.approx(wanted, rel=0.2, abs=0.5), direction
    assert np.allclose(kernel.widths, width) == (kind != "motion")
    if kind == "motion":
        assert kernel.widths.argmax() == 1 and kernel.widths[3] < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_keep_the_light_and_the_place(kind: str) -> None:
    kernel = kernel_of(kind, 9.0, 1.0)
    weights = kernel.weights.astype(np.float64)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(weights, weights[::-1, ::-1], atol=1e-6)
    assert (kernel.angle == 1.0) == (kind == "motion")


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
        assert pair.picture.shape == (64 + 2 * AROUND, 64 + 2 * AROUND, 3)
        assert pair.targets.shape == (DIRECTIONS + 1, 8, 8)
        widths = np.exp(pair.targets[:DIRECTIONS])
        assert widths.min() >= SHARP - 1e-3
        assert widths.max() < 30
        assert set(np.unique(pair.targets[DIRECTIONS])) <= {0.0, 1.0}
    assert len({float(p.targets[0].max()) for p in pairs}) > 4
