"""Scaled dot-product attention: the one place where the networks attend."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Mask = Tensor | Callable[[Tensor, Tensor, Tensor], Tensor] | None
"""Which keys a query may look at, or another way to attend: a function of queries, keys and values."""

EXPLICIT_LENGTH = 1024
"""Longest key sequence for which training on a CPU forms the weights explicitly; beyond it their memory tells."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """softmax(q kᵀ / √D) v, without a causal mask (release facts B.8, B.10).

    q, k, v: [B, H, L, D], any strides with a dense last axis. mask: boolean, broadcastable to
    [B, H, Lq, Lk], True where a query may look at a key; a key mask is [B, 1, 1, Lk]. None means that every
    key counts, which lets the fastest kernel be chosen. A function in its place is called with q, k and v: so attention
    is changed from outside, for instance where the keys lie in several processes. Returns [B, H, Lq, D].

    Torch's fused kernel has a slow backward pass on CPUs with bfloat16 units: at 156 tokens and heads of 32 it took
    half of a training step. Short sequences that need gradients in autocast there go through `explicit_attention`,
    which is equal up to rounding. In float32 the fused kernel is the faster one (a step of 1.1–1.2 s against 1.3 s).
    """
    if callable(mask):
        return mask(q, k, v)
    trained = torch.is_grad_enabled() and q.requires_grad and torch.is_autocast_enabled("cpu")
    if trained and q.device.type == "cpu" and k.shape[-2] <= EXPLICIT_LENGTH:
        return explicit_attention(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same by two matrix products and a softmax, [B, H, Lq, Lk] weights in memory."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(dim=-1).to(v.dtype) @ v
