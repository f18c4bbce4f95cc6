"""Edges that stay where they are while time passes: the common ground of subtitle and watermark detection.

For a window of frames, an edge lasts where the picture's slope has the same sign in every frame; its strength is the
weakest of those slopes. What moves leaves nothing. What lasts is an overlay, or a background under a camera that stands
still; the two are told apart by their form, with what errors that brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from openhunyuan.base.require import require

LEVELS = (140.0, 100.0, 70.0, 48.0, 32.0)
"""Strengths at which lasting edges are looked at, strongest first: an overlay stands out from its backdrop at some
level, and at that level little else is left."""


QUARTER = np.float32(0.25)
"""Slopes are whole numbers of quarter levels (a 3 × 3 Sobel sums four steps), which are quicker to compare."""


class Slopes:
    """The running minimum of slopes, by sign: what lasts over the frames that were added."""

    def __init__(self) -> None:
        self.parts: np.ndarray | None = None

    def add(self, slopes: np.ndarray) -> None:
        """slopes: int16 [4, h, w] of `signed_slopes`, or the `parts` of another window."""
        self.parts = slopes.copy() if self.parts is None else np.minimum(self.parts, slopes, out=self.parts)

    @property
    def across(self) -> np.ndarray:
        """Lasting slope along x, signed, in levels: float32 [h, w]."""
        assert self.parts is not None
        return (self.parts[0] - self.parts[1]) * QUARTER

    @property
    def down(self) -> np.ndarray:
        """The same along y."""
        assert self.parts is not None
        return (self.parts[2] - self.parts[3]) * QUARTER

    @property
    def strength(self) -> np.ndarray:
        """How steep what lasts is, in any direction: float32 [h, w]. A clean step of s levels gives about s."""
        assert self.parts is not None
        right, left, down, up = self.parts
        return (right + left + down + up) * QUARTER


def signed_slopes(gray: np.ndarray) -> np.ndarray:
    """int16 [4, h, w]: slope to the right, to the left, downwards, upwards; each 0 or more, in quarter levels."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    slopes = np.empty((4, *gray.shape), np.int16)
    for axis in (0, 1):
        slope = cv2.Sobel(gray, cv2.CV_16S, 1 - axis, axis)
        np.maximum(slope, 0, out=slopes[2 * axis])
        np.subtract(slopes[2 * axis], slope, out=slopes[2 * axis + 1])
    return slopes


@dataclass(frozen=True)
class Blob:
    """Lasting edges that lie together: a box in pixels (right and bottom exclusive) and the share of it they fill."""

    left: int
    top: int
    right: int
    bottom: int
    filled: float

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def blobs(mask: np.ndarray, reach_x: int, reach_y: int) -> list[Blob]:
    """Boxes around what lies together in a mask, gaps of up to 2 × reach pixels bridged."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    bits = mask.astype(np.uint8)
    joined = cv2.dilate(bits, np.ones((2 * reach_y + 1, 2 * reach_x + 1), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    found = []
    for number in range(1, count):
        x, y, w, h = (int(v) for v in stats[number, :4])
        inside = (labels[y : y + h, x : x + w] == number) & mask[y : y + h, x : x + w]
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if rows.size == 0:
            continue
        top, bottom, left, right = y + rows[0], y + rows[-1] + 1, x + columns[0], x + columns[-1] + 1
        filled = float(inside.sum()) / ((bottom - top) * (right - left))
        found.append(Blob(int(left), int(top), int(right), int(bottom), filled))
    return found


def around(mask: np.ndarray, blob: Blob, margin: int) -> float:
    """Share of the frame of `margin` pixels around a blob's box that the mask fills: 0 where the blob stands alone."""
    gap = 1 + margin // 4
    outer = _cut(mask, blob, margin + gap)
    inner = _cut(mask, blob, gap)
    area = outer.size - inner.size
    return float(outer.sum() - inner.sum()) / area if area > 0 else 0.0


def _cut(mask: np.ndarray, blob: Blob, margin: int) -> np.ndarray:
    return mask[
        max(0, blob.top - margin) : blob.bottom + margin,
        max(0, blob.left - margin) : blob.right + margin,
    ]
