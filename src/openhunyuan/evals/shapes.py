"""Naming a shape and its angle from soft coverage masks: template matching with a refusal.

Each frame's mask is brought to a standard size (equal area) around its centre and compared with every shape at
every angle; the score is the soft overlap 1 − |a − b| / (a + b), summed over pixels (1 = the same, crisp edges
included). A blob, a smear or a half-dissolved subject overlaps with nothing well enough, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from openhunyuan.evals.filters import blurred, sampled, shifted
from openhunyuan.evals.segment import Object
from openhunyuan.tiny.vocabulary import SHAPES
from openhunyuan.tiny.world import Scene, truth

Array = NDArray[np.float32]

MIN_SCORE = 0.865
"""Least mean overlap with the best shape."""
MIN_MARGIN = 0.022
"""Least lead of the best shape's overlap over the second's."""
SYMMETRY = {"circle": 0.0, "square": 90.0, "triangle": 120.0, "star": 72.0, "cross": 90.0}
"""Turn after which each shape looks the same, degrees (0: at any turn)."""

_GRID = 36
_REACH = 2.0
"""Half the side of the standard window, in radii of the disk of equal area."""
_ANGLE_STEP = 6.0
_SOURCE = 192
_BLUR_PIXELS = 0.55
"""Softness expected of an edge beyond the renderer's own ramp: half-way between a render and a decoded video."""


@dataclass(frozen=True)
class ShapeMatch:
    """shape: the accepted name or None; best: the nearest name whatever the score; score and margin as thresholded;
    angle [T] of the best shape in degrees, unwrapped, clockwise, or None for a circle."""

    shape: str | None
    best: str
    score: float
    margin: float
    angle: Array | None


@dataclass(frozen=True)
class _Templates:
    """Standard-size masks [N, GRID²] with the shape index and angle of each row."""

    masks: Array
    shape: NDArray[np.int64]
    angle: Array


def match_shape(subject: Object) -> ShapeMatch:
    """Name the shape of a tracked object and follow its angle. Needs at least one frame in which it is present."""
    frames = np.flatnonzero(subject.present)
    masks, radius = _standard(subject, frames)
    templates = _templates(round(float(np.median(radius)) * 2) / 2)
    overlap = _overlap(masks, templates.masks)  # [T, N]
    per_shape = np.stack([overlap[:, templates.shape == i].max(1) for i in range(len(SHAPES))])  # [S, T]
    # the larger the subject, the more its outline says: judge a growing one where it is large
    large = radius >= 0.85 * np.percentile(radius, 95)
    scores = per_shape[:, large].mean(1)
    order = np.argsort(-scores)
    best = SHAPES[order[0]]
    score, margin = float(scores[order[0]]), float(scores[order[0]] - scores[order[1]])
    lowest = float(np.percentile(per_shape[order[0], large], 10))
    accepted = score >= MIN_SCORE and margin >= MIN_MARGIN and lowest >= MIN_SCORE - 0.06
    angle = None
    if SYMMETRY[best]:
        rows = templates.shape == order[0]
        angle = np.full(len(subject.present), np.nan, np.float32)
        angle[frames] = _unwrap(overlap[:, rows], templates.angle[rows], SYMMETRY[best])
    return ShapeMatch(best if accepted else None, best, score, margin, angle)


def _overlap(first: Array, second: Array) -> Array:
    total = first.sum(1)[:, None] + second.sum(1)[None]
    return 1 - cdist(first, second, "cityblock") / np.maximum(total, 1e-6)


def _standard(subject: Object, frames: NDArray[np.int64]) -> tuple[Array, Array]:
    """Masks of the given frames in the standard window, [n, GRID²], and their equal-area radii in pixels."""
    radius = np.sqrt(subject.area[frames] / np.pi)
    offsets = (np.arange(_GRID) + 0.5) / _GRID * 2 * _REACH - _REACH
    ys = subject.centre[frames, 1][:, None, None] + radius[:, None, None] * offsets[None, :, None]
    xs = subject.centre[frames, 0][:, None, None] + radius[:, None, None] * offsets[None, None, :]
    shape = (len(frames), _GRID, _GRID)
    ts = np.broadcast_to(frames[:, None, None].astype(np.float64), shape)
    coordinates = [ts, np.broadcast_to(ys, shape), np.broadcast_to(xs, shape)]
    masks = sampled(subject.alpha, coordinates)
    return masks.reshape(len(frames), -1).astype(np.float32), radius


@cache
def _upright(shape: str) -> tuple[Array, float]:
    """A shape at angle 0 as the world draws it, at high resolution and centred on its centre of mass; its equal-
    area radius."""
    scene = Scene(shape, "red", "large", "still", "black", "plain")
    mask = np.asarray(truth(scene, 1, _SOURCE, _SOURCE)["mask"](0), dtype=np.float32)
    ys, xs = np.mgrid[:_SOURCE, :_SOURCE]
    centre = np.array([(mask * ys).sum(), (mask * xs).sum()]) / mask.sum()
    middle = (_SOURCE - 1) / 2
    return shifted(mask, tuple(middle - centre)), float(np.sqrt(mask.sum() / np.pi))


@cache
def _templates(radius: float) -> _Templates:
    """All shapes and angles, softened as an object of this radius in pixels is."""
    masks, shapes, angles = [], [], []
    for index, shape in enumerate(SHAPES):
        upright, source_radius = _upright(shape)
        upright = blurred(upright, _BLUR_PIXELS / max(radius, 1.0) * source_radius)
        period = SYMMETRY[shape]
        for angle in np.arange(0, period, _ANGLE_STEP) if period else [0.0]:
            masks.append(_turned(upright, source_radius, float(angle)))
            shapes.append(index)
            angles.append(angle)
    return _Templates(np.stack(masks), np.array(shapes), np.array(angles, np.float32))


def _turned(upright: Array, source_radius: float, degrees: float) -> Array:
    offsets = ((np.arange(_GRID) + 0.5) / _GRID * 2 * _REACH - _REACH) * source_radius
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    turn = np.deg2rad(degrees)
    back_x, back_y = np.cos(turn) * x + np.sin(turn) * y, -np.sin(turn) * x + np.cos(turn) * y
    middle = (_SOURCE - 1) / 2
    return sampled(upright, [back_y + middle, back_x + middle]).reshape(-1)


def _unwrap(overlap: Array, angles: Array, period: float) -> Array:
    """Best angle of each frame, refined between grid angles, made continuous modulo the shape's symmetry."""
    count = len(angles)
    peak = overlap.argmax(1)
    rows = np.arange(len(overlap))
    before, at, after = overlap[rows, (peak - 1) % count], overlap[rows, peak], overlap[rows, (peak + 1) % count]
    curve = np.minimum(before - 2 * at + after, -1e-9)
    fine = angles[peak] + np.clip(0.5 * (before - after) / curve, -0.5, 0.5) * (period / count)
    return np.unwrap(fine, period=period).astype(np.float32)
