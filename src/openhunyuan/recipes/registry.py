"""The named runs: one literal table, read by ``openhunyuan train``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Where a recipe's ``train(runs_dir)`` and ``workloads()`` are, what it makes and what it needs among the runs."""

    module: str
    makes: str
    needs: tuple[str, ...] = ()


RECIPES: dict[str, Recipe] = {
    "tiny-text": Recipe(
        "openhunyuan.recipes.tiny_text", "the embedded model's Llama and CLIP, on the world's captions"
    ),
    "tiny-vae": Recipe(
        "openhunyuan.recipes.tiny_vae", "the embedded model's causal VAE, on the world's frames and clips"
    ),
    "tiny-vae-decoder": Recipe(
        "openhunyuan.recipes.tiny_vae_decoder",
        "its decoder, sharpened while the encoder stays",
        ("tiny-text", "tiny-vae"),
    ),
    "tiny-image": Recipe(
        "openhunyuan.recipes.tiny_image", "the embedded model's DiT on images", ("tiny-text", "tiny-vae")
    ),
    "tiny-video": Recipe(
        "openhunyuan.recipes.tiny_video",
        "the embedded model's DiT on video, and the complete model folder",
        ("tiny-text", "tiny-vae", "tiny-image"),
    ),
    "tiny-video-finish": Recipe(
        "openhunyuan.recipes.tiny_video_finish",
        "the same DiT on more clips of what is learned last: spins and camera moves",
        ("tiny-text", "tiny-vae", "tiny-video"),
    ),
}
