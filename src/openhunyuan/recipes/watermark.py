"""Recipe watermark: the small network that finds watermarks and logos, trained on pasted marks.

    openhunyuan train watermark

Backgrounds are the synthetic world, scikit-image's photographs and drawn textures, moving or still (`tiny.marks`). The
weights in the package are what this recipe leaves (`curate/weights/watermark.json` says how).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from openhunyuan.curate.measures.watermark import Standing
from openhunyuan.curate.models.small_forward import CELL
from openhunyuan.tiny.marks import MarkedClip, marked_clip, world_backgrounds
from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.estimate import Workload
from openhunyuan.train.metrics import counted
from openhunyuan.train.tasks.small import SmallTrainConfig, small_workloads, train_small

WORLDS = 160
"""Clips of the world among which backgrounds are drawn."""

CONFIG = SmallTrainConfig(
    network="watermark",
    size=128,
    pairs=4500,
    steps=2200,
    batch_size=16,
    optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.01, warmup_steps=60),
)


def targets(clip: MarkedClip) -> np.ndarray:
    """float32 [2, h/8, w/8]: 1 where a mark covers a cell, and what the cell counts: nothing at a mark's rim."""
    size = clip.cover.shape[0] // CELL
    covered = (clip.cover > 0.08).astype(np.float32)
    share = covered.reshape(size, CELL, size, CELL).mean(axis=(1, 3))
    wanted = (share > 0.12).astype(np.float32)
    padded = np.pad(share, 1)
    near = np.max([padded[i : i + size, j : j + size] for i in range(3) for j in range(3)], axis=0)
    weight = np.where((wanted == 0) & (near > 0), 0.0, 1.0).astype(np.float32)
    return np.stack([wanted, weight])


def make_pairs(seed: int, count: int, size: int, worlds: int = WORLDS) -> tuple[np.ndarray, np.ndarray]:
    """(int8 [count, 8, size, size], float32 [count, 2, size/8, size/8]) for `train.tasks.small.MarkTask`."""
    rng = np.random.default_rng([seed, 0x3A])
    backgrounds = world_backgrounds(rng, worlds)
    inputs = np.empty((count, 8, size, size), np.int8)
    wanted = np.empty((count, 2, size // CELL, size // CELL), np.float32)
    for number in counted("drawing pairs", count):
        clip = marked_clip(rng, size, backgrounds)
        standing = Standing()
        for frame in clip.frames:
            standing.add(frame)
        inputs[number] = np.rint(80 * standing.features(*clip.box).clip(-1.58, 1.58))
        wanted[number] = targets(clip)
    return inputs, wanted


def workloads() -> list[Workload]:
    """What the recipe costs, for ``--dry-run``."""
    return small_workloads(CONFIG)


def train(runs_dir: Path, config: SmallTrainConfig = CONFIG, device: torch.device | None = None) -> Path:
    """Write ``watermark.safetensors`` and ``watermark.json`` to ``runs_dir/watermark``."""
    pairs = make_pairs(config.seed, config.pairs, config.size)
    heldout = make_pairs(config.seed + 1, config.heldout, config.size, worlds=20)
    return train_small(config, pairs, heldout, runs_dir / "watermark", device or "cpu")
