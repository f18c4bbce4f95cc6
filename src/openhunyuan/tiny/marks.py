"""Watermarks and logos, drawn; and clips that carry one or none. What `train watermark` learns from.

A mark is lettering, a badge, or both, in any colour, solid or seen through, near a corner, at a side, or anywhere. It
stays where it is while the clip goes on. Subtitles and black bars are planted too, and are no marks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openhunyuan.base.require import require
from openhunyuan.tiny.pictures import LETTERS, Rng, colour, noisy, small_photograph, texture, toned, world_clip
from openhunyuan.tiny.world import Frames

MARKED = 0.55
"""Share of the clips that carry a mark."""


@dataclass(frozen=True)
class Mark:
    """levels: uint8 [h, w, 3]. cover: float32 [h, w] in 0..1, how much the picture behind is hidden."""

    levels: NDArray[np.uint8]
    cover: NDArray[np.float32]


def draw_mark(rng: Rng, height: int, width: int) -> Mark:
    """A mark for a picture of this size."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    kind = str(rng.choice(["text", "badge", "both", "large"], p=[0.45, 0.3, 0.2, 0.05]))
    short = min(height, width)
    if kind == "large":
        mark = _lettering(rng, rng.uniform(0.1, 0.25) * height, 0.85 * width)
        strength = rng.uniform(0.2, 0.6)
    else:
        tall = max(7.0, short * float(np.exp(rng.uniform(np.log(0.045), np.log(0.2)))))
        if kind == "text":
            mark = _lettering(rng, 0.8 * tall, 0.45 * width)
        elif kind == "badge":
            mark = _badge(rng, round(tall))
        else:
            badge, text = _badge(rng, round(tall)), _lettering(rng, 0.6 * tall, 0.35 * width)
            mark = _beside(badge, text, gap=max(1, round(0.15 * tall)))
        strength = 1.0 if rng.random() < 0.4 else rng.uniform(0.25, 0.9)
    if rng.random() < 0.15:
        mark = Mark(mark.levels, cv2.GaussianBlur(mark.cover, (0, 0), rng.uniform(0.4, 0.9)))
    return Mark(mark.levels, (strength * mark.cover).astype(np.float32))


def _lettering(rng: Rng, height: float, widest: float) -> Mark:
    """One line of random text, at most this large; plain, outlined, shadowed or on a plate."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    count = int(rng.integers(1, 15))
    text = "".join(rng.choice(list(LETTERS + "   .©®@/"), count)).strip() or "A"
    if rng.random() < 0.5:
        text = text.upper()
    font, bold = int(rng.choice([0, 1, 2, 3, 4, 5, 6, 7])), rng.uniform(1.0, 3.0)
    (w, h), base = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(height / (h + base), widest / max(w, 1))
    thick = max(1, round(bold * scale))
    fine = 2  # drawn at twice the size and averaged down
    (w, h), base = cv2.getTextSize(text, font, fine * scale, fine * thick)
    rim = fine * (thick + 2)
    ink = np.zeros((h + base + 2 * rim, w + 2 * rim), np.uint8)
    cv2.putText(ink, text, (rim, rim + h), font, fine * scale, 255, fine * thick, cv2.LINE_AA)
    size = (max(3, ink.shape[1] // fine), max(3, ink.shape[0] // fine))
    ink = cv2.resize(ink, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    front = (255, 255, 255) if rng.random() < 0.5 else colour(rng)
    back = (0, 0, 0) if sum(front) > 380 else (255, 255, 255)
    style = str(rng.choice(["plain", "outline", "shadow", "plate"], p=[0.55, 0.2, 0.15, 0.1]))
    under = np.zeros_like(ink)
    if style == "outline":
        under = cv2.dilate(ink, np.ones((3, 3), np.uint8))
    elif style == "shadow":
        under[1:, 1:] = 0.8 * ink[:-1, :-1]
    elif style == "plate":
        under, back = np.ones_like(ink), colour(rng)
    cover = ink + (1 - ink) * under
    share = (ink / np.maximum(cover, 1e-6))[..., None]
    levels = share * np.array(front, np.float32) + (1 - share) * np.array(back, np.float32)
    return Mark(levels.round().astype(np.uint8), cover)


def _badge(rng: Rng, side: int) -> Mark:
    """A figure of two or three colours."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    fine, side = 4, max(6, side)
    wide = round(side * float(rng.choice([1.0, 1.0, 1.4, 2.0])))
    h, w = fine * side, fine * wide
    levels, cover = np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8)
    centre, radius = (w // 2, h // 2), h // 2 - fine
    outer = _figure(rng)
    colours = [colour(rng) for _ in range(3)]
    for layer, (shade, share) in enumerate(
        zip(colours, (1.0, rng.uniform(0.6, 0.85), rng.uniform(0.3, 0.5)), strict=True)
    ):
        if layer and rng.random() < 0.25:
            continue
        figure = outer if layer == 0 or rng.random() < 0.5 else _figure(rng)
        for target, value in ((levels, shade), (cover, 255)) if layer == 0 else ((levels, shade),):
            _fill(target, figure, centre, share * radius, share * (w // 2 - fine), value)
    if rng.random() < 0.4:
        letter = str(rng.choice(list(LETTERS)))
        scale = h / 50
        (tw, th), _ = cv2.getTextSize(letter, 0, scale, 2 * fine)
        where = (centre[0] - tw // 2, centre[1] + th // 2)
        cv2.putText(levels, letter, where, 0, scale, colour(rng), 2 * fine, cv2.LINE_AA)
    if rng.random() < 0.2:  # an open figure
        _fill(cover, outer, centre, 0.6 * radius, 0.6 * (w // 2 - fine), 0)
    levels = cv2.resize(levels, (wide, side), interpolation=cv2.INTER_AREA)
    shown = cv2.resize(cover, (wide, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # At the rim the figure's own colour, not the black that lies around it.
    levels = np.where(shown[..., None] > 0, levels / np.maximum(shown[..., None], 0.25), 0).clip(0, 255)
    return Mark(levels.astype(np.uint8), shown)


def _figure(rng: Rng) -> NDArray[np.float64]:
    """Corners of a figure in the unit circle; many corners for a round one."""
    corners = int(rng.choice([3, 4, 4, 5, 6, 8, 40, 40]))
    angles = np.arange(corners) * 2 * np.pi / corners + (np.pi / 4 if corners == 4 else -np.pi / 2)
    radii = np.ones(corners)
    if corners in (5, 6, 8) and rng.random() < 0.6:  # a star
        angles = np.arange(2 * corners) * np.pi / corners - np.pi / 2
        radii = np.where(np.arange(2 * corners) % 2, rng.uniform(0.35, 0.6), 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _fill(
    target: NDArray[np.uint8],
    figure: NDArray[np.float64],
    centre: tuple[int, int],
    tall: float,
    wide: float,
    value: Any,
) -> None:
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    points = np.array(centre) + figure * np.array([wide, tall])
    cv2.fillPoly(target, [points.round().astype(np.int32)], value, cv2.LINE_AA)


def _beside(one: Mark, other: Mark, gap: int) -> Mark:
    """Two marks side by side, or one below the other where that is narrower."""
    h = max(one.cover.shape[0], other.cover.shape[0])
    w = one.cover.shape[1] + gap + other.cover.shape[1]
    levels, cover = np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.float32)
    for mark, left in ((one, 0), (other, one.cover.shape[1] + gap)):
        mh, mw = mark.cover.shape
        top = (h - mh) // 2
        levels[top : top + mh, left : left + mw], cover[top : top + mh, left : left + mw] = mark.levels, mark.cover
    return Mark(levels, cover)


def place(rng: Rng, mark: Mark, height: int, width: int) -> tuple[int, int]:
    """(left, top) of a mark in a picture of this size: mostly near a corner."""
    h, w = mark.cover.shape
    free_x, free_y = max(1, width - w), max(1, height - h)
    margin = rng.uniform(0.01, 0.08) * min(height, width)
    draw = rng.random()
    near_x, near_y = (float(rng.choice([margin, free - margin])) for free in (free_x, free_y))
    if draw < 0.68:
        x, y = near_x, near_y
    elif draw < 0.9:
        middle = rng.random() < 0.5
        x, y = (free_x / 2, near_y) if middle else (near_x, free_y / 2)
    else:
        x, y = rng.uniform(0, free_x), rng.uniform(0, free_y)
    return int(np.clip(x, 0, free_x)), int(np.clip(y, 0, free_y))


def paste(frames: Frames, mark: Mark, left: int, top: int) -> None:
    """Paste a mark on frames [T, H, W, 3] in place, where it lies inside them."""
    height, width = frames.shape[1:3]
    h, w = mark.cover.shape
    t, b, l, r = max(0, top), min(height, top + h), max(0, left), min(width, left + w)
    if t >= b or l >= r:
        return
    cover = mark.cover[t - top : b - top, l - left : r - left, None]
    levels = mark.levels[t - top : b - top, l - left : r - left]
    region = frames[:, t:b, l:r].astype(np.float32)
    frames[:, t:b, l:r] = np.rint(region + cover * (levels - region)).astype(np.uint8)


def background(rng: Rng, frames: int, height: int, width: int) -> Frames:
    """A clip without a mark: photographs and textures under a virtual camera, with things that move before them."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    picture = small_photograph(rng) if rng.random() < 0.65 else texture(rng, 180, 220)
    picture = toned(rng, picture) if rng.random() < 0.5 else picture
    if rng.random() < 0.2:  # a night scene: most of it is black
        picture = (picture.astype(np.float32) - rng.uniform(40, 110)).clip(0, 255).astype(np.uint8)
    still = rng.random() < 0.45
    reach = rng.uniform(1.05, 1.6)
    scale = reach * max(height / picture.shape[0], width / picture.shape[1])
    speed = 0.0 if still else float(np.exp(rng.uniform(np.log(1.0), np.log(25.0))))
    heading = rng.uniform(0, 2 * np.pi)
    turn, grow = (0.0, 0.0) if still else (rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03))
    sprites = [_sprite(rng, height, width) for _ in range(int(rng.integers(0, 4)))]
    result = np.empty((frames, height, width, 3), np.uint8)
    for number in range(frames):
        along = number - (frames - 1) / 2
        matrix = cv2.getRotationMatrix2D(
            (picture.shape[1] / 2, picture.shape[0] / 2), np.degrees(turn * along), scale * (1 + grow * along)
        )
        matrix[:, 2] += np.array([width - picture.shape[1], height - picture.shape[0]]) / 2
        matrix[:, 2] += speed * along * np.array([np.cos(heading), np.sin(heading)])
        frame = cv2.warpAffine(
            picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        for levels, cover, x, y, dx, dy in sprites:
            paste(frame[None], Mark(levels, cover), round(x + dx * along), round(y + dy * along))
        result[number] = frame
    return result


def _sprite(rng: Rng, height: int, width: int) -> tuple[Any, Any, float, float, float, float]:
    """A piece of a picture that moves on its own, or stands: levels, cover, where, and how far it goes a frame."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    side = max(8, round(min(height, width) * rng.uniform(0.06, 0.5)))
    source = small_photograph(rng) if rng.random() < 0.5 else None
    if source is None:
        levels = np.full((side, side, 3), colour(rng), np.uint8)
    else:
        side = min(side, *source.shape[:2])
        top, left = (int(rng.integers(0, n - side + 1)) for n in source.shape[:2])
        levels = source[top : top + side, left : left + side]
    cover = np.zeros((side, side), np.uint8)
    _fill(cover, _figure(rng), (side // 2, side // 2), side / 2 - 1, side / 2 - 1, 255)
    moves = 0.0 if rng.random() < 0.35 else rng.uniform(1.0, 18.0)
    heading = rng.uniform(0, 2 * np.pi)
    x, y = rng.uniform(-side / 2, width - side / 2), rng.uniform(-side / 2, height - side / 2)
    shown = cv2.GaussianBlur(cover, (0, 0), 0.6).astype(np.float32) / 255
    return levels, shown, x, y, moves * np.cos(heading), moves * np.sin(heading)


@dataclass(frozen=True)
class MarkedClip:
    """frames: uint8 [T, size, size, 3], a part of a picture; box: which part, in shares (left, top, right, bottom).
    cover: float32 [size, size], how much of the picture a mark hides; all 0 where there is none."""

    frames: Frames
    box: tuple[float, float, float, float]
    cover: NDArray[np.float32]


def marked_clip(rng: Rng, size: int, worlds: list[Frames]) -> MarkedClip:
    """A clip with or without a mark, cut to `size` × `size` pixels around where the mark is or might be.

    worlds: clips of the synthetic world [T, H, W, 3] to take as backgrounds now and then.
    """
    looks = int(rng.integers(4, 8))
    if rng.random() < 0.4 and worlds:
        whole = worlds[int(rng.integers(len(worlds)))]
        looks = min(looks, len(whole))
        chosen = np.sort(rng.choice(len(whole), looks, replace=False))
        height, width = whole.shape[1:3]
    else:
        height, width = ((180, 320), (240, 320), (320, 180), (144, 256))[int(rng.choice(4, p=[0.5, 0.2, 0.15, 0.15]))]
        whole, chosen = None, np.arange(looks)
    mark = draw_mark(rng, height, width)
    left, top = place(rng, mark, height, width)
    h, w = mark.cover.shape
    x = int(np.clip(left + w / 2 - size * rng.uniform(0.2, 0.8), 0, width - size))
    y = int(np.clip(top + h / 2 - size * rng.uniform(0.2, 0.8), 0, height - size))
    if whole is not None:
        frames = whole[chosen, y : y + size, x : x + size].copy()
    else:
        frames = background(rng, looks, size, size)
    if rng.random() < 0.5:
        frames = np.ascontiguousarray(frames[:, :, ::-1])
    _distract(rng, frames, x, y, height, width)
    cover = np.zeros((size, size), np.float32)
    if rng.random() < MARKED:
        paste(frames, mark, left - x, top - y)
        stand_in = np.zeros((1, size, size, 3), np.uint8)
        paste(stand_in, Mark(np.full_like(mark.levels, 255), mark.cover), left - x, top - y)
        cover = (stand_in[0, ..., 0] / 255).astype(np.float32)
    box = (x / width, y / height, (x + size) / width, (y + size) / height)
    return MarkedClip(np.stack(noisy(rng, list(frames))), box, cover)


def _distract(rng: Rng, frames: Frames, x: int, y: int, height: int, width: int) -> None:
    """Now and then a subtitle or black bars, which are no marks; in place, on the part of the picture at (x, y)."""
    draw = rng.random()
    if draw < 0.1:
        bar = round(rng.uniform(0.05, 0.16) * height)
        frames[:, : max(0, bar - y)] = 0
        frames[:, max(0, min(frames.shape[1], height - bar - y)) :] = 0
    elif draw < 0.14:
        bar = round(rng.uniform(0.05, 0.2) * width)
        frames[:, :, : max(0, bar - x)] = 0
        frames[:, :, max(0, min(frames.shape[2], width - bar - x)) :] = 0
    elif draw < 0.28:
        changes = int(rng.integers(0, 2 * len(frames)))
        for part in (frames[:changes], frames[changes:]):
            if len(part):
                line = _subtitle(rng, height, width)
                h, w = line.cover.shape
                paste(part, line, (width - w) // 2 - x, round(0.95 * height) - h - y)


def _subtitle(rng: Rng, height: int, width: int) -> Mark:
    """A line of white words with a dark rim, wide and low."""
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    words = ["".join(rng.choice(list(LETTERS[26:52]), int(rng.integers(2, 8)))) for _ in range(int(rng.integers(3, 8)))]
    text = " ".join(words)
    (w, h), base = cv2.getTextSize(text, 0, 1.0, 1)
    scale = min(0.85 * width / w, rng.uniform(0.05, 0.1) * height / (h + base))
    thick = max(1, round(1.6 * scale))
    (w, h), base = cv2.getTextSize(text, 0, scale, thick)
    ink = np.zeros((h + base + 6, w + 6), np.uint8)
    cv2.putText(ink, text, (3, 3 + h), 0, scale, 255, thick, cv2.LINE_AA)
    front = ink.astype(np.float32) / 255
    cover = cv2.dilate(front, np.ones((3, 3), np.uint8))
    return Mark((front[..., None] * np.full(3, 255)).astype(np.uint8), cover)


def world_backgrounds(rng: Rng, count: int, frames: int = 7) -> list[Frames]:
    """Clips of the world at 180 × 320, for `marked_clip`."""
    return [world_clip(rng, frames, 180, 320) for _ in range(count)]
