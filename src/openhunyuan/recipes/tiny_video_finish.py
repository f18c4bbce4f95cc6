"""Recipe ``tiny-video-finish``: see ``recipes.tiny_flow``."""

from __future__ import annotations

from pathlib import Path

import torch

from openhunyuan.recipes import tiny_flow
from openhunyuan.train.estimate import Workload


def workloads() -> list[Workload]:
    """What the recipe's run costs, for ``--dry-run``."""
    return [tiny_flow.workload("tiny-video-finish")]


def train(runs_dir: Path, device: torch.device = tiny_flow.CPU) -> Path:
    """Train the DiT on more clips, started from the video run; returns the run's directory."""
    return tiny_flow.train("tiny-video-finish", runs_dir, device=device)
