"""Steps that went wrong: noticed, written down, and left out when the run goes back to its last checkpoint."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.train.config import FaultConfig
from openhunyuan.train.metrics import read_metrics

MAD_TO_STD = 1.4826
"""A normal distribution's standard deviation ÷ its median absolute deviation."""
ENOUGH = 20
"""Losses of a kind that must be known before one of them can be called a spike."""


class LossWatch:
    """Tells a step that went wrong from what it reported.

    A number that is not finite always is one. A loss is a spike when it lies more than ``spike_factor`` robust standard
    deviations above the median of the last losses of its kind: batches of one shape, and one loss of the task, are
    compared with each other only, since an image's loss says nothing about a long video's.
    """

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.held: dict[str, deque[float]] = {}

    def check(self, kind: str, metrics: Mapping[str, float]) -> str | None:
        """Why the step is a fault, or None; a good step's losses are remembered."""
        for name, value in metrics.items():
            if name.endswith("/skipped"):
                return f"the gradient of {name.removesuffix('/skipped')} is not finite"
            if not math.isfinite(value):
                return f"{name} is not finite"
        losses = {f"{kind} {name}": value for name, value in metrics.items() if name.startswith("loss")}
        for name, value in losses.items():
            known = self.held.get(name, ())
            if self.config.spike_factor and len(known) >= ENOUGH:
                middle = statistics.median(known)
                spread = MAD_TO_STD * statistics.median(abs(other - middle) for other in known)
                if value - middle > self.config.spike_factor * max(spread, 0.01 * abs(middle)):
                    return f"{name.removeprefix(kind).strip()} is {value:.4g} where {middle:.4g} is usual"
        for name, value in losses.items():
            self.held.setdefault(name, deque(maxlen=self.config.spike_window)).append(value)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {name: list(values) for name, values in self.held.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.held = {name: deque(values, maxlen=self.config.spike_window) for name, values in state.items()}


class FaultLog:
    """``faults.jsonl`` of a run: one line a fault. Its steps are left out from then on, also by a resumed run."""

    def __init__(self, run_dir: Path, limit: int) -> None:
        self.path, self.limit = run_dir / "faults.jsonl", limit
        self.faults: list[dict[str, Any]] = read_metrics(self.path)
        self.skipped = {int(fault["step"]) for fault in self.faults}

    def add(self, step: int, reason: str, went_back_to: int, write: bool = True) -> None:
        """Write a fault down; of several processes one writes and all remember.

        Raises:
            UserError: the run has had too many; says the last one.
        """
        if len(self.faults) >= self.limit:
            raise UserError(
                f"The run went wrong {self.limit + 1} times (last at step {step}: {reason}); its last checkpoint is "
                f"step {went_back_to}: lower the learning rate or look at the data of the steps in {self.path}."
            )
        self.faults.append({"step": step, "reason": reason, "went_back_to": went_back_to})
        if write:
            write_atomic(self.path, "".join(json.dumps(fault) + "\n" for fault in self.faults).encode())
        self.skipped.add(step)
