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

Which of two clips comes first matters a little (it is the second that is cropped and moved in time), so pairs are
ordered: (i, j) is found where j, coming later, shows what i shows. Both orders are looked at, so that what is known of
two clips holds however their files are called.

Every clip is compared with every other by one matrix product of the mean thumbnails, and what is near is looked at
closely, many pairs at a time. Which clips are compared with which, and where, is the business of `curate.pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

_BLOCK = 1 << 22  # numbers of a block of the matrix of all pairs
_TOGETHER = 256  # pairs that are looked at closely in one go, and clips that are described in one
_ZOOMS = (1.0, 1.07, 1 / 1.07)
_FLIPS = (slice(None), slice(None, None, -1))
_SHIFTS = tuple(product((-0.8, -0.4, 0.0, 0.4, 0.8), repeat=2))  # moments by which start and end are moved
_UNMOVED = _SHIFTS.index((0.0, 0.0))


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


def better_of(
    ids: Sequence[str], worth: Sequence[tuple[float, ...]], pairs: Iterable[tuple[int, int]]
) -> dict[str, str]:
    """Clip → the better clip that it is a duplicate of. Groups are connected: a duplicate's duplicate belongs too.

    worth: what makes a clip better than its duplicates (larger is better; the first of equals is kept). pairs: of
    places in `ids`.
    """
    groups = _Groups(len(ids))
    for i, j in pairs:
        groups.join(i, j)
    kept = {}
    for members in groups.members():
        best = max(members, key=lambda i: (worth[i], -i))
        kept.update({ids[i]: ids[best] for i in members if i != best})
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


def alike_pairs(vectors: np.ndarray, cosine: float, split: int = 0) -> np.ndarray:
    """Pairs (i, j), int [n, 2], of unit vectors [N, D] whose cosine is at least `cosine`, in both orders.

    split: only pairs of one of the first `split` and one of the others; 0: all pairs.
    """
    x = vectors.astype(np.float32)
    found = _pairs(split, len(x), lambda rows, columns: x[rows] @ x[columns].T >= cosine - 1e-6)
    return _ordered(found, found[:, ::-1])


def near_pairs(means: np.ndarray, limit: float, split: int = 0) -> np.ndarray:
    """Pairs (i, j), i < j, int [n, 2], of pictures that are at most `limit` apart, or one and the other's mirror image.

    means: [N, S, S, 3]. limit: root mean square over the cells. split: as for `alike_pairs`.
    """
    size = means.shape[1] * means.shape[2] * means.shape[3]
    x, mirrored = (m.reshape(len(means), size).astype(np.float32) for m in (means, means[:, :, ::-1]))
    norms = (x**2).sum(axis=1)
    most = limit**2 * means.shape[1] * means.shape[2]

    def near(rows: slice, columns: slice) -> np.ndarray:
        alike = np.maximum(x[rows] @ x[columns].T, x[rows] @ mirrored[columns].T)
        return norms[rows, None] + norms[None, columns] - 2 * alike <= most

    return _pairs(split, len(x), near)


def _pairs(split: int, count: int, near: Callable[[slice, slice], np.ndarray]) -> np.ndarray:
    """The pairs i < j for which `near` says so, int [n, 2]; it is asked for a block of rows and columns at a time."""
    found = [np.zeros((0, 2), int)]
    step = max(1, _BLOCK // max(count, 1))
    for start in range(0, split or count, step):
        rows = slice(start, min(start + step, split or count))
        columns = slice(split or start, count)
        i, j = np.nonzero(near(rows, columns))
        pairs = np.stack([i + rows.start, j + columns.start], axis=1)
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


@dataclass(frozen=True)
class Described:
    """Of N clips: the mean thumbnail [N, S, S, 3], its changes over time [N, M, S, S, 3], how large those are [N], and
    how much there is to see in the mean (the largest spread of a channel, Lab) [N]."""

    mean: np.ndarray
    change: np.ndarray
    energy: np.ndarray
    seen: np.ndarray


def described(thumbs: np.ndarray) -> Described:
    """What the comparison looks at, from thumbnails [N, M, S, S, 3]."""
    x = thumbs.astype(np.float32)
    mean = x.mean(axis=1)
    for part in _parts(len(x)):  # in one go it would take five times the memory
        x[part] = _soft(x[part] - mean[part, None])
    energy = np.sqrt((x**2).sum(axis=-1).mean(axis=(1, 2, 3)))
    return Described(mean, x, energy, mean.std(axis=(1, 2)).max(axis=-1))


def same_pairs(clips: Described, config: Duplicates, split: int = 0) -> np.ndarray:
    """All pairs (i, j), int [n, 2], of which j shows what i shows, i coming first. split: as for `alike_pairs`."""
    i, j = near_pairs(clips.mean, NEAR, split).T
    less, more = (pick(clips.energy[i], clips.energy[j]) for pick in (np.minimum, np.maximum))
    even = (more < STILL) | (less >= UNEVEN * more)
    i, j = i[even], j[even]
    events = _Events.of(clips.change)
    found = np.zeros((2, len(i)), bool)
    for flip in _FLIPS:
        looks = _looks(clips.mean, i, clips.mean[:, :, flip], j)  # the same in both orders
        near = np.flatnonzero(looks[0] <= 1.5 * config.look)
        for way, (one, other) in enumerate(((i, j), (j, i))):
            left = near[~found[way, near]]
            found[way, left] = _same(clips, events, one[left], other[left], flip, looks[:, left], config)
    pairs = np.stack([i, j], axis=1)
    return _ordered(pairs[found[0]], pairs[found[1], ::-1])


def _ordered(*pairs: np.ndarray) -> np.ndarray:
    """Pairs in one order, whatever the order in which they were found."""
    both = np.concatenate(pairs)
    return both[np.lexsort((both[:, 1], both[:, 0]))]


def _same(
    clips: Described,
    events: _Events,
    i: np.ndarray,
    j: np.ndarray,
    flip: slice,
    looks: np.ndarray,
    config: Duplicates,
) -> np.ndarray:
    """bool [n]: whether clips j, turned by `flip`, show the same as clips i. events: of all clips. looks: `_looks` of
    these pairs as they are."""
    less, more = (pick(clips.energy[i], clips.energy[j]) for pick in (np.minimum, np.maximum))
    still, faint = more < STILL, less < FAINT
    found = np.zeros(len(i), bool)
    for factor in _ZOOMS:
        left = np.flatnonzero(~found)
        if factor != 1.0:
            looks = _looks(clips.mean, i[left], zoomed(clips.mean[:, :, flip], factor), j[left])
        distance, whole = looks
        # Pale pictures are all alike: the more there is to see, the more may differ.
        alike = whole <= np.minimum(config.still_look, 0.25 * clips.seen[i[left]])
        found[left[still[left] & alike]] = True
        event = np.where(distance <= config.close_look, config.close_event, config.event)
        event = np.where(faint[left], np.where(alike, config.alike_event, config.faint_event), event)
        open_ = ~still[left] & (distance <= config.look)
        left, event = left[open_], event[open_]
        others, places = np.unique(j[left], return_inverse=True)
        turned = _Events.of(zoomed(clips.change[others][:, :, :, flip], factor))
        found[left[event_correlations(events, i[left], turned, places) >= event]] = True
    return found


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _TOGETHER) for start in range(0, count, _TOGETHER))


def _looks(ones: np.ndarray, i: np.ndarray, others: np.ndarray, j: np.ndarray) -> np.ndarray:
    """`look_distances` of pictures i and j of ones and others [N, S, S, 3]: [2, n]."""
    found = np.zeros((2, len(i)), np.float32)
    for part in _parts(len(i)):
        found[:, part] = look_distances(ones[i[part]], others[j[part]])
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
    """Mean distance (Lab) of pictures from others [..., S, S, 3], at one brightness: without the worst quarter of the
    cells, and of all cells; both [...]."""
    gap = (one - other).reshape(*other.shape[:-3], other.shape[-3] * other.shape[-2], 3)
    # A brighter copy is a copy: up to four levels of lightness are taken out first.
    order = np.sort(gap[..., 0], axis=-1)  # faster than a median, which looks for two places in the middle
    middle = order.shape[-1] // 2
    light = np.clip(0.5 * (order[..., middle, None] + order[..., (order.shape[-1] - 1) // 2, None]), -4.0, 4.0)
    squares = (gap[..., 0] - light) ** 2 + gap[..., 1] ** 2 + gap[..., 2] ** 2
    cells = np.sort(np.sqrt(squares), axis=-1)
    return cells[..., : max(1, round(0.75 * cells.shape[-1]))].mean(axis=-1), cells.mean(axis=-1)


@dataclass(frozen=True)
class _Events:
    """Changes over time: float32 [N, M, S × S × 3]; and how large their upper part, and all of them, are at moved
    times: [2, N, shifts]."""

    changes: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, changes: np.ndarray) -> _Events:
        """changes: [N, M, S, S, 3], without mean over time."""
        x = changes.reshape(*changes.shape[:2], np.prod(changes.shape[2:], dtype=int))
        products = _products(x, x)
        _, squares = _warps(changes.shape[1])
        return cls(x, np.sqrt(np.maximum(products @ squares.T, 0.0)))


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Products of the moments of x and y [n, M, S × S × 3]: [2, n, M × M], of the upper three quarters and of all."""
    upper = x.shape[-1] * 3 // 4  # rows come first: a prefix is the upper part
    back = y.transpose(0, 2, 1)
    parts = [x[..., :upper] @ back[:, :upper], x[..., upper:] @ back[:, upper:]]
    return np.stack([parts[0], parts[0] + parts[1]]).reshape(2, len(x), x.shape[1] ** 2)


def event_correlations(ones: _Events, i: np.ndarray, others: _Events, j: np.ndarray) -> np.ndarray:
    """Best correlation of changes i with changes j over small moves of the others' start and end: [n].

    The upper three quarters of the picture may speak for all of it: subtitles come and go in the rest.
    """
    warps, _ = _warps(ones.changes.shape[1])
    best = np.full(len(i), -1.0)
    for part in _parts(len(i)):
        one, other = i[part], j[part]
        # Moves of time only mix moments, so that the products of moments say all of it.
        products = _products(ones.changes[one], others.changes[other]) @ warps.T
        size = ones.sizes[:, one, _UNMOVED]
        found = (products / np.maximum(size[..., None] * others.sizes[:, other], 1e-9)).max(axis=-1)
        # The upper part speaks only where most of the change is in it.
        best[part] = np.where(size[0] < 0.6 * size[1], found[1], found.max(axis=0))
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
        x = np.moveaxis(x, axis, 0)
        soft = 0.5 * x
        soft[1:] += 0.25 * x[:-1]
        soft[:1] += 0.25 * x[:1]
        soft[:-1] += 0.25 * x[1:]
        soft[-1:] += 0.25 * x[-1:]
        x = np.moveaxis(soft, 0, axis)
    return x


@lru_cache
def _resample(side: int, factor: float) -> np.ndarray:
    """[side, side]: a row of cells magnified about its middle by `factor`, linearly, ends held."""
    places = np.clip((np.arange(side) + 0.5 - side / 2) / factor + side / 2 - 0.5, 0, side - 1)
    low = np.minimum(places.astype(int), side - 2)
    matrix = np.zeros((side, side), np.float32)
    matrix[np.arange(side), low] = 1 - (places - low)
    matrix[np.arange(side), low + 1] += (places - low).astype(np.float32)
    return matrix
