"""The world encoded once by the embedded model, the small transformer, training, sampling and its measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openhunyuan.base.device import noise
from openhunyuan.base.sizes import VideoSize
from openhunyuan.convert.load import open_model
from openhunyuan.diffusion.denoise import denoise
from openhunyuan.diffusion.guidance import classifier_free, embedded_scales
from openhunyuan.evals.alignment import measure
from openhunyuan.latents.captions import CaptionAssembly
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import LoadedModel
from openhunyuan.recipes.world_latents import Encoders, LatentBatches, WorldLatents, encode_world
from openhunyuan.tiny.world import Scene
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Batch, Source, Task, Trainer
from openhunyuan.train.metrics import read_metrics
from openhunyuan.train.running import Running
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask

Frames = NDArray[np.uint8]
CPU = torch.device("cpu")

SMALL = DiTConfig(
    hidden_size=96,
    num_heads=4,
    num_double_blocks=2,
    num_single_blocks=2,
    num_refiner_blocks=1,
    rope_axes_dim=(8, 8, 8),
    text_dim=128,
    pooled_dim=96,
    guidance_embed=False,
)
"""The transformer of the experiments that train from nothing: 1.2 million parameters."""
FROM_NOTHING = OptimizerConfig(name="muon", lr=1e-3, muon_lr=0.01, warmup_steps=20, schedule="constant")
"""The embedded model's optimizer; the rate stays, so that a curve may be read at any step (weights are averaged)."""
TUNING = OptimizerConfig(
    name="muon", lr=1e-4, muon_lr=1e-3, warmup_steps=10, schedule="linear", final_lr_ratio=0.05
)  # fmt: skip
"""Of trained weights: that of the stages ``distill-*`` at scale tiny."""


@cache
def embedded() -> LoadedModel:
    """The model in the package: teacher, and encoder of all latents and texts."""
    return open_model("tiny", CPU, torch.float32)


@cache
def empty_text() -> EmptyText:
    features = embedded().text.encode([""])
    return EmptyText(features.states[0][features.mask[0]], features.pooled[0])


def encoded(work: Path, spec: WorldLatents) -> ShardDataset:
    """A set of the world, encoded once for all experiments."""
    files = embedded().files
    sides = "x".join(map(str, (spec.num_frames, *spec.sides)))
    kind = "captioned" if spec.captioned else "plain"
    name = f"{sides}-{spec.split}-{spec.count}-{spec.seed}-{kind}"
    encoders = Encoders(files.vae, files.text_encoder, files.text_encoder_2)
    return encode_world(work / "latents" / name, spec, encoders, fast=True)


def new_dit(config: DiTConfig, seed: int) -> DiT:
    """A transformer to be trained from nothing."""
    torch.manual_seed(seed)
    dit = DiT(config)
    dit.init_weights()
    return dit.requires_grad_(True).train()


def shape(batch_size: int, num_frames: int, side: int, share: int = 1) -> BatchShape:
    return BatchShape(batch_size=batch_size, num_frames=num_frames, height=side, width=side, share=share)


def config(
    name: str,
    steps: int,
    shapes: Sequence[BatchShape],
    seed: int,
    optimizer: OptimizerConfig = FROM_NOTHING,
    validate_every: int = 0,
) -> TrainConfig:
    """A run of one stage; without ``validate_every``, validated when it ends."""
    warmup = min(optimizer.warmup_steps, max(1, steps // 10))
    return TrainConfig(
        name=name,
        seed=seed,
        stages=(Stage(name=name, steps=steps, shapes=tuple(shapes)),),
        optimizer=optimizer.model_copy(update={"warmup_steps": warmup}),
        ema_decay=0.98,
        autocast="auto",
        checkpoint_every=100,
        keep_checkpoints=1,
        sample_every=0,
        validate_every=validate_every or steps,
        log_every=10,
    )


def trained(train: TrainConfig, task: Task, source: Source, folder: Path) -> nn.Module:
    """Run it, going on from where the folder stands; returns the model with its averaged weights."""
    running = Running(log=(), heartbeat_seconds=0)
    return Trainer(train, task, source, folder, device=CPU, running=running).run()


def flow(
    train: TrainConfig,
    dit: DiT,
    sets: Sequence[ShardDataset],
    held: Mapping[str, Batch],
    folder: Path,
    captions: CaptionAssembly | None = None,
    source: Source | None = None,
) -> None:
    """Train ``dit`` by flow matching, text dropped in a tenth of the samples."""
    task = FlowTask(FlowConfig(), dit, empty_text(), held)
    trained(train, task, source or LatentBatches(list(sets), train.seed, captions), folder)


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a validation metric of a run."""
    key = f"val/{name}"
    return [(int(r["step"]), float(r[key])) for r in read_metrics(folder / "metrics.jsonl") if key in r]


def final(folder: Path, name: str) -> float:
    return curve(folder, name)[-1][1]


# -- sampling --------------------------------------------------------------------------------------------------------


def texts(prompts: Sequence[str], data_type: str) -> Batch:
    """What the transformer reads of the prompts."""
    features = embedded().text.encode(list(prompts), data_type=data_type)
    return {"text_states": features.states, "text_mask": features.mask, "pooled": features.pooled}


@torch.inference_mode()
def sampled(
    dit: nn.Module,
    prompts: Sequence[str],
    size: VideoSize,
    levels: Tensor,
    seeds: Sequence[int],
    true_cfg_scale: float = 3.0,
    told_scale: float | None = None,
) -> Tensor:
    """Latents [N, C, t, h, w] of the prompts, as ``Pipeline`` makes them: both passes of guidance in one call.

    told_scale: the embedded guidance of a distilled student. In fp32.
    """
    dit.eval()
    latent = size.latent
    batch = texts(prompts, "image" if size.is_image else "video")
    count, two = len(prompts), true_cfg_scale != 1
    if two:
        bare = empty_text().fill(batch, torch.ones(count, dtype=torch.bool))
        cut = batch["text_states"].shape[1]
        wide = {k: torch.cat((bare[k], _padded(batch[k], bare[k], cut))) for k in batch}
    else:
        wide = batch
    told = {} if told_scale is None else {"guidance": embedded_scales(torch.full((count,), told_scale))}

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        x, time = (torch.cat((x, x)), time.repeat(2)) if two else (x, time)
        out = dit(x, time, wide["text_states"], wide["text_mask"], wide["pooled"], **told)
        if not two:
            return out
        uncond, cond = out.chunk(2)
        return classifier_free(uncond, cond, true_cfg_scale)

    start = noise((SMALL.out_channels, latent.frames, latent.height, latent.width), seeds)
    return denoise(velocity, start, levels)


def _padded(value: Tensor, like: Tensor, length: int) -> Tensor:
    """Text padded to the length of ``like``, where it has one."""
    missing = like.shape[1] - length
    if value.ndim == 3:
        return torch.nn.functional.pad(value, (0, 0, 0, missing))
    return torch.nn.functional.pad(value, (0, missing)) if value.dtype == torch.bool else value


@torch.inference_mode()
def decoded(latents: Tensor) -> list[Frames]:
    """uint8 [T, H, W, 3] a sample."""
    vae = embedded().vae
    clips = []
    for one in latents:
        video = vae.decode_latents(one[None])[0].float()
        clips.append(((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy())
    return clips


def aligned(latents: Tensor, scenes: Sequence[Scene], names: Sequence[str] = ()) -> dict[str, float]:
    """``shares_right`` of the decoded latents."""
    return shares_right(decoded(latents), scenes, names)


def shares_right(clips: Sequence[Frames], scenes: Sequence[Scene], names: Sequence[str] = ()) -> dict[str, float]:
    """Share of the clips that show each attribute as asked, and ``all`` of them; ``names``: only these."""
    found = [measure(clip).correct(scene) for clip, scene in zip(clips, scenes, strict=True)]
    kept = [{k: v for k, v in one.items() if not names or k in names} for one in found]
    shares = {name: float(np.mean([one[name] for one in kept])) for name in kept[0]}
    return shares | {"all": float(np.mean([all(one.values()) for one in kept]))}


def distance(latents: Tensor, wanted: Tensor) -> float:
    """Mean squared difference of latents, whose channels have unit variance over the data."""
    return float((latents - wanted).square().mean())


def noise_seeds(seed: int, count: int) -> list[int]:
    return [1000 * (seed + 1) + number for number in range(count)]


def parameters(dit: nn.Module) -> str:
    return f"{sum(p.numel() for p in dit.parameters()) / 1e6:.2f} million parameters"


def as_batches(dataset: ShardDataset) -> Batch:
    """A whole set as one batch."""
    return dataset.batch(range(len(dataset)))


def world(count: int, num_frames: int, size: int, seed: int, split: str = "train", **more: Any) -> WorldLatents:
    """A set without moving cameras."""
    return WorldLatents(count=count, num_frames=num_frames, size=size, seed=seed, split=split, camera_prob=0.0, **more)


held_out = partial(world, split="heldout")
