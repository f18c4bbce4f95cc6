"""Watermarks and logos by a detector that was trained on them: D-FINE, RT-DETR or RT-DETR v2 from a local folder.

Which of its classes count is read from the names in its config. No such detector is published for watermarks under a
free licence that we know of; the folder is what fine-tuning with `transformers` on pasted logos gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.models.pictures import Preparation
from openhunyuan.curate.models.weights import ModelStage, folder_type, open_folder

NETWORKS = {
    "d_fine": "DFineForObjectDetection",
    "rt_detr": "RTDetrForObjectDetection",
    "rt_detr_v2": "RTDetrV2ForObjectDetection",
}
WHAT = "object detector"
MARKS = ("watermark", "logo")


class WatermarkDetector(ModelStage, Measure):
    """Columns: `confidence`, the median over the looks of the surest mark's; `area`, the part of the picture that the
    surest of all takes. `box`: where it is (left, top, right, bottom, as shares). `label`: what the detector calls it.
    """

    name: ClassVar[str] = "watermark_detector"
    version: ClassVar[int] = 1
    columns: ClassVar = ("confidence", "area")

    labels: tuple[str, ...] = Field(
        default=(), description="Classes that count; none: those whose name says watermark or logo."
    )
    seconds: float = Field(default=1.0, gt=0, description="Time from one look to the next.")

    def load(self) -> Detector:
        return Detector.of(self.path, self.labels, MARKS)

    def begin(self, clip: ClipSpan) -> Reader:
        return _Reader(self, clip)


Mark = tuple[float, str, tuple[float, float, float, float]]
"""Confidence, name, box."""


class Detector(nn.Module):
    """A detector, how it is fed, and the classes that count, by number."""

    def __init__(self, network: nn.Module, prepare: Preparation, names: dict[int, str]) -> None:
        super().__init__()
        self.network, self.prepare, self.names = network, prepare, names

    @classmethod
    def of(cls, folder: str, labels: Sequence[str], marks: Sequence[str]) -> Detector:
        """The detector in a folder, and its classes with these labels; without labels, those whose name has one of
        `marks` in it. Raises UserError."""
        config, kind = folder_type(folder, NETWORKS, WHAT)
        names = {int(number): str(name) for number, name in config.id2label.items()}
        wanted = [name.lower() for name in labels]
        chosen = [n for n, name in names.items() if name.lower() in wanted]
        if not labels:
            chosen = [n for n, name in names.items() if any(mark in name.lower() for mark in marks)]
        if not chosen:
            said = ", ".join(list(names.values())[:8])
            what = f"none of {', '.join(labels)}" if labels else f"nothing called {' or '.join(marks)}"
            raise UserError(f"The detector in {folder} knows {what}; its classes are {said}.")
        prepare = Preparation.of(folder)
        return cls(open_folder(NETWORKS[kind], folder, config, WHAT), prepare, {n: names[n] for n in chosen})

    def surest(self, frames: list[np.ndarray]) -> list[Mark]:
        """Of each frame, uint8 [h, w, 3], the mark that the detector is surest of."""
        pixels = self.prepare(frames).to(next(self.network.parameters()).device)
        with torch.inference_mode():
            found: Any = self.network(pixel_values=pixels)
        numbers = list(self.names)
        chances = found.logits[:, :, numbers].sigmoid().float().cpu()  # [N, queries, classes]
        marks: list[Mark] = []
        for chance, boxes in zip(chances, found.pred_boxes.float().cpu(), strict=True):
            query, which = divmod(int(chance.argmax()), len(numbers))
            x, y, w, h = boxes[query].tolist()
            left, top, right, bottom = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0.0, 1.0).tolist()
            marks.append((float(chance[query, which]), self.names[numbers[which]], (left, top, right, bottom)))
        return marks


class _Reader(Reader):
    def __init__(self, stage: WatermarkDetector, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = max(1, round(stage.seconds * clip.fps))
        self.frames: list[np.ndarray] = []
        self.marks: list[Mark] = []

    def wants(self, index: int) -> bool:
        return index % self.step == 0

    def add(self, view: View) -> None:
        if not self.wants(view.index):
            return
        self.frames.append(view.rgb)
        if len(self.frames) == self.stage.batch:
            self._look()

    def _look(self) -> None:
        self.marks += self.stage.model.surest(self.frames)
        self.frames.clear()

    def finish(self) -> dict[str, Any]:
        if self.frames:
            self._look()
        _, label, box = max(self.marks)
        return {
            "confidence": float(np.median([confidence for confidence, _, _ in self.marks])),
            "area": (box[2] - box[0]) * (box[3] - box[1]),
            "box": list(box),
            "label": label,
        }
