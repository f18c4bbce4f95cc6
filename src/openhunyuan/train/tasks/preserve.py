"""Task ``flow`` for guidance-distilled weights: new data is learned, the distilled guidance stays.

The plain loss is right for such weights only at scale 1, where they say what one pass with text says. Trained there
alone, or told a fixed scale, they forget what the scales mean. So a scale w is drawn from [1, 8], and the target is

    noise − data  +  base(w) − base(1),

the data's velocity moved by what guidance adds in the weights as they were. At w = 1 this is the plain loss. Text is
not dropped: one pass needs no empty prompt. The method is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from openhunyuan.diffusion.flow import model_time, velocity_target
from openhunyuan.diffusion.guidance import embedded_scales
from openhunyuan.infer.conditions import ImageCondition
from openhunyuan.train.loop import Batch, StepContext
from openhunyuan.train.tasks.flow import (
    Drawn,
    EmptyText,
    FlowConfig,
    FlowTask,
    bucket_of,
    draw,
    draw_uniform,
    text_of,
    transformer_flops,
)
from openhunyuan.train.window import Work

LOW, HIGH = 1.0, 8.0
"""Scales that guidance was distilled for (report §5)."""


class PreservingFlowTask(FlowTask):
    """Trains ``dit``, which has a guidance embedder; ``before()`` is a context in which its value is the network as it
    was: a frozen copy, or the same network without its LoRA."""

    def __init__(
        self,
        config: FlowConfig,
        dit: nn.Module,
        empty: EmptyText,
        validation: Mapping[str, Batch],
        before: Callable[[], AbstractContextManager[nn.Module]],
        render: Callable[[nn.Module, Path], None] | None = None,
        condition: ImageCondition = "token_replace",
        trained: nn.Module | None = None,
    ):
        config = config.model_copy(update={"text_dropout": 0.0})
        super().__init__(config, dit, empty, validation, render, condition, trained)
        self.before = before

    def _velocity(self, drawn: Drawn) -> Tensor:
        """At scale 1: what validation measures."""
        return _told(self.dit, drawn, torch.ones(len(drawn.x_t)))

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        drawn = draw(self.config, self.empty, batch, context, condition=self.condition)
        scales = LOW + (HIGH - LOW) * draw_uniform(batch, context, "scale")
        with self.before() as base, torch.no_grad():
            base.to(drawn.x_t.device)
            added = _told(base, drawn, scales).float() - _told(base, drawn, torch.ones_like(scales)).float()
        target = velocity_target(drawn.batch["latents"], drawn.noise).float() + added
        error = (_told(self.dit, drawn, scales).float() - target) ** 2
        loss = drawn.mean(error)
        name = "loss_image_to_video" if drawn.from_image else "loss"
        return loss, {name: loss.detach(), "by_level": drawn.by_level(error)}

    def work(self, phase: str, batch: Batch) -> Work:
        flops = transformer_flops(self.dit, batch)
        return Work(bucket_of(batch), flops, frozen=2 * flops)


def _told(network: nn.Module, drawn: Drawn, scales_B: Tensor) -> Tensor:
    told = embedded_scales(scales_B).to(drawn.x_t.device)
    return network(drawn.x_t, model_time(drawn.t), *text_of(drawn.batch), guidance=told, **drawn.guided)
