"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.parallel.apply import placed_like, whole
from openhunyuan.train.config import OptimizerConfig

STACKED_VALUES = 1 << 27
"""Values of matrices of one shape that are iterated at once; the iteration takes their memory several times over."""


def lr_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate at ``step`` (0-based) ÷ peak learning rate: linear warm-up, then the configured decay."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    length = config.schedule_steps or total_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, length - config.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * shape


@cache
def iteration_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device has units for it, else float32: a CPU without them is several times slower in it."""
    has_units = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_units else torch.float32


def orthogonalize(updates_NMK: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Quintic Newton–Schulz iteration: every matrix of the stack moves towards its nearest semi-orthogonal one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = updates_NMK.to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    if not wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix (Jordan et al., 2024); matrices of one shape are iterated in one stack.

    A convolution's kernel [C_out, C_in, ...] counts as the matrix [C_out, C_in * taps]. The updates of sharded matrices
    are gathered, a stack at a time, and every process iterates them whole.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ANN001, ANN201 - the signature is torch's
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                at_once = max(1, STACKED_VALUES // shape.numel())
                for start in range(0, len(params), at_once):
                    self._update(group, shape, params[start : start + at_once])

    def _update(self, group: dict[str, Any], shape: torch.Size, params: list[nn.Parameter]) -> None:
        updates = []
        for p in params:
            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            grad = p.grad
            assert grad is not None
            buffer.lerp_(grad, 1 - group["momentum"])
            updates.append(whole(grad.lerp(buffer, group["momentum"])).flatten(1))
        dtype = iteration_dtype(params[0].device.type)
        scale = max(1.0, shape[0] / shape[1:].numel()) ** 0.5
        for p, update in zip(params, orthogonalize(torch.stack(updates), dtype=dtype), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(placed_like(update.reshape(shape).to(p.dtype), p), alpha=-group["lr"] * scale)


def build_optimizers(module: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """One AdamW, plus a Muon for the hidden matrices when asked for.

    A module may name its hidden matrices with ``muon_parameters()``; all else (embeddings, modulation, norms,
    biases, the output layer) goes to AdamW. Peak learning rates are kept as ``peak_lr`` in every group.
    """
    hidden: list[nn.Parameter] = []
    if config.name == "muon":
        chooser = getattr(module, "muon_parameters", None)
        if chooser is None:
            raise ValueError(
                f"{type(module).__name__} does not say which parameters Muon may take; use optimizer 'adamw'"
            )
        hidden = [p for p in chooser() if p.requires_grad]
    taken = {id(p) for p in hidden}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    decay = [p for p in rest if p.ndim >= 2]
    plain = [p for p in rest if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps)
    ]
    if hidden:
        optimizers.append(Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate becomes its peak times ``factor``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
