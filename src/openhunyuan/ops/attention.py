"""Scaled dot-product attention: the one place where the networks attend."""

from torch import Tensor
from torch.nn import functional as F


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v, without a causal mask (release facts B.8, B.10).

    q, k, v: [B, H, L, D], any strides with a dense last axis. mask: boolean, broadcastable to
    [B, H, Lq, Lk], True where a query may look at a key; a key mask is [B, 1, 1, Lk]. None means that every
    key counts, which lets the fastest kernel be chosen. Returns [B, H, Lq, D].
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
