"""The named runs: three literal tables, read by ``openhunyuan train``.

``RECIPES`` make the embedded model, ``SMALL_NETWORKS`` what curation runs by default or by name. ``STAGES`` are the
report's, at three scales, chained by lineage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scale = Literal["tiny", "node", "paper"]
SCALES: dict[Scale, str] = {
    "tiny": "the embedded model's networks, on a CPU",
    "node": "1.6B parameters, one machine of 8 GPUs",
    "paper": "the report's 13B and its VAE",
}


@dataclass(frozen=True)
class Recipe:
    """Where a recipe's ``train(runs_dir)`` and ``workloads()`` are, what it makes and what it needs among the runs."""

    module: str
    makes: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageEntry:
    """A stage of the report: what it makes, the run that it starts from (None: nothing) and what it reads."""

    makes: str
    parent: str | None
    reads: Literal["clips", "latents"] = "latents"


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
    "tiny-video-last": Recipe(
        "openhunyuan.recipes.tiny_video_last",
        "the same DiT on six times as many other clips of that kind",
        ("tiny-text", "tiny-vae", "tiny-video-finish"),
    ),
}

SMALL_NETWORKS: dict[str, Recipe] = {
    "watermark": Recipe("openhunyuan.recipes.watermark", "curation's small network for watermarks and logos"),
    "blur": Recipe("openhunyuan.recipes.blur", "curation's small network for the width of blur"),
}

STAGES: dict[str, StageEntry] = {
    "vae": StageEntry("the causal VAE from nothing, low and short to high and long", None, "clips"),
    "vae-tiling": StageEntry("the VAE with tiles switched on and off at random", "vae", "clips"),
    "flow-image-256": StageEntry("the DiT from nothing, on images of many aspects", "vae-tiling"),
    "flow-mix-256-512": StageEntry("the DiT on both scales in every batch", "flow-image-256"),
    "flow-video-low-short": StageEntry("the DiT on short low videos and images", "flow-mix-256-512"),
    "flow-video-low-long": StageEntry("the DiT on long low videos and images", "flow-video-low-short"),
    "flow-video-high-long": StageEntry("the DiT on long high videos and images", "flow-video-low-long"),
    "flow-sft": StageEntry("the DiT on a chosen set of clips", "flow-video-high-long"),
    "image-to-video": StageEntry("the DiT with the first frame given (token replace)", "flow-sft"),
    "image-to-video-concat": StageEntry("the DiT with the first frame beside the noise (33 channels)", "flow-sft"),
    "distill-guidance": StageEntry("guidance in one pass, scales 1 to 8", "flow-sft"),
    "distill-steps": StageEntry("videos in 8 steps", "distill-guidance"),
    "lora": StageEntry("a LoRA on your own latents; keeps distilled guidance", "distill-guidance"),
}
