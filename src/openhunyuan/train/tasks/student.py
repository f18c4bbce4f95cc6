"""What the two distillations have in common: one network is trained, another is frozen and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.loop import Batch, StepContext
from openhunyuan.train.tasks.flow import EmptyText


class StudentTask:
    """Base of a task that trains ``student`` on batches as ``FlowTask`` takes them; ``teacher`` is frozen."""

    phases = ("model",)

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        empty: EmptyText,
        validation: Mapping[str, Batch],
        render: Callable[[nn.Module, Path], None] | None = None,
    ):
        self.student, self.empty = student, empty
        self.teacher = teacher.requires_grad_(False).eval()
        self.validation, self.render = validation, render

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.student}

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        return None

    def active(self, phase: str, context: StepContext) -> bool:
        return True

    def sample(self, folder: Path, context: StepContext) -> None:
        if self.render:
            self.render(self.student, folder)
