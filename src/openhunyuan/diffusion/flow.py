"""Flow matching: the straight path between data and noise, and the loss on its velocity (report section 4.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from openhunyuan.diffusion.schedule import MODEL_TIME, shift_sigma


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 − t)·data + t·noise. data, noise: [B, ...]; t: [B] in 0 (data) .. 1 (noise)."""
    return torch.lerp(data, noise, _per_sample(t, data).to(data.dtype))


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """dx_t/dt = noise − data, the same at every t."""
    return noise - data


def data_from_velocity(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The data that a velocity at x_t points to: x_t − t·v."""
    return x_t - _per_sample(t, x_t) * velocity


def sample_t(
    batch: int,
    generator: torch.Generator | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
) -> Tensor:
    """Logit-normal times in 0..1, then shifted: sigmoid(mean + std·N(0, 1)), [batch] fp32.

    The draw is made on the generator's device (CPU without one), so that a seed means the same times everywhere.
    """
    device = generator.device if generator is not None else "cpu"
    normal = torch.randn(batch, generator=generator, device=device)
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


def model_time(t: Tensor) -> Tensor:
    """t in 0..1 → what the network is told, 0..1000."""
    return MODEL_TIME * t


def flow_loss(velocity: Tensor, data: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the predicted velocity, a scalar in fp32; `weight` [B] scales samples before the mean."""
    target = velocity_target(data, noise).float()
    if weight is None:
        return F.mse_loss(velocity.float(), target)
    return (F.mse_loss(velocity.float(), target, reduction="none").flatten(1).mean(dim=1) * weight).mean()


def _per_sample(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
