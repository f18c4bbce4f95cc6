"""Near-duplicates: clips that show the same thing, found by their fingerprints or by embeddings; of each group the best
is kept.

By embeddings, two clips are duplicates when the cosine of their vectors is large. By fingerprints, when what they look
like and what happens in them agree, whichever of them was re-encoded, cropped a little, brightened, mirrored or given
subtitles:

- look: the mean thumbnails differ little, where the worst quarter of the picture (a caption, a logo) does not count;
- event: the thumbnails' changes over time are correlated. Where little changes, that little is partly noise, and less
  is asked for; still less if the whole pictures agree as those of stills must. The comparison tries a mirrored
  picture, a picture cropped by a few per cent, and spans that begin or end a little earlier or later (a fade takes
  frames away).

Every clip is compared with every other by one matrix product of the mean thumbnails, in blocks, so that memory does not
grow with the pairs; the rest runs on what is near.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from pydantic import Field

from openhunyuan.base.record import Record

NEAR = 24.0
"""Root mean square distance (Lab) of mean thumbnails up to which a pair is looked at closely."""

STILL = 1.0
"""Root mean square change over time (Lab) below which nothing happens in a clip."""

FAINT = 2.5
"""The same below which little happens, and what happens is partly noise."""

UNEVEN = 0.4
"""Of two clips that are the same, the one in which less happens has at least this share of the other's change."""

_BLOCK = 1 << 24  # numbers of a block of the matrix of all pairs
_ZOOMS = (1.0, 1.07, 1 / 1.07)
_SHIFTS = tuple(product((-0.8, -0.4, 0.0, 0.4, 0.8), repeat=2))  # moments by which start and end are moved


class Duplicates(Record):
    """What is compared, and thresholds of the comparison."""

    by: Literal["fingerprint", "embedding"] = Field(
        default="fingerprint", description="The measure whose rows are used."
    )
    cosine: float = Field(default=0.97, gt=0, le=1, description="Smallest cosine of two embeddings of the same.")

    look: float = Field(default=4.0, gt=0, description="Largest distance (Lab) of mean pictures, worst quarter out.")
    event: float = Field(default=0.95, gt=0, le=1, description="Smallest correlation of the changes over time.")
    close_event: float = Field(
        default=0.91, gt=0, le=1, description="The same where the mean pictures are `close_look` apart at most."
    )
    close_look: float = Field(default=2.5, gt=0, description="Distance (Lab) of mean pictures that are close.")
    faint_event: float = Field(default=0.75, gt=0, le=1, description="The same where little changes.")
    alike_event: float = Field(
        default=0.5, gt=0, le=1, description="Where little changes, for clips whose pictures agree as stills must."
    )
    still_look: float = Field(default=3.0, gt=0, description="For stills: largest distance (Lab) of the mean pictures.")


@dataclass(frozen=True)
class Candidate:
    """A clip to compare: thumbs float32 [M, S, S, 3] in Lab (compared by embeddings: its vector [D]), and what makes it
    better than its duplicates (larger is better; the first of equals is kept)."""

    id: str
    thumbs: np.ndarray
    worth: tuple[float, ...]


def duplicates_of(candidates: Sequence[Candidate], config: Duplicates) -> dict[str, str]:
    """Clip → the better clip that it is a duplicate of. Groups are connected: a duplicate's duplicate belongs too."""
    groups = _Groups(len(candidates))
    looks = [candidate.thumbs for candidate in candidates]
    embedded = config.by == "embedding"
    for i, j in alike_pairs(looks, config.cosine) if embedded else same_pairs(described(looks), config):
        groups.join(i, j)
    kept = {}
    for members in groups.members():
        best = max(members, key=lambda i: (candidates[i].worth, -i))
        kept.update({candidates[i].id: candidates[best].id for i in members if i != best})
    return kept


class _Groups:
    """Connected groups of numbers."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def _root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        a, b = self._root(i), self._root(j)
        self.parent[max(a, b)] = min(a, b)

    def members(self) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for i in range(len(self.parent)):
            groups.setdefault(self._root(i), []).append(i)
        return list(groups.values())


def alike_pairs(vectors: Sequence[np.ndarray], cosine: float) -> Iterator[tuple[int, int]]:
    """Pairs i < j of unit vectors [D] whose cosine is at least `cosine`."""
    x = np.stack(vectors).astype(np.float32) if len(vectors) else np.zeros((0, 1), np.float32)
    for rows in _blocks(len(x)):
        for i, j in zip(*np.nonzero(x[rows] @ x[rows.start :].T >= cosine - 1e-6), strict=True):
            if i < j:
                yield rows.start + int(i), rows.start + int(j)


def near_pairs(means: np.ndarray, limit: float) -> Iterator[tuple[int, np.ndarray]]:
    """For each i, the j > i whose pictures are at most `limit` apart from its own, or from its mirror image.

    means: [N, S, S, 3]. limit: root mean square over the cells.
    """
    size = means.shape[1] * means.shape[2] * means.shape[3]
    x, mirrored = (m.reshape(len(means), size).astype(np.float32) for m in (means, means[:, :, ::-1]))
    norms = (x**2).sum(axis=1)
    most = limit**2 * means.shape[1] * means.shape[2]
    for rows in _blocks(len(x)):
        later = slice(rows.start, None)
        alike = np.maximum(x[rows] @ x[later].T, x[rows] @ mirrored[later].T)
        near = norms[rows, None] + norms[None, later] - 2 * alike <= most
        for i, row in enumerate(near):
            yield rows.start + i, rows.start + i + 1 + np.flatnonzero(row[i + 1 :])


def _blocks(count: int) -> Iterator[slice]:
    """All rows of a matrix of `count` columns, a block of about `_BLOCK` numbers at a time."""
    step = max(1, _BLOCK // max(count, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


@dataclass(frozen=True)
class Described:
    """Of N clips: the mean thumbnail [N, S, S, 3], its changes over time [N, M, S, S, 3], how large those are [N], and
    how much there is to see in the mean (the largest spread of a channel, Lab) [N]."""

    mean: np.ndarray
    change: np.ndarray
    energy: np.ndarray
    seen: np.ndarray


def described(thumbs: Sequence[np.ndarray]) -> Described:
    """What the comparison looks at, from thumbnails [M, S, S, 3] of each clip."""
    x = np.stack(thumbs) if len(thumbs) else np.zeros((0, 1, 1, 1, 3), np.float32)
    mean = x.mean(axis=1)
    change = np.empty_like(x)
    for number, (one, middle) in enumerate(zip(x, mean, strict=True)):  # in one go it would take five times the memory
        change[number] = _soft(one - middle)
    energy = np.sqrt((change**2).sum(axis=-1).mean(axis=(1, 2, 3)))
    return Described(mean, change, energy, mean.std(axis=(1, 2)).max(axis=-1))


def same_pairs(clips: Described, config: Duplicates) -> Iterator[tuple[int, int]]:
    """All pairs i < j that show the same."""
    for i, others in near_pairs(clips.mean, NEAR):
        for j in others[same(clips, i, others, config)]:
            yield i, int(j)


def same(clips: Described, i: int, others: np.ndarray, config: Duplicates) -> np.ndarray:
    """bool [n]: whether clip i shows the same as each of the others, int [n]."""
    less, more = (pick(clips.energy[i], clips.energy[others]) for pick in (np.minimum, np.maximum))
    still, faint = more < STILL, less < FAINT
    even = still | (less >= UNEVEN * more)
    found = np.zeros(len(others), bool)
    for flip in (slice(None), slice(None, None, -1)):
        mean = clips.mean[others][:, :, flip]
        near = even & (look_distances(clips.mean[i], mean)[0] <= 1.5 * config.look)
        for factor in _ZOOMS:
            left = np.flatnonzero(near & ~found)
            distance, whole = look_distances(clips.mean[i], zoomed(mean[left], factor))
            # Pale pictures are all alike: the more there is to see, the more may differ.
            alike = whole <= min(config.still_look, 0.25 * clips.seen[i])
            found[left[still[left] & alike]] = True
            event = np.where(distance <= config.close_look, config.close_event, config.event)
            event = np.where(faint[left], np.where(alike, config.alike_event, config.faint_event), event)
            open_ = ~still[left] & (distance <= config.look)
            left, event = left[open_], event[open_]
            change = zoomed(clips.change[others[left]][:, :, :, flip], factor)
            found[left[event_correlations(clips.change[i], change) >= event]] = True
    return found


def zoomed(pictures: np.ndarray, factor: float) -> np.ndarray:
    """Pictures [..., S, S, 3] magnified about their middle by `factor`."""
    if factor == 1.0:
        return pictures
    side = pictures.shape[-2]
    matrix = _resample(side, factor)
    rows = matrix @ pictures.reshape(*pictures.shape[:-3], side, side * 3)
    return matrix @ rows.reshape(pictures.shape)


def look_distances(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance (Lab) of a picture [S, S, 3] from others [..., S, S, 3], at one brightness: without the worst
    quarter of the cells, and of all cells; both [...]."""
    gap = (one - other).reshape(*other.shape[:-3], one.shape[0] * one.shape[1], 3)
    # A brighter copy is a copy: up to four levels of lightness are taken out first.
    light = np.clip(np.median(gap[..., 0], axis=-1, keepdims=True), -4.0, 4.0)
    squares = (gap[..., 0] - light) ** 2 + gap[..., 1] ** 2 + gap[..., 2] ** 2
    cells = np.sort(np.sqrt(squares), axis=-1)
    return cells[..., : max(1, round(0.75 * cells.shape[-1]))].mean(axis=-1), cells.mean(axis=-1)


def event_correlations(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Best correlation of a change over time [M, S, S, 3] with each of others [n, M, S, S, 3] over small moves of start
    and end: [n].

    The upper three quarters of the picture may speak for all of it: subtitles come and go in the rest.
    """
    moments, side = one.shape[:2]
    x, y = one.reshape(moments, -1), others.reshape(len(others), moments, one[0].size)
    warps, squares = _warps(moments)
    best = np.full(len(others), -1.0)
    for width in (x.shape[1], x.shape[1] // side * round(0.75 * side)):  # rows come first: a prefix is the upper part
        a, b = x[:, :width] - x[:, :width].mean(axis=0), y[:, :, :width]
        size = float(np.linalg.norm(a))
        # The upper part speaks only where most of the change is in it.
        if width < x.shape[1] and size < 0.6 * np.linalg.norm(x):
            continue
        # Moves of time only mix moments, so that the products of moments say all of it.
        back = b.transpose(0, 2, 1)
        products = (a @ back).reshape(len(y), moments**2) @ warps.T
        sizes = size * np.sqrt(np.maximum((b @ back).reshape(len(y), moments**2) @ squares.T, 0.0))
        best = np.maximum(best, (products / np.maximum(sizes, 1e-9)).max(axis=1))
    return best


@lru_cache
def _warps(moments: int) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 [shifts, moments × moments]: W, the moments read at moved times, linearly, ends held; and what gives
    the square of the size of W y without its mean over time from the products of the moments of y."""
    matrices = np.zeros((len(_SHIFTS), moments, moments), np.float32)
    for matrix, (first, last) in zip(matrices, _SHIFTS, strict=True):
        times = np.clip(np.arange(moments) + np.linspace(first, last, moments), 0, moments - 1)
        low = np.minimum(times.astype(int), moments - 2)
        matrix[np.arange(moments), low] = 1 - (times - low)
        matrix[np.arange(moments), low + 1] += (times - low).astype(np.float32)
    centred = matrices - matrices.mean(axis=1, keepdims=True)
    squares = centred.transpose(0, 2, 1) @ centred
    return matrices.reshape(len(matrices), -1), squares.reshape(len(matrices), -1)


def _soft(x: np.ndarray) -> np.ndarray:
    """x [..., S, S, 3] smoothed over neighbouring cells, so that a shift by part of a cell changes little."""
    for axis in (-3, -2):
        padded = np.concatenate([np.take(x, [0], axis), x, np.take(x, [-1], axis)], axis)
        before, here, after = (np.take(padded, np.arange(x.shape[axis]) + shift, axis) for shift in range(3))
        x = 0.25 * before + 0.5 * here + 0.25 * after
    return np.asarray(x, dtype=np.float32)


@lru_cache
def _resample(side: int, factor: float) -> np.ndarray:
    """[side, side]: a row of cells magnified about its middle by `factor`, linearly, ends held."""
    places = np.clip((np.arange(side) + 0.5 - side / 2) / factor + side / 2 - 0.5, 0, side - 1)
    low = np.minimum(places.astype(int), side - 2)
    matrix = np.zeros((side, side), np.float32)
    matrix[np.arange(side), low] = 1 - (places - low)
    matrix[np.arange(side), low + 1] += (places - low).astype(np.float32)
    return matrix
