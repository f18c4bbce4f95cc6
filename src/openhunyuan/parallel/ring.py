"""Ring attention, exact forward and backward: queries stay, keys and values of the video go round the processes.

Every process attends to one part of the keys at a time and keeps, beside the result, the log of the sum of exponentials
of its logits (LSE). Two results over different keys merge by their LSEs into the result over both (Liu et al.,
arXiv 2310.01889). Backward, each part's gradients follow from the LSE over all keys; those of keys and values travel
with them until they are home again. Text is in every process, and counted once: with the process's own part.

Letters: B batch, H heads, L tokens, D head channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Partial = tuple[Tensor, Tensor]
"""Attention over some of the keys: the result [B, H, Lq, D] and its LSE, fp32 [B, H, Lq]."""


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_text: Tensor,
    v_text: Tensor,
    counts: Sequence[int],
    text_lengths: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """softmax(q kᵀ / √D) v over the text and the video of all processes of ``group``.

    q: [B, H, Lq, D], any tokens of this process. k, v: [B, H, L, D], its part of the video, as long in every process.
    k_text, v_text: [B, H, S, D]. counts: how many tokens of each process's part count, in the ring's order; the rest is
    padding. text_lengths: valid text tokens of each sample, where not all count. group: None is a ring of one.
    Returns [B, H, Lq, D]. Gradients of text are those of this process's queries; add them over the processes.
    """
    return _RingAttention.apply(q, k, v, k_text, v_text, tuple(counts), text_lengths, group)  # pyright: ignore


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_text: Tensor,
        v_text: Tensor,
        counts: tuple[int, ...],
        text_lengths: Sequence[int] | None,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        place, size = _place(group)
        held = torch.stack((k, v))
        arriving = _pass_on(held, group, tag=0) if group else None
        out, lse = _home(q, held[..., : counts[place], :], torch.stack((k_text, v_text)), text_lengths)
        if group and arriving:
            out = out.float()
            for turn in range(1, size):
                held = arriving()
                if turn + 1 < size:
                    arriving = _pass_on(held, group, tag=0)
                count = counts[(place - turn) % size]
                if count:
                    out, lse = _merge((out, lse), attend(q, *held[..., :count, :]))
            out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, k_text, v_text, out, lse)
        ctx.counts, ctx.text_lengths, ctx.group = counts, text_lengths, group
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, k_text, v_text, out, lse = ctx.saved_tensors
        counts, group = ctx.counts, ctx.group
        place, size = _place(group)
        held, text = torch.stack((k, v)), torch.stack((k_text, v_text))
        arriving = _pass_on(held, group, tag=0) if group else None
        dq, d_held, d_text = _home_backward(grad, q, held, text, counts[place], ctx.text_lengths, out, lse)
        if group and arriving:
            dq = dq.float()
            # A gradient leaves when its part has been attended to here, and so follows one step behind it.
            returning = _pass_on(d_held.float(), group, tag=1)
            for turn in range(1, size):
                held = arriving()
                if turn + 1 < size:
                    arriving = _pass_on(held, group, tag=0)
                count = counts[(place - turn) % size]
                keys, values = held[..., :count, :].unbind(0)
                parts = attend_backward(grad, q, keys, values, out, lse) if count else None
                d_held = returning()
                if parts is not None:
                    dq += parts[0]
                    d_held[0, ..., :count, :] += parts[1]
                    d_held[1, ..., :count, :] += parts[2]
                returning = _pass_on(d_held, group, tag=1)
            d_held = returning()
        dk, dv = d_held.to(k.dtype)
        return dq.to(q.dtype), dk, dv, d_text[0], d_text[1], None, None, None


def _place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def _pass_on(held: Tensor, group: dist.ProcessGroup, tag: int) -> Callable[[], Tensor]:
    """Send ``held`` to the next process of the ring without waiting; calling the result gives what the one before sent.

    tag: tells messages apart that are under way at once.
    """
    place, size = _place(group)
    held, came = held.contiguous(), torch.empty_like(held, memory_format=torch.contiguous_format)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, held, group=group, tag=tag, group_peer=(place + 1) % size),
            dist.P2POp(dist.irecv, came, group=group, tag=tag, group_peer=(place - 1) % size),
        ]
    )

    def arrived(_: Tensor = held) -> Tensor:  # what is sent has to be there until it is
        for work in works:
            work.wait()
        return came

    return arrived


# -- this process's own part and the text ------------------------------------------------------------------------------


def _home(q: Tensor, kv: Tensor, kv_text: Tensor, text_lengths: Sequence[int] | None) -> Partial:
    """Attention to the process's own part, kv [2, B, H, count, D], and the text, kv_text [2, B, H, S, D]."""
    if text_lengths is None:
        return attend(q, *torch.cat((kv, kv_text), dim=-2))
    samples = [
        attend(q[i : i + 1], *torch.cat((kv[:, i : i + 1], kv_text[:, i : i + 1, :, :length]), dim=-2))
        for i, length in enumerate(text_lengths)
    ]
    out, lse = (torch.cat(parts) for parts in zip(*samples, strict=True))
    return out, lse


def _home_backward(
    grad: Tensor,
    q: Tensor,
    held: Tensor,
    text: Tensor,
    count: int,
    text_lengths: Sequence[int] | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, of held [2, B, H, L, D] (zero where it is padding) and of text."""
    d_held, d_text = torch.zeros_like(held), torch.zeros_like(text)
    every, batch = text.shape[-2], len(q)
    cuts = [(slice(0, batch), every)]
    if text_lengths is not None:
        cuts = [(slice(i, i + 1), length) for i, length in enumerate(text_lengths)]
    dqs = []
    for rows, length in cuts:
        kv = torch.cat((held[:, rows, :, :count], text[:, rows, :, :length]), dim=-2)
        keys, values = kv.unbind(0)
        dq, *d_kv = attend_backward(grad[rows], q[rows], keys, values, out[rows], lse[rows])
        dqs.append(dq)
        for number, part in enumerate(d_kv):
            d_held[number, rows, :, :count], d_text[number, rows, :, :length] = part.split((count, length), dim=-2)
    return torch.cat(dqs), d_held, d_text


def _merge(one: Partial, other: Partial) -> Partial:
    """The attention over the keys of both; the first result is fp32 and is written over."""
    lse = torch.logaddexp(one[1], other[1])
    out = one[0].mul_((one[1] - lse).exp().unsqueeze(-1))
    return out.addcmul_(other[0].float(), (other[1] - lse).exp().unsqueeze(-1)), lse


# -- kernels -----------------------------------------------------------------------------------------------------------


def _fused(q: Tensor) -> bool:
    """Whether torch has a fused kernel that gives the LSE: on CPUs, and on GPUs for 16 bits and heads of 8·n ≤ 256."""
    if q.device.type == "cpu":
        return True
    heads_fit = q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    return q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16) and heads_fit


def attend(q: Tensor, k: Tensor, v: Tensor) -> Partial:
    """Attention and its LSE, by the fused kernel of the device where there is one."""
    if not _fused(q):
        return explicit(q, k, v)
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, where k and v are some of the keys and ``out`` and ``lse`` are over all of them."""
    if not _fused(q):
        return explicit_backward(grad, q, k, v, out, lse)
    if q.device.type == "cpu":
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return backward(grad, q, k, v, out, lse, 0.0, False)
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a dropout that there is not
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse, None, None, q.shape[-2], k.shape[-2], 0.0, False, unused, unused[:0]
    )


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Partial:
    """`attend` by two matrix products in fp32, the [B, H, Lq, Lk] weights in memory."""
    logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT
    lse = logits.logsumexp(dim=-1)
    return ((logits - lse.unsqueeze(-1)).exp() @ v.float()).to(q.dtype), lse


def explicit_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_backward` by matrix products."""
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    grad, q, k, v, out = (x.float() for x in (grad, q, k, v, out))
    weights = (q * scale @ k.mT - lse.unsqueeze(-1)).exp()
    d_logits = weights * (grad @ v.mT - (grad * out).sum(dim=-1, keepdim=True))
    return (d_logits @ k * scale).to(dtype), (d_logits.mT @ q * scale).to(dtype), (weights.mT @ grad).to(dtype)
