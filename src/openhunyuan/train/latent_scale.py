"""Normalised latents: each channel to mean 0 and variance 1, folded into the VAE's 1×1×1 convolutions.

Diffusion adds the same noise to every channel and weighs every channel's error alike. A channel of small spread, where
fine shape lives in a VAE that starts as a linear pyramid, is drowned by that noise; at unit variance it is learned as
fast as the others. The released VAE has one ``scaling_factor`` for all channels; folding keeps that interface.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openhunyuan.models.vae.model import CausalVAE


@torch.no_grad()
def channel_statistics(vae: CausalVAE, clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of the VAE's latents (mode, unscaled) over clips [B, 3, T, H, W]."""
    values = torch.cat([vae.encode(clip).mode().transpose(0, 1).flatten(1) for clip in clips], 1).double()
    return values.mean(1).float(), values.std(1).float()


@torch.no_grad()
def fold_normalisation(vae: CausalVAE, mean: Tensor, std: Tensor) -> None:
    """Make ``encode`` give (z − mean) / std and ``decode`` undo it, in place; the reconstruction stays the same."""
    quant, post, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    assert quant.bias is not None and post.bias is not None
    scale = std.view(-1, 1, 1, 1, 1)
    quant.weight[:channels] /= scale
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * torch.log(std)
    post.bias += (post.weight.flatten(1) * mean).sum(1)
    post.weight *= scale.transpose(0, 1)
    if not math.isclose(vae.config.scaling_factor, 1.0):
        raise ValueError("latents are already scaled by the config; fold before a scaling_factor is chosen")
