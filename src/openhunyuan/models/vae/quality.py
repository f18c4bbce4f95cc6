"""How good a reconstruction is: PSNR, SSIM, and whether tiles show. Clips are [B, 3, T, H, W] in [−1, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openhunyuan.models.vae.tiling import TilingConfig, seam_mask

_RANGE = 2.0
_SIGMA, _RADIUS = 1.5, 5
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip: [B]."""
    error = (x.clamp(-1, 1) - y.clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(_RANGE**2 / error.clamp_min(1e-10))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each clip, over its frames and channels: [B]. Sides must be above 10.

    Gaussian window of sigma 1.5 and 11 taps, inside the picture only (Wang et al. 2004).
    """
    taps = torch.exp(-0.5 * (torch.arange(-_RADIUS, _RADIUS + 1, device=x.device) / _SIGMA) ** 2)
    taps = (taps / taps.sum()).view(1, 1, -1)

    def blur(values: Tensor) -> Tensor:
        flat = values.flatten(0, 2)[:, None]
        return F.conv2d(F.conv2d(flat, taps[..., None]), taps[..., None, :])[:, 0].unflatten(0, values.shape[:3])

    x, y = x.float().clamp(-1, 1), y.float().clamp(-1, 1)
    # Moved to 0…2: the constants are fractions of a range that starts at nothing.
    x, y = x + 1, y + 1
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    score = (2 * mx * my + _C1) * (2 * cov + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return score.flatten(1).mean(1)


def seam_ratio(original: Tensor, decoded: Tensor, tiling: TilingConfig) -> float:
    """Mean absolute error where tiles meet ÷ mean absolute error elsewhere; 1 is no seam, nan when no tiles meet.

    What lies under the seams may be harder or easier than the rest: compare with the same ratio of an untiled decoding.
    """
    mask = seam_mask(tiling, tuple(original.shape[2:]))
    error = (original - decoded).abs().mean(dim=(0, 1)).cpu()
    return float(error[mask].mean() / error[~mask].mean())
