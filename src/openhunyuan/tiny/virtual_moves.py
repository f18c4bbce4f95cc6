"""Exact virtual camera moves over footage whose own camera stands still, and over photographs.

A turn and a change of focal length are homographies K' R K⁻¹ at any depth, so a smaller camera that turns and zooms
inside the picture of a standing one has exactly the moves it is told, over real things that move by themselves. What
translates the camera cannot be made this way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.require import require
from openhunyuan.curate.camera.primitives import State
from openhunyuan.tiny.camera_paths import CameraPath, draw_path, rotations
from openhunyuan.tiny.camera_scenes import (
    FPS,
    PICTURES,
    SECONDS,
    SIZES,
    RenderedClip,
    Split,
    outline,
    photograph,
    spoil,
    texture,
)

VIRTUAL_STATES: tuple[State, ...] = tuple(
    frozenset({name})
    for name in ("zoom in", "zoom out", "yaw left", "yaw right", "pitch up", "pitch down", "still", "shake")
)
"""The states that can be made."""

FIELD = 55.0
"""Angle of view that the footage is taken to have over its longer side, in degrees."""

FIELDS = (45.0, 95.0)
"""The same for photographs: narrowest and widest; the virtual camera sees about half as much."""

SIDE = 256
TRIES = 60


def virtual_move(
    frames: np.ndarray, state: State, rng: np.random.Generator, fps: float, field: float = FIELD
) -> np.ndarray:
    """uint8 [T, h, w] as a virtual camera sees grey frames uint8 [T, H, W], the longer side `SIDE` pixels.

    The virtual picture takes 50 to 75 % of the real one's sides, and never leaves it. Raises UserError for a state that
    translates the camera, and when no path of that state stays inside the picture.
    """
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    if state not in VIRTUAL_STATES:
        raise UserError(f"A virtual camera cannot {', '.join(sorted(state))}.")
    count, height, width = frames.shape
    half = max(height, width) / 2
    whole = 1 / np.tan(np.deg2rad(field) / 2)
    lens = np.array([[whole * half, 0, (width - 1) / 2], [0, whole * half, (height - 1) / 2], [0, 0, 1.0]])
    scale = SIDE / max(height, width)
    h, w = round(height * scale), round(width * scale)
    time = np.arange(count) / fps
    for _ in range(TRIES):
        focal = whole / rng.uniform(0.5, 0.75)
        path = draw_path(state, rng, time, focal, depth=1e9, pivot=1.0)
        slack = np.array([rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15) * height / width]) / whole
        matrices = _matrices(path, lens, h, w, slack)
        corners = np.array([[0, w - 1, 0, w - 1], [0, 0, h - 1, h - 1], [1, 1, 1, 1]], float)
        seen = matrices @ corners
        place = seen[:, :2] / seen[:, 2:]
        inside = (place[:, 0] >= 0) & (place[:, 0] <= width - 1) & (place[:, 1] >= 0) & (place[:, 1] <= height - 1)
        if inside.all() and (seen[:, 2] > 0).all():
            break
    else:
        raise UserError(f"No virtual move ({', '.join(sorted(state))}) stays inside the picture for {time[-1]:.1f} s.")
    flags, replicate = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    # Twice the size, then halved: fine footage is not to flicker.
    double = np.diag([0.5, 0.5, 1.0])
    found = []
    for frame, matrix in zip(frames, matrices, strict=True):
        large = cv2.warpPerspective(frame, matrix @ double, (2 * w, 2 * h), flags=flags, borderMode=replicate)
        found.append(cv2.resize(large, (w, h), interpolation=cv2.INTER_AREA))
    return np.stack(found)


def _matrices(path: CameraPath, lens: np.ndarray, height: int, width: int, slack: np.ndarray) -> np.ndarray:
    """[T, 3, 3] from pixels of the virtual picture to those of the real one. slack: where the path's middle looks, as
    tangents from the real picture's centre."""
    half = max(height, width) / 2
    aside = np.arctan(slack)
    base = rotations(np.array([[aside[0], aside[1], 0.0]]))[0]
    found = []
    for rotation, focal in zip(path.rotation, path.focal, strict=True):
        inverse = np.linalg.inv(
            np.array([[focal * half, 0, (width - 1) / 2], [0, focal * half, (height - 1) / 2], [0, 0, 1.0]])
        )
        found.append(lens @ (rotation @ base).T @ inverse)
    return np.stack(found)


def photographed_clip(
    state: State, rng: np.random.Generator, split: Split = "train", seconds: float = SECONDS
) -> RenderedClip:
    """A clip in which a virtual camera does what `state` says in a photograph, before which things may move.

    Raises UserError for a state that translates the camera, and when no path of that state stays inside the picture.
    """
    height, width = (2 * side for side in SIZES[int(rng.integers(len(SIZES)))])
    frames = np.repeat(_view(rng, split, height, width)[None], round(seconds * FPS) + 1, axis=0)
    for _ in range(int(rng.integers(0, 4))):
        _pass_by(frames, rng, split)
    field = float(np.exp(rng.uniform(*np.log(FIELDS))))
    return RenderedClip(spoil(virtual_move(frames, state, rng, FPS, field), rng), state)


def _view(rng: np.random.Generator, split: Split, height: int, width: int) -> np.ndarray:
    """Part of a photograph as a picture, uint8 [height, width]."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    names = PICTURES[split]
    whole = photograph(names[int(rng.integers(len(names)))])
    scale = min(whole.shape[0] / height, whole.shape[1] / width) * rng.uniform(0.6, 1.0)
    rows, columns = round(height * scale), round(width * scale)
    y, x = (int(rng.integers(0, n - side + 1)) for n, side in zip(whole.shape, (rows, columns), strict=True))
    part = whole[y : y + rows, x : x + columns]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_CUBIC)


def _pass_by(frames: np.ndarray, rng: np.random.Generator, split: Split) -> None:
    """Something that moves on a straight line, drawn into the frames."""
    height, width = frames.shape[1:]
    rows, columns = (int(rng.uniform(0.1, 0.35) * side) for side in (height, width))
    thing = texture(rng, split)[:rows, :columns].astype(np.float32)
    shown = outline(rng, *thing.shape).astype(np.float32) / 255
    rows, columns = thing.shape
    start = rng.uniform(0, 1, 2) * (height - rows, width - columns)
    speed = rng.normal(0, 0.1 * max(height, width), 2) / FPS  # pixels from frame to frame
    for number, frame in enumerate(frames):
        y, x = np.round(start + number * speed).astype(int)
        top, left = max(0, y), max(0, x)
        bottom, right = min(height, y + rows), min(width, x + columns)
        if top < bottom and left < right:
            inside = (slice(top - y, bottom - y), slice(left - x, right - x))
            part = frame[top:bottom, left:right]
            part[:] = part + shown[inside] * (thing[inside] - part)
