"""Points followed over a picture whose motion is known."""

import cv2
import numpy as np

from openhunyuan.curate.camera.tracks import CELL, CROWD, SIDE, STEPS, Tracker


def sliding(count: int, step: float = 2.0) -> list[np.ndarray]:
    """A picture that goes to the left, in pixels a frame."""
    rng = np.random.default_rng(4)
    wide = cv2.resize(rng.uniform(0, 255, (36, 90)).astype(np.float32), (400, 144), interpolation=cv2.INTER_CUBIC)
    wide = wide.clip(0, 255).astype(np.uint8)
    shift = [np.array([[1, 0, -40 - step * i], [0, 1, 0]], float) for i in range(count)]
    return [cv2.warpAffine(wide, matrix, (SIDE, 144)) for matrix in shift]


def test_points_keep_their_numbers_from_segment_to_segment() -> None:
    tracker = Tracker()
    for frame in sliding(3 * STEPS + 1):
        tracker.add(frame)
    tracks = tracker.tracks(1 / 12)
    assert len(tracks) == 3
    both = np.intersect1d(tracks.numbers[0], tracks.numbers[2])
    both = both[both >= 0]
    assert len(both) > 60
    missed = []
    for number in both:
        first, last = (np.flatnonzero(tracks.numbers[k] == number)[0] for k in (0, 2))
        way = (tracks.points[2, -1, last] - tracks.points[0, 0, first]) * SIDE / 2
        if tracks.good[2, -1, last]:
            missed.append(np.linalg.norm(way - np.array([-2.0 * 3 * STEPS, 0])))
    assert np.median(missed) < 0.2 and np.quantile(missed, 0.9) < 0.8
    assert (tracks.missed[tracks.good] * SIDE / 2 < 0.6).all()
    assert np.median(tracks.doubt[tracks.good[:, -1]]) * SIDE / 2 < 0.2
    part = tracks.part(1, 3)
    assert len(part) == 2 and part.doubt.shape == part.numbers.shape
    assert np.array_equal(part.numbers, tracks.numbers[1:])


def test_cells_that_became_empty_get_new_points_and_none_is_crowded() -> None:
    tracker = Tracker()
    for frame in sliding(4 * STEPS + 1, step=5.0):
        tracker.add(frame)
    tracks = tracker.tracks(1 / 12)
    for k in range(len(tracks)):
        there = tracks.numbers[k] >= 0
        pixels = tracks.points[k, 0, there] * SIDE / 2 + np.array([(SIDE - 1) / 2, (144 - 1) / 2])
        left = (SIDE - SIDE // CELL * CELL) // 2
        cells = np.stack([((pixels[:, 0] - left) // CELL).clip(0, SIDE // CELL - 1), pixels[:, 1] // CELL], axis=1)
        counts = np.unique(cells, axis=0, return_counts=True)[1]
        assert counts.max() <= CROWD
        right = pixels[:, 0] > 0.8 * SIDE  # where the picture comes in
        assert right.sum() > 10
    assert len(np.unique(tracks.numbers[tracks.numbers >= 0])) > tracks.numbers.shape[1]


def test_three_measurements_are_more_exact_than_one_and_tell_where_they_are_wrong(monkeypatch) -> None:
    """On frames with grain, each with its own."""
    rng = np.random.default_rng(5)
    frames = [(f + rng.normal(0, 12, f.shape)).clip(0, 255).astype(np.uint8) for f in sliding(3 * STEPS + 1)]

    def missed() -> tuple[np.ndarray, np.ndarray]:
        tracker = Tracker()
        for frame in frames:
            tracker.add(frame)
        tracks = tracker.tracks(1 / 12)
        followed = tracks.good[:, -1]
        way = (tracks.points[:, -1] - tracks.points[:, 0])[followed] * SIDE / 2
        return np.linalg.norm(way - [-2.0 * STEPS, 0], axis=1), tracks.doubt[followed]

    error, doubt = missed()
    doubted = doubt > np.median(doubt)
    assert np.median(error[doubted]) > 1.3 * np.median(error[~doubted])
    monkeypatch.setattr(Tracker, "_settle", lambda self, last: np.zeros(len(self.points)))
    assert np.median(error) < 0.9 * np.median(missed()[0])


def test_frames_without_corners_and_too_small_for_dense_flow_are_no_error() -> None:
    for shape in ((144, 256), (32, 32), (33, 256)):
        tracker = Tracker()
        for _ in range(2 * STEPS + 1):
            tracker.add(np.full(shape, 90, np.uint8))
        assert not tracker.tracks(1 / 12).good.any()
        textured = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        tracker = Tracker()
        for _ in range(2 * STEPS + 1):
            tracker.add(textured)
        tracks = tracker.tracks(1 / 12)
        assert len(tracks) == 2 and np.isfinite(tracks.points).all()
        assert np.abs(np.diff(tracks.points, axis=1)).max() * SIDE / 2 < 0.05
