"""Numbers that tell camera moves apart, from tracked points: robust motion models and what they leave unexplained.

The flow of a turning or zooming camera is a quadratic function of the place in the picture, whatever the depth:

    u = a0 + a1 x + a2 y + a3 x² + a4 xy + a5 y²        (and v with b0 … b5)

Translation shows as the constant terms, zoom as a1 and b2, roll as b1 and a2, a turn as the constants together with
a3 = b4 or a4 = b5, which a camera that moves without turning does not have. What a move through depth leaves over lies
along its direction. All six terms of both are fitted to each segment, and to each step, by iteratively reweighted least
squares (Cauchy weights), so that things that move by themselves count little. Simpler and physical models are fitted
too, and how well each explains the flow is a feature.

Speeds are in halves of the picture's longer side a second.

Each feature has a known image under mirroring and playing backwards (`SYMMETRIES`): itself or another, perhaps with the
other sign. So a classifier can be averaged over all eight, and then treats left as right.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from openhunyuan.curate.camera.tracks import Tracks

POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
"""Exponents of x and y in the six terms."""

SOFT = 0.01
"""Speed below which errors are measurement."""

SLOW = 0.004
"""Added to the overall speed where others are divided by it."""

ROUNDS = 7
FOCALS = (1.3, 1.9, 2.8)
"""Focal lengths of the turning cameras that are tried, in halves of the longer side."""

ZONES = 3

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


def _terms(name: str) -> _Group:
    """The twelve coefficients, u's first."""
    h = [(-1) ** (1 + i) for i, _ in POWERS] + [(-1) ** i for i, _ in POWERS]
    v = [(-1) ** j for _, j in POWERS] + [(-1) ** (1 + j) for _, j in POWERS]
    signs = {"h": np.array(h, float), "v": np.array(v, float), "t": -np.ones(12)}
    return _Group(name, 12, signs, {f: np.arange(12) for f in FLIPS})


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


def _gradients(name: str) -> _Group:
    """How something even changes along x, and along y."""
    signs = {"h": np.array([-1.0, 1.0]), "v": np.array([1.0, -1.0]), "t": np.ones(2)}
    return _Group(name, 2, signs, {f: np.arange(2) for f in FLIPS})


MODELS = ("none", "constant", "similarity", "affine", *(f"turn {f}" for f in FOCALS), "sideways", "radial", "quadratic")
QUANTILES = (0.25, 0.5, 0.75, 0.9)

GROUPS: tuple[_Group, ...] = (
    _terms("mean over speed"),
    _terms("mean"),
    _even("length of steps", 12),
    _even("spread of steps", 12),
    _even("steadiness", 12),
    _even("sizes", 7),
    _even("errors", len(MODELS)),
    _even("errors over speed", len(MODELS)),
    _even("left over", 2 * len(QUANTILES)),
    _even("along and across", 8),
    _gradients("left over along, over the picture"),
    _zones("zones"),
)

NUM_FEATURES = sum(group.size for group in GROUPS)


def _symmetries() -> tuple[np.ndarray, np.ndarray]:
    """signs float32 [8, F] and sources int [8, F] of all combinations of flips, none first."""
    sign, source = {}, {}
    starts = np.cumsum([0, *(group.size for group in GROUPS[:-1])])
    for flip in FLIPS:
        sign[flip] = np.concatenate([group.signs[flip] for group in GROUPS])
        source[flip] = np.concatenate([g.sources[flip] + start for g, start in zip(GROUPS, starts, strict=True)])
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
    """float32 [F] of a window of a clip; None where nothing could be followed."""
    if not len(tracks) or tracks.points.shape[2] < 8 or not (tracks.good.sum(axis=2) >= 8).any():
        return None
    seconds, steps = tracks.seconds, tracks.good.shape[1]
    # A segment is judged by how far its points came, as long as enough of them came to its end.
    counts = tracks.good.sum(axis=2)
    enough = counts >= np.maximum(8, 0.3 * counts[:, :1])
    last = np.maximum(np.where(enough, np.arange(1, steps + 1), 0).max(axis=1), 1)
    index = np.arange(len(tracks))
    start, end, good = tracks.points[:, 0], tracks.points[index, last], tracks.good[index, last - 1]
    usable = good.sum(axis=1) >= 8
    if not usable.any():
        return None
    start, end, good, last = start[usable], end[usable], good[usable], last[usable]
    place = ((start + end) / 2).astype(np.float64)
    flow = (end - start) / (seconds * last)[:, None, None].astype(np.float64)

    step_start = tracks.points[:, :-1].reshape(-1, *tracks.points.shape[2:])
    step_end = tracks.points[:, 1:].reshape(step_start.shape)
    step_good = tracks.good.reshape(len(step_start), -1)
    seen = step_good.sum(axis=1) >= 8
    step_place = ((step_start + step_end)[seen] / 2).astype(np.float64)
    step_flow = (step_end - step_start)[seen].astype(np.float64) / seconds
    step_good = step_good[seen]

    whole = _fit(_quadratic(place), flow, good)
    single = _fit(_quadratic(step_place), step_flow, step_good)
    height = 1 / tracks.aspect if tracks.aspect > 1 else 1.0
    width = tracks.aspect if tracks.aspect < 1 else 1.0
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 7) * width, np.linspace(-1, 1, 7) * height), -1).reshape(1, -1, 2)
    at_grid = _quadratic(grid)
    speed = float(np.sqrt(((at_grid @ whole[:, None, :, None])[..., 0] ** 2).mean() * 2))
    step_speed = float(np.sqrt(((at_grid @ single[:, None, :, None])[..., 0] ** 2).mean() * 2))
    scale = speed + SLOW

    mean, step_mean = whole.mean(axis=0), single.mean(axis=0)
    length, spread = np.abs(single).mean(axis=0), single.std(axis=0)
    modelled = (_quadratic(place) @ whole[:, None, :, None])[..., 0]
    left = flow - modelled
    missed = np.linalg.norm(left, axis=2)
    errors = _errors(place, flow, good, missed)
    mean_speed = np.hypot(mean[0], mean[6])
    sizes = np.array(
        [
            np.log(scale),
            np.log(step_speed + SLOW),
            np.log(mean_speed + SLOW),
            np.log(np.hypot(step_mean[0], step_mean[6]) + SLOW),
            good.mean() if good.size else 0.0,
            float(good.sum(axis=1).mean()) / 150,
            height * width,
        ]
    )
    quantiles = np.quantile(missed[good], QUANTILES)
    along, gradients = _along(place, flow, left, good, mean[[0, 6]], scale)
    parts = (
        mean / scale,
        np.arcsinh(mean / 0.03),
        length / (step_speed + SLOW),
        np.arcsinh(spread / 0.03),
        np.abs(step_mean) / (length + SLOW),
        sizes,
        errors,
        errors - errors[0],
        np.concatenate([np.log(quantiles + 0.002), np.log((quantiles + 0.002) / scale)]),
        along,
        gradients,
        _by_zone(place, flow, good, (width, height), mean) / scale,
    )
    found = np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)
    assert found.shape == (NUM_FEATURES,)
    return np.nan_to_num(found, nan=0.0, posinf=20.0, neginf=-20.0).clip(-20, 20)


def _quadratic(place: np.ndarray) -> np.ndarray:
    """Design [..., N, 2, 12] of the two quadratics at places [..., N, 2]."""
    x, y = place[..., 0], place[..., 1]
    terms = np.stack([x**i * y**j for i, j in POWERS], axis=-1)
    design = np.zeros((*terms.shape[:-1], 2, 12))
    design[..., 0, :6] = terms
    design[..., 1, 6:] = terms
    return design


def _designs(place: np.ndarray) -> dict[str, np.ndarray]:
    """Designs [K, N, 2, P] of the models with fewer terms."""
    x, y = place[..., 0], place[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)

    def columns(*pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.stack([np.stack(pair, axis=-1) for pair in pairs], axis=-1)

    constant, zoom, roll = ((one, zero), (zero, one)), (x, y), (-y, x)
    found = {
        "constant": columns(*constant),
        "similarity": columns(*constant, zoom, roll),
        "affine": columns(*constant, (x, zero), (y, zero), (zero, x), (zero, y)),
    }
    for f in FOCALS:
        yaw, pitch = (1 + (x / f) ** 2, x * y / f**2), (x * y / f**2, 1 + (y / f) ** 2)
        found[f"turn {f}"] = columns(yaw, pitch, zoom, roll)
    return found


def _fit(design: np.ndarray, flow: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Coefficients [K, P] that most of the good flow [K, N, 2] follows."""
    count, points = good.shape
    flat = design.reshape(count, points * 2, -1)
    target = flow.reshape(count, points * 2)
    centre = np.stack([_median(flow[..., 0], good), _median(flow[..., 1], good)], axis=-1)
    error = np.linalg.norm(flow - centre, axis=2)
    ridge = 1e-4 * np.eye(flat.shape[2])
    model = np.zeros((count, flat.shape[2]))
    for _ in range(ROUNDS):
        middle = _median(error, good)
        weights = good / (1.0 + (error / (1.5 * middle + 0.3 * SOFT)) ** 2)
        scaled = flat * np.repeat(weights, 2, axis=1)[..., None]
        normal = scaled.transpose(0, 2, 1) @ flat + ridge
        model = np.linalg.solve(normal, scaled.transpose(0, 2, 1) @ target[..., None])[..., 0]
        error = np.linalg.norm((target - (flat @ model[..., None])[..., 0]).reshape(flow.shape), axis=2)
    return model


def _median(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """[K, 1] medians over the good points of values [K, N], as `np.nanmedian` gives them, in a tenth of its time; NaN
    where none is good."""
    ordered = np.sort(np.where(good, values, np.inf), axis=1)
    count = good.sum(axis=1, keepdims=True)
    below, above = (np.take_along_axis(ordered, np.maximum(k, 0), axis=1) for k in ((count - 1) // 2, count // 2))
    return np.where(count > 0, (below + above) / 2, np.nan)


def _loss(error: np.ndarray, good: np.ndarray) -> float:
    """Mean over the good points of a logarithm of the error, so that a few large ones count little."""
    return float(np.log1p((error[good] / SOFT) ** 2).mean())


def _errors(place: np.ndarray, flow: np.ndarray, good: np.ndarray, quadratic: np.ndarray) -> np.ndarray:
    """[models] how much each leaves unexplained."""
    losses = {"none": _loss(np.linalg.norm(flow, axis=2), good), "quadratic": _loss(quadratic, good)}
    for name, design in _designs(place).items():
        model = _fit(design, flow, good)
        losses[name] = _loss(np.linalg.norm(flow - (design @ model[:, None, :, None])[..., 0], axis=2), good)
    # Sideways: every point goes along one line, as far as its depth has it. Radial: towards or from the centre.
    unit = flow / (np.linalg.norm(flow, axis=2, keepdims=True) + SOFT)
    moments = np.einsum("kni,knj,kn->kij", unit, unit, good.astype(float))
    across = np.linalg.eigh(moments)[1][:, :, 0]
    losses["sideways"] = _loss(np.abs((flow * across[:, None]).sum(axis=2)), good)
    away = place / (np.linalg.norm(place, axis=2, keepdims=True) + 1e-6)
    losses["radial"] = _loss(np.abs(flow[..., 0] * away[..., 1] - flow[..., 1] * away[..., 0]), good)
    return np.array([losses[name] for name in MODELS])


def _along(
    place: np.ndarray, flow: np.ndarray, left: np.ndarray, good: np.ndarray, mean: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is left over along and across the mean flow's direction, and how the former changes over the picture."""
    way = mean / (np.linalg.norm(mean) + 1e-9)
    along, across = left @ way, left @ np.array([-way[1], way[0]])
    a, b = along[good] / scale, across[good] / scale
    whole = (flow @ way)[good] / scale
    size = np.abs(np.quantile(a, (0.1, 0.9))), np.abs(np.quantile(b, (0.1, 0.9)))
    found = np.array(
        [
            *np.quantile(a, (0.05, 0.15, 0.85, 0.95)).clip(-5, 5),
            np.log((size[0].max() + 0.01) / (size[1].max() + 0.01)),
            float((whole > 0.05).mean()),
            float((whole < -0.05).mean()),
            float(np.clip(np.std(whole.clip(-3, 3)), 0, 3)),
        ]
    )
    x, y = place[..., 0][good], place[..., 1][good]
    signal = (flow @ way)[good].clip(-3 * scale, 3 * scale) / scale
    return found, np.array([_correlation(signal, x), _correlation(signal, y)])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).mean() / (one.std() * other.std() + 1e-6))


def _by_zone(
    place: np.ndarray, flow: np.ndarray, good: np.ndarray, extent: tuple[float, float], mean: np.ndarray
) -> np.ndarray:
    """[2, zones] median flow of each part of the picture; the constant part of the model where nothing was seen."""
    column = np.floor((place[..., 0] / extent[0] + 1) / 2 * ZONES).clip(0, ZONES - 1)
    row = np.floor((place[..., 1] / extent[1] + 1) / 2 * ZONES).clip(0, ZONES - 1)
    number = np.where(good, row * ZONES + column, -1)
    found = np.zeros((2, ZONES * ZONES))
    for zone in range(ZONES * ZONES):
        inside = flow[number == zone]
        found[:, zone] = np.median(inside, axis=0) if len(inside) >= 3 else mean[[0, 6]]
    return found
