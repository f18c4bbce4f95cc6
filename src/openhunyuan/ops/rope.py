"""Rotary position embedding over time, height and width (report section 4.1, release fact B.6).

RIFLEx (arXiv 2502.15894), for videos longer than the trained ones: one channel pair of the time axis has a period near
the trained length, so a longer video runs through it again and its motion repeats. That pair alone is slowed down
until one period covers the whole video.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def rope_freqs(
    grid_thw: Sequence[int],
    axes_dim: Sequence[int] = (16, 56, 56),
    theta: float = 256.0,
    device: torch.device | str | None = None,
    riflex_k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's rotation angles, fp32, each [L, D]; kept for the last grids asked for.

    grid_thw: tokens along time, height and width, L = T·H·W in that order (width fastest). axes_dim: how many of
    the D = sum(axes_dim) head channels turn with each axis, all even. The angle of channel pair j of an axis of d
    channels at position p is p·theta^(-2j/d); both channels of a pair carry it, so columns come in equal pairs.
    riflex_k: which pair of the time axis (1 is the fastest) RIFLEx slows down, see `riflex_index`; None is off.
    Raises ValueError if an axis has no tokens or an odd width, or if the time axis has no such pair.
    """
    if len(grid_thw) != len(axes_dim) or min(grid_thw) < 1 or any(dim % 2 for dim in axes_dim):
        raise ValueError(f"rope needs one even width per axis and positive sizes, got {grid_thw} and {axes_dim}")
    if riflex_k is not None and not 1 <= riflex_k <= axes_dim[0] // 2:
        raise ValueError(f"riflex_k is {riflex_k}, but the time axis has the pairs 1 to {axes_dim[0] // 2}")
    return _freqs(tuple(grid_thw), tuple(axes_dim), float(theta), str(device or "cpu"), riflex_k)


def riflex_index(num_frames: int, time_dim: int = 16) -> int:
    """The channel pair of the time axis that RIFLEx slows down for a video of ``num_frames`` pixel frames.

    The official image-to-video rule, 2 + (F + 3) // 100 held within 4..8 (release fact B.6), and never beyond the last
    pair of a time axis that is ``time_dim`` channels wide.
    """
    return min(max(2 + (num_frames + 3) // 100, 4), 8, time_dim // 2)


@lru_cache(maxsize=8)
def _freqs(
    grid: tuple[int, ...], axes_dim: tuple[int, ...], theta: float, device: str, riflex_k: int | None
) -> tuple[Tensor, Tensor]:
    # The result outlives this call: made under inference mode it could never take part in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        columns = []
        for axis, (size, dim) in enumerate(zip(grid, axes_dim, strict=True)):
            rates = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
            if axis == 0 and riflex_k is not None:
                # 0.9: a little more than the whole video lies within one period (release fact B.6).
                rates[riflex_k - 1] = 0.9 * 2 * math.pi / size
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
