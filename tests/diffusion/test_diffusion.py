"""Schedule, guidance, sampling loop and flow matching: fixtures and mathematical identities."""

import math

import pytest
import torch
from torch import Tensor

from openhunyuan.diffusion.denoise import denoise
from openhunyuan.diffusion.flow import (
    data_from_velocity,
    flow_loss,
    interpolate,
    model_time,
    sample_t,
    velocity_target,
)
from openhunyuan.diffusion.guidance import classifier_free, embedded_guidance
from openhunyuan.diffusion.schedule import linear_quadratic_sigmas, shift_sigma, sigmas, timesteps


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sigma_fixtures() -> None:
    """Release fact E.1."""
    expected = torch.tensor([1, 0.9655172, 0.9130434, 0.8235294, 0.6363636, 0])
    torch.testing.assert_close(sigmas(5, 7.0), expected, atol=1e-7, rtol=0)
    times = timesteps(sigmas(50, 7.0))
    assert times.shape == (50,)
    torch.testing.assert_close(times[:4], torch.tensor([1000, 997.093, 994.083, 990.964]), atol=1e-3, rtol=0)
    torch.testing.assert_close(times[-3:], torch.tensor([308.8, 225.8, 125.0]), atol=0.05, rtol=0)
    dynamic = sigmas(50, 17.0)[[0, 1, 2, -3, -2, -1]]
    torch.testing.assert_close(dynamic, torch.tensor([1, 0.998801, 0.997555, 0.414634, 0.257576, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("steps", "shift"), [(50, 7.0), (5, 7.0), (30, 17.0), (8, 1.0), (1, 5.0)])
def test_sigmas_equal_diffusers(steps: int, shift: float) -> None:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1].tolist())
    ours = sigmas(steps, shift)
    torch.testing.assert_close(ours, scheduler.sigmas, atol=1e-6, rtol=0)
    torch.testing.assert_close(timesteps(ours), scheduler.timesteps, atol=1e-3, rtol=0)


def test_sigmas_refuse() -> None:
    for steps, shift in ((0, 7.0), (10, 0.0)):
        with pytest.raises(ValueError, match="schedule needs"):
            sigmas(steps, shift)


def test_embedded_guidance_fixtures() -> None:
    """Release fact B.3: bf16 rounding of the product."""
    cases = {1.0: 1000.0, 3.5: 3504.0, 5.0: 4992.0, 6.0: 6016.0, 7.0: 7008.0, 8.0: 8000.0}
    assert {scale: embedded_guidance(scale).item() for scale in cases} == cases
    batch = embedded_guidance(6.0, batch=3)
    assert batch.shape == (3,)
    assert batch.dtype == torch.float32


def test_classifier_free_guidance() -> None:
    uncond, cond = _randn(2, 3, 4)
    torch.testing.assert_close(classifier_free(uncond, cond, 1.0), cond)
    torch.testing.assert_close(classifier_free(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(classifier_free(uncond, cond, 5.0), uncond + 5 * (cond - uncond))


def test_linear_quadratic_fixtures() -> None:
    """Release fact E.2: 25 steps of 1/1000, then the parabola."""
    levels = linear_quadratic_sigmas(50)
    expected = {0: 1.0, 1: 0.999, 25: 0.975, 26: 0.97248, 49: 0.07548, 50: 0.0}
    for step, value in expected.items():
        assert levels[step].item() == pytest.approx(value, abs=5e-6)
    assert torch.equal(levels, linear_quadratic_sigmas(50, 25))


@pytest.mark.parametrize(("steps", "line"), [(50, 25), (20, 10), (9, 1), (64, 40)])
def test_linear_quadratic_equals_diffusers(steps: int, line: int) -> None:
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    theirs = torch.tensor([*linear_quadratic_schedule(steps, line / 1000, line), 0.0])
    torch.testing.assert_close(linear_quadratic_sigmas(steps, line), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("steps", "line"), [(1, None), (2, 0), (50, 49), (1000, 10)])
def test_linear_quadratic_falls_smoothly(steps: int, line: int | None) -> None:
    levels = linear_quadratic_sigmas(steps, line)
    assert (levels[0].item(), levels[-1].item()) == (1.0, 0.0)
    falls = -levels.double().diff()
    assert (falls > 0).all()
    assert (falls.diff() > -1e-6).all(), "no step is smaller than the one before"


@pytest.mark.parametrize(("steps", "line"), [(10, 10), (10, -1), (0, None), (1001, 5)])
def test_linear_quadratic_refuses(steps: int, line: int | None) -> None:
    with pytest.raises(ValueError, match="linear steps"):
        linear_quadratic_sigmas(steps, line)


def test_denoise_estimates_the_data_at_every_step() -> None:
    data, noise = _randn(2, 2, 4, 3)
    estimates: list[Tensor] = []
    denoise(
        lambda _x, _t: velocity_target(data, noise), noise, sigmas(4, 3.0), None, lambda *at: estimates.append(at[2])
    )
    assert len(estimates) == 4
    for estimate in estimates:
        torch.testing.assert_close(estimate, data, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (3, 7.0), (20, 5.0)])
def test_denoise_is_exact_on_a_straight_path(steps: int, shift: float) -> None:
    data, noise = _randn(2, 2, 4, 3)
    seen: list[float] = []
    done: list[tuple[int, int]] = []

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        assert timestep.shape == (2,)
        assert latents.dtype == torch.float32
        sigma = timestep[0] / 1000
        torch.testing.assert_close(latents, interpolate(data, noise, timestep / 1000), atol=1e-5, rtol=0)
        seen.append(sigma.item())
        return velocity_target(data, noise)

    out = denoise(velocity, noise, sigmas(steps, shift), lambda step, total, _: done.append((step, total)))
    torch.testing.assert_close(out, data, atol=1e-5, rtol=0)
    assert seen == pytest.approx(sigmas(steps, shift)[:-1].tolist(), abs=1e-6)
    assert done == [(step + 1, steps) for step in range(steps)]


def test_denoise_keeps_fp32_latents_under_a_rough_network() -> None:
    noise = _randn(1, 4).bfloat16()
    out = denoise(lambda x, _: (x * 0.1).bfloat16(), noise, sigmas(4, 7.0))
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


def test_denoise_converges_to_the_curved_solution() -> None:
    """v = x gives dx/dσ = x, so going from 1 to 0 divides by e; Euler's error falls with the step."""
    noise = torch.ones(1, 1)
    errors = [abs(denoise(lambda x, _: x, noise, sigmas(n)).item() - math.exp(-1)) for n in (10, 20, 40)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_path_ends_and_velocity() -> None:
    data, noise = _randn(2, 3, 2, 4, seed=1).double()
    torch.testing.assert_close(interpolate(data, noise, torch.zeros(3)), data)
    torch.testing.assert_close(interpolate(data, noise, torch.ones(3)), noise)
    t, step = torch.tensor([0.1, 0.4, 0.8]).double(), 1e-3
    slope = (interpolate(data, noise, t + step) - interpolate(data, noise, t)) / step
    torch.testing.assert_close(slope, velocity_target(data, noise), atol=1e-9, rtol=0)
    x_t = interpolate(data, noise, t)
    torch.testing.assert_close(data_from_velocity(x_t, velocity_target(data, noise), t), data)


def test_sample_t_is_logit_normal() -> None:
    t = sample_t(40_000, torch.Generator().manual_seed(0), mean=0.3, std=1.2)
    assert t.min() > 0
    assert t.max() < 1
    logit = torch.logit(t)
    assert logit.mean().item() == pytest.approx(0.3, abs=0.02)
    assert logit.std().item() == pytest.approx(1.2, abs=0.02)


def test_sample_t_shift_and_seed() -> None:
    plain = sample_t(100, torch.Generator().manual_seed(3))
    shifted = sample_t(100, torch.Generator().manual_seed(3), shift=7.0)
    torch.testing.assert_close(shifted, shift_sigma(plain, 7.0))
    assert (shifted > plain).all()
    assert torch.equal(plain, sample_t(100, torch.Generator().manual_seed(3)))
    assert not torch.equal(plain, sample_t(100, torch.Generator().manual_seed(4)))
    # Shifting by s is moving the logit by ln s: the two ways to stress high noise are one.
    torch.testing.assert_close(shifted, sample_t(100, torch.Generator().manual_seed(3), mean=math.log(7.0)))


def test_model_time_is_that_of_the_schedule() -> None:
    levels = sigmas(6, 7.0)
    assert torch.equal(model_time(levels[:-1]), timesteps(levels))


def test_flow_loss_identities() -> None:
    data, noise, error = _randn(3, 4, 2, 3, seed=2)
    target = velocity_target(data, noise)
    assert flow_loss(target, data, noise).item() == 0
    torch.testing.assert_close(flow_loss(target + error, data, noise), error.square().mean())
    weight = torch.tensor([0.0, 1.0, 2.0, 5.0])
    expected = (error.square().mean(dim=(1, 2)) * weight).mean()
    torch.testing.assert_close(flow_loss(target + error, data, noise, weight), expected)
    torch.testing.assert_close(
        flow_loss(target + error, data, noise, torch.ones(4)), flow_loss(target + error, data, noise)
    )
    assert flow_loss(target.bfloat16(), data.bfloat16(), noise.bfloat16()).dtype == torch.float32
