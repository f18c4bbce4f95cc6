"""Recipe ``tiny-video-last``: see ``recipes.tiny_flow``."""

from __future__ import annotations

from pathlib import Path

import torch

from openhunyuan.recipes import tiny_flow
from openhunyuan.train.estimate import Workload


def workloads() -> list[Workload]:
    """What the recipe's run costs, for ``--dry-run``."""
    return [tiny_flow.workload("tiny-video-last")]


def train(runs_dir: Path, device: torch.device = tiny_flow.CPU) -> Path:
    """Train the DiT on other clips, started from the finishing run; returns the run's directory."""
    return tiny_flow.train("tiny-video-last", runs_dir, device=device)
