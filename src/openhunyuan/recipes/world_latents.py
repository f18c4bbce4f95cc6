"""Latents of world scenes, encoded once: what the flow recipes train on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.latents.captions import CAPTION, CaptionAssembly
from openhunyuan.latents.resample import Place, places
from openhunyuan.latents.shards import (
    LatentDraws,
    LatentSample,
    ShardDataset,
    collate,
    epoch_shuffled,
    read_shard_header,
    shard_name,
    write_index,
    write_shard,
)
from openhunyuan.models.load import load_vae
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.zoo import file_sha256
from openhunyuan.recipes.world_source import to_video
from openhunyuan.tiny import world
from openhunyuan.tiny.vocabulary import MOTIONS
from openhunyuan.train.config import BatchShape, Stage, Strict
from openhunyuan.train.loop import Batch
from openhunyuan.train.metrics import progress_bar
from openhunyuan.train.precision import faster_dtype


class WorldLatents(Strict):
    """One encoded set: how many scenes at which size, how often the camera moves, how often another wording is used.

    ``motions`` are drawn evenly (one named twice comes twice as often); none named means all of the world's.
    """

    count: int
    num_frames: int
    size: int
    camera_prob: float = 0.15
    paraphrase_prob: float = 0.15
    split: str = "train"
    seed: int = 0
    motions: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.size, self.size

    @property
    def captioned(self) -> bool:
        """Whether samples carry their structured caption."""
        return False


class WorldBucket(WorldLatents):
    """A set of another aspect, ``size`` high and ``width`` wide, whose samples carry their structured captions."""

    width: int

    @property
    def sides(self) -> tuple[int, int]:
        return self.size, self.width

    @property
    def captioned(self) -> bool:
        return True


def draw(spec: WorldLatents, index: int) -> tuple[world.Scene, str]:
    """Scene and prompt of sample ``index``: a pure function of (spec.seed, index)."""
    rng = np.random.default_rng((spec.seed, index))
    scene = world.sample_scene(rng, spec.split, camera_prob=spec.camera_prob, motions=spec.motions or MOTIONS)
    others = scene.prompts[1:]
    prompt = others[int(rng.integers(len(others)))] if rng.random() < spec.paraphrase_prob else scene.prompt
    return scene, prompt


@dataclass(frozen=True)
class Encoders:
    """Where the weights lie that turn scenes and prompts into latents and states; loaded once in each process."""

    vae_dir: Path
    llm_dir: Path
    clip_dir: Path

    @cached_property
    def name(self) -> str:
        """Identifies the weights (hashes): latents of other weights are encoded again."""
        return "-".join(file_sha256(folder / "model.safetensors")[:16] for folder in (self.vae_dir, self.llm_dir))

    @cached_property
    def vae(self) -> CausalVAE:
        return load_vae(self.vae_dir).eval()

    @cached_property
    def text(self) -> TextEncoder:
        return TextEncoder.from_folder(self.llm_dir, self.clip_dir)


def encode_world(
    folder: Path,
    spec: WorldLatents,
    encoders: Encoders,
    device: torch.device | None = None,
    workers: int = 1,
    frames_per_shard: int = 8192,
    fast: bool = False,
) -> ShardDataset:
    """Encode a set into ``folder``, a shard at a time; shards that are complete are kept, so this resumes.

    ``workers`` processes of one thread each share the missing shards: on a CPU two of them encode faster than one
    process of two threads. With ``fast``, the VAE runs in bfloat16 where that is measured to be faster.
    """
    device = device or torch.device("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    per_shard = max(1, frames_per_shard // spec.num_frames)
    missing: list[tuple[Path, WorldLatents, range, str]] = []
    names, done = [], 0
    for first in range(0, spec.count, per_shard):
        numbers = range(first, min(first + per_shard, spec.count))
        name = shard_name(first // per_shard)
        names.append(name)
        # not the set's size: a set that grows keeps its whole shards
        about = json.dumps([spec.model_dump(exclude={"count"}), encoders.name, numbers.start, numbers.stop])
        key = hashlib.sha256(about.encode()).hexdigest()
        held = read_shard_header(folder / name)
        if held is None or held["key"] != key:
            missing.append((folder / name, spec, numbers, key))
        else:
            done += len(numbers)
    with progress_bar() as bar:
        size = "x".join(map(str, (spec.num_frames, *spec.sides)))
        shown = bar.add_task(f"latents {size}", total=spec.count, completed=done)
        if workers > 1 and len(missing) > 1 and device.type == "cpu":
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, _one_thread) as pool:
                jobs = [pool.submit(_write, *job, encoders, device, fast) for job in missing]
                for job in as_completed(jobs):
                    bar.advance(shown, job.result())
        else:
            for job in missing:
                bar.advance(shown, _write(*job, encoders, device, fast))
    write_index(folder, names, {"world": spec.model_dump(), "encoders": encoders.name})
    return ShardDataset(folder)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write(
    path: Path, spec: WorldLatents, numbers: range, key: str, encoders: Encoders, device: torch.device, fast: bool
) -> int:
    write_shard(path, _encode(spec, numbers, encoders, device, fast), key)
    return len(numbers)


@torch.inference_mode()
def _encode(
    spec: WorldLatents, numbers: range, encoders: Encoders, device: torch.device, fast: bool
) -> list[LatentSample]:
    vae, text = encoders.vae.to(device), encoders.text
    dtype = None
    samples: list[LatentSample] = []
    batch = max(1, 33 // spec.num_frames)
    for start in range(numbers.start, numbers.stop, batch):
        drawn = [draw(spec, i) for i in range(start, min(start + batch, numbers.stop))]
        clips = [to_video(world.render(scene, spec.num_frames, *spec.sides)) for scene, _ in drawn]
        # one clip at a time: GroupNorm sees a clip alone, exactly as when it is decoded
        video = torch.stack(clips).to(device)
        if fast and start == numbers.start:
            dtype = faster_dtype(vae, partial(vae.encode_latents, video))
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            latents = vae.encode_latents(video).float().cpu()
        features = text.encode([prompt for _, prompt in drawn], data_type="image" if spec.num_frames == 1 else "video")
        for row, (scene, prompt) in enumerate(drawn):
            states = features.states[row][features.mask[row]]
            about: dict[str, Any] = {"scene": scene.prompt, "camera": scene.camera}
            if spec.captioned:
                about[CAPTION] = scene.caption.model_dump(mode="json")
            samples.append(LatentSample(latents[row], states, features.pooled[row], prompt, about))
    return samples


class LatentBatches:
    """Source for task ``flow``: batches of the stage's shape, from the encoded sets that have it.

    ``keys`` of a batch are (``ShardDataset.number``, epoch): noise, time and dropout of a sample are drawn from them.
    With ``captions``, texts are assembled anew in every epoch where samples carry their caption.
    """

    at_hand = True

    def __init__(
        self,
        datasets: Sequence[ShardDataset],
        seed: int,
        captions: CaptionAssembly | None = None,
        draws: LatentDraws | None = None,
    ) -> None:
        """draws: latents drawn anew at every epoch, in place of the mode."""
        self.seed, self.captions, self.draws = seed, captions, draws
        self.by_shape: dict[tuple[int, ...], list[Place]] = {}
        for place in places(datasets):
            self.by_shape.setdefault(place.dataset.shapes[place.row][1:], []).append(place)

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        wanted = ((shape.num_frames - 1) // 4 + 1, shape.height // 8, shape.width // 8)
        if wanted not in self.by_shape:
            known = ", ".join("x".join(map(str, shape)) for shape in self.by_shape)
            raise UserError(
                f"Stage {stage.name} needs latents of {'x'.join(map(str, wanted))}, but the data holds {known}."
            )
        held = self.by_shape[wanted]
        positions = range(step * shape.batch_size, (step + 1) * shape.batch_size)
        chosen = [held[i] for i in epoch_shuffled(len(held), positions, self.seed, *wanted)]
        keys = [place.key(position // len(held)) for place, position in zip(chosen, positions, strict=True)]
        samples = [place.dataset[place.row] for place in chosen]
        for change in (self.draws, self.captions):
            samples = change.apply(samples, keys) if change else samples
        return collate(samples) | {"keys": torch.tensor(keys)}
