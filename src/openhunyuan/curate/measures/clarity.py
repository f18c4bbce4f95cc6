"""Clarity: how wide the sharpest edges of a picture are. A proxy for a clarity model, and named as one.

An edge that is in focus goes from one level to the other within a pixel or two; blur makes the same edge wider. The
width is the difference of levels around an edge divided by its steepest slope, so that contrast cancels out.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View

STEEP = 0.4
"""Edges are looked at whose slope is at least this share of the steepest one's: what is in focus, not its backdrop."""

REACH = 0.035
"""How far around an edge its levels are looked for, as a share of the shorter side."""

MIN_STEP = 12.0
"""Levels that an edge must span to be looked at."""


class Clarity(Measure):
    """Column `edge_width`: width of the sharpest edges in per cent of the shorter side, median over the clip; small is
    clear. Null where no frame has an edge."""

    name: ClassVar[str] = "clarity"
    version: ClassVar[int] = 1
    group: ClassVar[str] = "clarity"
    columns: ClassVar = ("edge_width",)
    proxy: ClassVar[str] = "edge width, not a trained clarity model"

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader()


class _Reader(Reader):
    def __init__(self) -> None:
        self.widths: list[float] = []

    def add(self, view: View) -> None:
        if view.sample and (width := edge_width(view.rgb)) is not None:
            self.widths.append(width)

    def finish(self) -> dict[str, Any]:
        return {"edge_width": float(np.median(self.widths)) if self.widths else None}


def edge_width(rgb: np.ndarray) -> float | None:
    """Median width of the picture's steepest edges, in per cent of its shorter side; None where it has none.

    rgb: uint8 [h, w, 3]. The colour channel with the steepest edge is looked at: red on grey may have none in grey.
    """
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    side = min(rgb.shape[:2])
    x = cv2.Sobel(rgb, cv2.CV_32F, 1, 0, scale=0.125)
    y = cv2.Sobel(rgb, cv2.CV_32F, 0, 1, scale=0.125)
    slopes_of = np.hypot(x, y)
    best = int(slopes_of.reshape(-1, 3).max(axis=0).argmax())
    slope, gray = np.ascontiguousarray(slopes_of[..., best]), np.ascontiguousarray(rgb[..., best])
    reach = max(2, round(REACH * side))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    step = cv2.dilate(gray, kernel).astype(np.float32) - cv2.erode(gray, kernel)
    # One pixel an edge and neighbourhood: where the slope is the greatest around.
    ridge = (slope >= cv2.dilate(slope, kernel)) & (step >= MIN_STEP) & (slope > 0)
    if not ridge.any():
        return None
    slopes, steps = slope[ridge], step[ridge]
    keep = slopes >= STEEP * slopes.max()
    return float(100.0 * np.median(steps[keep] / slopes[keep]) / side)
