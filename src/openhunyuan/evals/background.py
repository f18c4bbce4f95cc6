"""Naming a background: its colour by distance to tone lines, its material by the pattern that explains it.

A material moves a colour along a line of tones, so a background colour is named by the distance (RGB, 0..255) of
the typical background pixel to each colour's tone line. The material is decided on the tone picture: flat is plain;
otherwise the share of its variance explained by one diagonal wave (striped), the two diagonal waves of a
checkerboard, or a square lattice of dots is compared; smooth irregular tone that no lattice explains is cloudy.
Anything between is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from openhunyuan.evals.filters import box_mean
from openhunyuan.evals.segment import Segmentation
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, TONE_GAIN, TONE_OFFSET
from openhunyuan.tiny.world import CHECKER_CELL, DOT_PERIOD, STRIPE_PERIOD

Array = NDArray[np.float32]

BACKGROUND_RADIUS = 30.0
"""Largest accepted RGB distance to a tone line."""
_SECOND = 1.4
"""The runner-up must be this many times farther."""
PLAIN_SPREAD = 4.5
"""Largest spread (standard deviation along the tone axis, RGB units) of a plain background."""
TEXTURE_SPREAD = 6.0
"""Least spread of a textured one."""
EXPLAINED = 0.66
"""Least share of the variance that names a periodic material."""
CLOUDY_EXPLAINED = 0.52
"""Largest share that a lattice may explain of clouds."""
_TILTS = (37.0, 41.0, 45.0, 49.0, 53.0)


@dataclass(frozen=True)
class BackgroundMatch:
    """color and material: names or None; spread: tone standard deviation; explained: material -> share of variance."""

    color: str | None
    material: str | None
    spread: float
    explained: dict[str, float]

    @property
    def name(self) -> str | None:
        """ "navy striped", "black plain", or None when either part is refused."""
        return f"{self.color} {self.material}" if self.color and self.material else None


def match_background(frames: NDArray[np.uint8], seen: Segmentation, moving: bool) -> BackgroundMatch:
    """Name the background of a clip uint8 [T,H,W,3]; moving: the camera moves, so frames must not be averaged."""
    pixels = frames.astype(np.float32)
    if not seen.background.any():
        return BackgroundMatch(None, None, 0.0, {})
    tone = seen.line.tone(pixels)
    pictures = _pictures(tone, seen.background, moving)
    spreads, shares = [], []
    for picture, mask in pictures:
        if mask.mean() < 0.15:
            continue
        spread, explained = _explained(picture, mask, moving)
        spreads.append(spread)
        shares.append(explained)
    if not spreads:
        return BackgroundMatch(None, None, 0.0, {})
    spread = float(np.median(spreads))
    explained = {k: float(np.median([s[k] for s in shares])) for k in shares[0]}
    typical = np.median(pixels[seen.background], axis=0) if spread < TEXTURE_SPREAD else pixels[seen.background].mean(0)
    return BackgroundMatch(name_background_colour(typical), _material(spread, explained), spread, explained)


def name_background_colour(rgb: NDArray[np.generic]) -> str | None:
    """The background colour whose line of tones passes near an sRGB colour [3] (0..255), or None."""
    tones = np.linspace(-0.6, 0.6, 9)[:, None]
    distances = []
    for colour in BACKGROUND_COLORS.values():
        base = np.array(colour, dtype=np.float64)
        line = np.clip(base + tones * (TONE_GAIN * base + TONE_OFFSET), 0, 255)
        distances.append(float(np.linalg.norm(line - np.asarray(rgb, dtype=np.float64), axis=1).min()))
    order = np.argsort(distances)
    best, second = distances[order[0]], distances[order[1]]
    return list(BACKGROUND_COLORS)[int(order[0])] if best <= BACKGROUND_RADIUS and second >= _SECOND * best else None


def _pictures(tone: Array, mask: NDArray[np.bool_], moving: bool) -> list[tuple[Array, NDArray[np.bool_]]]:
    """Tone pictures to judge: the average over time of what is visible, or single frames when the camera moves."""
    if not moving:
        seen = mask.sum(0)
        mean = (tone * mask).sum(0) / np.maximum(seen, 1)
        return [(mean, seen >= max(1, len(tone) // 6))]
    chosen = np.unique(np.linspace(0, len(tone) - 1, 5).round().astype(int))
    return [(tone[t], mask[t]) for t in chosen]


def _explained(picture: Array, mask: NDArray[np.bool_], moving: bool) -> tuple[float, dict[str, float]]:
    """Spread of the masked tone, and the share of its variance each periodic material explains."""
    height, width = picture.shape
    step = max(1, min(height, width) // 32)
    mean = picture[mask].mean()
    soft = box_mean(np.where(mask, picture - mean, 0), step)
    weight = box_mean(mask, step)
    small = (soft / np.maximum(weight, 1e-3))[step // 2 :: step, step // 2 :: step]
    keep = (weight > 0.6)[step // 2 :: step, step // 2 :: step]
    values = small[keep].astype(np.float64)
    values = values - values.mean()
    power = float((values**2).mean())
    shares = {}
    for material, models in _models(height, width, step, moving).items():
        best = 0.0
        for waves in models:
            basis = waves[keep.reshape(-1)]
            normal = basis.T @ basis + 1e-3 * np.eye(basis.shape[1])
            right = basis.T @ values
            best = max(best, float(right @ np.linalg.solve(normal, right)) / (len(values) * power + 1e-9))
        shares[material] = best
    return float(np.sqrt(power)), shares


@cache
def _models(height: int, width: int, step: int, moving: bool) -> dict[str, list[NDArray[np.float64]]]:
    """Fourier bases [pixels, waves] of each periodic material, over the magnifications a moving camera can cause."""
    side = min(height, width)
    ys, xs = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    x, y = (xs.reshape(-1) - width / 2) / side, (ys.reshape(-1) - height / 2) / side

    def waves(vectors: list[tuple[float, float]]) -> NDArray[np.float64]:
        phases = [2 * np.pi * (kx * x + ky * y) for kx, ky in vectors]
        return np.stack([np.ones_like(x)] + [f(p) for p in phases for f in (np.cos, np.sin)], axis=1)

    scales = np.geomspace(0.76, 1.32, 8) if moving else np.array([0.97, 1.0, 1.03])
    models: dict[str, list[NDArray[np.float64]]] = {"striped": [], "checkered": [], "dotted": []}
    for scale in scales:
        for tilt in _TILTS:
            for sign in (1, -1):
                k = 1 / (STRIPE_PERIOD * scale)
                models["striped"].append(waves([(k * np.cos(np.deg2rad(tilt)), sign * k * np.sin(np.deg2rad(tilt)))]))
        k = 1 / (2 * CHECKER_CELL * scale)
        models["checkered"].append(waves([(k, k), (k, -k)]))
        k = 1 / (DOT_PERIOD * scale)
        models["dotted"].append(waves([(k, 0), (0, k), (k, k), (k, -k)]))
    return models


def _material(spread: float, explained: dict[str, float]) -> str | None:
    if spread <= PLAIN_SPREAD:
        return "plain"
    if spread < TEXTURE_SPREAD:
        return None
    if explained["striped"] >= max(EXPLAINED, explained["checkered"] - 0.1):
        return "striped"  # a free magnification lets the two waves of a checkerboard imitate most of one stripe wave
    if explained["checkered"] >= max(EXPLAINED, explained["dotted"]):
        return "checkered"  # likewise the diagonal waves of a lattice of dots, magnified, are nearly a checkerboard's
    order = sorted(explained, key=lambda m: -explained[m])
    best, second = order[0], order[1]
    if explained[best] >= EXPLAINED and explained[best] - explained[second] > 0.12:
        return best
    if explained[best] <= CLOUDY_EXPLAINED:
        return "cloudy"
    return None
