"""Black bars around the picture: letterbox and pillarbox, found where rows or columns stay black through the clip."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View

BEGINS = 4.0
"""Levels by which the picture is brighter than its bars where they end."""


class Border(Measure):
    """The picture inside black bars.

    Columns: `share`, the part of the area that the bars take; `box`, the picture between them (left, top, right,
    bottom, as shares of width and height).

    Bars are black from edge to edge through the whole clip, come in pairs of about equal thickness, and end where most
    of a row (or column) is at some time brighter than they are. Coloured and one-sided frames are not looked for.
    """

    name: ClassVar[str] = "border"
    version: ClassVar[int] = 2
    columns: ClassVar = ("share",)

    black: float = Field(default=14.0, ge=0, le=255, description="Level up to which a pixel counts as black.")
    least: float = Field(default=0.02, ge=0, le=0.5, description="Thinnest bar, as a share of the side.")
    most: float = Field(default=0.35, ge=0, le=0.5, description="Thickest bar, as a share of the side.")

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self)


class _Reader(Reader):
    def __init__(self, stage: Border) -> None:
        self.stage = stage
        self.brightest: np.ndarray | None = None

    def add(self, view: View) -> None:
        if view.sample:
            gray = view.gray
            self.brightest = gray.copy() if self.brightest is None else np.maximum(self.brightest, gray)

    def finish(self) -> dict[str, Any]:
        assert self.brightest is not None
        box = bars(self.brightest, self.stage)
        return {"share": 1.0 - (box[2] - box[0]) * (box[3] - box[1]), "box": list(box)}


def bars(brightest: np.ndarray, stage: Border) -> tuple[float, float, float, float]:
    """The picture between the bars, as shares, from the brightest level that each pixel ever had."""
    top, bottom = _pair(brightest, stage)
    left, right = _pair(brightest.T, stage)
    height, width = brightest.shape
    return (left / width, top / height, 1.0 - right / width, 1.0 - bottom / height)


def without_bars(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, h, w, 3] of one clip, what lies between the bars that are found in them."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    brightest = np.max([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames], axis=0)
    height, width = brightest.shape
    left, top, right, bottom = bars(brightest, Border())
    return frames[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def _pair(x: np.ndarray, stage: Border) -> tuple[int, int]:
    """Thickness of the bars at the first and the last rows; (0, 0) where there is no such pair."""
    first, last = _bar(x, stage), _bar(x[::-1], stage)
    if min(first, last) < max(2, stage.least * len(x)) or abs(first - last) > 2 + 0.25 * max(first, last):
        return 0, 0
    return first, last


def _bar(x: np.ndarray, stage: Border) -> int:
    """Rows from the first that are black; 0 unless the picture then begins over most of the row at once."""
    # A hundredth of a row may be brighter: compression rings along the picture's edge.
    black = np.quantile(x, 0.99, axis=1) <= stage.black
    rows = int(np.argmin(black)) if not black.all() else 0
    if rows == 0 or rows > stage.most * len(x):
        return 0
    inside = x[rows + 1 : rows + 1 + max(2, round(0.02 * len(x)))]
    # Brighter than the bar, not than what may be black: a dark picture begins too.
    level = float(np.quantile(x[:rows], 0.99)) + BEGINS
    begins = np.mean(inside.max(axis=0) > level) if inside.size else 0.0
    return rows if begins >= 0.7 else 0
