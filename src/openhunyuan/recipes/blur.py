"""Recipe blur: the small network that says how wide blur is, trained on blur of known width.

    openhunyuan train blur

Pictures are the synthetic world, scikit-image's photographs and drawn textures (`tiny.blurs`). The weights in the
package are what this recipe leaves (`curate/weights/blur.json` says how).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from openhunyuan.curate.measures.blur import network_input
from openhunyuan.curate.models.small_forward import CELL
from openhunyuan.tiny.blurs import AROUND, blur_pair
from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.estimate import Workload
from openhunyuan.train.metrics import counted
from openhunyuan.train.tasks.small import SmallTrainConfig, small_workloads, train_small

CONFIG = SmallTrainConfig(
    network="blur",
    size=64,
    pairs=22000,
    steps=1800,
    batch_size=32,
    optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.01, warmup_steps=60),
)


def make_pairs(seed: int, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(float16 [count, SEEN, size/8, size/8], float32 [count, 5, size/8, size/8]) for
    `train.tasks.small.BlurTask`: what the network sees of a picture, and its blur."""
    around = AROUND // CELL
    seen, targets = [], []
    for number in counted("drawing pairs", count):
        pair = blur_pair(np.random.default_rng([seed, 0xB1, number]), size, cell=CELL)
        seen.append(network_input(pair.picture)[:, around:-around, around:-around].astype(np.float16))
        targets.append(pair.targets)
    return np.stack(seen), np.stack(targets)


def workloads() -> list[Workload]:
    """What the recipe costs, for ``--dry-run``."""
    return small_workloads(CONFIG)


def train(runs_dir: Path, config: SmallTrainConfig = CONFIG, device: torch.device | None = None) -> Path:
    """Write ``blur.safetensors`` and ``blur.json`` to ``runs_dir/blur``."""
    pairs = make_pairs(config.seed, config.pairs, config.size)
    heldout = make_pairs(config.seed + 1, config.heldout, config.size)
    return train_small(config, pairs, heldout, runs_dir / "blur", device or "cpu")
