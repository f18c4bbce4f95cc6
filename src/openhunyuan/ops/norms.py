"""Normalisation and adaptive modulation (release fact B.7)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned gain and no bias; statistics in fp32."""

    def __init__(self, dim: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim] → same shape and dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis without gain or bias, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift. x: [B, L, C]; shift, scale: [B, C] for all tokens, or [B, N, C] for N equal runs of L."""
    if shift.ndim == 3:
        if shift.shape[1] == x.shape[1]:  # a vector a token; there may be no tokens
            return torch.addcmul(shift, x, 1 + scale)
        runs = x.unflatten(1, (shift.shape[1], -1))
        return torch.addcmul(shift.unsqueeze(2), runs, 1 + scale.unsqueeze(2)).flatten(1, 2)
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def gated_add(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate·branch. x, branch: [B, L, C]; gate: [B, C] for all tokens, or [B, N, C] for N equal runs of L."""
    if gate.ndim == 3:
        if gate.shape[1] == x.shape[1]:
            return torch.addcmul(x, gate, branch)
        runs = x.unflatten(1, (gate.shape[1], -1)), branch.unflatten(1, (gate.shape[1], -1))
        return torch.addcmul(runs[0], gate.unsqueeze(2), runs[1]).flatten(1, 2)
    return torch.addcmul(x, gate.unsqueeze(1), branch)
