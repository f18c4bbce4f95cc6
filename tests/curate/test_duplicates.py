"""Near-duplicates: which clips show the same, and which of them is kept."""

import numpy as np
import pytest

from openhunyuan.curate import duplicates
from openhunyuan.curate.duplicates import (
    FAINT,
    NEAR,
    STILL,
    UNEVEN,
    Duplicates,
    alike_pairs,
    better_of,
    described,
    look_distances,
    near_pairs,
    same_pairs,
    zoomed,
)
from openhunyuan.curate.measures.fingerprint import MOMENTS, THUMB


def film(seed: int, gain: float = 1.0, mirrored: bool = False, late: float = 0.0) -> np.ndarray:
    """Thumbnails of a disc that wanders over a coloured ground, in Lab. late: moments by which it begins later."""
    rng = np.random.default_rng(seed)
    ground, colour = rng.uniform([20, -40, -40], [50, 40, 40]), rng.uniform([60, -60, -60], [90, 60, 60])
    start, way = rng.uniform(2, 9, 2), rng.uniform(-0.8, 0.8, 2)
    y, x = np.mgrid[0:THUMB, 0:THUMB]
    thumbs = np.empty((MOMENTS, THUMB, THUMB, 3))
    for t in range(MOMENTS):
        cover = np.clip(2.5 - np.hypot(y - start[0] - way[0] * (t + late), x - start[1] - way[1] * (t + late)), 0, 1)[
            ..., None
        ]
        thumbs[t] = ground * (1 - cover) + colour * cover
    thumbs[..., 0] *= gain
    return (thumbs[:, :, ::-1] if mirrored else thumbs).astype(np.float32)


def pairs(*films: np.ndarray, config: Duplicates | None = None, split: int = 0) -> set[tuple[int, int]]:
    found = same_pairs(described(np.stack(films)), config or Duplicates(), split)
    assert len({*map(tuple, found.tolist())}) == len(found), "each once"
    return {(i, j) for i, j in found.tolist()}


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two changes over time [M, S, S, 3]: the best over moves of the other's start and end, by definition."""
    best = -1.0
    for rows in (THUMB, THUMB * 3 // 4):
        a = one[:, :rows].astype(np.float64)
        if np.linalg.norm(a) < 0.6 * np.linalg.norm(one):
            continue
        for first in (-0.8, -0.4, 0.0, 0.4, 0.8):
            for last in (-0.8, -0.4, 0.0, 0.4, 0.8):
                times = np.clip(np.arange(MOMENTS) + np.linspace(first, last, MOMENTS), 0, MOMENTS - 1)
                low = np.minimum(times.astype(int), MOMENTS - 2)
                share = (times - low)[:, None, None, None]
                b = (1 - share) * other[low][:, :rows] + share * other[low + 1][:, :rows]
                b = b - b.mean(axis=0)
                best = max(best, (a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))
    return best


def shows_the_same(one: np.ndarray, other: np.ndarray, config: Duplicates) -> bool:
    """The definition: the comparison of two clips' thumbnails, in this order, and of nothing else."""
    clips = described(np.stack([one, other]))
    less, more = sorted(clips.energy)
    still = more < STILL
    if not still and less < UNEVEN * more:
        return False
    for flip in (slice(None), slice(None, None, -1)):
        mean, change = clips.mean[1][:, flip], clips.change[1][:, :, flip]
        if look_distances(clips.mean[0], mean)[0] > 1.5 * config.look:
            continue
        for factor in (1.0, 1.07, 1 / 1.07):
            distance, whole = look_distances(clips.mean[0], zoomed(mean, factor))
            alike = whole <= min(config.still_look, 0.25 * clips.seen[0])
            if still:
                if alike:
                    return True
                continue
            wanted = config.close_event if distance <= config.close_look else config.event
            if less < FAINT:
                wanted = config.alike_event if alike else config.faint_event
            if distance <= config.look and correlation(clips.change[0], zoomed(change, factor)) >= wanted:
                return True
    return False


def crowd(count: int, seed: int = 0) -> list[np.ndarray]:
    """Films of few grounds, and copies: mirrored, larger, brighter, noisy, later, nearly still."""
    rng = np.random.default_rng(seed)
    films = []
    for number in range(count):
        kind = number % 6
        late = rng.uniform(0.6, 2.0) if kind in (0, 3) else 0.0
        one = film(seed + int(rng.integers(max(2, count // 5))), gain=float(rng.uniform(0.97, 1.05)), late=late)
        if kind == 1:
            one = one[:, :, ::-1]
        if kind == 2:
            one = zoomed(one, float(rng.uniform(1.02, 1.16)))
        if kind == 3:
            one = one[[0, 0, 1, 2, 3, 4, 5, 6]]
        if kind == 4:
            one = one.mean(axis=0) + rng.choice([0.02, 0.3, 0.6]) * (one - one.mean(axis=0))
        films.append((one + rng.normal(0, rng.choice([0.1, 1.0, 2.0]), one.shape)).astype(np.float32))
    return films


def test_duplicates_are_found_and_the_better_one_is_kept() -> None:
    films = [film(seed) for seed in range(12)]
    found = pairs(*films, film(3, gain=1.04), film(5, mirrored=True))
    assert {(i, j) for i, j in found if i < j} == {(3, 12), (5, 13)}
    names = [*map(str, range(12)), "brighter", "mirrored"]
    worth = [(1.0,)] * 12 + [(2.0,), (0.0,)]
    assert better_of(names, worth, found) == {"3": "brighter", "mirrored": "5"}


def test_groups_are_connected_and_the_first_of_equals_is_kept() -> None:
    assert better_of("abcd", [(1.0,)] * 4, [(1, 2), (2, 3)]) == {"c": "b", "d": "b"}
    assert better_of("", [], []) == {}


def test_nothing_and_one_clip_have_no_duplicates() -> None:
    for films in (np.zeros((0, MOMENTS, THUMB, THUMB, 3)), film(1)[None]):
        assert same_pairs(described(films), Duplicates()).shape == (0, 2)
    for count in (0, 1):
        assert alike_pairs(np.ones((count, 2)), 0.9).shape == (0, 2)


def test_the_same_ground_with_other_events_is_no_duplicate() -> None:
    assert pairs(film(1), film(1)[::-1]) == set()  # the same places in the other order


def test_many_clips_are_compared_as_each_two_by_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    films = crowd(30)
    config = Duplicates()
    both = [(i, j) for i in range(30) for j in range(30) if i != j]
    wanted = {(i, j) for i, j in both if shows_the_same(films[i], films[j], config)}
    assert any((j, i) not in wanted for i, j in wanted), "the order matters"
    assert 20 < len(wanted) < len(both) / 4
    assert pairs(*films) == wanted
    monkeypatch.setattr(duplicates, "_TOGETHER", 7)
    monkeypatch.setattr(duplicates, "_BLOCK", 300)
    assert pairs(*films) == wanted, "however many are looked at in one go"
    assert pairs(*films, split=15) == {(i, j) for i, j in wanted if (i < 15) != (j < 15)}, "between two blocks"


def test_alike_vectors_in_one_block_and_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    wanted = {(i, j) for i, j in zip(*np.nonzero(x @ x.T >= 0.9), strict=True) if i != j}
    assert wanted and {(i, j) for i, j in alike_pairs(x, 0.9).tolist()} == wanted
    monkeypatch.setattr(duplicates, "_BLOCK", 60)
    across = {(i, j) for i, j in wanted if (i < 10) != (j < 10)}
    assert across and {(i, j) for i, j in alike_pairs(x, 0.9, split=10).tolist()} == across


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

    films = [seen(1), seen(2), seen(2, backwards=True), seen(2, lighter=16.0)]
    clips = described(np.stack(films))
    assert STILL < clips.energy[:2].min() < FAINT
    config = Duplicates()
    assert config.alike_event < correlation(clips.change[0], clips.change[1]) < config.faint_event
    assert [j for i, j in sorted(pairs(*films)) if i == 0] == [1]


def test_close_pictures_need_less_of_the_event() -> None:
    y, x = np.mgrid[0:THUMB, 0:THUMB]

    def seen(seed: int, hue: float = 0.0) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, 3.4, (MOMENTS, THUMB, THUMB, 3))
        move = np.stack([20.0 * (np.hypot(y - 8, x - 2 - 0.8 * t) < 3) for t in range(MOMENTS)])[..., None]
        tint = np.where(x < 10, hue, 0.0)[None, ..., None] * np.array([0.0, 1.0, 0.0])
        return (np.array([40.0, 0.0, 0.0]) + move + noise + tint).astype(np.float32)

    films = [seen(1), seen(2), seen(2, 4.5)]
    clips = described(np.stack(films))
    config = Duplicates()
    assert clips.energy[:2].min() > FAINT
    assert config.close_event < correlation(clips.change[0], clips.change[1]) < config.event
    assert config.close_look < look_distances(clips.mean[0], clips.mean[2])[0] < config.look
    assert [j for i, j in sorted(pairs(*films)) if i == 0] == [1]


def test_near_pairs_in_blocks_are_all_near_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    means = np.stack([film(seed % 7, mirrored=seed > 9).mean(axis=0) for seed in range(20)])
    wanted = [
        (i, j)
        for i in range(20)
        for j in range(i + 1, 20)
        if min(((means[i] - other) ** 2).sum(axis=-1).mean() for other in (means[j], means[j][:, ::-1])) <= NEAR**2
    ]
    assert near_pairs(means, NEAR).tolist() == [list(pair) for pair in wanted]
    assert (0, 7) in wanted and (3, 10) in wanted
    monkeypatch.setattr(duplicates, "_BLOCK", 60)
    assert near_pairs(means, NEAR).tolist() == [list(pair) for pair in wanted]
    across = [list(pair) for pair in wanted if pair[0] < 8 <= pair[1]]
    assert near_pairs(means, NEAR, split=8).tolist() == across
