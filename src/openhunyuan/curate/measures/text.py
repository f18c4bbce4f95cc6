"""Text on the screen, and subtitles: lines of lasting, dense, upright strokes. A heuristic, and named as one.

A line of text is found by its form, not read: wide and low, standing alone, with many strokes side by side. It must
stand still for about two thirds of a second. Handwriting, vertical scripts, moving text and text in a busy still
picture are missed; railings and keyboards may be taken for text.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.curate.measures.lasting import LEVELS, Blob, Slopes, around, blobs
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View

WINDOW = 4
"""Samples through which a line must stand still."""

BODY, BEYOND, POSTS = 0.3, 0.7, 0.15
"""Rows are a line's body from this share of its fullest rows on. Letters reach out of the body by at most `BEYOND` of
its height; columns that reach further, at most `POSTS` of all, are edges of something that runs into the letters."""


class Text(Measure):
    """Lines of text, and the strip at the bottom that subtitles take.

    Columns: `share`, the largest part of the picture that lines take at one time; `lines`, the most lines at one time;
    `subtitle_top`, the upper edge of the subtitles as a share of the height (1 where there are none);
    `other_share`, as `share`, of the lines that are no subtitles. `boxes`: every line found, four shares each.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[int] = 2
    group: ClassVar[str] = "text"
    columns: ClassVar = ("share", "lines", "subtitle_top", "other_share")
    proxy: ClassVar[str] = "strokes that stand still, not read by OCR"

    lowest: float = Field(default=0.025, gt=0, description="Lowest line, as a share of the picture's height.")
    highest: float = Field(default=0.17, gt=0, description="Highest line, as a share of the picture's height.")
    narrowest: float = Field(default=0.12, gt=0, description="Narrowest line, as a share of the picture's width.")
    subtitle_from: float = Field(default=0.6, description="Subtitles lie below this share of the height.")

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self)


class _Reader(Reader):
    def __init__(self, stage: Text) -> None:
        self.stage = stage
        self.recent: list[np.ndarray] = []
        self.found: list[list[Box]] = []

    def add(self, view: View) -> None:
        if not view.sample:
            return
        self.recent.append(view.slopes)
        if len(self.recent) == WINDOW:
            self._look()

    def _look(self) -> None:
        lasting = Slopes()
        for slopes in self.recent:
            lasting.add(slopes)
        self.recent.clear()
        height, width = lasting.across.shape
        lines = text_lines(lasting.across, lasting.strength, self.stage)
        self.found.append([(b.left / width, b.top / height, b.right / width, b.bottom / height) for b in lines])

    def finish(self) -> dict[str, Any]:
        if self.recent and (len(self.recent) >= WINDOW // 2 or not self.found):
            self._look()

        return text_row(self.found, self.stage.subtitle_from)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of width and height."""


def text_row(found: list[list[Box]], subtitle_from: float) -> dict[str, Any]:
    """A clip's row from the boxes of lines that were seen at each look."""

    def area(boxes: list[Box]) -> float:
        return sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)

    def is_subtitle(box: Box) -> bool:
        return box[1] >= subtitle_from and abs(box[0] + box[2] - 1.0) <= 0.3

    every = [box for boxes in found for box in boxes]
    return {
        "share": max((area(boxes) for boxes in found), default=0.0),
        "lines": float(max((len(boxes) for boxes in found), default=0)),
        "subtitle_top": min((box[1] for box in every if is_subtitle(box)), default=1.0),
        "other_share": max((area([b for b in boxes if not is_subtitle(b)]) for boxes in found), default=0.0),
        "boxes": [value for box in every for value in box],
    }


def text_lines(across: np.ndarray, strength: np.ndarray, stage: Text) -> list[Blob]:
    """Lines of text among lasting edges (`Slopes.across`, `Slopes.strength`, both [h, w])."""
    width = strength.shape[1]
    lines: list[Blob] = []
    for level in LEVELS:
        mask = strength >= level
        if not mask.any():
            continue
        for blob in blobs(mask, reach_x=max(2, round(0.02 * width)), reach_y=1):
            if blob.width < stage.narrowest * width or blob.height < 5:
                continue
            blob = without_posts(blob, mask)
            if any(_touch(blob, line) for line in lines):
                continue  # seen at a stronger level, where its edges are cleaner
            if _is_line(blob, mask, across, level, stage):
                lines.append(blob)
    return lines


def without_posts(blob: Blob, mask: np.ndarray) -> Blob:
    """The blob without the few columns that reach further up or down than letters do: edges of what is behind."""
    inside = mask[blob.top : blob.bottom, blob.left : blob.right]
    filled = inside.sum(axis=1)
    body = np.flatnonzero(filled >= BODY * np.quantile(filled, 0.9))
    beyond = BEYOND * (body[-1] + 1 - body[0])
    outside = np.arange(blob.height)
    outside = (outside < body[0] - beyond) | (outside > body[-1] + beyond)
    posts = inside[outside].any(axis=0)
    if not posts.any() or posts.sum() > POSTS * inside.any(axis=0).sum():
        return blob
    left = inside & ~posts
    rows, columns = np.flatnonzero(left.any(axis=1)), np.flatnonzero(left.any(axis=0))
    top, bottom, first, last = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return Blob(
        int(blob.left + first),
        int(blob.top + top),
        int(blob.left + last),
        int(blob.top + bottom),
        float(left.sum()) / ((bottom - top) * (last - first)),
    )


def _is_line(blob: Blob, mask: np.ndarray, across: np.ndarray, level: float, stage: Text) -> bool:
    height, width = mask.shape
    if not max(5.0, stage.lowest * height) <= blob.height <= stage.highest * height:
        return False
    if blob.width < stage.narrowest * width or blob.width < 2.5 * blob.height:
        return False
    if blob.left <= 1 or blob.right >= width - 1 or not 0.12 <= blob.filled <= 0.9:
        return False
    # Strokes: how often, along a row, the slope turns from rising to falling, per height of the line.
    rows = across[blob.top : blob.bottom, blob.left : blob.right]
    turns = np.array([_turns(row, 0.5 * level) for row in rows])
    strokes = float(np.quantile(turns, 0.75)) / (blob.width / blob.height)
    margin = max(3, round(0.5 * blob.height))
    return strokes >= 1.0 and around(mask, blob, margin) <= 0.15 * blob.filled


def _turns(row: np.ndarray, level: float) -> int:
    """Strokes that a row crosses: rises followed by falls, or the other way round, both at least `level` steep."""
    signs = np.sign(row[np.abs(row) >= level])
    return int((np.diff(signs) != 0).sum() + 1) // 2 if signs.size else 0


def _touch(one: Blob, other: Blob) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom
