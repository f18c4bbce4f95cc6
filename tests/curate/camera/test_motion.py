"""Robust fits, and what is expected of single points."""

import numpy as np
import pytest

from openhunyuan.curate.camera.motion import (
    PIXEL,
    POINTS,
    Points,
    affine,
    fit,
    fit_all,
    quantiles,
    segments_of,
    similarity,
    turning,
)
from openhunyuan.curate.camera.tracks import STEPS, Tracks


def drifting(kinds: dict[str, np.ndarray], segments: int = 3) -> Tracks:
    """60 points of which the most go 3 pixels to the right in a segment. kinds: bool [60] each; `marks` stand still and
    `astray` go anywhere, another way in every segment."""
    rng = np.random.default_rng(0)
    place = rng.uniform(-0.5, 0.5, (60, 2))
    path = np.zeros((segments, STEPS + 1, 60, 2))
    for k in range(segments):
        way = np.tile([3.0, 0.0], (60, 1))
        way[kinds["astray"]] = rng.uniform(-6, 6, (int(kinds["astray"].sum()), 2))
        way[kinds["marks"]] = 0
        path[k] = place + np.linspace(0, 1, STEPS + 1)[:, None, None] * way * PIXEL
        place = path[k, -1]
    noise = rng.normal(size=path.shape) * 0.05 * PIXEL
    noise[:, :, kinds["marks"]] = 0
    doubt = np.where(kinds["astray"], 3.0, 0.05) * PIXEL
    return Tracks(
        (path + noise).astype(np.float32),
        np.ones((segments, STEPS, 60), bool),
        np.full((segments, STEPS, 60), 0.05 * PIXEL, np.float32),
        np.tile(doubt.astype(np.float32), (segments, 1)),
        np.tile(np.arange(60), (segments, 1)),
        1 / 12,
        16 / 9,
    )


def test_marks_are_left_out_and_points_astray_are_not_trusted() -> None:
    marks, astray = np.arange(60) < 10, np.arange(60) >= 50
    seen = segments_of(drifting({"marks": marks, "astray": astray}))
    assert seen is not None
    assert not seen.good[:, marks].any() and seen.good[:, ~marks].all()
    plain = ~marks & ~astray
    assert np.median(seen.trust[:, plain]) > 0.85 > 2 * np.median(seen.trust[:, astray])
    assert np.median(seen.pixels[:, astray]) > 2 * np.median(seen.pixels[:, plain])
    np.testing.assert_allclose(np.median(seen.flow[:, plain], axis=1)[:, 0], 3 * PIXEL * 12 / STEPS, rtol=0.03)


def test_marks_stay_where_all_stand() -> None:
    seen = segments_of(drifting({"marks": np.ones(60, bool), "astray": np.zeros(60, bool)}))
    assert seen is not None and seen.good.all()
    nothing = np.zeros(60, bool)
    few = drifting({"marks": nothing, "astray": nothing})
    few = Tracks(few.points, few.good & (np.arange(60) < POINTS - 1), few.missed, few.doubt, few.numbers, 1 / 12, 1.0)
    assert segments_of(few) is None


def test_points_in_doubt_count_less() -> None:
    nothing = np.zeros(60, bool)
    tracks = drifting({"marks": nothing, "astray": nothing})
    doubted = np.arange(60) % 2 == 0
    tracks.doubt[:, doubted] = 1.5 * PIXEL
    seen = segments_of(tracks)
    assert seen is not None
    assert np.median(seen.pixels[:, doubted]) > 2 * np.median(seen.pixels[:, ~doubted])
    assert np.median(seen.weight[:, doubted]) < 0.7 * np.median(seen.weight[:, ~doubted])


def test_a_fit_follows_the_trusted_and_exact_points_and_knows_its_error() -> None:
    rng = np.random.default_rng(1)
    place = rng.uniform(-1, 1, (1, 200, 2))
    true = np.array([0.2, -0.1, 0.05, 0.0, 0.02, 0.3])
    noise = np.where(rng.random((1, 200)) < 0.5, 0.001, 0.05)
    flow = (affine(place) @ true[:, None])[..., 0] + noise[..., None] * rng.normal(size=(1, 200, 2))
    flow[:, :40] = rng.uniform(-1, 1, (1, 40, 2))
    trust = np.where(np.arange(200) < 40, 0.1, 0.9)[None]
    found = fit(affine(place), flow, noise, trust)
    assert np.abs(found.model[0] - true).max() < 5e-4
    assert (found.error < 0.01).all() and (np.abs(found.model[0] - true) < 6 * found.error[0]).all()
    even = fit(affine(place), flow, np.full_like(noise, 0.02), np.ones_like(trust))
    assert np.abs(even.model[0] - true).max() > np.abs(found.model[0] - true).max()


def test_points_are_averaged_over_their_segments() -> None:
    nothing = np.zeros(60, bool)
    seen = segments_of(drifting({"marks": nothing, "astray": nothing}))
    assert seen is not None
    points = Points(seen)
    assert points.count == 60 and (points.segments == 3).all() and points.weight.sum() == pytest.approx(1)
    one = np.arange(3.0)[:, None] * np.ones(60)
    expected = (seen.weight * one).sum(axis=0) / seen.weight.sum(axis=0)
    np.testing.assert_allclose(points.mean(one), expected)
    assert points.mean(seen.flow).shape == (60, 2)
    around = points.neighbours(points.mean(seen.place), points.mean(seen.flow))
    assert around.shape == (60, 60) and (around.argmax(axis=0) == np.arange(60)).mean() > 0.4


def test_quantiles_count_weights() -> None:
    values = np.array([3.0, 1.0, 2.0])
    assert quantiles(values, np.array([1.0, 1.0, 1.0]), (0.5,))[0] == pytest.approx(2.0)
    assert quantiles(values, np.array([10.0, 1.0, 1.0]), (0.5,))[0] > 2.5
    assert quantiles(values[:0], values[:0], (0.5,))[0] == 0


def test_designs_fitted_together_are_those_fitted_alone() -> None:
    seen = segments_of(drifting({"marks": np.zeros(60, bool), "astray": np.arange(60) % 7 == 0}))
    assert seen is not None
    designs = [turning(seen.place, 1.3), similarity(seen.place)]
    for design, found in zip(designs, fit_all(designs, [seen.flow, seen.flow], seen), strict=True):
        alone = fit(design, seen.flow, seen.fitting, seen.trust)
        np.testing.assert_array_equal(found.model, alone.model)
        np.testing.assert_array_equal(found.left, alone.left)
        np.testing.assert_array_equal(found.error, alone.error)
