"""Noise levels of a sampling run (release facts E.1 and E.2)."""

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


def linear_quadratic_sigmas(num_steps: int, linear_steps: int | None = None) -> Tensor:
    """Noise levels that start as the first steps of a run of 1000 and then fall along a parabola, fp32 [N + 1] on CPU.

    After i steps the level is 1 − i/1000 on the line, `linear_steps` long (None: half of all), and from there on the
    parabola that leaves the line smoothly and reaches 0 at the end (release fact E.2, after MovieGen): few steps then
    do the work of many where it matters, at high noise. It takes the place of the shift.

    Raises ValueError unless 0 ≤ linear_steps < num_steps ≤ 1000.
    """
    line = num_steps // 2 if linear_steps is None else linear_steps
    if not 0 <= line < num_steps <= MODEL_TIME:
        raise ValueError(f"a schedule needs 0 <= linear steps < steps <= 1000, got {line} and {num_steps}")
    steps = torch.arange(num_steps + 1, dtype=torch.float64)
    bend = ((steps - line).clamp(min=0) / (num_steps - line)).square()
    return (1 - steps / MODEL_TIME - (1 - num_steps / MODEL_TIME) * bend).clamp(min=0).float()


def timesteps(levels: Tensor) -> Tensor:
    """What the network is told at the start of each step: 1000·sigma without the last level. [N + 1] → [N]."""
    return MODEL_TIME * levels[:-1]
