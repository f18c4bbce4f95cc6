"""Guidance: the distilled scale as an input, and the true two-branch form (release fact E.3)."""

import torch
from torch import Tensor


def embedded_guidance(scale: float, batch: int = 1, device: torch.device | str | None = None) -> Tensor:
    """The distilled model's guidance input, scale·1000 rounded to bf16 as the release does, fp32 [batch].

    6.0 becomes 6016: bf16 values near 6000 are 32 apart, and the weights were trained and used at that value
    (release fact B.3).
    """
    value = torch.tensor([scale], dtype=torch.bfloat16, device=device) * 1000.0
    return value.float().expand(batch)


def classifier_free(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """uncond + scale·(cond − uncond). scale 1 gives cond, 0 gives uncond."""
    return torch.lerp(uncond, cond, scale)
