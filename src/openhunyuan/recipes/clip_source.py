"""Training data of the VAE from curated clips: windows of them, decoded on the fly, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import iter_video
from openhunyuan.curate.clip import Clip
from openhunyuan.latents.encode import to_pixels
from openhunyuan.train.config import BatchShape, Stage
from openhunyuan.train.loop import Batch


class CuratedClips:
    """Source for task ``autoencode``: windows of clips at the stage's frame intervals (1…8 in report §4.1), resized to
    cover and cropped at the centre."""

    def __init__(self, clips: Sequence[Clip], folder: Path, seed: int) -> None:
        self.clips = [clip for clip in clips if clip.path is not None]
        self.folder, self.seed = folder, seed

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise ``UserError`` when a shape of a stage is longer than every clip."""
        longest = max((clip.num_frames for clip in self.clips), default=0)
        for stage in stages:
            for shape in stage.shapes:
                if not self._long_enough(shape):
                    raise UserError(
                        f"Stage {stage.name} needs clips of {shape.num_frames} frames, but the longest in "
                        f"{self.folder} has {longest}; curate longer ones or choose another --scale."
                    )

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        clips = self._long_enough(shape)
        windows = [
            self._window(clips[int(rng.integers(len(clips)))], rng, stage, shape) for _ in range(shape.batch_size)
        ]
        return {"video": torch.cat(windows)}

    def _long_enough(self, shape: BatchShape) -> list[Clip]:
        return [clip for clip in self.clips if clip.num_frames >= shape.num_frames]

    def _window(self, clip: Clip, rng: np.random.Generator, stage: Stage, shape: BatchShape) -> Tensor:
        """[1, 3, T, H, W] in [−1, 1]."""
        allowed = [i for i in stage.frame_intervals or (1,) if (shape.num_frames - 1) * i < clip.num_frames] or [1]
        interval = int(rng.choice(allowed))
        start = int(rng.integers(clip.num_frames - (shape.num_frames - 1) * interval))
        wanted = range(start, start + shape.num_frames * interval, interval)
        frames = []
        for number, frame in enumerate(iter_video(self.folder / str(clip.path))):
            if number in wanted:
                frames.append(frame)
            if len(frames) == shape.num_frames:
                return to_pixels(np.stack(frames), shape.height, shape.width)
        raise UserError(f"{self.folder / str(clip.path)} holds fewer frames than its record says; cut the clips again.")
