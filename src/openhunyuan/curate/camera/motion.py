"""Models of how a picture moves, fitted to tracked points so that what moves by itself counts little.

A segment's flow is the displacement of its points over its seconds, placed half-way, in halves of the picture's longer
side a second. How exact it is differs tenfold from point to point, and a quarter of the points went astray: what to
expect of each is read from how far the measurements of it are apart, and how far its way is from those around it.

The flow of a turning or zooming camera is a quadratic function of the place in the picture, whatever the depth:

    u = a0 + a1 x + a2 y + a3 x² + a4 xy + a5 y²        (and v with b0 … b5)

Translation shows as the constant terms, zoom as a1 and b2, roll as b1 and a2, a turn as the constants together with
a3 = b4 or a4 = b5, which a camera that moves without turning does not have. A camera that moves sideways, at whatever
depths, leaves v to its turns alone; one that moves up or down leaves u; one that moves ahead leaves what goes round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from openhunyuan.curate.camera.tracks import SIDE, Tracks

POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
"""Exponents of x and y in the six terms."""

FOCALS = (1.3, 1.7, 2.2, 2.9, 3.7)
"""Focal lengths of the turning cameras that are tried, in halves of the longer side."""

TURNS = tuple(f"turn {focal}" for focal in FOCALS)

MODELS = (
    "none",
    "constant",
    "similarity",
    "affine",
    *TURNS,
    "sideways and turns",
    "sideways and roll",
    "sideways",
    "upright and turns",
    "upright and roll",
    "upright",
    "ahead and turns",
    "ahead",
    "quadratic",
)
"""What may explain a flow; `sideways`, `upright` and `ahead` leave the depth of each point open."""

PIXEL = 2 / SIDE
"""A pixel of the pictures that are tracked, in halves of the longer side."""

LEAST = 0.06 * PIXEL
"""Added to the expected error of every point."""

STANDING = 0.05
"""Pixels a step: a point that stays within while most move is a mark on the picture (of those, 97 % are)."""

AROUND = 8
"""Nearest points with which a point is compared; a third of them is enough company."""

NEAR = 14.0
"""Pixels within which points are surroundings of each other."""

UNEVEN = 0.04
"""Share of the median flow by which a flow may miss a model without counting less for it."""

POINTS = 8
"""Fewer points say nothing."""


@dataclass(frozen=True)
class Segments:
    """place, flow: float64 [K, N, 2]. noise [K, N]: expected error of the flow. fitting [K, N]: the same with an
    allowance for what no model has. good: bool [K, N]. trust [K, N]: probability that the point did not go astray, 0
    where it is not good. weight [K, N]: between 0 and 1, less for noisy and untrusted points. pixels [K, N]: expected
    error of the displacement. numbers: int [K, N]. typical [K]: median length of the flow. segment: int [K], which of
    the tracks' segments each is."""

    place: np.ndarray
    flow: np.ndarray
    noise: np.ndarray
    fitting: np.ndarray
    good: np.ndarray
    trust: np.ndarray
    weight: np.ndarray
    pixels: np.ndarray
    numbers: np.ndarray
    typical: np.ndarray
    segment: np.ndarray

    def some(self, chosen: np.ndarray) -> Segments:
        """Those chosen by a mask [K]."""
        return Segments(*(getattr(self, field.name)[chosen] for field in fields(self)))


def segments_of(tracks: Tracks) -> Segments | None:
    """A segment is judged by how far its points came, as long as enough of them came to its end; None where no segment
    has enough points.

    The numbers by which `pixels` and `trust` are expected were fitted to the points of 90 rendered training clips, by
    least squares on the logarithm of the error and by logistic regression on whether it exceeds 1.5 pixels.
    """
    count, steps, points = tracks.good.shape
    if not count or points < POINTS:
        return None
    alive = tracks.good.sum(axis=2)
    enough = alive >= np.maximum(POINTS, 0.3 * alive[:, :1])
    last = np.maximum(np.where(enough, np.arange(1, steps + 1), 0).max(axis=1), 1)
    usable = tracks.good[np.arange(count), last - 1].sum(axis=1) >= POINTS
    if not usable.any():
        return None
    last, index = last[usable], np.arange(int(usable.sum()))
    way = tracks.points[usable].astype(np.float64)
    start, end, good = way[:, 0], way[index, last], tracks.good[usable][index, last - 1]
    used = np.arange(1, steps + 1)[None, :, None] <= last[:, None, None]
    step = np.where(used, np.linalg.norm(np.diff(way, axis=1), axis=-1), 0).max(axis=1) / PIXEL
    doubt = np.where(last[:, None] == steps, tracks.doubt[usable] / PIXEL, 1.0)
    place, moved = (start + end) / 2, (end - start) / PIXEL
    typical = _median(np.linalg.norm(moved, axis=2), good)
    unmarked = good & ~((step < STANDING) & (typical[:, None] > 0.5))
    good = np.where((unmarked.sum(axis=1) >= POINTS)[:, None], unmarked, good)
    apart = _apart(place, moved, 0.46 * (doubt + 0.02) ** 0.584, typical, good)
    error = np.maximum(0.67 * (apart + 0.05) ** 0.547 * (doubt + 0.02) ** 0.301 - 0.02, 0.02)
    odds = 0.777 * np.log(apart + 0.05) + 0.355 * np.log(doubt + 0.02) - 1.256
    trust = good * (1 - 1 / (1 + np.exp(-odds)))
    seconds = (tracks.seconds * last)[:, None]
    flow = moved * PIXEL / seconds[..., None]
    noise = np.hypot(error * PIXEL, LEAST)
    typical = _median(np.linalg.norm(flow, axis=2), good)
    return Segments(
        place=place,
        flow=flow,
        noise=noise / seconds,
        fitting=np.hypot(noise / seconds, UNEVEN * typical[:, None]),
        good=good,
        trust=trust,
        weight=trust / (1 + (noise / (0.3 * PIXEL)) ** 2),
        pixels=error,
        numbers=tracks.numbers[usable],
        typical=typical,
        segment=np.flatnonzero(usable),
    )


def _apart(
    place: np.ndarray, moved: np.ndarray, error: np.ndarray, typical: np.ndarray, good: np.ndarray
) -> np.ndarray:
    """[K, N] pixels: how far each point's way [K, N, 2] is from that of the third most alike of those around it, after
    what the quadratic has of both; 1 for points that are not good. error: what is expected so far."""
    noise = np.hypot(np.hypot(error, LEAST / PIXEL), UNEVEN * typical[:, None])
    left = fit(quadratic(place), moved, noise, good, rounds=4).left
    found = np.ones(good.shape)
    for k, some in enumerate(good):
        at, rest = place[k, some], left[k, some]
        far = _squares(at)
        most = min(AROUND + 1, len(at))  # the point itself is among them
        near = np.argpartition(far, most - 1, axis=1)[:, :most]
        found[k, some] = np.sort(np.linalg.norm(rest[:, None] - rest[near], axis=2), axis=1)[:, min(3, most - 1)]
    return found


def steps_of(tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """[S, 4]: sideways, downwards, zoom and roll of every step from frame to frame that has enough points; and int [S],
    the segment that each is in."""
    start = tracks.points[:, :-1].reshape(-1, *tracks.points.shape[2:]).astype(np.float64)
    end = tracks.points[:, 1:].reshape(start.shape).astype(np.float64)
    good, missed = tracks.good.reshape(len(start), -1), tracks.missed.reshape(len(start), -1)
    seen = good.sum(axis=1) >= POINTS
    start, end, good, missed = start[seen], end[seen], good[seen], missed[seen]
    flow = (end - start) / tracks.seconds
    noise = np.hypot(0.5 * np.sqrt(missed / PIXEL + 0.01) * PIXEL, LEAST) / tracks.seconds
    noise = np.hypot(noise, UNEVEN * _median(np.linalg.norm(flow, axis=2), good)[:, None])
    segment = np.flatnonzero(seen) // tracks.good.shape[1]
    return fit(similarity((start + end) / 2), flow, noise, good, rounds=4).model, segment


# --------------------------------------------------------------------------------------------------------- the designs


def columns(*pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Design [..., 2, P] whose terms are the given (u, v)."""
    return np.stack([np.stack(pair, axis=-1) for pair in pairs], axis=-1)


def quadratic(place: np.ndarray) -> np.ndarray:
    """Design [..., N, 2, 12] of the two quadratics at places [..., N, 2]."""
    x, y = place[..., 0], place[..., 1]
    terms = np.stack([x**i * y**j for i, j in POWERS], axis=-1)
    design = np.zeros((*terms.shape[:-1], 2, 12))
    design[..., 0, :6] = terms
    design[..., 1, 6:] = terms
    return design


def similarity(place: np.ndarray) -> np.ndarray:
    """Design [..., N, 2, 4]: sideways, downwards, zoom, roll."""
    x, y = place[..., 0], place[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    return columns((one, zero), (zero, one), (x, y), (-y, x))


def affine(place: np.ndarray) -> np.ndarray:
    """Design [..., N, 2, 6]."""
    x, y = place[..., 0], place[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    return columns((one, zero), (zero, one), (x, zero), (y, zero), (zero, x), (zero, y))


def turning(place: np.ndarray, focal: float) -> np.ndarray:
    """Design [..., N, 2, 4] of a camera that turns, zooms and rolls: yaw, pitch, zoom, roll."""
    x, y = place[..., 0], place[..., 1]
    yaw, pitch = (1 + (x / focal) ** 2, x * y / focal**2), (x * y / focal**2, 1 + (y / focal) ** 2)
    return columns(yaw, pitch, (x, y), (-y, x))


def across(place: np.ndarray, axis: int) -> np.ndarray:
    """Design [..., N, 1, 5] of the flow along `axis` under turns: constant, square, the two coordinates, xy. The square
    is that of y for v (axis 1) and of x for u (axis 0); the coordinates are x and y."""
    x, y = place[..., 0], place[..., 1]
    square = y * y if axis == 1 else x * x
    return np.stack([np.ones_like(x), square, x, y, x * y], axis=-1)[..., None, :]


# -------------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Fit:
    """model [K, P]; left [K, N, C], what it does not explain; error [K, P], the standard errors of the model."""

    model: np.ndarray
    left: np.ndarray
    error: np.ndarray

    def some(self, chosen: np.ndarray | slice) -> Fit:
        """Those chosen by a mask or slice of [K]."""
        return Fit(self.model[chosen], self.left[chosen], self.error[chosen])


def fit(design: np.ndarray, flow: np.ndarray, noise: np.ndarray, trust: np.ndarray, rounds: int = 5) -> Fit:
    """Coefficients that most of the flow [K, N, C] follows, by iteratively reweighted least squares.

    design: [K, N, C, P]. noise, trust: [K, N]; points without trust are left out. Weights are those of the noise and of
    trust, times Cauchy's.
    """
    count, points, parts, terms = design.shape
    flat, target = design.reshape(count, points * parts, terms), flow.reshape(count, points * parts)
    base, good = trust / noise**2, trust > 0
    base /= np.maximum(base.sum(axis=1, keepdims=True), 1e-12) / np.maximum(trust.sum(axis=1, keepdims=True), 1)
    middle = np.stack([_median(flow[..., part], good) for part in range(parts)], axis=-1)
    error = lengths(flow - middle[:, None])
    ridge = 1e-4 * np.eye(terms)
    model, left, weights, normal = np.zeros((count, terms)), flow, base, ridge[None]
    for _ in range(rounds):
        ratio = error / noise
        weights = np.where(good, base / (1 + (ratio / (1.5 * _median(ratio, good)[:, None] + 0.5)) ** 2), 0)
        scaled = flat * np.repeat(weights, parts, axis=1)[..., None]
        normal = scaled.transpose(0, 2, 1) @ flat + ridge
        model = np.linalg.solve(normal, scaled.transpose(0, 2, 1) @ target[..., None])[..., 0]
        left = (target - (flat @ model[..., None])[..., 0]).reshape(flow.shape)
        error = lengths(left)
    variance = (weights * error**2).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9) / parts
    inverse = np.diagonal(np.linalg.inv(normal), axis1=1, axis2=2)
    return Fit(model, left, np.sqrt(np.maximum(variance[:, None] * inverse, 1e-14)))


def fit_all(designs: Sequence[np.ndarray], flows: Sequence[np.ndarray], seen: Segments) -> list[Fit]:
    """`fit` of several designs of one shape, in one go: one call of everything for all of them."""
    count, times = len(seen.flow), len(designs)
    noise, trust = np.tile(seen.fitting, (times, 1)), np.tile(seen.trust, (times, 1))
    found = fit(np.concatenate(designs), np.concatenate(flows), noise, trust)
    return [found.some(np.s_[first : first + count]) for first in range(0, count * times, count)]


def lengths(vectors: np.ndarray) -> np.ndarray:
    """[..., C] → [...]; NumPy's own norm is slow along so short an axis."""
    square = vectors * vectors
    total = square[..., 0]
    for part in range(1, square.shape[-1]):
        total = total + square[..., part]
    return np.sqrt(total)


def _median(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """[K]: medians of the good values [K, N]."""
    count, row = np.maximum(good.sum(axis=1), 1), np.arange(len(values))
    ordered = np.sort(np.where(good, values, np.inf), axis=1)
    return (ordered[row, (count - 1) // 2] + ordered[row, count // 2]) / 2


@dataclass(frozen=True)
class Fits:
    """The models of `MODELS` fitted to segments: left, what each does not explain, [K, N, 2] with 0 where a model says
    nothing; and the fits themselves of the four that are looked into."""

    left: dict[str, np.ndarray]
    quadratic: Fit
    similarity: Fit
    sideways: Fit
    upright: Fit

    def some(self, chosen: np.ndarray) -> Fits:
        """Of the segments chosen by a mask [K]."""
        left = {name: values[chosen] for name, values in self.left.items()}
        models = (self.quadratic, self.similarity, self.sideways, self.upright)
        return Fits(left, *(model.some(chosen) for model in models))


def fits(seen: Segments) -> Fits:
    """Every model of `MODELS`, fitted to every segment."""
    place, flow = seen.place, seen.flow
    x, y = place[..., 0], place[..., 1]
    u, v = flow[..., 0], flow[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)

    radius = np.hypot(x, y) + 0.02
    round_ = (x * v - y * u) / radius
    roll = np.stack([one, x, y], axis=-1)[:, :, None]
    ahead = np.stack([-y / radius, x / radius, radius], axis=-1)[:, :, None]
    quadratics = fit(quadratic(place), flow, seen.fitting, seen.trust, 6)
    similarities, *turns = fit_all(
        [similarity(place), *(turning(place, f) for f in FOCALS)], [flow] * (1 + len(FOCALS)), seen
    )
    sideways, upright = fit_all([across(place, 1), across(place, 0)], [v[..., None], u[..., None]], seen)
    rolls = fit_all([roll, roll, ahead], [v[..., None], u[..., None], round_[..., None]], seen)
    left = {
        "none": flow,
        "constant": fit(columns((one, zero), (zero, one)), flow, seen.fitting, seen.trust).left,
        "similarity": similarities.left,
        "affine": fit(affine(place), flow, seen.fitting, seen.trust).left,
        **{name: turn.left for name, turn in zip(TURNS, turns, strict=True)},
        "sideways and turns": sideways.left,
        "sideways and roll": rolls[0].left,
        "sideways": v[..., None],
        "upright and turns": upright.left,
        "upright and roll": rolls[1].left,
        "upright": u[..., None],
        "ahead and turns": rolls[2].left,
        "ahead": round_[..., None],
        "quadratic": quadratics.left,
    }
    return Fits(left, quadratics, similarities, sideways, upright)


# ------------------------------------------------------------------------------------------------------- over a window


class Points:
    """The points of all segments by their number, each with the mean of what it did in its segments.

    weight [M], sums to 1. noise [M]: expected error of a mean. segments [M]: how many it is of.
    """

    def __init__(self, seen: Segments) -> None:
        self.good, self.given = seen.good, seen.weight[seen.good]
        names, self.index = np.unique(seen.numbers[seen.good], return_inverse=True)
        self.count = len(names)
        self.total = np.bincount(self.index, self.given, self.count)
        self.weight = self.total / self.total.sum()
        self.segments = np.bincount(self.index, minlength=self.count)
        squares = np.bincount(self.index, (seen.noise[seen.good] * self.given) ** 2, self.count)
        # A point's errors cancel from segment to segment as far as they do not grow.
        self.noise = np.sqrt(squares / np.maximum(self.total, 1e-9) ** 2) * self.segments**-0.25

    def mean(self, values: np.ndarray) -> np.ndarray:
        """[K, N, ...] → [M, ...]."""
        chosen = values[self.good]
        if chosen.ndim == 1:
            return np.bincount(self.index, chosen * self.given, self.count) / np.maximum(self.total, 1e-9)
        return np.stack([self.mean(values[..., i]) for i in range(values.shape[-1])], axis=-1)

    def neighbours(self, place: np.ndarray, left: np.ndarray) -> np.ndarray:
        """[M, M]: how much each point says of each one's surroundings. place, left: [M, 2]; it says little of points
        that are far away or go another way. Rows do not sum to 1."""
        near = np.exp(-_squares(place) / (2 * (NEAR * PIXEL) ** 2))
        alike = 1 / (1 + _squares(left) / (4 * (self.noise[:, None] ** 2 + self.noise[None] ** 2)))
        return near * alike * (self.weight / self.noise**2)[None]


def _squares(points: np.ndarray) -> np.ndarray:
    """[M, M] squared distances of points [M, 2]."""
    square = (points**2).sum(axis=1)
    return np.maximum(square[:, None] + square[None] - 2 * points @ points.T, 0)


def quantiles(values: np.ndarray, weights: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Weighted quantiles of values [N]; zeros of none."""
    if not len(values):
        return np.zeros(len(shares))
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return np.interp(shares, (reached - 0.5 * weights[order]) / reached[-1], values[order])
