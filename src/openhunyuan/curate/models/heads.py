"""How large a head is, by a detector from a local folder: D-FINE, RT-DETR or v2 with classes called face or head.

The row is that of `measures.shot_scale`, under a name of its own. A detector of whole persons is refused: how large a
person would be that the picture cuts cannot be read from the box.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.measures.packaged import looks
from openhunyuan.curate.measures.shot_scale import LOOKS, Head, ShotScale, scale_row
from openhunyuan.curate.models.detector import Detector
from openhunyuan.curate.models.weights import ModelStage

KINDS = ("face", "head")
FACE = 1.25
"""Height of a head over that of a box from chin to forehead, as sets of labelled faces draw it."""


class HeadDetector(ModelStage, Measure):
    """Columns: those of `ShotScale`."""

    name: ClassVar[str] = "heads"
    version: ClassVar[int] = 1
    needs_time: ClassVar[bool] = True
    columns: ClassVar = ShotScale.columns

    labels: tuple[str, ...] = Field(default=(), description="Classes that count; none: those named face or head.")
    sure: float = Field(default=0.6, ge=0, le=1, description="What the detector's confidence must reach.")
    lasting: float = Field(default=0.6, gt=0, le=1, description="Share of the looks that must show the head.")

    def load(self) -> Detector:
        return Detector.of(self.path, self.labels, KINDS)

    def begin(self, clip: ClipSpan) -> Reader:
        return _Reader(self, clip)


class _Reader(Reader):
    def __init__(self, stage: HeadDetector, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = looks(clip.num_frames, clip.step, LOOKS)
        self.frames: list[np.ndarray] = []
        self.lines = 0

    def add(self, view: View) -> None:
        if view.index % self.step == 0:
            self.lines = view.frame.media.height
            self.frames.append(view.rgb)

    def finish(self) -> dict[str, Any]:
        found: list[Head | None] = []
        for start in range(0, len(self.frames), self.stage.batch):
            shown = self.frames[start : start + self.stage.batch]
            for (confidence, label, box), frame in zip(self.stage.model.surest(shown), shown, strict=True):
                left, top, right, bottom = box
                height = (bottom - top) * (FACE if "face" in label.lower() else 1.0)
                aspect = frame.shape[1] / frame.shape[0]
                head = Head((left + right) / 2, (top + bottom) / 2, height, aspect)
                found.append(head if confidence >= self.stage.sure and height > 0 else None)
        return scale_row(found, self.lines, self.stage.lasting)
