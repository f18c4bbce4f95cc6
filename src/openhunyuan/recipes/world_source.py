"""Training data drawn from the synthetic world: a pure function of (seed, step), rendered on the fly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openhunyuan.tiny import world
from openhunyuan.tiny.vocabulary import MOTIONS
from openhunyuan.train.config import BatchShape, Stage
from openhunyuan.train.loop import Batch

SCENE_FRAMES = 33


def to_video(frames_THWC: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] → float [3, T, H, W] in [−1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(3, 0, 1, 2).float() / 127.5 - 1


class WorldClips:
    """Source for task ``autoencode``: clips of training scenes at any size.

    A scene is ``SCENE_FRAMES`` long. A clip is a window of it at one of the stage's frame intervals (1…8 in report
    §4.1), or, without intervals, spread over all of it.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        motions = stage.motions or MOTIONS
        scenes = [
            world.sample_scene(rng, "train", camera_prob=stage.camera_prob, motions=motions)
            for _ in range(shape.batch_size)
        ]
        return {"video": torch.stack([to_video(self._clip(s, rng, stage, shape)) for s in scenes])}

    def _clip(self, scene: world.Scene, rng: np.random.Generator, stage: Stage, shape: BatchShape) -> np.ndarray:
        if shape.num_frames == 1 or not stage.frame_intervals:
            return world.render(scene, shape.num_frames, shape.height, shape.width)
        interval = int(rng.choice(stage.frame_intervals))
        span = (shape.num_frames - 1) * interval + 1
        length = max(SCENE_FRAMES, span)
        start = int(rng.integers(length - span + 1))
        return world.render(scene, length, shape.height, shape.width)[start : start + span : interval]


def heldout_clips(n: int, num_frames: int, size: int, seed: int = 1) -> Tensor:
    """[n, 3, T, size, size] of held-out scenes: validation that training never rendered."""
    return torch.stack([to_video(world.render(s, num_frames, size, size)) for s in world.heldout_scenes(n, seed)])
