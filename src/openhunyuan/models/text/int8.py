"""Weights of the text models in eight bits: int8 numbers with one scale an output row, half the memory of float16.

The text encoders run once a prompt, so the time of turning a weight back is nothing beside the sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INT8_MAX = 127


class Int8Linear(nn.Module):
    """A linear whose weight is stored in eight bits and used in its input's format.

    weight: [out, in] int8; scale: [out, 1] float32, W = weight · scale; bias: [out] or None.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(out_features, 1))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] → [..., out] in x's format."""
        return F.linear(x, (self.weight * self.scale).to(x.dtype), self.bias)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A floating weight [out, in] → (int8 [out, in], float32 scale [out, 1]), scale = max|row| / 127 (1 for zeros)."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1, keepdim=True) / INT8_MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().to(torch.int8), scale


def replace_linear(model: nn.Module, name: str) -> Int8Linear:
    """Put an empty eight-bit linear in the place of the linear ``name``; the caller fills it with ``fill_int8``."""
    parent, _, leaf = name.rpartition(".")
    old: nn.Linear = model.get_submodule(name)  # pyright: ignore[reportAssignmentType]
    with torch.device("meta"):
        new = Int8Linear(old.in_features, old.out_features, old.bias is not None)
    setattr(model.get_submodule(parent), leaf, new)
    return new


def fill_int8(linear: Int8Linear, weight: Tensor) -> None:
    """Quantize ``weight`` [out, in] into ``linear``, on the weight's device."""
    linear.weight, linear.scale = quantize(weight)
