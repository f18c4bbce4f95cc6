"""Recipe tiny-text: the two text models of the embedded model, trained on the synthetic world alone.

    openhunyuan train tiny-text

Only the training split's scenes are described or rendered for training; held-out combinations serve the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import Field

from openhunyuan.caption.camera import CAMERA_MOVES
from openhunyuan.caption.schema import assemble
from openhunyuan.tiny.vocabulary import MATERIALS, MOTIONS, SHAPES, is_heldout
from openhunyuan.tiny.world import Scene, render, sample_scene
from openhunyuan.train.config import Strict
from openhunyuan.train.estimate import Workload
from openhunyuan.train.tasks.text import LabelledScene, TextData, TextTrainConfig, text_workloads, train_text

# Frames of a clip to draw one from: the first and last moments are as likely as the middle ones.
_CLIP_LENGTHS = (1, 2, 3, 5)
T = TypeVar("T")
VISIBLE = ("shape", "color", "size", "background_color", "material")


class TinyTextConfig(Strict):
    """The recipe: what is said of a scene, and the training of both models."""

    canonical_share: float = Field(default=0.6, ge=0, le=1, description="share of plain canonical prompts")
    paraphrase_share: float = Field(
        default=0.3, ge=0, le=1, description="share of other wordings; the rest are assembled captions"
    )
    camera_prob: float = Field(default=0.15, ge=0, le=1, description="share of scenes with a moving camera")
    family: int = Field(
        default=3, ge=1, description="scenes in a row of a CLIP batch that look alike: see `_lookalike`"
    )
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

    def sample_pairs(rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, list[str]]]:
        scenes: list[Scene] = []
        while len(scenes) < count:
            first = sample_scene(rng, "train", camera_prob=config.camera_prob)
            scenes += [first, *(_lookalike(first, i % 2 == 1, rng) for i in range(config.family - 1))]
        return [
            (frame_of(scene, rng), [describe(scene, rng), scene.prompts[int(rng.integers(len(scene.prompts)))]])
            for scene in scenes[:count]
        ]

    def labelled(rng: np.random.Generator, heldout: bool) -> LabelledScene:
        scene = sample_scene(rng, "heldout" if heldout else "train", camera_prob=config.camera_prob)
        names = ("shape", "color", "size", "motion", "background_color", "material", "camera")
        return LabelledScene(
            prompt=scene.prompt,
            frame=frame_of(scene, rng),
            labels={name: getattr(scene, name) for name in names},
            visible=VISIBLE,
        )

    return TextData(sample_prompts=sample_prompts, sample_pairs=sample_pairs, labelled=labelled)


def _lookalike(scene: Scene, moving: bool, rng: np.random.Generator) -> Scene:
    """The scene with another shape and material or, ``moving``, another motion (of the camera, if that is what moves).

    Colours tell most scenes of a batch apart; only among look-alikes do shape, material and motion have to be read.
    """
    if moving and scene.camera != "static":
        return replace(scene, camera=_any([move for move in CAMERA_MOVES if move != "static"], rng), seed=_seed(rng))
    seen = [(scene.shape, motion) for motion in MOTIONS] if moving else [(shape, scene.motion) for shape in SHAPES]
    allowed = [
        (shape, motion)
        for shape, motion in seen
        if (shape, motion) != ("circle", "spins") and not is_heldout(shape, scene.color, motion)
    ]
    shape, motion = _any(allowed, rng)
    materials = [scene.material] if moving else [m for m in MATERIALS if scene.camera == "static" or m != "plain"]
    return replace(scene, shape=shape, motion=motion, material=_any(materials, rng), seed=_seed(rng))


def _any(values: Sequence[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def workloads() -> list[Workload]:
    """What the recipe's runs cost, for ``--dry-run``."""
    return text_workloads(_DEFAULT.train)


def train(runs_dir: Path, config: TinyTextConfig = _DEFAULT, device: torch.device | None = None) -> Path:
    """Write the folders text_encoder, text_encoder_2 and clip, metrics and report.json to ``runs_dir/tiny-text``.

    ``device`` is taken for the recipes' common call; these models are small enough that the CPU is as fast.
    """
    train_text(config.train, world_data(config), runs_dir / "tiny-text")
    return runs_dir / "tiny-text"
