"""The preview: after every step, what the video will be, projected from latents to colours without the decoder.

A latent pixel's colour is nearly a linear function of its channels. The function is fitted by least squares to what the
VAE itself makes of pictures of known colours, so it is right for any VAE and costs one small encoding. Shown is the
data that the step points at, not the noisy latents; a latent frame stands for up to four frames of the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openhunyuan.base.device import make_generator
from openhunyuan.base.log import get_logger
from openhunyuan.base.sizes import SPACE_STRIDE, TIME_STRIDE
from openhunyuan.base.video import write_image, write_video
from openhunyuan.infer.request import IMAGE_SUFFIX, Request
from openhunyuan.models.vae.model import CausalVAE

_SIDE = 256
"""Pixels that the longer side of a preview has at least: small latents are enlarged by a whole factor."""

_log = get_logger("preview")


@dataclass(frozen=True)
class Projection:
    """Colours from latents: rgb = latents · weight + bias, in [-1, 1].

    Attributes:
        weight: fp32 [C, 3] on the CPU.
        bias: fp32 [3] on the CPU.
    """

    weight: Tensor
    bias: Tensor

    def frames(self, latents: Tensor) -> np.ndarray:
        """uint8 [T, h, w, 3] of latents [C, T, h, w] in the transformer's scale."""
        rgb = latents.float().cpu().permute(1, 2, 3, 0) @ self.weight + self.bias
        return ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


@torch.no_grad()
def fit_projection(vae: CausalVAE) -> Projection:
    """Fit a `Projection` to what the VAE encodes known colours as. The same for the same VAE."""
    pictures = _pictures()
    some = next(vae.parameters())
    latents = torch.cat([vae.encode_latents(picture.to(some)).float().cpu() for picture in pictures.split(1)])
    colours = F.avg_pool3d(pictures, (1, SPACE_STRIDE, SPACE_STRIDE))
    samples = latents.double().permute(0, 2, 3, 4, 1).flatten(0, 3)
    wanted = colours.double().permute(0, 2, 3, 4, 1).flatten(0, 3)
    mean_in, mean_out = samples.mean(0), wanted.mean(0)
    # A little ridge keeps channels that carry no colour from being read as one.
    centred = samples - mean_in
    gram = centred.T @ centred
    gram += 1e-3 * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (wanted - mean_out))
    return Projection(weight.float(), (mean_out - mean_in @ weight).float())


def _pictures() -> Tensor:
    """Pictures [24, 3, 1, 64, 64] in [-1, 1] of random colours: smooth ones, and patches with edges."""
    generator = make_generator(0)
    pictures = []
    for cells in (1, 2, 4, 8):
        colours = torch.rand(6, 3, cells, cells, generator=generator) * 2 - 1
        pictures.append(F.interpolate(colours[:3], size=(64, 64), mode="bilinear", align_corners=False))
        pictures.append(F.interpolate(colours[3:], size=(64, 64), mode="nearest"))
    return torch.cat(pictures).unsqueeze(2)


class Preview:
    """Writes the preview file anew whenever it is called with (steps done, steps in all, expected latents).

    Args:
        vae: the model's VAE, to which the projection is fitted.
        path: the file: .png for one frame, .mp4 otherwise.
        request: the resolved request of one video.
    """

    def __init__(self, vae: CausalVAE, path: Path, request: Request) -> None:
        self.projection = fit_projection(vae)
        self.path = path
        self.request = request
        self._failed = False

    def __call__(self, done: int, total: int, latents: Tensor) -> None:
        """latents: [1, C, t, h, w]. A preview that cannot be written is said once and does not end the run."""
        if self._failed:
            return
        frames = self.projection.frames(latents[0])
        factor = max(1, -(-_SIDE // max(frames.shape[1:3])))
        frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
        metadata = {"preview_of": self.request.output_path, "step": done, "steps": total}
        try:
            if self.path.suffix.lower() == IMAGE_SUFFIX:
                write_image(self.path, frames[0], metadata)
            else:
                assert self.request.fps is not None
                write_video(self.path, frames, max(self.request.fps / TIME_STRIDE, 1.0), metadata)
        except OSError as error:
            self._failed = True
            _log.warning("The preview %s cannot be written (%s); the video is made all the same.", self.path, error)
