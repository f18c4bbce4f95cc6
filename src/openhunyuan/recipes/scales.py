"""The scales of the report's stages: networks, sizes of pictures and clips, and what a micro-batch holds.

Report: the 13B network and its VAE (§4.1, §4.2), shapes from 256×256×65 to 720×1280×129, sides of 256 to 960 (§3.1,
§4.5). Ours: the node scale (half the width and half the blocks), everything tiny, aspects (the release's five), tokens
of a micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from openhunyuan.base.sizes import VideoSize
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.recipes.registry import Scale
from openhunyuan.recipes.tiny_flow import DIT as TINY_DIT
from openhunyuan.recipes.tiny_vae import VAE as TINY_VAE
from openhunyuan.train.config import BatchShape
from openhunyuan.train.tasks.autoencode import TileSizes

ASPECTS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
"""width : height. At sides of 720 and 960 the buckets are the sizes that the release supports."""
LARGEST_BATCH = 64


@dataclass(frozen=True)
class Sizes:
    """What differs between the scales.

    Attributes:
        dit, vae: the networks.
        low, mid, high: sides in pixels of the square bucket: what the report calls 256, 512 and the highest.
        short, long: frames of the duration buckets.
        vae_curriculum: (frames, side) of the VAE's stages; the last are those of the tiling fine-tune.
        tiles: of the tiling fine-tune; smaller than its clips, so that there are seams.
        pixels: of the VAE's batch of clips, at most, where one has no more.
        tokens: of one micro-batch, at most; a sample that has more is a micro-batch of its own.
        text_tokens: of a text, for the cost model and the estimate.
        fps: of what the models make.
        autocast: arithmetic of training.
        recompute: compute activations again going backward (``parallel.apply.Layout``).
    """

    dit: DiTConfig
    vae: VAEConfig
    low: int
    mid: int
    high: int
    short: tuple[int, ...]
    long: tuple[int, ...]
    vae_curriculum: tuple[tuple[int, int], ...]
    tiles: TileSizes
    pixels: int
    tokens: int
    text_tokens: int
    fps: float
    autocast: Literal["none", "bfloat16", "auto"]
    recompute: bool

    def shapes(self, side: int, *lengths: int) -> tuple[BatchShape, ...]:
        """The buckets of one side and these lengths, each with the largest micro-batch that the tokens allow."""
        found = []
        for frames in lengths:
            for height, width in aspect_buckets(side):
                tokens = VideoSize(frames, height, width).latent.tokens(self.dit.patch_size)
                batch = max(1, min(LARGEST_BATCH, self.tokens // tokens))
                found.append(BatchShape(batch_size=batch, num_frames=frames, height=height, width=width))
        return tuple(found)


def aspect_buckets(side: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of about side² pixels in every aspect, multiples of 16; small sides have fewer of them."""
    found: dict[tuple[int, int], None] = {}
    for across, down in ASPECTS:
        height, width = (max(16, round(side * math.sqrt(ratio) / 16) * 16) for ratio in (down / across, across / down))
        found[height, width] = None
    return tuple(found)


SIZES: dict[Scale, Sizes] = {
    "tiny": Sizes(
        dit=TINY_DIT,
        vae=TINY_VAE,
        low=32,
        mid=64,
        high=64,
        short=(9, 17),
        long=(17, 33),
        vae_curriculum=((9, 32), (17, 64), (33, 64)),
        tiles=TileSizes(tile_size=32, tile_stride=24, tile_frames=16, tile_frame_stride=12),
        pixels=2 * 17 * 64 * 64,
        tokens=4096,
        text_tokens=48,
        fps=12.0,
        autocast="auto",
        recompute=False,
    ),
    "node": Sizes(
        dit=DiTConfig(hidden_size=1536, num_heads=12, num_double_blocks=10, num_single_blocks=20, guidance_embed=False),
        vae=VAEConfig(scaling_factor=1.0),
        low=256,
        mid=512,
        high=720,
        short=(17, 33),
        long=(33, 65),
        vae_curriculum=((17, 128), (17, 256), (65, 256), (65, 512)),
        tiles=TileSizes(),
        pixels=65 * 512 * 512,
        tokens=32_768,
        text_tokens=256,
        fps=24.0,
        autocast="bfloat16",
        recompute=True,
    ),
    "paper": Sizes(
        dit=DiTConfig(guidance_embed=False),
        vae=VAEConfig(scaling_factor=1.0),
        low=256,
        mid=512,
        high=960,
        short=(33, 65),
        long=(65, 129),
        vae_curriculum=((17, 128), (17, 256), (65, 256), (65, 512)),
        tiles=TileSizes(),
        pixels=65 * 512 * 512,
        tokens=32_768,
        text_tokens=256,
        fps=24.0,
        autocast="bfloat16",
        recompute=True,
    ),
}
