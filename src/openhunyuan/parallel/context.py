"""Context parallelism: the tokens of one video over several processes, Ulysses within ring, from outside the network.

From latent patches to latent patches (`DiT.through_blocks`) image tokens meet in attention alone. So each process takes
an equal run of them, padded at the end of the video where the length does not divide; text is in every process. For
attention, Ulysses (arXiv 2309.14509) changes "all heads of my tokens" into "my heads of my group's tokens", and the
groups are the parts that `parallel.ring` passes round. The patches are then gathered, so that every process computes
the same loss.

Gradients: a process's backward pass starts from its own run of the gathered patches. What it finds for the weights is
its tokens' part, text included; the sum over the processes, which sharding makes anyway, is the whole gradient.

Letters: B batch, H heads, L tokens of this process, S text tokens, D head channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_single_autograd, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from openhunyuan.base.errors import UserError
from openhunyuan.models.dit.model import DiT
from openhunyuan.ops.enhance import Enhance
from openhunyuan.parallel.ring import ring_attention

DIMS = ("ring", "ulysses")
"""Dimensions of the mesh along which the tokens of a video are shared, outer first."""


def check(module: nn.Module, ulysses: int, ring: int, heads: int | None = None) -> None:
    """Whether a module can share its tokens so. heads: of a process, where not all of them are in each.

    Raises:
        UserError: it is no video transformer, or its heads cannot be dealt.
    """
    if ulysses * ring == 1:
        return
    if not isinstance(module, DiT):
        raise UserError(
            f"Only the video transformer can share its tokens, {type(module).__name__} cannot; set ulysses and ring to "
            "1."
        )
    heads = heads or module.config.num_heads
    if heads % ulysses:
        raise UserError(
            f"ulysses is {ulysses}, but {heads} attention heads cannot be dealt evenly to {ulysses} processes; choose "
            f"a divisor of {heads} and let ring do the rest."
        )


def share_tokens(module: nn.Module, mesh: DeviceMesh) -> None:
    """Let ``module``, a `DiT`, share its tokens along the mesh's ``ring`` and ``ulysses``, where it has them."""
    names = tuple(name for name in DIMS if name in (mesh.mesh_dim_names or ()))
    if not names:
        return
    check(module, mesh["ulysses"].size() if "ulysses" in names else 1, mesh["ring"].size() if "ring" in names else 1)
    assert isinstance(module, DiT)
    every = mesh[names] if len(names) == 1 else mesh[names]._flatten("context")
    ring, ulysses = (mesh[name].get_group() if name in names else None for name in DIMS)
    shared = SharedBlocks(module.through_blocks, Group(every.get_group(), ring, ulysses))
    module.through_blocks = shared  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Group:
    """The processes that share a video: ``every`` one in the order of the tokens; None is a degree of 1."""

    every: dist.ProcessGroup
    ring: dist.ProcessGroup | None
    ulysses: dist.ProcessGroup | None


@dataclass(frozen=True)
class Run:
    """This process's run of ``length`` image tokens."""

    group: Group
    length: int

    @property
    def size(self) -> int:
        """Tokens of a run, padding included; the same in every process."""
        return -(-self.length // dist.get_world_size(self.group.every))

    @property
    def first(self) -> int:
        return self.size * dist.get_rank(self.group.every)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens that are no padding in each part of the ring."""
        parts = 1 if self.group.ring is None else dist.get_world_size(self.group.ring)
        size = self.size * dist.get_world_size(self.group.every) // parts
        return tuple(max(0, min(size, self.length - size * part)) for part in range(parts))

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """This process's run of ``dim``, zeros where it is padding. A copy: a view would hold the whole video."""
        held = max(0, min(self.size, self.length - self.first))
        run = x.narrow(dim, min(self.first, self.length), held)
        return F.pad(run, (0, 0) * (x.ndim - 1 - dim) + (0, self.size - held)) if held < self.size else run.clone()

    def frames(self, frame_vec: Tensor) -> Tensor:
        """What each latent frame has, [B, T, C], for equal runs of this process's tokens, [B, N, C]: as long as none of
        them crosses from frame to frame."""
        per_frame = self.length // frame_vec.shape[1]
        step = math.gcd(per_frame, self.size)
        tokens = torch.arange(self.first, self.first + self.size, step, device=frame_vec.device)
        return frame_vec[:, (tokens // per_frame).clamp(max=frame_vec.shape[1] - 1)]

    def gather(self, x: Tensor) -> Tensor:
        """[B, size, C] of every process → [B, length, C]; backward takes this process's run of the gradient."""
        return _Gather.apply(x, self.group.every)[:, : self.length]  # pyright: ignore


class _Gather(torch.autograd.Function):
    """What follows is the same in every process, and so are its gradients: each takes its part, nothing is added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.first, ctx.size = dist.get_rank(group) * x.shape[1], x.shape[1]
        parts = x.new_empty(dist.get_world_size(group), *x.shape)
        dist.all_gather_single(parts.flatten(0, 1), x.contiguous(), group=group)
        return parts.movedim(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad[:, ctx.first : ctx.first + ctx.size], None


@dataclass(frozen=True)
class SharedBlocks:
    """`DiT.through_blocks` (``whole``) on this process's run of the tokens: the same arguments, the same result."""

    whole: Callable[..., Tensor]
    group: Group

    def __call__(
        self,
        patches: Tensor,
        txt: Tensor,
        vec: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        enhance: Enhance | None = None,
        frame_vec: Tensor | None = None,
    ) -> Tensor:
        run, length = Run(self.group, patches.shape[1]), patches.shape[1]
        cos, sin = (torch.cat((run.cut(x[:length], 0), x[length:])) for x in (cos, sin))
        lengths = None if mask is None else mask[:, 0, 0, length:].sum(dim=1).tolist()
        patches = self.whole(
            run.cut(patches, 1),
            txt,
            vec,
            cos,
            sin,
            SharedAttention(run, lengths),
            None if enhance is None else SharedEnhance(run, enhance),
            None if frame_vec is None else run.frames(frame_vec),
        )
        return run.gather(patches)


@dataclass(frozen=True)
class SharedAttention:
    """Attention of this process's tokens, its run and the text, to those of all. Blocks take it for a mask.

    text_lengths: valid text tokens of each sample; None: all are.
    """

    run: Run
    text_lengths: list[int] | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [B, H, L + S, D] → the same."""
        group = self.run.group.ulysses
        (q_video, q_text), (k_video, k_text), (v_video, v_text) = (self._parted(x) for x in (q, k, v))
        if group is not None:
            q_video, k_video, v_video = to_heads(torch.stack((q_video, k_video, v_video)), group)
            q_text, k_text, v_text = (own_heads(x, group) for x in (q_text, k_text, v_text))
        out = ring_attention(
            torch.cat((q_video, q_text), dim=2),
            k_video,
            v_video,
            k_text,
            v_text,
            self.run.counts,
            self.text_lengths,
            self.run.group.ring,
        )
        if group is None:
            return out
        video, text = out.split((q_video.shape[2], q_text.shape[2]), dim=2)
        return torch.cat((to_tokens(video, group), all_heads(text, group)), dim=2)

    def _parted(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split((self.run.size, x.shape[2] - self.run.size), dim=2)


@dataclass(frozen=True)
class SharedEnhance:
    """`Enhance` where frames lie in several processes: the factor is found from the queries and keys of all."""

    run: Run
    enhance: Enhance

    def __call__(self, out: Tensor, q: Tensor, k: Tensor) -> Tensor:
        factor = self.enhance.factor(self._video(q), self._video(k)).to(out.dtype)[:, None, None]
        return torch.cat((out[:, : self.run.size] * factor, out[:, self.run.size :]), dim=1)

    def _video(self, x: Tensor) -> Tensor:
        """[B, L + S, H, D] → every image token."""
        mine = x[:, : self.run.size].movedim(1, 0).contiguous()
        return all_gather_single_autograd(mine, 0, self.run.group.every)[: self.run.length].movedim(0, 1)


# -- Ulysses -----------------------------------------------------------------------------------------------------------


def to_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All heads of this process's tokens [n, B, H, L, D] → its heads of the group's tokens [n, B, H/U, U·L, D]."""
    parts = x.unflatten(2, (dist.get_world_size(group), -1)).movedim(2, 0).contiguous()
    return all_to_all_single_autograd(parts, None, None, group).movedim(0, 3).flatten(3, 4)


def to_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This process's heads of the group's tokens [B, H/U, U·L, D] → all heads of its tokens [B, H, L, D]."""
    parts = x.unflatten(2, (dist.get_world_size(group), -1)).movedim(2, 0).contiguous()
    return all_to_all_single_autograd(parts, None, None, group).movedim(0, 1).flatten(1, 2)


def own_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, H, S, D], the same tokens in all processes → this process's heads [B, H/U, S, D]."""
    return x.unflatten(1, (dist.get_world_size(group), -1))[:, dist.get_rank(group)]


def all_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`own_heads` undone; gradients from all processes are added."""
    parts = all_gather_single_autograd(x.contiguous(), 0, group)
    return parts.unflatten(0, (-1, len(x))).movedim(0, 1).flatten(1, 2)
