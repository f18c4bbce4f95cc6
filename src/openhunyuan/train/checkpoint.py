"""Checkpoints: published atomically, the last few kept, never able to run code when read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from openhunyuan.base.errors import UserError

_NAME = re.compile(r"step_(\d{8})\.pt$")


def checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(steps done, file) of every complete checkpoint, oldest first."""
    found = [(int(m.group(1)), p) for p in (run_dir / "checkpoints").glob("step_*.pt") if (m := _NAME.search(p.name))]
    return sorted(found)


def save(run_dir: Path, steps_done: int, state: dict[str, Any], keep: int) -> Path:
    """Write beside, then rename: a crash leaves the last checkpoint whole."""
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{steps_done:08d}.pt"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    for _, old in checkpoints(run_dir)[:-keep]:
        old.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint (``weights_only=True``: tensors and plain values only)."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to resume from the one before"
        ) from error
