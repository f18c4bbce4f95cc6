"""Features of tracks whose motion is known exactly."""

import numpy as np
import pytest

from openhunyuan.curate.camera.features import COMBINATIONS, NUM_FEATURES, STARTS, Moves, features_of, flipped
from openhunyuan.curate.camera.motion import PIXEL
from openhunyuan.curate.camera.tracks import STEPS, Tracks


def seen(move, segments: int = 4, still: float = 0.0, seed: int = 0, error: float = 0.0) -> Tracks:
    """Points whose flow is move(x, y, depth), followed with an error in pixels, about which the measurements are
    apart; a share of them stands still, as a title does."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(-1, 1, (120, 2)) * np.array([1.0, 9 / 16])
    depth, fixed = rng.uniform(1, 4, 120), rng.random(120) < still
    points = [place]
    for _ in range(STEPS * segments):
        flow = np.stack(np.broadcast_arrays(*move(place[:, 0], place[:, 1], depth)), axis=-1)
        place = place + np.where(fixed[:, None], 0, flow / 12)
        points.append(place)
    path = np.stack(points) + error * PIXEL * rng.normal(size=(len(points), 120, 2))
    parts = [path[k * STEPS : (k + 1) * STEPS + 1] for k in range(segments)]
    return Tracks(
        np.stack(parts).astype(np.float32),
        np.ones((segments, STEPS, 120), bool),
        np.full((segments, STEPS, 120), error * PIXEL / 2, np.float32),
        np.full((segments, 120), error * PIXEL, np.float32),
        np.tile(np.arange(120), (segments, 1)),
        1 / 12,
        16 / 9,
    )


def turning(speed: float = 0.2, focal: float = 1.8, still: float = 0.0, error: float = 0.0) -> Tracks:
    """A camera that turns right."""

    def move(x, y, depth):
        return -speed * (1 + (x / focal) ** 2), -speed * x * y / focal**2

    return seen(move, still=still, error=error)


def trucking(speed: float = 0.2, error: float = 0.0) -> Tracks:
    """A camera that moves to the right."""
    return seen(lambda x, y, depth: (-2 * speed / depth, 0 * y), error=error)


def changed(tracks: Tracks, flips: str) -> Tracks:
    points, missed, doubt, numbers = tracks.points.copy(), tracks.missed, tracks.doubt, tracks.numbers
    if "h" in flips:
        points[..., 0] *= -1
    if "v" in flips:
        points[..., 1] *= -1
    if "t" in flips:
        points, missed, numbers = points[::-1, ::-1].copy(), missed[::-1, ::-1], numbers[::-1]
        doubt = doubt[::-1]
    return Tracks(points, tracks.good, missed, doubt, numbers, tracks.seconds, tracks.aspect)


def cut(tracks: Tracks, points: int) -> Tracks:
    return Tracks(
        tracks.points[:, :, :points],
        tracks.good[:, :, :points],
        tracks.missed[:, :, :points],
        tracks.doubt[:, :points],
        tracks.numbers[:, :points],
        tracks.seconds,
        tracks.aspect,
    )


@pytest.mark.parametrize("flips", COMBINATIONS)
def test_features_of_the_mirrored_clip_are_the_features_mirrored(flips: str) -> None:
    tracks = turning(still=0.1, error=0.1)
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


def test_a_turn_has_curvature_and_a_truck_has_parallax() -> None:
    """Also where both are followed badly, and whatever the direction."""
    for error in (0.02, 0.3):
        turn, truck = features_of(turning(error=error)), features_of(trucking(error=error))
        assert turn is not None and truck is not None
        curvature = STARTS["curvature over error, again"]
        assert turn[curvature] < -1.0 and abs(truck[curvature]) < 1.0
        kept = STARTS["kept from segment to segment"] + 1  # what the best turn leaves over sideways, over the speed
        assert truck[kept] > 0.2 and turn[kept] < 0.05
        assert turn.shape == (NUM_FEATURES,)


def test_nothing_is_said_where_nothing_can_be_followed() -> None:
    tracks = turning()
    assert features_of(cut(tracks, 4)) is None
    assert features_of(tracks.part(0, 0)) is None
    lost = Tracks(tracks.points, np.zeros_like(tracks.good), tracks.missed, tracks.doubt, tracks.numbers, 1 / 12, 1.0)
    assert features_of(lost) is None


def test_a_window_of_a_clip_is_the_clip_of_that_window() -> None:
    tracks = turning(error=0.3)
    good = tracks.good.copy()
    good[1] = False
    tracks = Tracks(tracks.points, good, tracks.missed, tracks.doubt, tracks.numbers, tracks.seconds, tracks.aspect)
    moves = Moves(tracks)
    for first, last in ((0, len(tracks)), (0, 3), (2, len(tracks))):
        wanted = features_of(tracks.part(first, last))
        assert wanted is not None
        np.testing.assert_array_equal(moves.features(first, last), wanted)
    assert moves.features(1, 2) is None
    early, late = moves.features(0, 3), moves.features(2, len(tracks))
    assert early is not None and late is not None
    assert not np.array_equal(early, late)
