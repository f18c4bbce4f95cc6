"""Scale tiny with micro networks and sizes; run as a program, the command on it, for tests of several processes."""

import sys
from dataclasses import replace

from openhunyuan.cli.main import main
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.recipes.scales import SIZES
from openhunyuan.train.tasks.autoencode import TileSizes

MICRO = replace(
    SIZES["tiny"],
    dit=DiTConfig(
        hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=2, num_refiner_blocks=1,
        rope_axes_dim=(4, 6, 6), text_dim=32, pooled_dim=32, guidance_embed=False,
    ),
    vae=VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
    low=16,
    mid=32,
    high=32,
    short=(5,),
    long=(9,),
    vae_curriculum=((5, 16), (9, 32)),
    tiles=TileSizes(tile_size=24, tile_stride=16, tile_frames=8, tile_frame_stride=4),
    pixels=2 * 9 * 32 * 32,
    autocast="none",
)  # fmt: skip

if __name__ == "__main__":
    SIZES["tiny"] = MICRO
    sys.exit(main(sys.argv[1:]))
