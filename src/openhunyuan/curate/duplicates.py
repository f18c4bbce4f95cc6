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

Every clip is compared with every other by one matrix product of the mean thumbnails; the rest runs on what is near.
"""

from __future__ import annotations

from collections.abc import Sequence
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

_BLOCK = 2048
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
    if config.by == "embedding":
        for i, j in alike_pairs([candidate.thumbs for candidate in candidates], config.cosine):
            groups.join(i, j)
    else:
        seen = [described(candidate) for candidate in candidates]
        for i, j in near_pairs([d.mean for d in seen], NEAR):
            if not groups.joined(i, j) and same(seen[i], seen[j], config):
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

    def joined(self, i: int, j: int) -> bool:
        return self._root(i) == self._root(j)

    def join(self, i: int, j: int) -> None:
        a, b = self._root(i), self._root(j)
        self.parent[max(a, b)] = min(a, b)

    def members(self) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for i in range(len(self.parent)):
            groups.setdefault(self._root(i), []).append(i)
        return list(groups.values())


def alike_pairs(vectors: Sequence[np.ndarray], cosine: float) -> list[tuple[int, int]]:
    """Pairs i < j of unit vectors [D] whose cosine is at least `cosine`."""
    if len(vectors) < 2:
        return []
    x = np.stack(vectors).astype(np.float32)
    pairs = []
    for start in range(0, len(x), _BLOCK):
        for i, j in zip(*np.nonzero(x[start : start + _BLOCK] @ x.T >= cosine - 1e-6), strict=True):
            if start + i < j:
                pairs.append((int(start + i), int(j)))
    return pairs


def near_pairs(means: Sequence[np.ndarray], limit: float) -> list[tuple[int, int]]:
    """Pairs i < j whose pictures [S, S, 3], or one and the mirror of the other, are at most `limit` apart."""
    if len(means) < 2:
        return []
    x = np.stack([m.ravel() for m in means]).astype(np.float32)
    mirrored = np.stack([m[:, ::-1].ravel() for m in means]).astype(np.float32)
    norms = (x**2).sum(axis=1)
    most = limit**2 * means[0].shape[0] * means[0].shape[1]
    pairs = []
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        product_ = np.maximum(x[rows] @ x.T, x[rows] @ mirrored.T)
        distance = norms[rows, None] + norms[None] - 2 * product_
        for i, j in zip(*np.nonzero(distance <= most), strict=True):
            if start + i < j:
                pairs.append((int(start + i), int(j)))
    return pairs


@dataclass(frozen=True)
class Described:
    """A clip's mean thumbnail [S, S, 3], its changes over time [M, S, S, 3], how large those are, and how much there is
    to see in the mean (the largest spread of a channel, Lab)."""

    mean: np.ndarray
    change: np.ndarray
    energy: float
    seen: float

    def mirrored(self) -> Described:
        return Described(self.mean[:, ::-1], self.change[:, :, ::-1], self.energy, self.seen)


def described(candidate: Candidate) -> Described:
    """What the comparison looks at."""
    mean = candidate.thumbs.mean(axis=0)
    change = _soft(candidate.thumbs - mean)
    energy, seen = np.sqrt((change**2).sum(axis=-1).mean()), mean.reshape(-1, 3).std(axis=0).max()
    return Described(mean, change, float(energy), float(seen))


def zoomed(pictures: np.ndarray, factor: float) -> np.ndarray:
    """Pictures [..., S, S, 3] magnified about their middle by `factor`."""
    if factor == 1.0:
        return pictures
    side = pictures.shape[-2]
    matrix = _resample(side, factor)
    rows = matrix @ pictures.reshape(*pictures.shape[:-3], side, side * 3)
    return matrix @ rows.reshape(pictures.shape)


def same(one: Described, other: Described, config: Duplicates) -> bool:
    """Whether two clips show the same."""
    still = max(one.energy, other.energy) < STILL
    faint = min(one.energy, other.energy) < FAINT
    if not still and min(one.energy, other.energy) < 0.4 * max(one.energy, other.energy):
        return False
    for variant in (other, other.mirrored()):
        if look_distances(one.mean, variant.mean)[0] > 1.5 * config.look:
            continue
        for factor in _ZOOMS:
            distance, whole = look_distances(one.mean, zoomed(variant.mean, factor))
            # Pale pictures are all alike: the more there is to see, the more may differ.
            alike = whole <= min(config.still_look, 0.25 * one.seen)
            if still and alike:
                return True
            if still or distance > config.look:
                continue
            if faint:
                event = config.alike_event if alike else config.faint_event
            else:
                event = config.close_event if distance <= config.close_look else config.event
            if event_correlation(one.change, zoomed(variant.change, factor)) >= event:
                return True
    return False


def look_distances(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean distance (Lab) of two pictures [S, S, 3], at one brightness: without the worst quarter of their cells, and
    of all cells."""
    gap = (one - other).reshape(-1, 3)
    # A brighter copy is a copy: up to four levels of lightness are taken out first.
    gap[:, 0] -= np.clip(np.median(gap[:, 0]), -4.0, 4.0)
    cells = np.sort(np.sqrt((gap * gap).sum(axis=1)))
    return float(cells[: max(1, round(0.75 * len(cells)))].mean()), float(cells.mean())


def event_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Best correlation of two changes over time [M, S, S, 3] over small moves of start and end.

    The upper three quarters of the picture may speak for all of it: subtitles come and go in the rest.
    """
    moments, side = one.shape[:2]
    x, y = one.reshape(moments, -1), other.reshape(moments, -1)
    warps, squares = _warps(moments)
    best = -1.0
    for width in (x.shape[1], x.shape[1] // side * round(0.75 * side)):  # rows come first: a prefix is the upper part
        a, b = x[:, :width] - x[:, :width].mean(axis=0), y[:, :width]
        size = float(np.linalg.norm(a))
        # The upper part speaks only where most of the change is in it.
        if width < x.shape[1] and size < 0.6 * np.linalg.norm(x):
            continue
        # Moves of time only mix moments, so that the products of moments say all of it.
        products = warps @ (a @ b.T).ravel()
        sizes = size * np.sqrt(np.maximum(squares @ (b @ b.T).ravel(), 0.0))
        best = max(best, float((products / np.maximum(sizes, 1e-9)).max()))
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
