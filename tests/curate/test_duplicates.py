"""Near-duplicates: which clips show the same, and which of them is kept."""

import numpy as np
import pytest

from openhunyuan.curate import duplicates
from openhunyuan.curate.duplicates import (
    FAINT,
    STILL,
    Candidate,
    Duplicates,
    described,
    duplicates_of,
    event_correlations,
    look_distances,
    near_pairs,
    same,
    same_pairs,
)
from openhunyuan.curate.measures.fingerprint import MOMENTS, THUMB


def film(seed: int, gain: float = 1.0, mirrored: bool = False) -> np.ndarray:
    """Thumbnails of a disc that wanders over a coloured ground, in Lab."""
    rng = np.random.default_rng(seed)
    ground, colour = rng.uniform([20, -40, -40], [50, 40, 40]), rng.uniform([60, -60, -60], [90, 60, 60])
    start, way = rng.uniform(2, 9, 2), rng.uniform(-0.8, 0.8, 2)
    y, x = np.mgrid[0:THUMB, 0:THUMB]
    thumbs = np.empty((MOMENTS, THUMB, THUMB, 3))
    for t in range(MOMENTS):
        cover = np.clip(2.5 - np.hypot(y - start[0] - way[0] * t, x - start[1] - way[1] * t), 0, 1)[..., None]
        thumbs[t] = ground * (1 - cover) + colour * cover
    thumbs[..., 0] *= gain
    return (thumbs[:, :, ::-1] if mirrored else thumbs).astype(np.float32)


def test_duplicates_are_found_and_the_better_one_is_kept() -> None:
    candidates = [Candidate(f"{seed}", film(seed), (1.0,)) for seed in range(12)]
    candidates.append(Candidate("brighter", film(3, gain=1.04), (2.0,)))
    candidates.append(Candidate("mirrored", film(5, mirrored=True), (0.0,)))
    assert duplicates_of(candidates, Duplicates()) == {"3": "brighter", "mirrored": "5"}


def test_nothing_and_one_clip_have_no_duplicates() -> None:
    for config in (Duplicates(), Duplicates(by="embedding")):
        assert duplicates_of([], config) == {}
        thumbs = film(1) if config.by == "fingerprint" else np.array([1.0, 0.0])
        assert duplicates_of([Candidate("a", thumbs, ())], config) == {}


def test_the_same_ground_with_other_events_is_no_duplicate() -> None:
    other = film(1).copy()
    other = other[::-1].copy()  # the same places in the other order
    found = duplicates_of([Candidate("a", film(1), ()), Candidate("b", other, ())], Duplicates())
    assert found == {}


def test_where_little_changes_the_picture_says_more_than_the_event() -> None:
    rng = np.random.default_rng(3)
    ground = rng.normal(0, 12, (THUMB, THUMB, 3)) + np.array([50.0, 0.0, 0.0])
    y, x = np.mgrid[0:THUMB, 0:THUMB]
    turns = 2 * np.pi * np.arange(MOMENTS) / MOMENTS
    event = np.stack([np.hypot(y - 6 - 2 * np.sin(t), x - 6 - 2 * np.cos(t)) < 2.5 for t in turns])[..., None]

    def seen(seed: int, backwards: bool = False, lighter: float = 0.0) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, 2.0, (MOMENTS, THUMB, THUMB, 3))
        change = 4.0 * (event[::-1] if backwards else event)
        corner = np.where((y < 6) & (x < 6), lighter, 0.0)[None, ..., None] * np.array([0.0, 1.0, 0.0])
        return (ground + change + noise + corner).astype(np.float32)

    clips = described([seen(1), seen(2), seen(2, backwards=True), seen(2, lighter=16.0)])
    assert STILL < clips.energy[:2].min() < FAINT
    config = Duplicates()
    (correlation,) = event_correlations(clips.change[0], clips.change[1:2])
    assert config.alike_event < correlation < config.faint_event
    assert same(clips, 0, np.array([1, 2, 3]), config).tolist() == [True, False, False]


def test_close_pictures_need_less_of_the_event() -> None:
    y, x = np.mgrid[0:THUMB, 0:THUMB]

    def seen(seed: int, hue: float = 0.0) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, 3.4, (MOMENTS, THUMB, THUMB, 3))
        move = np.stack([20.0 * (np.hypot(y - 8, x - 2 - 0.8 * t) < 3) for t in range(MOMENTS)])[..., None]
        tint = np.where(x < 10, hue, 0.0)[None, ..., None] * np.array([0.0, 1.0, 0.0])
        return (np.array([40.0, 0.0, 0.0]) + move + noise + tint).astype(np.float32)

    clips = described([seen(1), seen(2), seen(2, 4.5)])
    config = Duplicates()
    assert clips.energy[:2].min() > FAINT
    assert config.close_event < event_correlations(clips.change[0], clips.change[1:2])[0] < config.event
    assert config.close_look < look_distances(clips.mean[0], clips.mean[2])[0] < config.look
    assert same(clips, 0, np.array([1, 2]), config).tolist() == [True, False]


def test_clips_compared_together_are_as_each_pair_by_itself() -> None:
    thumbs = [film(seed % 5, gain=1 + 0.02 * (seed // 5), mirrored=seed % 3 == 0) for seed in range(20)]
    clips = described(thumbs)
    pairs = set(same_pairs(clips, Duplicates()))
    alone = np.array([0])
    each = {
        (i, j)
        for i in range(20)
        for j in range(i + 1, 20)
        if same(described([thumbs[j], thumbs[i]]), 1, alone, Duplicates())[0]
    }
    assert pairs == each
    assert pairs


def test_near_pairs_in_blocks_are_all_near_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    means = np.stack([film(seed % 7).mean(axis=0) for seed in range(20)])
    whole = [(i, others.tolist()) for i, others in near_pairs(means, 5.0)]
    monkeypatch.setattr(duplicates, "_BLOCK", 60)
    assert [(i, others.tolist()) for i, others in near_pairs(means, 5.0)] == whole
    assert whole[0][1][:2] == [7, 14]
