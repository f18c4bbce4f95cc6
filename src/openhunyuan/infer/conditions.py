"""Image-to-video: pictures as given frames of a video (release fact I.1).

A picture becomes the clean latent of one frame, and enters the transformer in the way its weights were trained for:

- ``token_replace``: the noisy frame is replaced by the clean one, its tokens are modulated as at time 0, and it is
  never stepped. Nothing is learned anew; sampling and training use the same ``FrameCondition``.
- ``latent_concat``: noisy latents, clean latents (zero where nothing is given) and a mask, 16 + 16 + 1 channels. All
  frames are stepped, and the video loses its first four frames.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import aspect_buckets
from openhunyuan.models.layout import ImageCondition

if TYPE_CHECKING:
    from openhunyuan.models.vae.model import CausalVAE

MAX_PIXELS = 150_000_000
"""Larger pictures are refused before they are unpacked."""

BUCKET_SIDES = {"720p": 960, "540p": 720, "360p": 480}
"""Resolution → side in pixels of its square bucket."""
BUCKET_STEP = 32

SUBSAMPLE: dict[ImageCondition, int] = {"token_replace": 4, "latent_concat": 2}
"""Every how many of the language model's image states are kept (release fact D.4)."""
DROPPED_FRAMES: dict[ImageCondition, int] = {"token_replace": 0, "latent_concat": 4}
"""Frames that a finished video loses at its beginning."""
STABILITY = 0.001
"""How much of the picture's latent is mixed into the noise for calmer motion."""


# -- pictures --------------------------------------------------------------------------------------------------------


def load_image(path: Path | str) -> Image.Image:
    """A picture file as RGB, turned as its camera says.

    Raises:
        UserError: missing, not a picture, truncated, or above ``MAX_PIXELS``.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"The image {path} does not exist.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # The limit below is ours.
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(
                        f"The image {path} has {image.width}x{image.height} pixels, more than the "
                        f"{MAX_PIXELS // 10**6} million that are read; make it smaller first."
                    )
                turned = ImageOps.exif_transpose(image)
                if turned.mode.startswith("I"):  # 16 bits a channel: PIL would clip, not scale.
                    turned = Image.fromarray((np.asarray(turned, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
                return turned.convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image; give a PNG, JPEG or WebP file.") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} cannot be read ({error}); give a whole PNG, JPEG or WebP file.") from None


def choose_bucket(height: int, width: int, resolution: str) -> tuple[int, int]:
    """The (height, width) of a video that starts from a picture of ``height`` x ``width`` pixels.

    The bucket nearest in shape that cuts the longer side: for upright and square pictures the nearest not more upright,
    for wide ones the nearest not wider.
    """
    if resolution not in BUCKET_SIDES:
        raise UserError(f"The resolution is '{resolution}', but it must be one of {', '.join(BUCKET_SIDES)}.")
    aspect = height / width
    shapes = {
        round(bucket[0] / bucket[1], 5): bucket for bucket in aspect_buckets(BUCKET_SIDES[resolution], BUCKET_STEP)
    }
    if aspect >= 1:
        return shapes[max(shape for shape in shapes if shape <= aspect)]
    return shapes[min(shape for shape in shapes if shape > aspect)]


def nearest_resolution(height: int, width: int) -> str | None:
    """The resolution whose pictures are about as large as ``height`` x ``width``; None for much smaller ones."""
    side = math.sqrt(height * width)
    if side < min(BUCKET_SIDES.values()) * 0.9:
        return None
    return min(BUCKET_SIDES, key=lambda name: abs(BUCKET_SIDES[name] - side))


def fit_image(image: Image.Image, height: int, width: int) -> Tensor:
    """A picture resized until it covers ``height`` x ``width`` and cropped to its centre: [3, H, W] in [-1, 1]."""
    # One side is exact; the other one is rounded down, as in the release, but never below what is needed.
    if height * image.width >= width * image.height:
        size = max(width, height * image.width // image.height), height
    else:
        size = width, max(height, width * image.height // image.width)
    resized = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    top, left = round((resized.height - height) / 2), round((resized.width - width) / 2)
    values = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32)
    return torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1.0


# -- latents ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def image_latents(vae: CausalVAE, pixels: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] → clean latents [B, C, 1, h, w] in the transformer's scale (the mode), fp32.

    Large pictures are encoded in the official tiles.
    """
    from openhunyuan.models.vae.tiling import TilingConfig

    weight = next(vae.parameters())
    return vae.encode_latents(
        pixels[:, :, None].to(weight.device, weight.dtype), TilingConfig.from_vae(vae.config)
    ).float()


@dataclass(frozen=True)
class FrameCondition:
    """Latent frames of a batch of videos that are given.

    Example, as a training step uses it (``x_t`` and ``data`` are [B, C, T, h, w], ``t`` is [B])::

        condition = FrameCondition("token_replace", data, first_frames(len(data), data.shape[2]))
        velocity = dit(condition.model_input(x_t), model_time(t), ..., clean_frames=condition.clean_frames)
        loss = condition.mean((velocity - (noise - data)) ** 2)

    Attributes:
        kind: how they enter the transformer.
        latents: [B, C, T, h, w], clean; only given frames are read.
        given: [B, T] bool, True at frames that are given; none in a row is a sample without a picture.
    """

    kind: ImageCondition
    latents: Tensor
    given: Tensor

    @classmethod
    def of_frames(cls, kind: ImageCondition, num_frames: int, first: Tensor, last: Tensor | None = None) -> Self:
        """Given are the first latent frame and perhaps the last one: [B, C, 1, h, w] each, of ``num_frames``."""
        latents = first.new_zeros(*first.shape[:2], num_frames, *first.shape[3:])
        latents[:, :, :1] = first
        if last is not None:
            latents[:, :, -1:] = last
        given = first_frames(len(first), num_frames, last is not None).to(first.device)
        return cls(kind, latents, given)

    @property
    def clean_frames(self) -> Tensor | None:
        """What ``DiT.forward`` is told: [B, T] bool under token replace, else None."""
        return self.given if self.kind == "token_replace" else None

    @property
    def _given(self) -> Tensor:
        return self.given[:, None, :, None, None]

    def to(self, device: torch.device | str) -> Self:
        """The same condition on another device."""
        return replace(self, latents=self.latents.to(device), given=self.given.to(device))

    def repeat(self, times: int) -> Self:
        """The same condition for ``times`` copies of the batch, one after the other (for the halves of guidance)."""
        return replace(self, latents=self.latents.repeat(times, 1, 1, 1, 1), given=self.given.repeat(times, 1))

    def start(self, noise: Tensor, stability: bool = False) -> Tensor:
        """The latents that sampling starts from: noise [B, C, T, h, w], with clean frames in it under token replace.

        ``stability`` mixes a little of the first frame's latent into every frame's noise.
        """
        if stability:
            noise = (1 - STABILITY) * noise + STABILITY * self.latents[:, :, :1].to(noise)
        return self.inserted(noise) if self.kind == "token_replace" else noise

    def inserted(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] with the given frames in their places."""
        return torch.where(self._given, self.latents.to(latents), latents)

    def model_input(self, latents: Tensor) -> Tensor:
        """Noisy latents [B, C, T, h, w] → what the transformer reads: the same shape, or [B, 2C + 1, T, h, w]."""
        if self.kind == "token_replace":
            return self.inserted(latents)
        mask = self._given.to(latents).expand(-1, -1, -1, *latents.shape[3:])
        return torch.cat([latents, self.latents.to(latents) * mask, mask], dim=1)

    def held(self, velocity: Tensor) -> Tensor:
        """A velocity [B, C, T, h, w] that leaves clean frames where they are (token replace); else as it is."""
        return torch.where(self._given, 0, velocity) if self.kind == "token_replace" else velocity

    def mean(self, errors: Tensor) -> Tensor:
        """Mean of errors [B, C, T, h, w] over what is to be predicted: without given frames under token replace."""
        if self.kind != "token_replace":
            return errors.mean()
        weight = (~self._given).to(errors).expand_as(errors)
        return (errors * weight).sum() / weight.sum()


def first_frames(batch: int, num_frames: int, last: bool = False) -> Tensor:
    """[B, T] bool, True at the first latent frame of every sample, and with ``last`` at the last one."""
    given = torch.zeros(batch, num_frames, dtype=torch.bool)
    given[:, 0] = True
    if last:
        given[:, -1] = True
    return given
