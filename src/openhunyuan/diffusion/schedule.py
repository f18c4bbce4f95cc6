"""Noise levels of a sampling run (release fact E.1)."""

import torch
from torch import Tensor

MODEL_TIME = 1000.0
"""The network is told 1000·sigma."""


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """s·u / (1 + (s − 1)·u): more of the run (or of training) at high noise for shift > 1. sigma in 0..1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigmas(num_steps: int, shift: float = 1.0) -> Tensor:
    """Noise levels from 1 (noise) to 0 (data), num_steps + 1 of them, fp32 on CPU.

    Raises ValueError for num_steps < 1 or shift ≤ 0.
    """
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"a schedule needs at least one step and a positive shift, got {num_steps} and {shift}")
    return shift_sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float32), shift)


def timesteps(levels: Tensor) -> Tensor:
    """What the network is told at the start of each step: 1000·sigma without the last level. [N + 1] → [N]."""
    return MODEL_TIME * levels[:-1]
