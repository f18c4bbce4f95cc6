"""Reconstruction numbers on round trips whose faults are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openhunyuan.evals.damage import without_green_magenta
from openhunyuan.evals.reconstruction import Frames, reconstruct, ssim
from openhunyuan.tiny.vocabulary import COLORS
from openhunyuan.tiny.world import heldout_scenes

SIZE = (9, 64, 64)


def test_a_perfect_round_trip_recovers_everything(tmp_path: Path) -> None:
    report = reconstruct(lambda x: x, "same", heldout_scenes(16, 0), 0, SIZE, folder=tmp_path)
    assert report.psnr_min > 100
    assert report.ssim_min == pytest.approx(1)
    assert {c.color for c in report.colors if c.role == "subject"} == set(COLORS)
    assert all(c.recovered == 1 for c in report.colors)
    assert all(a.overall.accuracy == 1 for n, a in report.attributes.items())
    assert (tmp_path / "colours.png").stat().st_size > 0
    assert "| subject | red |" in (tmp_path / "report.md").read_text()


def test_a_lost_colour_axis_is_seen_in_the_colours() -> None:
    def grey_axis(videos: Frames) -> Frames:
        return np.clip(np.rint(without_green_magenta(videos.astype(np.float64))), 0, 255).astype(np.uint8)

    report = reconstruct(grey_axis, "flat", heldout_scenes(16, 0), 0, SIZE)
    recovered = {c.color: c.recovered for c in report.colors if c.role == "subject"}
    assert recovered["red"] == recovered["green"] == recovered["purple"] == 0
    assert recovered["white"] == 1


def test_psnr_of_a_known_error() -> None:
    report = reconstruct(
        lambda x: np.where(x > 127, x - 10, x + 10).astype(np.uint8), "ten", heldout_scenes(2, 0), 0, SIZE
    )
    assert report.psnr_mean == pytest.approx(10 * np.log10(255**2 / 100), abs=1e-6)
    assert report.psnr_of_mean_error == pytest.approx(report.psnr_min, abs=1e-6)


def test_ssim_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image (extra 'train') is not installed")
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (1, 40, 48, 3), dtype=np.uint8)
    second = np.clip(first + rng.normal(0, 30, first.shape), 0, 255).astype(np.uint8)
    theirs = metrics.structural_similarity(
        first[0], second[0], channel_axis=-1, gaussian_weights=True, use_sample_covariance=False, data_range=255
    )
    assert ssim(first, second) == pytest.approx(theirs, abs=1e-6)
