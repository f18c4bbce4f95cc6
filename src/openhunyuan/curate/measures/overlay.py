"""Watermarks and logos: lasting marks that stand alone near a corner. A heuristic by persistence, and named as one.

What stays the same through the whole clip, stands alone, is small and lies near a corner is taken for an overlay. Marks
that move, cover the whole picture or lie in its middle are missed; in a clip whose camera stands still, a thing that
happens to stand alone in a corner is taken for one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.curate.measures.lasting import LEVELS, Blob, Slopes, around, blobs
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View


class Overlay(Measure):
    """A mark near a corner.

    Columns: `strength`, the strongest level (of `lasting.LEVELS`) at which one stands alone, 0 where there is none;
    `area`, the part of the picture that it takes. `box`: where it is (left, top, right, bottom, as shares).
    """

    name: ClassVar[str] = "overlay"
    version: ClassVar[int] = 1
    needs_time: ClassVar[bool] = True
    columns: ClassVar = ("strength", "area")
    proxy: ClassVar[str] = "marks that stay, not a trained detector"

    corner_x: float = Field(default=0.38, description="A mark's centre is at most so far from the side, in widths.")
    corner_y: float = Field(
        default=0.3, description="A mark's centre is at most so far from top or bottom, in heights."
    )
    edge: float = Field(default=0.14, description="A mark is at most so far from the nearest side, top or bottom.")
    widest: float = Field(default=0.45, description="Widest mark, as a share of the picture's width.")
    highest: float = Field(default=0.25, description="Highest mark, as a share of the picture's height.")
    smallest: float = Field(default=0.03, description="Lowest mark, as a share of the picture's height.")

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self)


class _Reader(Reader):
    def __init__(self, stage: Overlay) -> None:
        self.stage = stage
        self.lasting = Slopes()

    def add(self, view: View) -> None:
        if view.sample:
            self.lasting.add(view.slopes)

    def finish(self) -> dict[str, Any]:
        found = mark(self.lasting.strength, self.stage)
        if found is None:
            return {"strength": 0.0, "area": 0.0, "box": []}
        level, blob = found
        height, width = self.lasting.strength.shape
        box = [blob.left / width, blob.top / height, blob.right / width, blob.bottom / height]
        return {"strength": level, "area": (box[2] - box[0]) * (box[3] - box[1]), "box": box}


def mark(strength: np.ndarray, stage: Overlay) -> tuple[float, Blob] | None:
    """The mark that stands out most, with its level, or None; strength: lasting edges [h, w]."""
    width = strength.shape[1]
    reach = max(2, round(0.016 * width))
    for level in LEVELS:
        mask = strength >= level
        if not mask.any():
            continue
        found = blobs(mask, reach, max(1, reach // 2))
        for blob in sorted(found, key=lambda b: -b.width * b.height):
            if _is_mark(blob, found, mask, stage):
                return level, blob
    return None


def _is_mark(blob: Blob, others: list[Blob], mask: np.ndarray, stage: Overlay) -> bool:
    height, width = mask.shape
    if not max(5.0, stage.smallest * height) <= blob.height <= stage.highest * height:
        return False
    if not 5 <= blob.width <= stage.widest * width or blob.width < 0.5 * blob.height:
        return False
    if blob.left <= 1 or blob.top <= 1 or blob.right >= width - 1 or blob.bottom >= height - 1:
        return False  # an overlay floats; what runs out of the picture is part of the scene
    x, y = (blob.left + blob.right) / 2 / width, (blob.top + blob.bottom) / 2 / height
    if min(x, 1 - x) > stage.corner_x or min(y, 1 - y) > stage.corner_y:
        return False
    near_side = min(blob.left, width - blob.right) / width
    near_top = min(blob.top, height - blob.bottom) / height
    if near_side > stage.edge or near_top > stage.edge or blob.filled < 0.12:
        return False
    alike = [
        other
        for other in others
        if other is not blob
        and 0.6 < (other.width + 1) / (blob.width + 1) < 1.7
        and 0.6 < (other.height + 1) / (blob.height + 1) < 1.7
    ]
    margin = max(4, round(0.35 * min(blob.width, blob.height)))
    return len(alike) < 2 and around(mask, blob, margin) <= 0.1 * blob.filled
