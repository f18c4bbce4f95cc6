"""Recipes ``tiny-image``, ``tiny-video``, ``tiny-video-finish`` and ``tiny-video-last``: the embedded model's DiT.

All learn from latents of the world. Images first; then video started from the image weights, low resolution first,
images mixed in (report §4.5); at the end, twice, other clips with more of what is learned last.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import write_image, write_video
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import load_dit, load_vae, save_dit, save_model_folder
from openhunyuan.recipes.world_latents import Encoders, LatentBatches, WorldLatents, encode_world
from openhunyuan.tiny.vocabulary import MOTIONS
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.estimate import Workload
from openhunyuan.train.loop import Trainer
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask

DIT = DiTConfig(
    hidden_size=128,
    num_heads=4,
    num_double_blocks=3,
    num_single_blocks=4,
    num_refiner_blocks=1,
    rope_axes_dim=(8, 12, 12),
    text_dim=128,
    pooled_dim=96,
    guidance_embed=False,
)
FLOW = FlowConfig(image_share=0.15)
CPU = torch.device("cpu")

HARDER = (*MOTIONS, "orbits", "spins", "spins", "spins")
"""Orbits move fastest: twice as often as most motions. Spins show every angle and are learned last: four times."""
SETS = {
    "image": WorldLatents(count=20_000, num_frames=1, size=64, seed=11),
    "low": WorldLatents(count=1_000, num_frames=33, size=32, seed=12),
    "short": WorldLatents(count=800, num_frames=17, size=64, seed=13, motions=HARDER),
    "video": WorldLatents(count=5_456, num_frames=33, size=64, seed=14, camera_prob=0.2, motions=HARDER),
    "finish": WorldLatents(
        count=4_216, num_frames=33, size=64, seed=16, camera_prob=0.25, motions=(*HARDER, "spins", "spins", "spins")
    ),
    "finish-image": WorldLatents(count=4_000, num_frames=1, size=64, seed=17),
    "last": WorldLatents(
        count=24_800, num_frames=33, size=64, seed=18, camera_prob=0.25, motions=(*HARDER, "spins", "spins", "spins")
    ),
}
HELDOUT = {
    "image": WorldLatents(count=128, num_frames=1, size=64, seed=21, split="heldout"),
    "video": WorldLatents(count=48, num_frames=33, size=64, seed=24, split="heldout"),
}


def _shape(batch_size: int, num_frames: int, size: int = 64, share: int = 1) -> BatchShape:
    return BatchShape(batch_size=batch_size, num_frames=num_frames, height=size, width=size, share=share)


OPTIMIZER = OptimizerConfig(name="muon", lr=1e-3, muon_lr=0.01, warmup_steps=50, schedule="linear", final_lr_ratio=0.05)

IMAGE = TrainConfig(
    name="tiny-image",
    seed=2,
    stages=(Stage(name="image-64", steps=1500, shapes=(_shape(64, 1),)),),
    optimizer=OPTIMIZER.model_copy(
        update={"schedule_steps": 1900}
    ),  # ends before its decay does: video goes on from here
    ema_decay=0.995,
    autocast="auto",
    checkpoint_every=100,
    sample_every=300,
    validate_every=300,
    log_every=20,
)
VIDEO = TrainConfig(
    name="tiny-video",
    seed=3,
    stages=(
        Stage(name="video-32x33", steps=150, shapes=(_shape(48, 33, 32, share=5), _shape(64, 1))),
        Stage(name="video-64x33", steps=16_000, shapes=(_shape(24, 33, share=7), _shape(24, 17), _shape(64, 1))),
    ),
    optimizer=OPTIMIZER,
    ema_decay=0.998,
    autocast="auto",
    checkpoint_every=250,
    sample_every=2000,
    validate_every=1000,
    log_every=25,
)

FINISH = VIDEO.model_copy(
    update={
        "name": "tiny-video-finish",
        "seed": 9,
        "stages": (
            Stage(
                name="video-64x33-finish",
                steps=3_000,
                shapes=(_shape(24, 33, share=10), _shape(24, 17), _shape(64, 1)),
            ),
        ),
        "optimizer": OPTIMIZER.model_copy(update={"lr": 5e-4, "muon_lr": 5e-3, "final_lr_ratio": 0.02}),
    }
)
LAST = FINISH.model_copy(
    update={
        "name": "tiny-video-last",
        "seed": 10,
        "stages": (FINISH.stages[0].model_copy(update={"name": "video-64x33-last", "steps": 14_000}),),
        "optimizer": OPTIMIZER.model_copy(update={"lr": 7e-4, "muon_lr": 7e-3, "final_lr_ratio": 0.02}),
    }
)


@dataclass(frozen=True)
class FlowRun:
    """A run of the DiT: its configuration, the encoded sets it draws from, and whose weights it starts from.

    ``heldout`` names the validation sets.
    """

    config: TrainConfig
    sets: tuple[str, ...]
    heldout: tuple[str, ...]
    start: str | None = None


RUNS: dict[str, FlowRun] = {
    "tiny-image": FlowRun(IMAGE, ("image",), ("image",)),
    "tiny-video": FlowRun(VIDEO, ("low", "short", "video", "image"), ("image", "video"), "tiny-image"),
    "tiny-video-finish": FlowRun(FINISH, ("short", "finish", "finish-image"), ("image", "video"), "tiny-video"),
    "tiny-video-last": FlowRun(LAST, ("short", "last", "finish-image"), ("image", "video"), "tiny-video-finish"),
}

SAMPLE_PROMPTS = (
    "a large red circle moves right on a black background",
    "a small green star moves up on a navy striped background",
    "a large purple square spins clockwise on a gray background",
    "a large yellow triangle shrinks on a teal checkered background",
    "a small white cross stays still on a maroon dotted background",
    "a large cyan star grows on an olive cloudy background",
    "a large blue square orbits clockwise around a small white circle on a black background",
    "a small orange circle stays still on a gray checkered background, the camera pans left",
)
DEFAULTS = {
    "height": 64,
    "width": 64,
    "num_frames": 33,
    "num_inference_steps": 24,
    "guidance_scale": 1.0,
    "true_cfg_scale": 3.0,
    "flow_shift": 2.0,
    "fps": 12.0,
}


def datasets(
    run: FlowRun, data_dir: Path, encoders: Encoders, device: torch.device = CPU
) -> tuple[list[ShardDataset], dict]:
    """Encoded training sets and validation batches, made if they are not there yet."""
    options = {"encoders": encoders, "device": device, "workers": os.cpu_count() or 1, "fast": True}
    train = [encode_world(data_dir / name, SETS[name], **options) for name in run.sets]
    held = {name: encode_world(data_dir / f"heldout-{name}", HELDOUT[name], **options) for name in run.heldout}
    return train, {name: d.batch(range(min(48, len(d)))) for name, d in held.items()}


TEXT_TOKENS = 48  # of a long prompt of the world, for the estimate


def workload(which: str) -> Workload:
    """What one of ``RUNS`` costs."""
    with torch.device("meta"):
        dit = DiT(DIT)

    def forward(shape: BatchShape) -> torch.Tensor:
        size, latent = shape.batch_size, VideoSize(shape.num_frames, shape.height, shape.width).latent
        with torch.device("meta"):
            return dit(
                torch.empty(size, DIT.in_channels, latent.frames, latent.height, latent.width),
                torch.empty(size),
                torch.empty(size, TEXT_TOKENS, DIT.text_dim),
                torch.ones(size, TEXT_TOKENS, dtype=torch.bool),
                torch.empty(size, DIT.pooled_dim),
            )

    def tokens(shape: BatchShape) -> int:
        return VideoSize(shape.num_frames, shape.height, shape.width).latent.tokens(DIT.patch_size)

    return Workload(RUNS[which].config, {"model": dit}, forward, tokens)


def train(
    which: str,
    runs_dir: Path,
    config: TrainConfig | None = None,
    device: torch.device = CPU,
) -> Path:
    """Run one of ``RUNS``, from the weights that it starts from; ``runs_dir`` holds them and the text and VAE runs.

    Writes ``dit`` and, as ``model``, a complete model folder that ``generate --model`` takes into the run's directory.
    """
    run = RUNS[which]
    config = config or run.config
    run_dir, vae_dir, text_dir = runs_dir / which, runs_dir / "tiny-vae" / "vae", runs_dir / "tiny-text"
    finished = runs_dir / "tiny-vae-decoder" / "vae"  # same encoder, better decoder: what is exported and rendered with
    encoders = Encoders(vae_dir, text_dir / "text_encoder", text_dir / "text_encoder_2")
    sets, validation = datasets(run, runs_dir / "tiny-latents", encoders, device)
    torch.manual_seed(config.seed)
    dit = DiT(DIT)
    dit.init_weights()
    if run.start:
        dit.load_state_dict(load_dit(runs_dir / run.start / "dit").state_dict())
    dit.requires_grad_(True).train()
    empty = encoders.text.encode([""])

    def render(model: nn.Module, folder: Path) -> None:
        assert isinstance(model, DiT)
        num_frames = 1 if which == "tiny-image" else 33
        render_samples(
            export(model, run_dir / "model", finished if finished.is_dir() else vae_dir, text_dir), folder, num_frames
        )

    task = FlowTask(FLOW, dit, EmptyText(empty.states[0][empty.mask[0]], empty.pooled[0]), validation, render)
    record = {"dit": DIT.model_dump(mode="json"), "flow": FLOW.model_dump(mode="json")}
    trainer = Trainer(config, task, LatentBatches(sets, config.seed), run_dir, record, device)
    trainer.run()
    save_dit(run_dir / "dit", dit)
    export(dit, run_dir / "model", finished if finished.is_dir() else vae_dir, text_dir)
    return run_dir


def export(dit: DiT, folder: Path, vae_dir: Path, text_dir: Path) -> Path:
    """Write the complete model folder: transformer, VAE, text models and defaults, stored as fp16."""
    description = "The embedded model: 64×64, 33 frames, trained on the synthetic world by the tiny-* recipes."
    llm, clip = text_dir / "text_encoder", text_dir / "text_encoder_2"
    save_model_folder(
        folder,
        dit,
        load_vae(vae_dir),
        llm,
        clip,
        DEFAULTS,
        "tiny",
        description=description,
        image_condition_type="token_replace" if FLOW.image_share else None,
        image_optional=True,
    )
    return folder


def render_samples(model_dir: Path, folder: Path, num_frames: int) -> None:
    """One picture or clip a sample prompt."""
    from openhunyuan.infer.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(str(model_dir))
    videos = pipe.generate_batch(SAMPLE_PROMPTS, list(range(len(SAMPLE_PROMPTS))), num_frames=num_frames)
    for number, frames in enumerate(videos):
        if num_frames == 1:
            write_image(folder / f"{number:02d}.png", frames[0], {"prompt": SAMPLE_PROMPTS[number]})
        else:
            write_video(folder / f"{number:02d}.mp4", frames, DEFAULTS["fps"], {"prompt": SAMPLE_PROMPTS[number]})
