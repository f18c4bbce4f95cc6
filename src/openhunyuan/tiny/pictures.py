"""Sharp pictures to spoil: frames of the synthetic world, scikit-image's photographs made smaller, drawn textures.

What small networks of curation learn from. Everything is drawn from a generator; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openhunyuan.base.require import require
from openhunyuan.tiny.world import Frames, clip_times, render, sample_scene

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "page",
    "retina",
    "rocket",
    "text",
)
"""Functions of `skimage.data` whose pictures come with its wheel."""

SMALLEST, LARGEST = 110, 300
"""Shorter sides that photographs are made smaller to: at most about half of what they have, so that they are sharp."""

Rng = np.random.Generator
Picture = NDArray[np.uint8]


@lru_cache(maxsize=len(PHOTOGRAPHS))
def photograph(name: str) -> Picture:
    """uint8 [h, w, 3], its own size (the longer side at most 1024)."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    data: Any = require("skimage.data", extra="train", package="scikit-image")
    found = getattr(data, name)()
    picture = np.asarray(found[0] if isinstance(found, tuple) else found)  # of a pair, the left one
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    picture = np.ascontiguousarray(picture[..., :3]).astype(np.uint8)
    scale = 1024 / max(picture.shape[:2])
    return picture if scale >= 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def small_photograph(rng: Rng, least: int = SMALLEST, names: Sequence[str] = PHOTOGRAPHS) -> Picture:
    """A photograph, a half or less of its size, its shorter side at least `least` pixels; mirrored half the time."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    picture = photograph(names[int(rng.integers(len(names)))])
    short = min(picture.shape[:2])
    side = int(rng.integers(least, max(least + 1, min(LARGEST, int(0.55 * short)))))
    scale = side / short
    height, width = max(least, round(picture.shape[0] * scale)), max(least, round(picture.shape[1] * scale))
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[:, ::-1]) if rng.random() < 0.5 else small


def world_clip(rng: Rng, frames: int, height: int, width: int, split: str = "train") -> Frames:
    """A clip [frames, height, width, 3] of the world, from a still one to one that shows its whole motion."""
    scene = sample_scene(rng, split, camera_prob=0.35, photo_prob=0.15)
    span = float(rng.choice([0.03, 0.1, 0.3, 1.0]))
    return render(scene, height=height, width=width, times=0.5 + span * (clip_times(frames) - 0.5))


def colour(rng: Rng) -> tuple[int, int, int]:
    """A colour; a third are greys."""
    if rng.random() < 0.33:
        level = int(rng.integers(0, 256))
        return level, level, level
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    return r, g, b


def texture(rng: Rng, height: int, width: int) -> Picture:
    """A drawn picture [height, width, 3], sharp: made at twice the size and averaged down."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    h, w = 2 * height, 2 * width
    kinds = (_leaves, _lines, _checks, _letters, _grain, _polygons)
    picture = kinds[int(rng.integers(len(kinds)))](rng, h, w)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _ground(rng: Rng, h: int, w: int) -> Picture:
    """An even ground, or a smooth one."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    if rng.random() < 0.4:
        return np.full((h, w, 3), colour(rng), np.uint8)
    size = int(rng.integers(2, 7))
    coarse = np.array([[colour(rng) for _ in range(size)] for _ in range(size)], np.float32)
    strength = rng.uniform(0.2, 1.0)
    coarse = strength * coarse + (1 - strength) * coarse.mean(axis=(0, 1))
    return cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def _leaves(rng: Rng, h: int, w: int) -> Picture:
    """Discs of many sizes, one over the other."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    picture = _ground(rng, h, w)
    for _ in range(int(rng.integers(10, 120))):
        radius = int(min(h, w) * 0.5 * rng.uniform(0.06, 1.0) ** 2) + 2
        centre = (int(rng.integers(w)), int(rng.integers(h)))
        cv2.circle(picture, centre, radius, colour(rng), -1, cv2.LINE_AA)
    return picture


def _polygons(rng: Rng, h: int, w: int) -> Picture:
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    picture = _ground(rng, h, w)
    for _ in range(int(rng.integers(2, 25))):
        corners = int(rng.integers(3, 7))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radius = min(h, w) * rng.uniform(0.05, 0.5)
        centre = np.array([rng.uniform(0, w), rng.uniform(0, h)])
        points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(picture, [points.round().astype(np.int32)], colour(rng), cv2.LINE_AA)
    return picture


def _lines(rng: Rng, h: int, w: int) -> Picture:
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    picture = _ground(rng, h, w)
    for _ in range(int(rng.integers(5, 60))):
        a, b = ((int(rng.integers(w)), int(rng.integers(h))) for _ in range(2))
        cv2.line(picture, a, b, colour(rng), int(rng.integers(2, 14)), cv2.LINE_AA)
    return picture


def _checks(rng: Rng, h: int, w: int) -> Picture:
    """Checks or stripes, turned."""
    period, angle = rng.uniform(0.04, 0.4) * min(h, w), rng.uniform(0, np.pi)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    u = np.floor((x * np.cos(angle) + y * np.sin(angle)) / period)
    v = np.floor((y * np.cos(angle) - x * np.sin(angle)) / period) if rng.random() < 0.6 else 0 * u
    odd = ((u + v) % 2 == 1)[..., None]
    return np.where(odd, np.array(colour(rng)), np.array(colour(rng))).astype(np.uint8)


def _letters(rng: Rng, h: int, w: int) -> Picture:
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    picture = _ground(rng, h, w)
    for _ in range(int(rng.integers(3, 20))):
        text = "".join(rng.choice(list(LETTERS), int(rng.integers(1, 12))))
        where = (int(rng.integers(-w // 4, w)), int(rng.integers(h)))
        scale, stroke = rng.uniform(0.6, 4.0), int(rng.integers(2, 8))
        cv2.putText(picture, text, where, int(rng.integers(0, 8)), scale, colour(rng), stroke, cv2.LINE_AA)
    return picture


def _grain(rng: Rng, h: int, w: int) -> Picture:
    """Noise of a falling spectrum, as clouds, foliage and stone have."""
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]
    falling = (np.hypot(fy, fx) + 1 / max(h, w)) ** -rng.uniform(0.6, 1.6)
    planes = []
    common = rng.standard_normal((h, w // 2 + 1)) + 1j * rng.standard_normal((h, w // 2 + 1))
    for _ in range(3):
        own = rng.standard_normal((h, w // 2 + 1)) + 1j * rng.standard_normal((h, w // 2 + 1))
        plane = np.fft.irfft2((common + 0.5 * own) * falling, s=(h, w))
        planes.append(plane / (plane.std() + 1e-9))
    levels = np.stack(planes, axis=-1) * rng.uniform(8, 60) + np.array(colour(rng))
    return levels.clip(0, 255).astype(np.uint8)


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def toned(rng: Rng, picture: Picture) -> Picture:
    """Another contrast, brightness and tint."""
    x = picture.astype(np.float32)
    middle = x.mean()
    gain = rng.uniform(0.3, 1.3) * rng.uniform(0.85, 1.15, 3)
    return ((x - middle) * gain + middle + rng.uniform(-40, 40)).clip(0, 255).astype(np.uint8)


def noisy(rng: Rng, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures [h, w, 3] with sensor noise and the marks of a codec, each in its own measure, often none."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    sigma = float(rng.choice([0.0, 0.0, 1.5, 4.0])) * rng.uniform(0.5, 1.5)
    quality = int(rng.integers(35, 96)) if rng.random() < 0.5 else 0
    result = []
    for picture in pictures:
        if sigma > 0:
            grain = rng.standard_normal(picture.shape, dtype=np.float32) * sigma
            picture = (picture + grain).clip(0, 255).astype(np.uint8)
        if quality:
            _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        result.append(picture)
    return result
