"""Latents of world scenes, encoded once: what the flow recipes train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from openhunyuan.latents.shards import (
    LatentSample,
    ShardDataset,
    epoch_shuffled,
    read_shard_header,
    shard_name,
    write_index,
    write_shard,
)
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.recipes.world_source import to_video
from openhunyuan.tiny import world
from openhunyuan.train.config import BatchShape, Stage, Strict
from openhunyuan.train.loop import Batch
from openhunyuan.train.metrics import progress_bar


class WorldLatents(Strict):
    """One encoded set: how many scenes at which size, how often the camera moves, how often another wording is used."""

    count: int
    num_frames: int
    size: int
    camera_prob: float = 0.15
    paraphrase_prob: float = 0.15
    split: str = "train"
    seed: int = 0


def draw(spec: WorldLatents, index: int) -> tuple[world.Scene, str]:
    """Scene and prompt of sample ``index``: a pure function of (spec.seed, index)."""
    rng = np.random.default_rng((spec.seed, index))
    scene = world.sample_scene(rng, spec.split, camera_prob=spec.camera_prob)
    others = scene.prompts[1:]
    prompt = others[int(rng.integers(len(others)))] if rng.random() < spec.paraphrase_prob else scene.prompt
    return scene, prompt


@torch.inference_mode()
def encode_world(folder: Path, spec: WorldLatents, vae: CausalVAE, text: TextEncoder, vae_name: str) -> ShardDataset:
    """Encode a set into ``folder``, a shard at a time; shards that are complete are kept, so this resumes.

    ``vae_name`` identifies the weights (a hash): latents of other weights are encoded again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    per_shard = max(1, 8192 // spec.num_frames)
    names = []
    with progress_bar() as bar:
        shown = bar.add_task(f"latents {spec.num_frames}x{spec.size}x{spec.size}", total=spec.count)
        for first in range(0, spec.count, per_shard):
            numbers = range(first, min(first + per_shard, spec.count))
            name = shard_name(first // per_shard)
            names.append(name)
            about = json.dumps([spec.model_dump(), vae_name, numbers.start, numbers.stop])
            key = hashlib.sha256(about.encode()).hexdigest()
            held = read_shard_header(folder / name)
            if held is None or held["key"] != key:
                write_shard(folder / name, _encode(spec, numbers, vae, text, lambda n: bar.advance(shown, n)), key)
            else:
                bar.advance(shown, len(numbers))
    write_index(folder, names, {"world": spec.model_dump(), "vae": vae_name})
    return ShardDataset(folder)


def _encode(
    spec: WorldLatents, numbers: range, vae: CausalVAE, text: TextEncoder, done: Callable[[int], None]
) -> list[LatentSample]:
    samples: list[LatentSample] = []
    batch = max(1, 33 // spec.num_frames)
    for start in range(numbers.start, numbers.stop, batch):
        drawn = [draw(spec, i) for i in range(start, min(start + batch, numbers.stop))]
        clips = [to_video(world.render(scene, spec.num_frames, spec.size, spec.size)) for scene, _ in drawn]
        # one clip at a time: GroupNorm sees a clip alone, exactly as when it is decoded
        device = next(vae.parameters()).device
        latents = vae.encode_latents(torch.stack(clips).to(device)).cpu()
        features = text.encode([prompt for _, prompt in drawn], data_type="image" if spec.num_frames == 1 else "video")
        for row, (scene, prompt) in enumerate(drawn):
            states = features.states[row][features.mask[row]]
            about = {"scene": scene.prompt, "camera": scene.camera}
            samples.append(LatentSample(latents[row], states, features.pooled[row], prompt, about))
        done(len(drawn))
    return samples


class LatentBatches:
    """Source for task ``flow``: batches of the stage's shape, from the encoded set that has it."""

    def __init__(self, datasets: list[ShardDataset], seed: int):
        self.seed = seed
        self.by_shape = {shape[1:]: (d, rows) for d in datasets for shape, rows in d.buckets().items()}

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        wanted = ((shape.num_frames - 1) // 4 + 1, shape.height // 8, shape.width // 8)
        dataset, rows = self.by_shape[wanted]
        positions = range(step * shape.batch_size, (step + 1) * shape.batch_size)
        chosen = epoch_shuffled(len(rows), positions, self.seed, *wanted)
        return dataset.batch([rows[i] for i in chosen])
