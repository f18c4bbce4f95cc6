"""Pictures as a network wants them: what a Hugging Face folder's preprocessor file says, done with Pillow.

The same on every machine, whether torchvision is there or not: it would resize in another way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json

FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Preparation:
    """How a picture is prepared.

    size: (height, width) to resize to, or the length of the shorter side. crop: (height, width) of the middle that is
    kept. resample: Pillow's number of the filter. factor: what levels are multiplied by. mean, std: what is then taken
    off, and what the rest is divided by.
    """

    size: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    resample: int = 2
    factor: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, folder: Path | str) -> Preparation:
        """What the preprocessor file of a model folder says. Raises UserError when there is none or it is not one."""
        folder = Path(folder)
        paths = [folder / name for name in FILES if (folder / name).is_file()]
        if not paths:
            raise UserError(
                f"{folder} has no {FILES[0]}, which says how pictures are prepared; take it from the model."
            )
        said = read_json(paths[0])
        for inside in ("video_processor", "image_processor"):  # of a processor_config.json
            said = said.get(inside, said)
        try:
            normal = said.get("do_normalize", True) and "image_mean" in said
            return cls(
                size=_size(said.get("size")) if said.get("do_resize", True) else None,
                crop=_pair(said.get("crop_size")) if said.get("do_center_crop", False) else None,
                resample=int(said.get("resample", 2)),
                factor=float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0,
                mean=tuple(map(float, said["image_mean"])) if normal else None,
                std=tuple(map(float, said["image_std"])) if normal else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{paths[0]} does not say how pictures are prepared; take it from the model anew."
            ) from None

    def __call__(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 [h, w, 3] each → float32 [N, 3, H, W]."""
        return torch.stack([self._one(frame) for frame in frames])

    def _one(self, frame: np.ndarray) -> Tensor:
        from PIL import Image

        picture = Image.fromarray(frame)
        if self.size is not None:
            width, height = picture.size
            if isinstance(self.size, int):
                short, long = sorted((width, height))
                other = int(self.size * long / short)
                size = (self.size, other) if width <= height else (other, self.size)
            else:
                size = (self.size[1], self.size[0])
            picture = picture.resize(size, Image.Resampling(self.resample))
        if self.crop is not None:
            height, width = self.crop
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))  # what lies outside is black
        x = torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) * np.float32(self.factor))
        if self.mean is not None and self.std is not None:
            x = (x - torch.tensor(self.mean).view(-1, 1, 1)) / torch.tensor(self.std).view(-1, 1, 1)
        return x


def _size(said: Any) -> tuple[int, int] | int | None:
    """A size as such files write it: a number, a shortest edge, or height and width."""
    if said is None or isinstance(said, int):
        return said
    return int(said["shortest_edge"]) if said.get("shortest_edge") else (int(said["height"]), int(said["width"]))


def _pair(said: Any) -> tuple[int, int]:
    return (said, said) if isinstance(said, int) else (int(said["height"]), int(said["width"]))
