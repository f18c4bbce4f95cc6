"""A clear frame to start on: the variance of the Laplacian over the first frames of a clip (report section 3.1)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View


class ClearStart(Measure):
    """How many frames to leave out at the start of a clip.

    Columns: `offset`, the first of the source's frames in the clip's beginning that is clear (its sharpest, where none
    is); `sharpness`, the clip's median variance of the Laplacian; `start_sharpness`, that of the frame at `offset`.
    """

    name: ClassVar[str] = "clear_start"
    version: ClassVar[int] = 2
    columns: ClassVar = ("offset", "sharpness", "start_sharpness")

    share: float = Field(default=0.6, ge=0, le=1, description="A frame is clear from this share of the clip's median.")
    floor: float = Field(default=1.0, ge=0, description="And from this variance of the Laplacian, whatever the median.")

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self)


class _Reader(Reader):
    def __init__(self, stage: ClearStart) -> None:
        self.stage = stage
        self.head: list[tuple[int, float]] = []
        self.samples: list[float] = []

    def add(self, view: View) -> None:
        value = laplacian_variance(view.gray)
        if view.head:
            self.head.append((view.place, value))
        if view.sample:
            self.samples.append(value)

    def finish(self) -> dict[str, Any]:
        median = float(np.median(self.samples))
        enough = max(self.stage.share * median, self.stage.floor)
        best = max(self.head, key=lambda item: item[1])
        offset, value = next((item for item in self.head if item[1] >= enough), best)
        return {"offset": offset, "sharpness": median, "start_sharpness": value}


def laplacian_variance(gray: np.ndarray) -> float:
    """Variance of the Laplacian of a grey picture, in levels squared."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    _, deviation = cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))
    return float(deviation[0, 0]) ** 2
