"""LAION's aesthetic score: CLIP's picture of a frame, then a small head that was fitted to what people said.

The improved predictor (sac+logos+ava1-l14-linearMSE) is five linears without activations on the unit vector of CLIP
ViT-L/14; the first predictor is one linear. Scores run from about 1 to 10, most from 4 to 7.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from openhunyuan.base.errors import UserError
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.models.embedding import Tower, open_tower, spread
from openhunyuan.curate.models.weights import ModelStage, batches, fill, read_tensors

WHAT = "LAION aesthetic head"


class ClipAesthetic(ModelStage, Measure):
    """Columns: `aesthetic`, the mean over `moments` frames; `aesthetic_min`, the lowest."""

    name: ClassVar[str] = "clip_aesthetic"
    group: ClassVar[str] = "aesthetic"
    version: ClassVar[int] = 1
    columns: ClassVar = ("aesthetic", "aesthetic_min")

    head: str = Field(exclude=True, description="File of the head, .pth or .safetensors.")
    moments: int = Field(default=4, ge=1, description="Frames that are looked at.")

    @classmethod
    def path_fields(cls) -> tuple[str, ...]:
        return ("path", "head")

    def load(self) -> Judge:
        tower = open_tower(self.path)
        if tower.kind != "clip":
            raise UserError(f"{self.path} is of type {tower.kind}, but the aesthetic head needs CLIP ViT-L/14.")
        tensors = read_tensors(self.head)
        width = int(tower.network.config.projection_dim)  # type: ignore[union-attr]
        head = nn.Linear(width, 1) if "weight" in tensors else Head(width)
        return Judge(tower, fill(head, tensors, self.head, WHAT))

    def begin(self, clip: ClipSpan) -> Reader:
        return _Reader(self, clip)


class Head(nn.Module):
    """Five linears [width, 1024, 128, 64, 16, 1], numbered as published: dropout, which does nothing here, counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Identity(),
            nn.Linear(1024, 128),
            nn.Identity(),
            nn.Linear(128, 64),
            nn.Identity(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] → [N, 1]"""
        return self.layers(x)


class Judge(nn.Module):
    """CLIP's image tower with the head on it."""

    def __init__(self, tower: Tower, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def scores(self, frames: list[np.ndarray], batch: int) -> Tensor:
        """Frames uint8 [h, w, 3] → [N]."""
        with torch.inference_mode():
            found = [self.tower.image_vectors(part) for part in batches(frames, batch)]
            return self.head(functional.normalize(torch.cat(found), dim=-1)).squeeze(-1).cpu()


class _Reader(Reader):
    def __init__(self, stage: ClipAesthetic, clip: ClipSpan) -> None:
        self.stage = stage
        self.wanted = set(spread(clip.num_frames, stage.moments))
        self.frames: list[np.ndarray] = []

    def wants(self, index: int) -> bool:
        return index in self.wanted

    def add(self, view: View) -> None:
        if view.index in self.wanted:
            self.frames.append(view.rgb)

    def finish(self) -> dict[str, Any]:
        scores = self.stage.model.scores(self.frames, self.stage.batch)
        return {"aesthetic": float(scores.mean()), "aesthetic_min": float(scores.min())}
