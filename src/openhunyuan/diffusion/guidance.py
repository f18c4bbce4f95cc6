"""Guidance: the distilled scale as an input, and the true two-branch form (release fact E.3)."""

import torch
from torch import Tensor


def embedded_guidance(scale: float, batch: int = 1, device: torch.device | str | None = None) -> Tensor:
    """The distilled model's guidance input, scale·1000 rounded to bf16 as the release does, fp32 [batch].

    6.0 becomes 6016: bf16 values near 6000 are 32 apart, and the weights were trained and used at that value
    (release fact B.3).
    """
    return embedded_scales(torch.tensor([scale], device=device)).expand(batch)


def embedded_scales(scales: Tensor) -> Tensor:
    """The same for a scale a sample, [B] → fp32 [B]: training draws them."""
    return (scales.to(torch.bfloat16) * 1000.0).float()


def classifier_free(uncond: Tensor, cond: Tensor, scale: float | Tensor) -> Tensor:
    """uncond + scale·(cond − uncond), all [B, ...]; scale: one for all, or [B]. 1 gives cond, 0 gives uncond."""
    if isinstance(scale, Tensor):
        scale = scale.to(cond).reshape(-1, *[1] * (cond.ndim - 1))
    return torch.lerp(uncond, cond, scale)
