"""How large a head is in the picture, by which a shot's scale is called: from faces, and from nothing else.

Faces are found by dlib's detector of faces from the front, which comes with its package. It misses profiles, hats low
over the eyes, faces in the dark and those of less than `SMALLEST` of its pixels; what it is sure of is a face. A clip
has a row with numbers only where the largest face is there through most of the clip, near one place and of one size.
Pictures without such a face have none: an object, a landscape or a back says nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.measures.packaged import looks

LOOKS = 8
"""Looks at a clip, spread over it, at most."""

FEWEST = 5
"""Looks that a clip must have; shorter ones say nothing."""

SIDE = 1280
"""Longer side that pictures are brought to before faces are looked for; smaller ones are enlarged, up to `ENLARGED`."""

ENLARGED = 4.0
SMALLEST = 80
"""Pixels of the smallest face that the detector finds, at that size."""

HEAD = 1.5
"""Height of a head, from chin to crown, over that of the detector's box, from chin to brows."""

NEAR, ALIKE = 1.5, 1.35
"""Faces of two looks are one when their centres are so near, in heights of the face, and their sizes so alike."""


@dataclass(frozen=True)
class Head:
    """A head at one look: the centre of its face in shares of width and height, the height of the head as a share of
    the picture's, and width over height of the picture."""

    x: float
    y: float
    height: float
    aspect: float


class ShotScale(Measure):
    """Columns: `head`, the median height of the clip's head, in lines of the source; `head_low` and `head_high`,
    between which it is four times of five. Null where no face lasts. `lasts`: the share of the looks that show it.
    """

    name: ClassVar[str] = "shot_scale"
    version: ClassVar[int] = 1
    needs_time: ClassVar[bool] = True
    columns: ClassVar = ("head", "head_low", "head_high", "lasts")

    sure: float = Field(default=0.3, description="What the detector's score must reach.")
    lasting: float = Field(default=0.6, gt=0, le=1, description="Share of the looks that must show the face.")

    def check(self) -> None:
        """Raises UserError where dlib is missing."""
        _detector()

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self, clip)


class _Reader(Reader):
    def __init__(self, stage: ShotScale, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = looks(clip.num_frames, clip.step, LOOKS)
        self.found: list[Head | None] = []
        self.lines = 0

    def add(self, view: View) -> None:
        if view.index % self.step == 0:
            self.lines = view.frame.media.height
            self.found.append(largest_face(view.frame.rgb(SIDE), self.stage.sure))

    def finish(self) -> dict[str, Any]:
        return scale_row(self.found, self.lines, self.stage.lasting)


def largest_face(rgb: np.ndarray, sure: float) -> Head | None:
    """The largest face that the detector is sure of in a picture, uint8 [h, w, 3]."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    height, width = rgb.shape[:2]
    scale = min(ENLARGED, SIDE / max(height, width))
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if scale > 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    lines, columns = gray.shape
    boxes, scores, _ = _detector().run(gray, 0, sure)
    heads = [
        Head((b.left() + b.right()) / 2 / columns, (b.top() + b.bottom()) / 2 / lines, h / lines, columns / lines)
        for b, h in ((box, HEAD * box.height()) for box, score in zip(boxes, scores, strict=True) if score >= sure)
    ]
    return max(heads, key=lambda head: head.height, default=None)


def scale_row(found: Sequence[Head | None], lines: int, lasting: float) -> dict[str, Any]:
    """A clip's row from the largest head of each look (None: there was none); lines: the picture's height."""
    heads = [head for head in found if head is not None]
    row: dict[str, Any] = dict.fromkeys(ShotScale.columns)
    row["lasts"] = 0.0
    if not heads:
        return row
    same = max(([h for h in heads if _one(h, head)] for head in heads), key=len)
    row["lasts"] = len(same) / len(found)
    if len(found) >= FEWEST and row["lasts"] >= lasting:
        low, middle, high = np.quantile([head.height for head in same], (0.1, 0.5, 0.9)) * lines
        row |= {"head": float(middle), "head_low": float(low), "head_high": float(high)}
    return row


def _one(head: Head, other: Head) -> bool:
    apart = np.hypot((head.x - other.x) * head.aspect, head.y - other.y)
    size = max(head.height, other.height) / min(head.height, other.height)
    return bool(apart <= NEAR * other.height and size <= ALIKE)


@lru_cache(maxsize=1)
def _detector() -> Any:
    dlib: Any = require("dlib", extra="faces", package="dlib-bin")
    return dlib.get_frontal_face_detector()
