"""Training data drawn from the synthetic world: a pure function of (seed, step), rendered on the fly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openhunyuan.tiny import world
from openhunyuan.train.config import Stage
from openhunyuan.train.loop import Batch


def to_video(frames_THWC: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] → float [3, T, H, W] in [−1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(3, 0, 1, 2).float() / 127.5 - 1


class WorldClips:
    """Source for task ``autoencode``: clips of training scenes at any size.

    A clip shorter than the world's usual 33 frames is every k-th frame of the same motion (k = the report's frame
    interval 1…8), because the world's motions span a clip whatever its length.
    """

    def __init__(self, seed: int, camera_prob: float | None = None):
        self.seed = seed
        self.camera_prob = camera_prob

    def batch(self, step: int, stage: Stage, batch_size: int, num_frames: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        prob = stage.camera_prob if self.camera_prob is None else self.camera_prob
        scenes = [world.sample_scene(rng, "train", camera_prob=prob) for _ in range(batch_size)]
        return {"video": torch.stack([to_video(world.render(s, num_frames, stage.height, stage.width)) for s in scenes])}


def heldout_clips(n: int, num_frames: int, size: int, seed: int = 1) -> Tensor:
    """[n, 3, T, size, size] of held-out scenes: validation that training never rendered."""
    return torch.stack([to_video(world.render(s, num_frames, size, size)) for s in world.heldout_scenes(n, seed)])
