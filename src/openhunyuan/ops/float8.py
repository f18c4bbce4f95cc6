"""Weights in eight bits: e4m3 numbers with one scale a tensor (release fact A.3).

Storage only: W = float(weight) · scale is formed in the compute format at each call, and an ordinary linear follows.
It halves the memory of bfloat16 weights and saves no time.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
"""The largest finite e4m3 number, (1 + 1/2 + 1/4) · 2^8."""
SCALE = "weight_scale"
"""Name of the scale beside ``weight``: float32, shape [1]."""

_QUANTIZED = re.compile(
    r"double_blocks\.\d+\.((img|txt)_mod\.linear|(img|txt)_attn_(qkv|proj)|(img|txt)_mlp\.fc[12])"
    r"|single_blocks\.\d+\.(linear[12]|modulation\.linear)"
)


def is_quantized(module: str) -> bool:
    """Whether the release keeps this module of the DiT in eight bits: all linears of its blocks, 320 of the 13B."""
    return _QUANTIZED.fullmatch(module) is not None


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A floating weight → (e4m3 weight of its shape, float32 scale [1]) with scale = max|W| / 448.

    A weight of zeros gets scale 1. Raises ValueError for values that are not finite: they would spoil every other one.
    """
    high = weight.detach().abs().max().float() if weight.numel() else torch.zeros(())
    if not torch.isfinite(high):
        raise ValueError("a weight with values that are not finite cannot be quantized")
    scale = high / FLOAT8_MAX if high > 0 else torch.ones_like(high)
    # The quotient is at most 448 by construction, up to rounding, which the clamp takes away: e4m3 has no infinity.
    return (weight.detach().float() / scale).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8), scale.reshape(1)


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float(weight) · scale, both cast to ``dtype`` first, as the released code does."""
    return weight.to(dtype) * scale.to(dtype)


class Float8Linear(nn.Module):
    """A linear whose weight is stored in eight bits and used in its input's format.

    weight: [out, in] e4m3, not trained; weight_scale: [1] float32; bias: [out] or None.
    """

    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=FLOAT8), requires_grad=False)
        self.register_buffer(SCALE, torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] → [..., out] in x's format."""
        return F.linear(x, dequantize(self.weight, self.weight_scale, x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def replace_linear(model: nn.Module, name: str) -> Float8Linear:
    """Put an empty eight-bit linear in the place of the linear ``name``, on its device; the caller fills it."""
    parent, _, leaf = name.rpartition(".")
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise TypeError(f"{name} is a {type(old).__name__}, not a linear")
    with torch.device(old.weight.device):
        new = Float8Linear(old.in_features, old.out_features, old.bias is not None)
    setattr(model.get_submodule(parent), leaf, new)
    return new


@torch.no_grad()
def quantize_linears(model: nn.Module) -> nn.Module:
    """Replace, in place, every linear of the DiT that the release quantizes; returns the model."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and is_quantized(name)]
    for name in names:
        old: nn.Linear = model.get_submodule(name)  # pyright: ignore[reportAssignmentType]
        weight, scale = quantize(old.weight)
        new = replace_linear(model, name)
        new.weight.data, new.weight_scale = weight, scale
        new.bias = old.bias
    return model
