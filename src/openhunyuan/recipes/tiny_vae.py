"""Recipes ``tiny-vae`` and ``tiny-vae-decoder``: the embedded model's causal VAE, from the synthetic world alone.

Started from a linear pyramid fitted to the world (``train.vae_init``); images first, then clips (report §4.1). The
decoder is finished on full-length clips by ``tiny-vae-decoder`` while the encoder, and so every encoded latent, stays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from openhunyuan.base.sizes import VideoSize
from openhunyuan.models.load import load_vae, save_vae
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.recipes.world_source import WorldClips, heldout_clips, to_video
from openhunyuan.tiny import world
from openhunyuan.tiny.vocabulary import MOTIONS
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.estimate import Workload
from openhunyuan.train.latent_scale import channel_statistics, fold_normalisation
from openhunyuan.train.loop import Trainer
from openhunyuan.train.perceptual import ClipFeatures
from openhunyuan.train.tasks.autoencode import AutoencodeConfig, AutoencodeTask
from openhunyuan.train.vae_init import fit_linear_pyramid

CPU = torch.device("cpu")
VAE = VAEConfig(block_out_channels=(24, 32, 48, 64), layers_per_block=1, norm_num_groups=8, scaling_factor=1.0)

HARDER = (*MOTIONS, "orbits", "orbits", "spins")
"""Orbits move fastest, and the VAE loses them first: they come three times as often as most motions, spins twice."""
IMAGES = BatchShape(batch_size=16, num_frames=1, height=64, width=64)


def _clips(batch_size: int, num_frames: int) -> BatchShape:
    """Clips, four steps to one of images (report §4.1)."""
    return BatchShape(batch_size=batch_size, num_frames=num_frames, height=64, width=64, share=4)


def _windows(steps: int, clips: BatchShape) -> Stage:
    """Windows of scenes at their own speed, fast motions more often."""
    return Stage(
        name=f"video-64x{clips.num_frames}",
        steps=steps,
        shapes=(clips, IMAGES),
        camera_prob=0.2,
        frame_intervals=(1,),
        motions=HARDER,
    )


TRAIN = TrainConfig(
    name="tiny-vae",
    seed=1,
    stages=(
        Stage(name="image-64", steps=250, shapes=(IMAGES,), camera_prob=0.2),
        Stage(
            name="video-64x9", steps=600, shapes=(_clips(2, 9), IMAGES), camera_prob=0.2, frame_intervals=(1, 1, 1, 2)
        ),
        _windows(800, _clips(2, 17)),
        _windows(300, _clips(1, 33)),
    ),
    optimizer=OptimizerConfig(
        name="muon", lr=2e-4, muon_lr=4e-3, warmup_steps=10, schedule="linear", final_lr_ratio=0.02, grad_clip=1.0
    ),
    ema_decay=0.995,
    autocast="auto",
    checkpoint_every=100,
    sample_every=250,
    validate_every=125,
    log_every=10,
)
LOSS = AutoencodeConfig(perceptual_weight=0, adversarial_weight=0)

DECODER = TrainConfig(
    name="tiny-vae-decoder",
    seed=4,
    stages=(
        _windows(350, _clips(2, 17)),
        _windows(150, _clips(1, 33)),
    ),
    optimizer=OptimizerConfig(
        name="muon", lr=1e-4, muon_lr=1e-3, warmup_steps=10, schedule="linear", final_lr_ratio=0.02, grad_clip=1.0
    ),
    ema_decay=0.99,
    autocast="auto",
    checkpoint_every=100,
    sample_every=250,
    validate_every=125,
    log_every=10,
)
STATISTICS_KEY = 5  # of the random stream that draws the scenes for the latents' statistics
DECODER_LOSS = AutoencodeConfig(decoder_only=True, perceptual_weight=0, adversarial_weight=0)


def fitted_vae(config: VAEConfig, seed: int, clips: int = 40, num_frames: int = 17, size: int = 64) -> CausalVAE:
    """A VAE at its linear-pyramid start, fitted to training scenes of the world."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng, "train", camera_prob=0.2) for _ in range(clips)]
    vae = CausalVAE(config)
    fit_linear_pyramid(vae, torch.stack([to_video(world.render(s, num_frames, size, size)) for s in scenes]), seed)
    return vae


def workloads() -> list[Workload]:
    """What ``tiny-vae`` costs, for ``--dry-run``."""
    return [vae_workload(VAE, TRAIN, LOSS)]


def decoder_workloads() -> list[Workload]:
    """What ``tiny-vae-decoder`` costs, for ``--dry-run``."""
    return [vae_workload(VAE, DECODER, DECODER_LOSS)]


def vae_workload(sizes: VAEConfig, config: TrainConfig, loss: AutoencodeConfig) -> Workload:
    """What a run of a VAE of these sizes costs."""
    with torch.device("meta"):
        vae = CausalVAE(sizes)
        task = AutoencodeTask(loss, vae, None, {})

    def forward(shape: BatchShape) -> object:
        video = torch.empty(shape.batch_size, 3, shape.num_frames, shape.height, shape.width, device="meta")
        with torch.set_grad_enabled(not loss.decoder_only):
            latents = vae.encode(video).mode()
        decoded = vae.decode(latents)
        # As an opponent it sees the decoded clip, in its own turn that and the true one.
        return [task.discriminator(x) for x in (decoded, decoded, video)] if task.discriminator else decoded

    def tokens(shape: BatchShape) -> int:
        latent = VideoSize(shape.num_frames, shape.height, shape.width).latent
        return latent.frames * latent.height * latent.width

    own = {"discriminator": loss.discriminator} if task.discriminator else {}
    note = "tokens are latent positions; the perceptual network is not counted" if loss.perceptual_weight else ""
    return Workload(config, task.modules(), forward, tokens, own, note or "tokens are latent positions")


def train(
    runs_dir: Path, config: TrainConfig = TRAIN, loss: AutoencodeConfig = LOSS, device: torch.device = CPU
) -> Path:
    """Train the VAE in ``runs_dir/tiny-vae`` (resumes) and write its weights, latents normalised, to ``vae`` there."""
    vae = fitted_vae(VAE, config.seed)
    run_dir = _train(vae, None, runs_dir / "tiny-vae", config, loss, device)
    rng = np.random.default_rng((config.seed, STATISTICS_KEY))
    scenes = [world.sample_scene(rng, "train", camera_prob=0.15) for _ in range(200)]
    clips = [to_video(world.render(s, 33 if i % 4 == 0 else 1, 64, 64))[None] for i, s in enumerate(scenes)]
    fold_normalisation(vae.cpu(), *channel_statistics(vae.cpu(), clips))
    save_vae(run_dir / "vae", vae)
    return run_dir


def train_decoder(
    runs_dir: Path, config: TrainConfig = DECODER, loss: AutoencodeConfig = DECODER_LOSS, device: torch.device = CPU
) -> Path:
    """Finish the decoder on longer clips; the encoder, and so every encoded latent, stays bit for bit.

    A ``loss`` with the perceptual term takes the vision tower of the recipe ``tiny-text``: trained on the same world,
    since no published LPIPS weights are assumed to be at hand.
    """
    vae = load_vae(runs_dir / "tiny-vae" / "vae").requires_grad_(True).train()
    features = ClipFeatures(runs_dir / "tiny-text" / "clip").to(device) if loss.perceptual_weight else None
    return _train(vae, features, runs_dir / "tiny-vae-decoder", config, loss, device)


def _train(
    vae: CausalVAE,
    features: ClipFeatures | None,
    run_dir: Path,
    config: TrainConfig,
    loss: AutoencodeConfig,
    device: torch.device,
) -> Path:
    validation = {"image": heldout_clips(32, 1, 64), "video": heldout_clips(8, 33, 64)}
    task = AutoencodeTask(loss, vae, features, validation)
    perceptual = "clip:tiny-text" if features else None
    record = {"vae": VAE.to_dict(), "loss": loss.model_dump(mode="json"), "perceptual_network": perceptual}
    torch.manual_seed(config.seed)
    Trainer(config, task, WorldClips(config.seed), run_dir, record, device).run()
    save_vae(run_dir / "vae", vae)
    return run_dir
