"""Numbers that tell camera moves apart, from tracked points: robust motion models and what they leave unexplained.

What a turn has is curvature (`camera.motion`); what a move through depth has is that points at different depths differ
along its direction, each point by the same from segment to segment, which errors of tracking are not. So most features
are made twice: of segments, and of points followed over the whole window.

Speeds are in halves of the picture's longer side a second.

Each feature has a known image under mirroring and playing backwards (`SYMMETRIES`): itself or another, perhaps with the
other sign. So a classifier can be averaged over all eight, and then treats left as right.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from openhunyuan.curate.camera.motion import (
    FOCALS,
    MODELS,
    POWERS,
    TURNS,
    Fits,
    Points,
    Segments,
    across,
    fit,
    fits,
    lengths,
    quadratic,
    quantiles,
    segments_of,
    steps_of,
)
from openhunyuan.curate.camera.tracks import Tracks

SLOW = 0.004
"""Added to the overall speed where others are divided by it."""

TYPICAL_FOCAL = 2.0
"""Focal length that makes a curvature comparable to a speed."""

ZONES = 3
SHARES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""Quantiles of the flow over the picture."""

FLIPS = ("h", "v", "t")
"""Mirrored left to right, upside down, played backwards."""


@dataclass(frozen=True)
class _Group:
    """Some features and what each flip does to them: new[i] = sign[i] · old[source[i]]."""

    name: str
    size: int
    signs: dict[str, np.ndarray]
    sources: dict[str, np.ndarray]


def _even(name: str, size: int) -> _Group:
    return _Group(name, size, {f: np.ones(size) for f in FLIPS}, {f: np.arange(size) for f in FLIPS})


def _signed(name: str, h: list[int], v: list[int], t: list[int]) -> _Group:
    """Features that stay in their places."""
    signs = {f: np.array(s, float) for f, s in zip(FLIPS, (h, v, t), strict=True)}
    return _Group(name, len(h), signs, {f: np.arange(len(h)) for f in FLIPS})


def _terms(name: str) -> _Group:
    """The twelve coefficients, u's first."""
    h = [(-1) ** (1 + i) for i, _ in POWERS] + [(-1) ** i for i, _ in POWERS]
    v = [(-1) ** j for _, j in POWERS] + [(-1) ** (1 + j) for _, j in POWERS]
    return _signed(name, h, v, [-1] * 12)


def _pair(name: str) -> _Group:
    """Something of u, and of v."""
    return _signed(name, [-1, 1], [1, -1], [-1, -1])


def _gradients(name: str) -> _Group:
    """How u changes along x and along y, and v."""
    return _signed(name, [1, -1, -1, 1], [1, -1, -1, 1], [-1] * 4)


def _zones(name: str) -> _Group:
    """u of the zones, row by row, then v."""
    one = np.arange(ZONES * ZONES).reshape(ZONES, ZONES)
    count = ZONES * ZONES
    source = {"h": one[:, ::-1].ravel(), "v": one[::-1].ravel(), "t": one.ravel()}
    sign = {"h": (-1, 1), "v": (1, -1), "t": (-1, -1)}
    return _Group(
        name,
        2 * count,
        {f: np.repeat(np.array(sign[f], float), count) for f in FLIPS},
        {f: np.concatenate([source[f], source[f] + count]) for f in FLIPS},
    )


def _quantiles(name: str) -> _Group:
    """u at `SHARES`, then v: what changes its sign changes its order too."""
    count = len(SHARES)
    same, turned = np.arange(count), np.arange(count)[::-1]
    sources = {
        "h": np.concatenate([turned, same + count]),
        "v": np.concatenate([same, turned + count]),
        "t": np.concatenate([turned, turned + count]),
    }
    one = np.ones(count)
    signs = {"h": np.concatenate([-one, one]), "v": np.concatenate([one, -one]), "t": -np.ones(2 * count)}
    return _Group(name, 2 * count, signs, sources)


GROUPS: tuple[_Group, ...] = (
    _terms("mean over speed"),
    _terms("mean"),
    _terms("mean over error"),
    _even("length of steps", 4),
    _even("spread of steps", 4),
    _even("steadiness of steps", 4),
    _even("length of segments", 4),
    _even("spread of segments", 4),
    _even("steadiness of segments", 4),
    _even("sizes", 9),
    _even("errors", len(MODELS)),
    _even("errors against the best turn's", len(MODELS)),
    _even("errors of points", len(MODELS)),
    _even("errors of points against the best turn's", len(MODELS)),
    _even("errors over speed", len(MODELS)),
    _even("left over", 8),
    _even("kept from segment to segment", 8),
    _quantiles("flow"),
    _quantiles("left over by the quadratic"),
    _pair("curvature over speed"),
    _pair("curvature over error"),
    _pair("flow without curvature"),
    _even("curvature with flow", 4),
    _gradients("gradients"),
    _pair("middle against border"),
    _even("focal lengths", 2),
    _even("along and across", 8),
    _even("best turn against others", 6),
    _terms("mean over speed, again"),
    _terms("mean over error, again"),
    _pair("curvature over speed, again"),
    _pair("curvature over error, again"),
    _zones("zones"),
    _zones("zones left over by the best turn"),
    _even("errors of surroundings", len(MODELS)),
    _even("errors of surroundings against the best turn's", len(MODELS)),
)

NUM_FEATURES = sum(group.size for group in GROUPS)
STARTS = dict(zip((g.name for g in GROUPS), np.cumsum([0, *(g.size for g in GROUPS[:-1])]).tolist(), strict=True))
"""Where each group begins."""


def _symmetries() -> tuple[np.ndarray, np.ndarray]:
    """signs float32 [8, F] and sources int [8, F] of all combinations of flips, none first."""
    sign, source = {}, {}
    for flip in FLIPS:
        sign[flip] = np.concatenate([group.signs[flip] for group in GROUPS])
        source[flip] = np.concatenate([group.sources[flip] + STARTS[group.name] for group in GROUPS])
    all_signs, all_sources = [], []
    for chosen in COMBINATIONS:
        signs, sources = np.ones(NUM_FEATURES), np.arange(NUM_FEATURES)
        for flip in chosen:
            signs, sources = sign[flip] * signs[source[flip]], sources[source[flip]]
        all_signs.append(signs)
        all_sources.append(sources)
    return np.stack(all_signs).astype(np.float32), np.stack(all_sources)


COMBINATIONS: tuple[str, ...] = tuple(
    "".join(flip for flip, used in zip(FLIPS, use, strict=True) if used) for use in product((False, True), repeat=3)
)
SYMMETRIES = _symmetries()


def flipped(features: np.ndarray) -> np.ndarray:
    """float32 [..., F] → [..., 8, F]: the features of the clip under every combination of `COMBINATIONS`."""
    signs, sources = SYMMETRIES
    return signs * features[..., sources]


def features_of(tracks: Tracks) -> np.ndarray | None:
    """float32 [F] of a clip, or of a window of one; None where nothing could be followed."""
    return Moves(tracks).features(0, len(tracks))


class Moves:
    """The models of all segments of a clip, fitted once for all the windows that a segment lies in."""

    def __init__(self, tracks: Tracks) -> None:
        self.tracks, self.seen = tracks, segments_of(tracks)
        if self.seen is not None:
            self.models, (self.steps, self.segment) = fits(self.seen), steps_of(tracks)

    def features(self, first: int, last: int) -> np.ndarray | None:
        """float32 [F] of the segments [first, last); None where nothing could be followed in them."""
        if self.seen is None:
            return None
        chosen = (first <= self.seen.segment) & (self.seen.segment < last)
        if not chosen.any():
            return None
        seen, models, tracks = self.seen.some(chosen), self.models.some(chosen), self.tracks.part(first, last)
        steps = self.steps[(first <= self.segment) & (self.segment < last)]
        window = _Window(seen, models, Points(seen), tracks.aspect)
        found = {
            **_of_means(window),
            **_of_steps(steps, models.similarity.model),
            **_of_sizes(window, steps, tracks),
            **_of_errors(window),
            **_of_curvature(window),
            **_of_picture(window),
        }
        values = np.concatenate([np.ravel(found[group.name]) for group in GROUPS]).astype(np.float32)
        assert values.shape == (NUM_FEATURES,)
        return np.nan_to_num(values, nan=0.0, posinf=20.0, neginf=-20.0).clip(-20, 20)


class _Window:
    """What the groups of features share. scale: overall speed. place, flow [M, 2] and left [M, C]: of points, the mean
    over their segments. best: the turn that explains most of the points."""

    def __init__(self, seen: Segments, models: Fits, points: Points, aspect: float) -> None:
        self.seen, self.models, self.points = seen, models, points
        self.width, self.height = min(aspect, 1.0), min(1 / aspect, 1.0)
        x, y = np.meshgrid(np.linspace(-1, 1, 7) * self.width, np.linspace(-1, 1, 7) * self.height)
        grid = quadratic(np.stack([x, y], axis=-1).reshape(1, -1, 2))
        modelled = (grid @ models.quadratic.model[:, None, :, None])[..., 0]
        self.scale = float(np.sqrt((modelled**2).mean() * 2)) + SLOW
        self.mean = models.quadratic.model.mean(axis=0)
        self.place, self.flow = points.mean(seen.place), points.mean(seen.flow)
        self.left = {name: points.mean(left) for name, left in models.left.items()}
        weight = seen.weight / seen.weight.sum()
        self.errors, self.errors_over_speed, self.errors_of_points = np.zeros((3, len(MODELS)))
        for i, name in enumerate(MODELS):
            error = lengths(models.left[name])
            self.errors[i] = (weight * np.log1p((error / seen.noise) ** 2))[seen.good].sum()
            self.errors_over_speed[i] = (weight * np.log1p((error / (0.08 * self.scale + 0.004)) ** 2))[seen.good].sum()
            of_points = lengths(self.left[name]) / points.noise
            self.errors_of_points[i] = (points.weight * np.log1p(of_points**2)).sum()
        turns = [MODELS.index(name) for name in TURNS]
        self.best_of_segments = turns[int(self.errors[turns].argmin())]
        self.best_of_points = turns[int(self.errors_of_points[turns].argmin())]
        self.best = MODELS[self.best_of_points]

    def quantiles(self, values: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
        """Of one number for each point."""
        return quantiles(values, self.points.weight, shares)

    def again(self, design: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A model of what points kept over all their segments, to be added to that of the segments, and its errors."""
        noise = np.hypot(self.points.noise, 0.02 * self.seen.typical.mean()) / np.sqrt(self.points.segments.clip(max=4))
        found = fit(design[None], left[None], noise[None], np.ones((1, self.points.count), bool), rounds=6)
        return found.model[0], found.error[0]


def _of_means(window: _Window) -> dict[str, np.ndarray]:
    whole, mean = window.models.quadratic, window.mean
    error = np.sqrt((whole.error**2).sum(axis=0) / len(whole.error) ** 2 + 1e-12)
    more, error_again = window.again(quadratic(window.place), window.left["quadratic"])
    return {
        "mean over speed": mean / window.scale,
        "mean": np.arcsinh(mean / 0.03),
        "mean over error": np.arcsinh(mean / error / 3),
        "mean over speed, again": (mean + more) / window.scale,
        "mean over error, again": np.arcsinh((mean + more) / error_again / 3),
    }


def _of_steps(steps: np.ndarray, segments: np.ndarray) -> dict[str, np.ndarray]:
    """steps [S, 4], segments [K, 4]: sideways, downwards, zoom and roll."""
    found = {}
    for name, models in (("steps", steps), ("segments", segments)):
        length, speed = np.abs(models).mean(axis=0), np.sqrt((models**2).sum(axis=1).mean())
        found[f"length of {name}"] = length / (speed + SLOW)
        found[f"spread of {name}"] = np.arcsinh(models.std(axis=0) / 0.02)
        found[f"steadiness of {name}"] = np.abs(models.mean(axis=0)) / (length + SLOW)
    return found


def _of_sizes(window: _Window, steps: np.ndarray, tracks: Tracks) -> dict[str, np.ndarray]:
    seen = window.seen
    followed = tracks.good.sum() / max(1, int((tracks.numbers >= 0).sum()) * tracks.good.shape[1])
    sizes = [
        np.log(window.scale),
        np.log(np.sqrt((steps**2).sum(axis=1).mean()) + SLOW),
        np.log(np.hypot(window.mean[0], window.mean[6]) + SLOW),
        np.log(np.hypot(*steps.mean(axis=0)[:2]) + SLOW),
        followed,
        seen.good.sum(axis=1).mean() / 150,
        window.height * window.width,
        np.log(np.median(seen.pixels[seen.good])),
        np.log(seen.weight.sum() / len(seen.good) + 1),
    ]
    return {"sizes": np.array(sizes)}


def _of_errors(window: _Window) -> dict[str, np.ndarray]:
    seen, models = window.seen, window.models
    number = MODELS.index
    best = window.errors_of_points[window.best_of_points]
    others = ("quadratic", "affine", "sideways and turns", "upright and turns", "sideways and roll", "upright and roll")
    by_segments = lengths(models.left["quadratic"])[seen.good]
    by_points = lengths(window.left[window.best])
    shares = (0.25, 0.5, 0.75, 0.9)
    left = [
        np.log(quantiles(by_segments, seen.weight[seen.good], shares) + 0.001),
        np.log((window.quantiles(by_points, shares) + 0.001) / window.scale),
    ]
    around = window.points.neighbours(window.place, window.left["quadratic"])
    total = around.sum(axis=1)
    noise = np.sqrt(around**2 @ window.points.noise**2) / total
    surroundings = np.array(
        [
            (window.points.weight * np.log1p((lengths(around @ window.left[name]) / total / noise) ** 2)).sum()
            for name in MODELS
        ]
    )
    pairs = _pairs(seen)
    kept = [
        number_
        for name in (window.best, "affine")
        for axis in (0, 1)
        for number_ in _kept(seen, pairs, models.left[name][..., axis], window.scale)
    ]
    return {
        "errors": window.errors,
        "errors against the best turn's": window.errors - window.errors[window.best_of_segments],
        "errors of points": window.errors_of_points,
        "errors of points against the best turn's": window.errors_of_points - best,
        "errors over speed": window.errors_over_speed,
        "errors of surroundings": surroundings,
        "errors of surroundings against the best turn's": surroundings - surroundings[window.best_of_points],
        "best turn against others": np.array([best - window.errors_of_points[number(name)] for name in others]),
        "left over": np.concatenate(left),
        "kept from segment to segment": np.array(kept),
        "focal lengths": np.log(
            [FOCALS[number_ - number(TURNS[0])] for number_ in (window.best_of_segments, window.best_of_points)]
        ),
    }


def _pairs(seen: Segments) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """Segments that follow each other, and where the points that are in both lie in each."""
    found = []
    for k, n in pairwise(range(len(seen.good))):
        here, there = np.flatnonzero(seen.good[k]), np.flatnonzero(seen.good[n])
        _, i, j = np.intersect1d(seen.numbers[k, here], seen.numbers[n, there], return_indices=True)
        if len(i) >= 3:
            found.append((k, n, here[i], there[j]))
    return found


def _kept(
    seen: Segments, pairs: list[tuple[int, int, np.ndarray, np.ndarray]], left: np.ndarray, scale: float
) -> tuple[float, float]:
    """Correlation of what is left over [K, N] of the same point in segments that follow each other, and the root of
    its covariance over the speed: parallax stays, errors do not."""
    product_, square, total = 0.0, 0.0, 0.0
    for k, n, i, j in pairs:
        weight = np.minimum(seen.weight[k, i], seen.weight[n, j])
        limit = np.minimum(0.5, 4 * seen.noise[k, i] + 0.3 * scale)
        a, b = left[k, i].clip(-limit, limit), left[n, j].clip(-limit, limit)
        product_ += float((weight * a * b).sum())
        square += float((weight * (a * a + b * b) / 2).sum())
        total += float(weight.sum())
    return product_ / (square + 1e-9), float(np.sqrt(max(product_, 0.0) / (total + 1e-9))) / scale


def _of_curvature(window: _Window) -> dict[str, np.ndarray]:
    """The coefficient of xy in v, which a yaw alone has, and that in u, which a pitch alone has."""
    place, scale = window.place, window.scale
    values: dict[str, list[float]] = {name: [] for name in ("pooled", "error", "again", "error again", "flow", "with")}
    for axis, name in ((1, "sideways and turns"), (0, "upright and turns")):
        found = window.models.sideways if axis == 1 else window.models.upright
        weight = 1 / (found.error[:, 4] ** 2 + 1e-8)
        curvature = float((weight * found.model[:, 4]).sum() / weight.sum())
        more, error_again = window.again(across(place, axis), window.left[name])
        along = 1 - axis
        straight = window.flow[:, along] - curvature * place[:, along] ** 2
        middle = float(window.quantiles(straight, (0.5,))[0])
        values["pooled"].append(curvature)
        values["error"].append(float(1 / np.sqrt(weight.sum())))
        values["again"].append(float(found.model[:, 4].mean() + more[4]))
        values["error again"].append(float(error_again[4]))
        values["flow"].append(middle)
        turn = curvature * TYPICAL_FOCAL**2
        whole = turn**2 + middle**2 + 0.003**2
        values["with"] += [2 * turn * middle / whole, (turn**2 - middle**2) / whole]
    pooled, error, again, error_again, flow, together = (np.array(numbers) for numbers in values.values())
    return {
        "curvature over speed": pooled * TYPICAL_FOCAL**2 / scale,
        "curvature over error": np.arcsinh(pooled / error / 3),
        "curvature over speed, again": again * TYPICAL_FOCAL**2 / scale,
        "curvature over error, again": np.arcsinh(again / error_again / 3),
        "flow without curvature": flow / scale,
        "curvature with flow": together,
    }


def _of_picture(window: _Window) -> dict[str, np.ndarray]:
    """How the flow of the points is spread over the picture, and how it is spread at all."""
    flow, place, scale = window.flow, window.place, window.scale
    total, weight, left = window.points.total, window.points.weight, window.left["quadratic"]
    limited = flow.clip(-3 * scale, 3 * scale)
    inside = (np.abs(place[:, 0]) < 0.4 * window.width) & (np.abs(place[:, 1]) < 0.5 * window.height)
    middle = np.zeros(2)
    if min(inside.sum(), (~inside).sum()) >= 3:
        for axis in (0, 1):
            parts = [float(quantiles(flow[part, axis], total[part], (0.5,))[0]) for part in (inside, ~inside)]
            middle[axis] = (parts[0] - parts[1]) / scale
    way = window.mean[[0, 6]] / (np.hypot(window.mean[0], window.mean[6]) + 1e-9)
    along, across_ = np.abs(left @ way) / scale, np.abs(left @ np.array([-way[1], way[0]])) / scale
    whole = flow @ way / scale
    shares = (0.5, 0.8, 0.95)
    return {
        "flow": np.stack([window.quantiles(flow[:, axis], SHARES) for axis in (0, 1)]) / scale,
        "left over by the quadratic": np.stack([window.quantiles(left[:, axis], SHARES) for axis in (0, 1)]) / scale,
        "gradients": np.array([_correlation(limited[:, i], place[:, j], weight) for i in (0, 1) for j in (0, 1)]),
        "middle against border": middle,
        "along and across": np.concatenate(
            [
                window.quantiles(along, shares).clip(0, 5),
                window.quantiles(across_, shares).clip(0, 5),
                [(weight * (whole > 0.05)).sum(), (weight * (whole < -0.05)).sum()],
            ]
        ),
        "zones": _by_zone(window, flow, window.mean[[0, 6]]) / scale,
        "zones left over by the best turn": _by_zone(window, window.left[window.best], np.zeros(2)) / scale,
    }


def _correlation(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> float:
    one, other = one - (weight * one).sum(), other - (weight * other).sum()
    return float((weight * one * other).sum() / (np.sqrt((weight * one**2).sum() * (weight * other**2).sum()) + 1e-6))


def _by_zone(window: _Window, values: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """[2, zones] median of values [M, 2] in each part of the picture; `unseen` where there are too few points."""
    place = window.place
    column = np.floor((place[:, 0] / window.width + 1) / 2 * ZONES).clip(0, ZONES - 1)
    row = np.floor((place[:, 1] / window.height + 1) / 2 * ZONES).clip(0, ZONES - 1)
    number = row * ZONES + column
    found = np.zeros((2, ZONES * ZONES))
    for zone in range(ZONES * ZONES):
        inside = number == zone
        for axis in (0, 1):
            some = quantiles(values[inside, axis], window.points.total[inside], (0.5,))[0]
            found[axis, zone] = some if inside.sum() >= 3 else unseen[axis]
    return found
