"""Task ``steps``: few sampling steps by consistency distillation within phases.

The few-step grid (``diffusion.schedule.sigmas``) cuts the path from noise to data into phases. Within a phase every
point of the teacher's trajectory leads to the same end; the student's velocity at any point is taught to point there in
one Euler step. Its target is one fine step of the teacher, then its own (detached) step to the phase's end. At the
start of a phase that is the whole phase: plain Euler sampling with ``num_steps`` steps.

Why this method: the student is an ordinary model for the ordinary loop (no sampler, no noise added between steps), one
network is trained and one is frozen, and no second score network or discriminator has to be held and balanced as in
distribution matching; the public six-step HunyuanVideo (FastHunyuan) was made by consistency distillation in 320 steps.
Method: Song et al. 2023 (consistency), Wang et al. 2024 (phases).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from openhunyuan.diffusion.denoise import VelocityFn, denoise
from openhunyuan.diffusion.flow import model_time
from openhunyuan.diffusion.guidance import classifier_free, embedded_scales
from openhunyuan.diffusion.schedule import sigmas
from openhunyuan.train.config import Strict
from openhunyuan.train.loop import Batch, StepContext, to_device
from openhunyuan.train.tasks.flow import (
    Drawn,
    EmptyText,
    FlowConfig,
    bucket_of,
    draw,
    draw_uniform,
    text_of,
    transformer_flops,
)
from openhunyuan.train.tasks.student import StudentTask
from openhunyuan.train.window import Work


class StepsConfig(Strict):
    """The grid that is taught, and the teacher's guidance."""

    num_steps: int = Field(default=8, gt=0, description="num_inference_steps of the student")
    flow_shift: float = Field(default=7.0, gt=0, description="flow_shift of the student")
    substeps: int = Field(default=8, gt=0, description="Euler steps of the teacher in one phase")
    true_cfg_scale: float = Field(
        default=1.0, ge=0, description="two-pass guidance of the teacher, built into the student; 1 = one pass"
    )
    guidance_scale: float = Field(
        default=6.0, gt=0, description="embedded guidance told to both, when they have an embedder"
    )
    flow: FlowConfig = FlowConfig(text_dropout=0.0)


def fine_sigmas(config: StepsConfig) -> Tensor:
    """The student's levels with ``substeps`` − 1 evenly spaced ones within every phase, [num_steps · substeps + 1]."""
    coarse = sigmas(config.num_steps, config.flow_shift)
    parts = torch.arange(config.substeps) / config.substeps
    fine = coarse[:-1, None] + parts * coarse.diff()[:, None]
    return torch.cat((fine.flatten(), coarse[-1:]))


class StepsTask(StudentTask):
    """Trains ``student`` (a copy of the teacher) on batches as ``FlowTask`` takes them; ``teacher`` is frozen."""

    def __init__(
        self,
        config: StepsConfig,
        student: nn.Module,
        teacher: nn.Module,
        empty: EmptyText,
        validation: Mapping[str, Batch],
        render: Callable[[nn.Module, Path], None] | None = None,
        guidance_embed: bool = False,
    ):
        super().__init__(student, teacher, empty, validation, render)
        self.config, self.guidance_embed = config, guidance_embed
        self.fine = fine_sigmas(config)

    def _velocity(self, network: nn.Module, drawn: Drawn, x: Tensor, t: Tensor, bare: bool = False) -> Tensor:
        batch = self.empty.fill(drawn.batch, torch.ones(len(x), dtype=torch.bool)) if bare else drawn.batch
        told: dict[str, Tensor] = {}
        if self.guidance_embed:
            scales = torch.full((len(x),), self.config.guidance_scale)
            told["guidance"] = embedded_scales(scales).to(x.device)
        return network(x, model_time(t), *text_of(batch), **told, **drawn.guided).float()

    @torch.no_grad()
    def _taught(self, drawn: Drawn, x: Tensor, t: Tensor) -> Tensor:
        """The teacher's velocity, guided."""
        self.teacher.to(x.device)
        cond = self._velocity(self.teacher, drawn, x, t)
        if self.config.true_cfg_scale == 1:
            return cond
        return classifier_free(self._velocity(self.teacher, drawn, x, t, True), cond, self.config.true_cfg_scale)

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        config = self.config
        place = (draw_uniform(batch, context, "place") * config.num_steps * config.substeps).long()
        end = (place // config.substeps + 1) * config.substeps
        drawn = draw(config.flow, self.empty, batch, context, self.fine[place])
        t, to, goal = (self.fine[i].to(drawn.x_t.device) for i in (place, place + 1, end))
        x = drawn.x_t.float()
        x_to = x + _per_sample(to - t, x) * self._taught(drawn, x, t)
        if drawn.condition:
            x_to = drawn.condition.inserted(x_to)
        with torch.no_grad():
            # Where the fine step already ends the phase, (goal − to) is 0 and the student is not asked.
            ended = x_to + _per_sample(goal - to, x) * self._velocity(self.student, drawn, x_to, to.clamp(min=1e-4))
            target = (ended - x) / _per_sample(goal - t, x)
        error = (self._velocity(self.student, drawn, x, t) - target) ** 2
        loss = drawn.mean(error)
        return loss, {"loss": loss.detach(), "by_level": drawn.by_level(error)}

    def work(self, phase: str, batch: Batch) -> Work:
        student, teacher = (transformer_flops(network, batch) for network in (self.student, self.teacher))
        return Work(bucket_of(batch), student, student + (1 if self.config.true_cfg_scale == 1 else 2) * teacher)

    @torch.no_grad()
    def validate(self, context: StepContext) -> dict[str, float]:
        """How far few steps end from the teacher's fine trajectory, from the same noise: mean squared distance of the
        student's ``num_steps``, and of the teacher's own (what the distillation has to beat)."""
        values: dict[str, float] = {}
        device = next(self.student.parameters()).device
        coarse = sigmas(self.config.num_steps, self.config.flow_shift)
        for name, held in self.validation.items():
            batch = to_device(held, device)
            data = batch["latents"]
            noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0)).to(device)
            drawn = Drawn(batch, noise, torch.ones(len(data)), noise)

            def taught(x: Tensor, time: Tensor, drawn: Drawn = drawn) -> Tensor:
                return self._taught(drawn, x, time / 1000)

            def learnt(x: Tensor, time: Tensor, drawn: Drawn = drawn) -> Tensor:
                return self._velocity(self.student, drawn, x, time / 1000)

            runs: dict[str, tuple[VelocityFn, Tensor]] = {"student": (learnt, coarse), "teacher": (taught, coarse)}
            wanted = denoise(taught, noise, self.fine)
            for who, (velocity, levels) in runs.items():
                values[f"distance_{name}_{who}"] = float((denoise(velocity, noise, levels) - wanted).square().mean())
        return values


def _per_sample(value_B: Tensor, like: Tensor) -> Tensor:
    return value_B.to(like).reshape(-1, *[1] * (like.ndim - 1))
