"""Rotary position embedding over time, height and width (report section 4.1, release fact B.6)."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def rope_freqs(
    grid_thw: Sequence[int],
    axes_dim: Sequence[int] = (16, 56, 56),
    theta: float = 256.0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's rotation angles, fp32, each [L, D]; kept for the last grids asked for.

    grid_thw: tokens along time, height and width, L = T·H·W in that order (width fastest). axes_dim: how many of
    the D = sum(axes_dim) head channels turn with each axis, all even. The angle of channel pair j of an axis of d
    channels at position p is p·theta^(-2j/d); both channels of a pair carry it, so columns come in equal pairs.
    Raises ValueError if an axis has no tokens or an odd width.
    """
    if len(grid_thw) != len(axes_dim) or min(grid_thw) < 1 or any(dim % 2 for dim in axes_dim):
        raise ValueError(f"rope needs one even width per axis and positive sizes, got {grid_thw} and {axes_dim}")
    return _freqs(tuple(grid_thw), tuple(axes_dim), float(theta), str(device or "cpu"))


@lru_cache(maxsize=8)
def _freqs(grid: tuple[int, ...], axes_dim: tuple[int, ...], theta: float, device: str) -> tuple[Tensor, Tensor]:
    # The result outlives this call: made under inference mode it could never take part in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        columns = []
        for axis, (size, dim) in enumerate(zip(grid, axes_dim, strict=True)):
            rates = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
            angles = torch.outer(torch.arange(size, dtype=torch.float32, device=device), rates)
            shape = [1] * len(grid) + [dim // 2]
            shape[axis] = size
            columns.append(angles.reshape(shape).expand(*grid, dim // 2))
        angles = torch.cat(columns, dim=-1).flatten(0, -2).repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each adjacent channel pair (a, b) of x into (a·cos − b·sin, b·cos + a·sin), in fp32, cast back.

    x: [B, H, L, D] or anything with [L, D] last or broadcastable; cos, sin: [L, D] from `rope_freqs`.
    """
    full = x.float()
    a, b = full.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-b, a), dim=-1).flatten(-2)
    return torch.addcmul(full * cos, turned, sin).to(x.dtype)
