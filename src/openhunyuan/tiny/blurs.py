"""Pictures blurred by kernels of known width: defocus, Gaussian, motion. What `train blur` learns from.

The width of a blur is what it makes of a clean step: the step over its steepest slope, in pixels. For a Gaussian that
is σ·√(2π), for a disc of radius r it is πr/2. For a straight motion of length L it depends on which way the step goes:
L·|cos| of the angle between the motion and the step, so that edges along the motion stay sharp. Widths of kernels that
follow each other add as squares, also to the `SHARP` pixels of a picture that is in focus; that is exact for Gaussians
and near enough for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openhunyuan.base.require import require
from openhunyuan.curate.models.small_forward import DIRECTIONS
from openhunyuan.tiny.pictures import PHOTOGRAPHS, Picture, Rng, noisy, small_photograph, texture, toned, world_clip

SHARP = 1.4
"""Width of an edge that is in focus, in pixels."""

WIDTHS = (1.5, 26.0)
MARGIN = 26
"""Pixels around what is labelled: blur and lags reach outwards."""
AROUND = 16
"""Of these, the pixels that are shown with a pair, two cells: what the lags of `curate.measures.blur` see."""
IN_FOCUS = tuple(name for name in PHOTOGRAPHS if name not in ("hubble_deep_field", "moon", "retina", "text"))
"""Photographs without much blur of their own."""

KINDS = ("gaussian", "defocus", "motion")


@dataclass(frozen=True)
class Kernel:
    """weights: float32 [k, k] that add up to 1. width: of the blur that it makes, in pixels. angle: of a motion, in
    radians from x to y; None: the same in all directions."""

    weights: NDArray[np.float32]
    width: float
    angle: float | None = None

    @property
    def widths(self) -> NDArray[np.float64]:
        """[DIRECTIONS]: what it makes of a step that goes in each direction, in pixels."""
        if self.angle is None:
            return np.full(DIRECTIONS, self.width)
        return self.width * np.abs(np.cos(self.angle - np.pi * np.arange(DIRECTIONS) / DIRECTIONS))


def kernel_of(kind: str, width: float, angle: float = 0.0) -> Kernel:
    """The kernel of a kind (`KINDS`) with this width; angle: of a motion, in radians."""
    reach = int(np.ceil(1.25 * width)) + 2
    fine = 4  # each weight is the average of 4 × 4 points
    steps = (np.arange((2 * reach + 1) * fine, dtype=np.float32) + 0.5) / fine - reach - 0.5
    y, x = np.meshgrid(steps, steps, indexing="ij")
    if kind == "gaussian":
        sigma = width / np.sqrt(2 * np.pi)
        dense = np.exp(-(x * x + y * y) / (2 * sigma * sigma))
    elif kind == "defocus":
        dense = (np.hypot(x, y) <= 2 * width / np.pi).astype(np.float32)
    else:
        along, aside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        dense = ((np.abs(along) <= width / 2) & (np.abs(aside) <= 0.5)).astype(np.float32)
    size = 2 * reach + 1
    weights = dense.reshape(size, fine, size, fine).mean(axis=(1, 3))
    return Kernel((weights / weights.sum()).astype(np.float32), width, angle if kind == "motion" else None)


def random_kernel(rng: Rng) -> Kernel:
    """A kernel of any kind; narrow ones are as likely as wide ones."""
    width = float(np.exp(rng.uniform(np.log(WIDTHS[0]), np.log(WIDTHS[1]))))
    return kernel_of(KINDS[int(rng.choice(3, p=[0.35, 0.25, 0.4]))], width, rng.uniform(0, np.pi))


def blurred(picture: Picture, kernel: Kernel) -> Picture:
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    return cv2.filter2D(picture, -1, kernel.weights, borderType=cv2.BORDER_REFLECT_101)


@dataclass(frozen=True)
class BlurPair:
    """picture: uint8 [size + 2 · AROUND] twice and 3 colours. targets, of its middle: float32 [DIRECTIONS + 1, size/8,
    size/8], log of the width in pixels, by direction; how much the cell counts (0 where two widths meet)."""

    picture: Picture
    targets: NDArray[np.float32]


def sharp_picture(rng: Rng, least: int) -> Picture:
    """A sharp picture of at least this size."""
    draw = rng.random()
    if draw < 0.5:
        return small_photograph(rng, least, IN_FOCUS)
    if draw < 0.75:
        return texture(rng, least, least)
    height = int(rng.choice([144, 180, 240]))
    return world_clip(rng, 1, height, height * 16 // 9)[0]


def blur_pair(rng: Rng, size: int, picture: Picture | None = None, cell: int = 8) -> BlurPair:
    """One training pair of `size` × `size` labelled pixels, cut from `picture` or from one that is drawn.

    A fifth are left sharp; of the others a fifth has two widths, a clear part in front of an unsharp one or the other
    way round.
    """
    cv2: Any = require("cv2", extra="train", package="opencv-python-headless")
    outer = size + 2 * MARGIN
    whole = sharp_picture(rng, outer) if picture is None else picture
    top, left = (int(rng.integers(0, n - outer + 1)) for n in whole.shape[:2])
    crop = toned(rng, np.ascontiguousarray(whole[top : top + outer, left : left + outer]))
    crop = np.rot90(crop, int(rng.integers(4))).copy()
    cells = size // cell
    widths, counts = np.full((DIRECTIONS, cells, cells), SHARP), np.ones((cells, cells))
    if rng.random() >= 0.2:
        kernel = random_kernel(rng)
        soft = blurred(crop, kernel)
        wide = np.hypot(SHARP, kernel.widths)[:, None, None]
        if rng.random() < 0.2:
            mask = np.zeros((outer, outer), np.uint8)
            centre = (int(rng.integers(outer)), int(rng.integers(outer)))
            cv2.circle(mask, centre, int(outer * rng.uniform(0.15, 0.6)), 1, -1)
            if rng.random() < 0.5:
                mask = 1 - mask
            inner = mask[MARGIN : MARGIN + size, MARGIN : MARGIN + size]
            share = inner.reshape(cells, cell, cells, cell).mean(axis=(1, 3))
            crop = np.where(mask[..., None] > 0, soft, crop)
            widths = np.where(share > 0.5, wide, SHARP)
            # The rim between the two is a sharp edge of its own, and its neighbours see it.
            mixed = ((share > 0.0) & (share < 1.0)).astype(np.uint8)
            counts = 1.0 - cv2.dilate(mixed, np.ones((3, 3), np.uint8))
        else:
            crop = soft
            widths[:] = wide
    edge = MARGIN - AROUND
    inside = np.ascontiguousarray(crop[edge : outer - edge, edge : outer - edge])
    (inside,) = noisy(rng, [inside])
    return BlurPair(inside, np.concatenate([np.log(widths), counts[None]]).astype(np.float32))
