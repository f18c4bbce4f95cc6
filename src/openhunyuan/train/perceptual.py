"""Perceptual networks by name. None is silently replaced by another."""

from __future__ import annotations

import json
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from openhunyuan.base.errors import UserError


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
