"""Features of tracks whose motion is known exactly."""

import numpy as np
import pytest

from openhunyuan.curate.camera.features import COMBINATIONS, _median, features_of, flipped
from openhunyuan.curate.camera.tracks import STEPS, Tracks


def turning(speed: float = 0.2, focal: float = 1.8, segments: int = 4, still: float = 0.0, seed: int = 0) -> Tracks:
    """Points of a camera that turns right; a share of them stands still, as a title does."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-1, 1, (segments, 120, 2)) * np.array([1.0, 9 / 16])
    points = [place]
    fixed = rng.random((segments, 120)) < still
    for _ in range(STEPS):
        x, y = place[..., 0], place[..., 1]
        flow = -speed * np.stack([1 + (x / focal) ** 2, x * y / focal**2], axis=-1)
        place = place + np.where(fixed[..., None], 0, flow / 12)
        points.append(place)
    path = np.stack(points, axis=1).astype(np.float32)
    return Tracks(path, np.ones((segments, STEPS, 120), bool), 1 / 12, 16 / 9)


def changed(tracks: Tracks, flips: str) -> Tracks:
    points = tracks.points.copy()
    if "h" in flips:
        points[..., 0] *= -1
    if "v" in flips:
        points[..., 1] *= -1
    if "t" in flips:
        points = points[::-1, ::-1].copy()
    return Tracks(points, tracks.good, tracks.seconds, tracks.aspect)


@pytest.mark.parametrize("flips", COMBINATIONS)
def test_features_of_the_mirrored_clip_are_the_features_mirrored(flips: str) -> None:
    tracks = turning(still=0.1)
    features = features_of(tracks)
    mirrored = features_of(changed(tracks, flips))
    assert features is not None and mirrored is not None
    np.testing.assert_allclose(mirrored, flipped(features)[COMBINATIONS.index(flips)], atol=0.02)


def test_the_quadratic_terms_of_a_turn_are_found_under_points_that_stand_still() -> None:
    for still in (0.0, 0.25):
        features = features_of(turning(still=still))
        assert features is not None
        mean = np.sinh(features[12:24]) * 0.03  # u's six terms, v's six
        assert mean[0] == pytest.approx(-0.2, rel=0.05)
        assert mean[3] == pytest.approx(-0.2 / 1.8**2, rel=0.1)
        assert mean[10] == pytest.approx(-0.2 / 1.8**2, rel=0.1)
        assert abs(mean[[1, 2, 4, 5, 6, 7, 8, 9, 11]]).max() < 0.01


def test_nothing_is_said_where_nothing_can_be_followed() -> None:
    tracks = turning()
    assert features_of(Tracks(tracks.points[:, :, :4], tracks.good[:, :, :4], 1 / 12, 1.0)) is None
    assert features_of(tracks.part(0, 0)) is None
    assert features_of(Tracks(tracks.points, np.zeros_like(tracks.good), 1 / 12, 1.0)) is None


def test_medians_over_the_good_points_are_those_of_numpy() -> None:
    rng = np.random.default_rng(5)
    values, good = rng.normal(size=(40, 31)), rng.random((40, 31)) < np.linspace(0.05, 1, 40)[:, None]
    good[:, 0] = True
    expected = np.nanmedian(np.where(good, values, np.nan), axis=1, keepdims=True)
    assert (_median(values, good) == expected).all()
    assert np.isnan(_median(values, np.zeros_like(good))).all()
