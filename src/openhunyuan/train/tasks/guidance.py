"""Task ``guidance``: one pass that gives what two passes of true guidance give (report §5).

The student is the teacher with a guidance embedder. At every step a scale w is drawn from [1, 8], and the student, told
w, learns the teacher's guided velocity: without text + w · (with text − without text).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.diffusion.flow import interpolate, model_time
from openhunyuan.diffusion.guidance import classifier_free, embedded_scales
from openhunyuan.models.dit.model import DiT
from openhunyuan.train.config import Strict
from openhunyuan.train.loop import Batch, StepContext, to_device
from openhunyuan.train.tasks.flow import (
    FIXED_TIMES,
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

FIXED_SCALES = (2.0, 4.0, 8.0)


class GuidanceConfig(Strict):
    """Which scales are taught, and how noise levels are drawn; text is not dropped."""

    low: float = Field(default=1.0, ge=0)
    high: float = Field(default=8.0, gt=0)
    flow: FlowConfig = FlowConfig(text_dropout=0.0)

    @model_validator(mode="after")
    def _ordered(self) -> GuidanceConfig:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; low must be below high")
        return self


def student_of(teacher: DiT) -> DiT:
    """A copy of the teacher with a guidance embedder that says nothing yet: it starts as the teacher without guidance.

    Raises:
        UserError: the teacher has a guidance embedder already.
    """
    if teacher.config.guidance_embed:
        raise UserError("The teacher has a guidance embedder already; distil a model that needs two passes.")
    student = DiT(teacher.config.model_copy(update={"guidance_embed": True}))
    assert student.guidance_in is not None
    first, _, last = student.guidance_in.mlp
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    nn.init.normal_(first.weight, std=0.02)
    for tensor in (first.bias, last.weight, last.bias):
        nn.init.zeros_(tensor)
    student.load_state_dict(teacher.state_dict() | student.guidance_in.state_dict(prefix="guidance_in."))
    return student


class GuidanceTask(StudentTask):
    """Trains ``student`` (with guidance embedder) on batches as ``FlowTask`` takes them; ``teacher`` is frozen."""

    def __init__(
        self,
        config: GuidanceConfig,
        student: nn.Module,
        teacher: nn.Module,
        empty: EmptyText,
        validation: Mapping[str, Batch],
        render: Callable[[nn.Module, Path], None] | None = None,
    ):
        super().__init__(student, teacher, empty, validation, render)
        self.config = config

    def _teacher(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The frozen network's velocities without and with text, fp32."""
        self.teacher.to(drawn.x_t.device)
        with torch.no_grad():
            bare = self.empty.fill(drawn.batch, torch.ones(len(drawn.x_t), dtype=torch.bool))
            time = model_time(drawn.t)
            uncond, cond = (self.teacher(drawn.x_t, time, *text_of(b), **drawn.guided) for b in (bare, drawn.batch))
        return uncond.float(), cond.float()

    def _student(self, drawn: Drawn, scales_B: Tensor) -> Tensor:
        told = embedded_scales(scales_B).to(drawn.x_t.device)
        return self.student(
            drawn.x_t, model_time(drawn.t), *text_of(drawn.batch), guidance=told, **drawn.guided
        ).float()

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        config = self.config
        drawn = draw(config.flow, self.empty, batch, context)
        scales = config.low + (config.high - config.low) * draw_uniform(batch, context, "scale")
        target = classifier_free(*self._teacher(drawn), scales)
        error = (self._student(drawn, scales) - target) ** 2
        loss = drawn.mean(error)
        return loss, {"loss": loss.detach(), "by_level": drawn.by_level(error)}

    def work(self, phase: str, batch: Batch) -> Work:
        student, teacher = (transformer_flops(network, batch) for network in (self.student, self.teacher))
        return Work(bucket_of(batch), student, 2 * teacher)

    def validate(self, context: StepContext) -> dict[str, float]:
        """Error at fixed scales, noise levels and noise ÷ what ignoring the guidance would give: 0 is the teacher."""
        values: dict[str, float] = {}
        device = next(self.student.parameters()).device
        for name, held in self.validation.items():
            batch = to_device(held, device)
            data = batch["latents"]
            noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0)).to(device)
            for scale in FIXED_SCALES:
                error = ignored = 0.0
                scales = torch.full((len(data),), scale)
                for level in FIXED_TIMES:
                    t = torch.full((len(data),), level, device=device)
                    drawn = Drawn(batch, interpolate(data, noise, t), t, noise)
                    uncond, cond = self._teacher(drawn)
                    target = classifier_free(uncond, cond, scale)
                    error += float((self._student(drawn, scales) - target).square().mean())
                    ignored += float((cond - target).square().mean())
                values[f"error_{name}_w{scale:g}"] = error / max(ignored, 1e-12)
        return values
