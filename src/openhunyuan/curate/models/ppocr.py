"""Text on the screen by PP-OCR's detectors (version 5 and 6, mobile, server, small, medium) from a local folder.

The network gives a chance of text for every pixel; lines are what stands out of it, widened again by as much as the
network was taught to shrink them (differentiable binarization, Liao et al. 2019). Text is located, not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from openhunyuan.base.record import read_json
from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.measures.text import Box, text_row
from openhunyuan.curate.models.weights import ModelStage, folder_type, open_folder

NETWORKS = {
    "pp_ocrv5_mobile_det": "PPOCRV5MobileDetForObjectDetection",
    "pp_ocrv5_server_det": "PPOCRV5ServerDetForObjectDetection",
    "pp_ocrv6_small_det": "PPOCRV6SmallDetForObjectDetection",
    "pp_ocrv6_medium_det": "PPOCRV6MediumDetForObjectDetection",
}
WHAT = "PP-OCR text detector"


class PPOcr(ModelStage, Measure):
    """Columns and `boxes` as of `measures.text`; here text counts whether or not it stands still."""

    name: ClassVar[str] = "ppocr"
    group: ClassVar[str] = "text"
    version: ClassVar[int] = 1
    columns: ClassVar = ("share", "lines", "subtitle_top", "other_share")

    seconds: float = Field(default=1.0, gt=0, description="Time from one look to the next.")
    pixel: float = Field(default=0.3, gt=0, lt=1, description="Least chance of a pixel that is text.")
    line: float = Field(default=0.6, gt=0, lt=1, description="Least mean chance of a line.")
    widen: float = Field(
        default=1.5, gt=0, description="How much a line is widened: area over circumference, times so."
    )
    subtitle_from: float = Field(default=0.6, description="Subtitles lie below this share of the height.")

    def load(self) -> Finder:
        config, kind = folder_type(self.path, NETWORKS, WHAT)
        return Finder(open_folder(NETWORKS[kind], self.path, config, WHAT), Limits.of(self.path))

    def begin(self, clip: ClipSpan) -> Reader:
        return _Reader(self, clip)


@dataclass(frozen=True)
class Limits:
    """How pictures are prepared: a side of `side` at most ("max") or at least ("min"), colours in the order blue,
    green, red with these means and deviations. The defaults are the published ones."""

    side: int = 960
    kind: str = "max"
    most: int = 4000
    mean: tuple[float, ...] = (0.406, 0.456, 0.485)
    std: tuple[float, ...] = (0.225, 0.224, 0.229)

    @classmethod
    def of(cls, folder: str) -> Limits:
        path = Path(folder) / "preprocessor_config.json"
        said = read_json(path) if path.is_file() else {}
        return cls(
            side=int(said.get("limit_side_len", cls.side)),
            kind=str(said.get("limit_type", cls.kind)),
            most=int(said.get("max_side_limit", cls.most)),
            mean=tuple(said.get("image_mean", cls.mean)),
            std=tuple(said.get("image_std", cls.std)),
        )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is resized to: multiples of 32."""
        if self.kind == "min":
            scale = max(1.0, self.side / min(height, width))
        else:
            scale = min(1.0, self.side / max(height, width))
        scale = min(scale, self.most / max(height, width))
        return max(32, round(int(height * scale) / 32) * 32), max(32, round(int(width * scale) / 32) * 32)

    def __call__(self, frame: np.ndarray) -> Tensor:
        """uint8 [h, w, 3] → float32 [3, H, W]"""
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        height, width = self.size(*frame.shape[:2])
        x = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255.0
        x = (x - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(x[:, :, ::-1].transpose(2, 0, 1)))


class Finder(nn.Module):
    """A detector and how it is fed."""

    def __init__(self, network: nn.Module, prepare: Limits) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare

    def chances(self, frames: list[np.ndarray]) -> np.ndarray:
        """Frames of one size, uint8 [h, w, 3] → chance of text [N, H, W]."""
        x = torch.stack([self.prepare(frame) for frame in frames])
        with torch.inference_mode():
            found = self.network(pixel_values=x.to(next(self.network.parameters()).device)).last_hidden_state
        return found[:, 0].float().cpu().numpy()


def text_boxes(chances: np.ndarray, pixel: float, line: float, widen: float) -> list[Box]:
    """Boxes of lines on a map of chances [H, W]; slanted lines are given the upright box around them."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    height, width = chances.shape
    outlines, _ = cv2.findContours((chances > pixel).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes: list[Box] = []
    for outline in outlines[:1000]:
        middle, (w, h), angle = cv2.minAreaRect(outline)
        if min(w, h) < 3:
            continue
        inside = np.zeros((height, width), np.uint8)
        cv2.fillPoly(inside, [cv2.boxPoints((middle, (w, h), angle)).astype(np.int32)], 1)
        if not inside.any() or float(chances[inside > 0].mean()) < line:
            continue
        more = 2 * widen * w * h / (2 * (w + h))
        corners = cv2.boxPoints((middle, (w + more, h + more), angle))
        left, top = np.clip(corners.min(axis=0) / (width, height), 0.0, 1.0)
        right, bottom = np.clip(corners.max(axis=0) / (width, height), 0.0, 1.0)
        boxes.append((float(left), float(top), float(right), float(bottom)))
    return boxes


class _Reader(Reader):
    def __init__(self, stage: PPOcr, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = max(1, round(stage.seconds * clip.fps))
        self.frames: list[np.ndarray] = []
        self.found: list[list[Box]] = []

    def wants(self, index: int) -> bool:
        return index % self.step == 0

    def add(self, view: View) -> None:
        if not self.wants(view.index):
            return
        self.frames.append(view.frame.rgb(max(self.stage.model.prepare.side, 640)))
        if len(self.frames) == self.stage.batch:
            self._look()

    def _look(self) -> None:
        for chances in self.stage.model.chances(self.frames):
            self.found.append(text_boxes(chances, self.stage.pixel, self.stage.line, self.stage.widen))
        self.frames.clear()

    def finish(self) -> dict[str, Any]:
        if self.frames:
            self._look()
        return text_row(self.found, self.stage.subtitle_from)
