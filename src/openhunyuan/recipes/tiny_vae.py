"""Recipe ``tiny-vae``: the embedded model's causal VAE, from the synthetic world alone.

Images first, then clips, then full-length clips with the perceptual and adversarial terms (report §4.1), started from a
linear pyramid fitted to the world (``train.vae_init``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.recipes.world_source import WorldClips, heldout_clips, to_video
from openhunyuan.tiny import world
from openhunyuan.train.config import OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer
from openhunyuan.train.tasks.autoencode import AutoencodeConfig, AutoencodeTask
from openhunyuan.train.vae_init import fit_linear_pyramid

VAE = VAEConfig(block_out_channels=(24, 32, 48, 64), layers_per_block=1, norm_num_groups=8, scaling_factor=1.0)

TRAIN = TrainConfig(
    name="tiny-vae",
    seed=1,
    stages=(
        Stage(name="image-64", steps=400, batch_size=16, num_frames=1, height=64, width=64, camera_prob=0.2),
        Stage(name="video-64x9", steps=500, batch_size=3, num_frames=9, height=64, width=64, camera_prob=0.2, image_every=5, image_batch_size=16),
        Stage(name="video-64x33", steps=400, batch_size=1, num_frames=33, height=64, width=64, camera_prob=0.2, image_every=5, image_batch_size=16),
    ),
    optimizer=OptimizerConfig(lr=2e-4, warmup_steps=20, schedule="cosine", final_lr_ratio=0.02, grad_clip=1.0),
    ema_decay=0.995,
    checkpoint_every=100,
    sample_every=250,
    validate_every=125,
    log_every=10,
)  # fmt: skip
LOSS = AutoencodeConfig(perceptual_weight=0, adversarial_weight=0)


def fitted_vae(config: VAEConfig, seed: int, clips: int = 40, num_frames: int = 17, size: int = 64) -> CausalVAE:
    """A VAE at its linear-pyramid start, fitted to training scenes of the world."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng, "train", camera_prob=0.2) for _ in range(clips)]
    vae = CausalVAE(config)
    fit_linear_pyramid(vae, torch.stack([to_video(world.render(s, num_frames, size, size)) for s in scenes]), seed)
    return vae


def main(output_dir: str = "runs/tiny-vae", config: TrainConfig = TRAIN, loss: AutoencodeConfig = LOSS) -> CausalVAE:
    """Train the VAE into ``output_dir`` (resumes) and write its weights to ``output_dir/vae``."""
    from openhunyuan.models.load import save_vae

    vae = fitted_vae(VAE, config.seed)
    validation = {"image": heldout_clips(32, 1, 64), "video": heldout_clips(8, 33, 64)}
    task = AutoencodeTask(loss, vae, None, validation)
    trainer = Trainer(config, task, WorldClips(config.seed), output_dir, {"vae": VAE.to_dict(), "loss": loss.model_dump(mode="json")})
    trainer.run()
    save_vae(Path(output_dir) / "vae", vae)
    return vae


if __name__ == "__main__":
    main()
