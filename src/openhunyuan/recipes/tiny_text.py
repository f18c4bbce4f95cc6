"""Recipe tiny-text: the two text models of the embedded model, trained on the synthetic world alone.

    openhunyuan train tiny-text

Only the training split's scenes are described or rendered for training; held-out combinations serve the measurement.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from openhunyuan.caption.schema import assemble
from openhunyuan.tiny.world import Scene, render, sample_scene
from openhunyuan.train.config import Strict
from openhunyuan.train.tasks.text import LabelledScene, TextData, TextTrainConfig, train_text

# Frames of a clip to draw one from: the first and last moments are as likely as the middle ones.
_CLIP_LENGTHS = (1, 2, 3, 5)
VISIBLE = ("shape", "color", "size", "background_color", "material")


class TinyTextConfig(Strict):
    """The recipe: what is said of a scene, and the training of both models."""

    canonical_share: float = Field(default=0.6, ge=0, le=1, description="share of plain canonical prompts")
    paraphrase_share: float = Field(
        default=0.3, ge=0, le=1, description="share of other wordings; the rest are assembled captions"
    )
    camera_prob: float = Field(default=0.15, ge=0, le=1, description="share of scenes with a moving camera")
    photo_prob: float = Field(
        default=0.03, ge=0, le=1, description="share of described scenes in front of a photograph"
    )
    train: TextTrainConfig = TextTrainConfig()


_DEFAULT = TinyTextConfig()


def world_data(config: TinyTextConfig) -> TextData:
    """Prompts, frames and truth of the synthetic world as the training task takes them."""
    size = config.train.clip.image_size

    def describe(scene: Scene, rng: np.random.Generator) -> str:
        draw = rng.random()
        if draw < config.canonical_share:
            return scene.prompt
        if draw < config.canonical_share + config.paraphrase_share:
            return scene.prompts[int(rng.integers(1, len(scene.prompts)))]
        return assemble(scene.caption, rng)

    def sample_prompts(rng: np.random.Generator) -> list[str]:
        scene = sample_scene(rng, "train", camera_prob=config.camera_prob, photo_prob=config.photo_prob)
        prompt = describe(scene, rng)
        # A plain prompt is answered by another wording, any other wording by the plain prompt.
        other = scene.prompts[int(rng.integers(1, len(scene.prompts)))]
        return [prompt, other if prompt == scene.prompt else scene.prompt]

    def frame_of(scene: Scene, rng: np.random.Generator) -> np.ndarray:
        frames = render(scene, num_frames=int(rng.choice(_CLIP_LENGTHS)), height=size, width=size)
        return frames[int(rng.integers(len(frames)))]

    def sample_pair(rng: np.random.Generator) -> tuple[np.ndarray, str]:
        scene = sample_scene(rng, "train", camera_prob=config.camera_prob)
        return frame_of(scene, rng), describe(scene, rng)

    def labelled(rng: np.random.Generator, heldout: bool) -> LabelledScene:
        scene = sample_scene(rng, "heldout" if heldout else "train", camera_prob=config.camera_prob)
        names = ("shape", "color", "size", "motion", "background_color", "material", "camera")
        return LabelledScene(
            prompt=scene.prompt,
            frame=frame_of(scene, rng),
            labels={name: getattr(scene, name) for name in names},
            visible=VISIBLE,
        )

    return TextData(sample_prompts=sample_prompts, sample_pair=sample_pair, labelled=labelled)


def train(runs_dir: Path, config: TinyTextConfig = _DEFAULT, device: torch.device | None = None) -> Path:
    """Write the folders text_encoder, text_encoder_2 and clip, metrics and report.json to ``runs_dir/tiny-text``.

    ``device`` is taken for the recipes' common call; these models are small enough that the CPU is as fast.
    """
    train_text(config.train, world_data(config), runs_dir / "tiny-text")
    return runs_dir / "tiny-text"
