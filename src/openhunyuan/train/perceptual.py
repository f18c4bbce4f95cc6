"""Perceptual networks by name. None is silently replaced by another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.lpips import Lpips, read_lpips

Features = Callable[[Tensor], list[Tensor]]
"""Perceptual network: frames [N, 3, H, W] in [−1, 1] → feature maps or tokens, channels at dim 1."""


def perceptual_network(name: str) -> ClipFeatures | Lpips:
    """``clip:FOLDER`` (a CLIP vision tower, for instance one trained on our own data) or ``lpips:FEATURES,LINEAR``
    (the two weight files of the real LPIPS). Raises UserError for another name, or files that do not hold them."""
    kind, _, where = name.partition(":")
    if kind == "clip" and where:
        return ClipFeatures(Path(where))
    features, _, linear = where.partition(",")
    if kind == "lpips" and features and linear:
        return read_lpips(features, linear)
    raise UserError(f"Unknown perceptual network {name}; use clip:FOLDER or lpips:VGG16_FILE,LINEAR_FILE.")


def perceptual_distance(network: Features | Lpips, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
    """Mean distance of two batches of frames, a scalar; the gradient goes to the second.

    LPIPS as it is. Of other networks: mean squared difference of channel-normalised features, summed over layers.
    """
    if isinstance(network, Lpips):
        return network(x_NCHW.detach(), y_NCHW).mean()
    with torch.no_grad():
        wanted = [F.normalize(f, dim=1) for f in network(x_NCHW)]
    got = [F.normalize(f, dim=1) for f in network(y_NCHW)]
    return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(wanted, got, strict=True)]).sum()


class ClipFeatures(nn.Module):
    """Hidden states of a CLIP vision tower in an ordinary Hugging Face folder, ``clip:FOLDER``.

    Trained on the same data as the VAE where no published perceptual weights are at hand. Frames [N, 3, H, W] in
    [−1, 1] → one [N, D, tokens] a layer.
    """

    def __init__(self, folder: Path):
        super().__init__()
        from transformers import CLIPVisionModel

        if not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder} holds no CLIP vision tower; train it with `openhunyuan train tiny-text`.")
        self.size = int(json.loads((folder / "config.json").read_text())["vision_config"]["image_size"])
        self.tower = CLIPVisionModel.from_pretrained(folder, use_safetensors=True).requires_grad_(False).eval()

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        size = self.size
        if x_NCHW.shape[-2:] != (size, size):
            x_NCHW = F.interpolate(x_NCHW, (size, size), mode="bilinear", align_corners=False)
        states = self.tower(pixel_values=x_NCHW, output_hidden_states=True).hidden_states
        return [layer[:, 1:].transpose(1, 2) for layer in states]
