"""Rendered clips with exact camera moves: textured planes in space, seen in grey, each through its exact homography.

A scene is a wall, often a floor or side walls, and things that stand in front, some of which move or bend. Its textures
are photographs that come with scikit-image, one part for training and one kept back, and procedural ones. What a video
does to a picture is done to the frames: noise, compression, blur, changing light, bars, titles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from openhunyuan.base.require import require
from openhunyuan.curate.camera.primitives import State
from openhunyuan.tiny.camera_paths import CameraPath, draw_path

Split = Literal["train", "heldout"]

PICTURES: dict[Split, tuple[str, ...]] = {
    "train": ("brick", "camera", "cell", "chelsea", "coins", "grass", "hubble_deep_field", "retina", "clock", "text"),
    "heldout": ("astronaut", "coffee", "gravel", "rocket", "moon", "page", "immunohistochemistry"),
}
"""Pictures bundled with scikit-image's wheel; none is in both parts."""

SIZES = ((144, 256), (144, 256), (144, 256), (192, 256), (256, 256), (256, 144), (108, 256))
FIELD = (30.0, 75.0)
"""Narrowest and widest angle of view over the longer side, in degrees."""

FPS = 12.0
SECONDS = 2.0
FAR = 60.0


@dataclass(frozen=True)
class RenderedClip:
    """frames: uint8 [T, h, w] at `FPS` frames a second; state: what the camera does."""

    frames: np.ndarray
    state: State


@dataclass
class _Plane:
    """origin + s·across + t·down, s and t in pixels of the texture from its top left; alpha None: without end."""

    texture: np.ndarray
    alpha: np.ndarray | None
    origin: np.ndarray
    across: np.ndarray
    down: np.ndarray
    velocity: np.ndarray
    sway: tuple[float, float, float]
    bend: float

    @property
    def depth(self) -> float:
        return float(self.origin[2] + (self.across * self.texture.shape[1] + self.down * self.texture.shape[0])[2] / 2)


def render_clip(
    state: State, rng: np.random.Generator, split: Split = "train", seconds: float = SECONDS
) -> RenderedClip:
    """A clip in which the camera does what `state` says, in a scene drawn from `rng`."""
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    time = np.arange(round(seconds * FPS) + 1) / FPS
    focal = 1 / np.tan(np.deg2rad(np.exp(rng.uniform(*np.log(FIELD)))) / 2)
    pivot = rng.uniform(2.0, 5.0)
    planes = _scene(rng, split, focal, pivot, max(height, width) / 2, height / width, "arc" in "".join(state))
    start = CameraPath(np.zeros((1, 3)), np.eye(3)[None], np.array([focal]))
    depth = _typical_depth(planes, start, height, width)
    path = draw_path(state, rng, time, focal, depth, pivot)
    frames = np.stack([_frame(planes, path, i, time[i] - time.mean(), height, width) for i in range(len(time))])
    return RenderedClip(spoil(frames, rng), state)


# -------------------------------------------------------------------------------------------------------------- scenes


def _scene(
    rng: np.random.Generator, split: Split, focal: float, pivot: float, half: float, aspect: float, arc: bool
) -> list[_Plane]:
    """Planes from far to near. half: pixels in half of the longer side."""
    wall_depth = max(float(np.exp(rng.uniform(np.log(4.0), np.log(25.0)))), pivot * rng.uniform(1.15, 2.0))
    planes = [_wall(rng, split, wall_depth, focal, half)]
    reach = 1 / focal
    if rng.random() < 0.6:
        planes.append(_ground(rng, split, rng.uniform(0.35, 1.0) * reach * aspect * pivot, wall_depth, focal, half, 1))
    if rng.random() < 0.25:
        for side in (-1.0, 1.0):
            if rng.random() < 0.7:
                place = side * rng.uniform(0.5, 1.2) * reach * wall_depth
                planes.append(_ground(rng, split, place, wall_depth, focal, half, 0))
    things = int(rng.integers(1, 7)) if len(planes) == 1 else int(rng.integers(0, 6))
    depths = sorted(np.exp(rng.uniform(np.log(0.55 * pivot), np.log(wall_depth), things)), reverse=True)
    near = [_thing(rng, split, float(depth), focal, half, aspect) for depth in depths]
    if arc and rng.random() < 0.8:
        near.append(_thing(rng, split, pivot, focal, half, aspect, subject=True))
    return planes + sorted(near, key=lambda plane: -plane.depth)


def _wall(rng: np.random.Generator, split: Split, depth: float, focal: float, half: float) -> _Plane:
    picture = texture(rng, split)
    pixel = depth / focal / half * rng.uniform(0.8, 1.5)
    slant, lean = rng.uniform(-0.35, 0.35), rng.uniform(-0.15, 0.15)
    across = pixel * np.array([np.cos(slant), 0.0, np.sin(slant)])
    down = pixel * np.array([0.0, np.cos(lean), np.sin(lean)])
    rows, columns = picture.shape
    origin = np.array([0.0, 0.0, depth]) - across * columns / 2 - down * rows / 2
    return _Plane(picture, None, origin, across, down, np.zeros(3), (0.0, 0.0, 0.0), 0.0)


def _ground(
    rng: np.random.Generator, split: Split, place: float, depth: float, focal: float, half: float, axis: int
) -> _Plane:
    """A floor (axis 1) or a side wall (axis 0) at that distance from the camera's axis, running away from it."""
    picture = require("cv2").GaussianBlur(texture(rng, split), (0, 0), 0.8)
    pixel = 0.35 * depth / focal / half
    across, down = np.zeros(3), np.zeros(3)
    across[0 if axis == 1 else 1], down[2] = pixel, pixel * 1.5
    origin = -across * picture.shape[1] / 2 + np.array([0.0, 0.0, 0.5])
    origin[axis] = place
    return _Plane(picture, None, origin, across, down, np.zeros(3), (0.0, 0.0, 0.0), 0.0)


def _thing(
    rng: np.random.Generator,
    split: Split,
    depth: float,
    focal: float,
    half: float,
    aspect: float,
    subject: bool = False,
) -> _Plane:
    picture = texture(rng, split)
    side = int(rng.integers(60, 150))
    y, x = (int(rng.integers(0, max(1, n - side))) for n in picture.shape)
    picture = picture[y : y + side, x : x + side]
    rows, columns = picture.shape
    pixel = depth / focal / half * rng.uniform(0.6, 1.3)
    spread = 0.25 if subject else 1.0
    centre = np.array([rng.uniform(-1, 1) * spread, rng.uniform(-1, 1) * spread * aspect, focal]) * depth / focal
    slant = rng.uniform(-0.6, 0.6)
    across, down = pixel * np.array([np.cos(slant), 0.0, np.sin(slant)]), pixel * np.array([0.0, 1.0, 0.0])
    moves = not subject and rng.random() < 0.4
    speed = rng.uniform(0.03, 0.3) * 2 * depth / focal if moves else 0.0
    way = rng.normal(size=3) * np.array([1.0, 0.4, 0.5])
    velocity = speed * way / np.linalg.norm(way)
    sway = (rng.uniform(0.02, 0.15) * depth / focal if rng.random() < 0.3 else 0.0, rng.uniform(0.5, 2.5), rng.random())
    bend = rng.uniform(1.0, 4.0) if rng.random() < 0.25 else 0.0
    origin = centre - across * columns / 2 - down * rows / 2
    return _Plane(picture, outline(rng, rows, columns), origin, across, down, velocity, sway, bend)


def outline(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """uint8 alpha of a lump that fills most of rows × columns."""
    cv2: Any = require("cv2")
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    angle, waves = np.arctan2(y, x), rng.normal(0, 0.12, (2, 5))
    order = np.arange(1, 6)[:, None, None]
    edge = 0.8 + (
        waves[0][:, None, None] * np.cos(order * angle) + waves[1][:, None, None] * np.sin(order * angle)
    ).sum(0)
    if rng.random() < 0.3:
        inside = (np.maximum(abs(x), abs(y)) < 0.85).astype(np.float32)
    else:
        inside = (np.hypot(x, y) < np.clip(edge, 0.3, 0.97)).astype(np.float32)
    return (255 * cv2.GaussianBlur(inside, (0, 0), 0.8)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ textures


@lru_cache(maxsize=32)
def photograph(name: str) -> np.ndarray:
    """A bundled picture in grey, uint8, its longer side 640 pixels."""
    cv2: Any = require("cv2")
    data: Any = require("skimage.data", extra="train", package="scikit-image")
    picture = np.asarray(getattr(data, name)())
    if picture.ndim == 3:
        picture = cv2.cvtColor(np.ascontiguousarray(picture[..., :3]), cv2.COLOR_RGB2GRAY)
    if picture.dtype != np.uint8:
        picture = (255.0 * picture / picture.max()).astype(np.uint8)
    scale = 640 / max(picture.shape)
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def texture(rng: np.random.Generator, split: Split) -> np.ndarray:
    """A texture, uint8 [h, w]: two of three are parts of photographs."""
    if rng.random() < 0.65:
        names = PICTURES[split]
        picture = photograph(names[int(rng.integers(len(names)))])
        side = int(rng.integers(200, 420))
        side = min(side, *picture.shape)
        y, x = (int(rng.integers(0, n - side + 1)) for n in picture.shape)
        picture = require("cv2").resize(picture[y : y + side, x : x + side], (400, 400))
    else:
        picture = _procedural(rng)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    low, high = np.sort(rng.uniform(0, 255, 2))
    if high - low < 60:
        low, high = max(0.0, low - 40), min(255.0, high + 40)
    span = picture.astype(np.float32)
    span = (span - span.min()) / max(1.0, float(span.max() - span.min()))
    return np.ascontiguousarray(low + (high - low) * span ** rng.uniform(0.6, 1.6)).astype(np.uint8)


def _procedural(rng: np.random.Generator) -> np.ndarray:
    """Clouds, blots, tiles or sparse marks, float [400, 400]."""
    cv2: Any = require("cv2")
    side, kind = 400, int(rng.integers(4))
    if kind == 0:
        steepness = rng.uniform(0.9, 1.8)
        waves = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
        phases = np.exp(2j * np.pi * rng.random(waves.shape))
        clouds = np.fft.irfft2(phases / np.maximum(waves, 2 / side) ** steepness, (side, side))
        low, high = np.quantile(clouds, (0.01, 0.99))
        return 255 * np.clip((clouds - low) / (high - low), 0, 1)
    if kind == 1:
        coarse = rng.uniform(0, 255, (int(rng.integers(8, 50)),) * 2).astype(np.float32)
        return np.clip(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), 0, 255)
    if kind == 2:
        rows, columns = (int(n) for n in rng.integers(6, 30, 2))
        tiles = rng.uniform(90, 200, (rows, columns)).astype(np.float32)
        picture = cv2.resize(tiles, (side, side), interpolation=cv2.INTER_NEAREST)
        y, x = np.arange(side) * rows % side < rows * 2, np.arange(side) * columns % side < columns * 2
        picture[y] = 40
        picture[:, x] = 40
        return picture
    picture = np.full((side, side), 128, np.float32)
    for _ in range(int(rng.integers(15, 120))):
        centre = tuple(int(n) for n in rng.integers(0, side, 2))
        cv2.circle(picture, centre, int(rng.integers(2, 22)), float(rng.uniform(0, 255)), -1, cv2.LINE_AA)
    return picture


# ----------------------------------------------------------------------------------------------------------- rendering


def _homography(plane: _Plane, path: CameraPath, i: int, moved: np.ndarray, height: int, width: int) -> np.ndarray:
    """[3, 3] from pixels of the texture to those of the picture, times depth: the third coordinate is the depth."""
    half = max(height, width) / 2
    lens = np.array(
        [[path.focal[i] * half, 0, (width - 1) / 2], [0, path.focal[i] * half, (height - 1) / 2], [0, 0, 1]]
    )
    local = np.stack([plane.across, plane.down, plane.origin + moved - path.position[i]], axis=1)
    return lens @ path.rotation[i] @ local


def _frame(planes: list[_Plane], path: CameraPath, i: int, time: float, height: int, width: int) -> np.ndarray:
    cv2: Any = require("cv2")
    picture = np.zeros((height, width), np.float32)
    for plane in planes:
        reach, rate, phase = plane.sway
        moved = plane.velocity * time
        moved = moved + np.array([1.0, 0.5, 0.0]) * reach * np.sin(2 * np.pi * (rate * time + phase))
        matrix = _homography(plane, path, i, moved, height, width)
        texture = plane.texture
        if plane.alpha is None:
            seen = cv2.warpPerspective(texture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
            nearness = _nearness(matrix, height, width)
            shown = np.clip((nearness - 1 / FAR) * 4 * FAR, 0, 1)
            picture += shown * (seen - picture)
        else:
            if plane.bend:
                texture = _bent(texture, plane.bend, 2 * np.pi * time * max(rate, 0.7), cv2)
            if _nearness(matrix, height, width, corners=texture.shape) <= 0.02:
                continue  # beside or behind the camera
            pair = cv2.warpPerspective(cv2.merge([texture, plane.alpha]), matrix, (width, height))
            shown = pair[..., 1] * np.float32(1 / 255)
            picture += shown * (pair[..., 0] - picture)
    return picture.clip(0, 255).astype(np.uint8)


def _nearness(matrix: np.ndarray, height: int, width: int, corners: tuple[int, ...] | None = None) -> Any:
    """1 / depth of the plane at every pixel, 0 or less where it is not in front; or the least depth at its corners."""
    if corners is not None:
        rows, columns = corners
        return float((matrix[2] @ np.array([[0, columns, 0, columns], [0, 0, rows, rows], [1, 1, 1, 1]])).min())
    a, b, c = np.linalg.inv(matrix)[2]
    return (a * np.arange(width)[None] + b * np.arange(height)[:, None] + c).astype(np.float32)


def _bent(texture: np.ndarray, reach: float, phase: float, cv2: Any) -> np.ndarray:
    y, x = np.mgrid[: texture.shape[0], : texture.shape[1]].astype(np.float32)
    return cv2.remap(
        texture,
        x + np.float32(reach) * np.sin(y / 12 + np.float32(phase)),
        y + np.float32(0.7 * reach) * np.sin(x / 15 - np.float32(phase)),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def _typical_depth(planes: list[_Plane], path: CameraPath, height: int, width: int) -> float:
    """Median over the picture of the depth of what is seen."""
    nearness = np.full((height, width), 1 / FAR, np.float32)
    cv2: Any = require("cv2")
    for plane in planes:
        matrix = _homography(plane, path, 0, np.zeros(3), height, width)
        if plane.alpha is None:
            near = _nearness(matrix, height, width)
            nearness = np.where(near > 1 / FAR, near, nearness)
        elif _nearness(matrix, height, width, corners=plane.texture.shape) > 0.02:
            seen = cv2.warpPerspective(plane.alpha, matrix, (width, height)) > 127
            nearness[seen] = 1 / plane.depth
    return float(1 / np.median(nearness))


# ----------------------------------------------------------------------------------------------------- what video adds


def spoil(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames uint8 [T, h, w] as a video file might show them; size and number stay."""
    cv2: Any = require("cv2")
    count, height, width = frames.shape
    gain = 1 + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, count) if rng.random() < 0.3 else np.ones(count)
    contrast, level = rng.uniform(0.45, 1.1), rng.uniform(-25, 25)
    noise = rng.uniform(0, 5) if rng.random() < 0.6 else 0.0
    blur = rng.uniform(0.4, 1.3) if rng.random() < 0.4 else 0.0
    quality = int(rng.integers(25, 92)) if rng.random() < 0.6 else 0
    grain = rng.normal(0, max(noise, 1e-3), (height + 16, width + 16)).astype(np.float32)
    shutter = rng.random() < 0.25
    marks = _marks(rng, height, width)
    found = np.empty_like(frames)
    for i, frame in enumerate(frames):
        x = frame.astype(np.float32)
        if shutter and i + 1 < count:
            x = 0.75 * x + 0.25 * frames[i + 1]
        if blur:
            x = cv2.GaussianBlur(x, (0, 0), blur)
        x = (x - 128) * contrast * gain[i] + 128 + level
        if noise:
            top, left = rng.integers(0, 16, 2)
            x += grain[top : top + height, left : left + width] * (1 if i % 2 else -1)
        x = x.clip(0, 255).astype(np.uint8)
        if marks is not None:
            x = np.where(marks[1] > 0, marks[0], x)
        if quality:
            x = cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
        found[i] = x
    return found


def _marks(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Bars, a title or a logo that stand still, with the mask of where they are; often nothing."""
    cv2: Any = require("cv2")
    kind = rng.random()
    if kind < 0.75:
        return None
    picture, mask = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    if kind < 0.85:
        bar = int(rng.uniform(0.05, 0.16) * height)
        mask[:bar] = mask[height - bar :] = 255
    else:
        letters = "".join(chr(int(c)) for c in rng.integers(65, 91, int(rng.integers(3, 18))))
        place = (int(rng.uniform(0.02, 0.5) * width), int(rng.uniform(0.1, 0.97) * height))
        size = float(rng.uniform(0.3, 0.8))
        cv2.putText(mask, letters, place, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 2)
        cv2.putText(picture, letters, place, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 1)
    return picture, mask
