"""The sampling loop: Euler steps along the predicted velocity (release fact E.1)."""

from collections.abc import Callable

import torch
from torch import Tensor

from openhunyuan.diffusion.schedule import timesteps

VelocityFn = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, ...] fp32, timestep [B] 0..1000) → velocity [B, ...], noise − data."""

StepCallback = Callable[[int, int, Tensor], None]
"""(steps done, steps in all, latents after the step)."""


@torch.no_grad()
def denoise(
    velocity_fn: VelocityFn,
    noise: Tensor,
    sigmas: Tensor,
    callback: StepCallback | None = None,
    estimate: StepCallback | None = None,
) -> Tensor:
    """Take noise [B, ...] to data along `sigmas` [N + 1] (1 → 0): x ← x + v·(σ_next − σ).

    Latents stay fp32 between steps whatever the network computes in. `callback` is called after every step;
    `estimate` as well, with the data the step pointed at, x − σ·v, in place of the latents. Returns fp32 latents.
    """
    latents = noise.float()
    levels = sigmas.float().cpu()
    steps = levels.diff().tolist()
    times = timesteps(levels).tolist()
    for index, (time, level, step) in enumerate(zip(times, levels[:-1].tolist(), steps, strict=True)):
        timestep = torch.full((len(latents),), time, dtype=torch.float32, device=latents.device)
        velocity = velocity_fn(latents, timestep).float()
        if estimate is not None:
            estimate(index + 1, len(steps), latents - velocity * level)
        latents = latents + velocity * step
        if callback is not None:
            callback(index + 1, len(steps), latents)
    return latents
