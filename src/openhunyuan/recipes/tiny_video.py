"""Recipe ``tiny-video``: see ``recipes.tiny_flow``."""

from __future__ import annotations

from pathlib import Path

from openhunyuan.recipes import tiny_flow


def train(runs_dir: Path) -> Path:
    """Train the DiT on video, started from the image run; returns the run's directory."""
    return tiny_flow.train("tiny-video", runs_dir)
