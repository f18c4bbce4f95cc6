"""Embeddings of clips by published towers, from local folders: what a clip shows, as one vector.

Image towers (CLIP, SigLIP, SigLIP 2) look at `moments` frames spread over the clip, and the clip's vector is the mean
of the frames' unit vectors. Video towers (VideoMAE, V-JEPA 2, VideoPrism) look at as many frames as they were made for,
at once. The report uses an internal video-language model here (section 3.1), which was never published.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from openhunyuan.curate.measures.border import without_bars
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.models.pictures import Preparation
from openhunyuan.curate.models.weights import ModelStage, batches, folder_type, open_folder

IMAGE_TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel", "siglip2": "Siglip2VisionModel"}
VIDEO_TOWERS = {"videomae": "VideoMAEModel", "vjepa2": "VJEPA2Model", "videoprism": "VideoPrismClipModel"}
# Folders that hold the vision half alone.
HALVES = {f"{name}_vision_model": name for name in IMAGE_TOWERS}
WHAT = "embedding model"


class Embedding(ModelStage, Measure):
    """Row: `vector`, a unit vector as float32 numbers; `tower`, the model type."""

    name: ClassVar[str] = "embedding"
    version: ClassVar[int] = 2
    bulky: ClassVar[tuple[str, ...]] = ("vector",)

    moments: int = Field(default=8, ge=1, description="Frames that an image tower looks at.")

    def load(self) -> Tower:
        return open_tower(self.path)

    def begin(self, clip: ClipSpan) -> Reader:
        return _Reader(self, clip)


class Tower(nn.Module):
    """A tower and how it is fed. `frames`: how many it looks at in one go; None where it looks at each alone."""

    def __init__(self, network: nn.Module, kind: str, prepare: Preparation | _NaFlex, frames: int | None) -> None:
        super().__init__()
        self.network, self.kind, self.prepare, self.frames = network, kind, prepare, frames

    def embed(self, frames: list[np.ndarray], batch: int) -> Tensor:
        """Frames uint8 [h, w, 3] of one clip → unit vector [D], float32."""
        with torch.inference_mode():
            if self.frames is None:
                found = [self.image_vectors(part) for part in batches(frames, batch)]
                vector = functional.normalize(torch.cat(found), dim=-1).mean(dim=0)
            else:
                assert isinstance(self.prepare, Preparation)
                vector = self._video(self.prepare(frames).unsqueeze(0).to(self._device))[0]
            return functional.normalize(vector.float(), dim=0).cpu()

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def image_vectors(self, frames: list[np.ndarray]) -> Tensor:
        """What an image tower makes of frames uint8 [h, w, 3]: [N, D], of any length."""
        given = self.prepare(frames)
        inputs = given if isinstance(given, dict) else {"pixel_values": given}
        out = self.network(**{name: value.to(self._device) for name, value in inputs.items()})
        return out.image_embeds if self.kind == "clip" else out.pooler_output

    def _video(self, pixels: Tensor) -> Tensor:
        """[1, T, 3, H, W] → [1, D]"""
        network: Any = self.network
        if self.kind == "videoprism":
            return network.get_video_features(pixel_values_videos=pixels).pooler_output.flatten(1)  # [1, 1, D]
        if self.kind == "vjepa2":
            return network(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state.mean(dim=1)
        return network(pixel_values=pixels).last_hidden_state.mean(dim=1)


class _NaFlex:
    """Preparation of SigLIP 2's towers for any aspect ratio: patches with a mask."""

    def __init__(self, folder: str) -> None:
        from transformers import Siglip2ImageProcessorPil

        Preparation.of(folder)  # says it when there is none
        self.processor = Siglip2ImageProcessorPil.from_pretrained(folder, local_files_only=True)

    def __call__(self, frames: list[np.ndarray]) -> dict[str, Tensor]:
        return dict(self.processor(frames, return_tensors="pt"))


def open_tower(folder: str) -> Tower:
    """The tower in a folder. Raises UserError when there is none of a known kind."""
    config, kind = folder_type(folder, (*IMAGE_TOWERS, *HALVES, *VIDEO_TOWERS), WHAT)
    kind = HALVES.get(kind, kind)
    if kind in IMAGE_TOWERS:
        network = open_folder(IMAGE_TOWERS[kind], folder, getattr(config, "vision_config", config), WHAT)
        return Tower(network, kind, _NaFlex(folder) if kind == "siglip2" else Preparation.of(folder), None)
    prepare = Preparation.of(folder)
    network = open_folder(VIDEO_TOWERS[kind], folder, config, WHAT)
    vision = getattr(config, "vision_config", config)
    return Tower(network, kind, prepare, int(vision.frames_per_clip if kind == "vjepa2" else vision.num_frames))


class _Reader(Reader):
    def __init__(self, stage: Embedding, clip: ClipSpan) -> None:
        self.stage, self.clip = stage, clip
        self.kept: dict[int, np.ndarray] = {}

    @cached_property
    def wanted(self) -> list[int]:
        return spread(self.clip.num_frames, self.stage.model.frames or self.stage.moments)

    def wants(self, index: int) -> bool:
        return index in self.wanted

    def add(self, view: View) -> None:
        if view.index in self.wanted:
            self.kept[view.index] = view.rgb

    def finish(self) -> dict[str, Any]:
        frames = without_bars(np.stack([self.kept[index] for index in self.wanted]))
        tower: Tower = self.stage.model
        return {"vector": tower.embed(list(frames), self.stage.batch).tolist(), "tower": tower.kind}


def spread(num_frames: int, count: int) -> list[int]:
    """The middle frames of `count` equal parts of a clip; some repeat where it has fewer frames."""
    return [min(num_frames - 1, int((i + 0.5) * num_frames / count)) for i in range(count)]
