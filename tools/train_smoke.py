"""Every stage of the report for a few steps, each from its parent's checkpoint, and a video at the end.

    python -m tools.train_smoke [--runs-dir DIR] [--steps 2] [--clips 2] [--whole]

Shows that the links hold, not that anything is learned. The commands are those of the command line, in one process.
Micro networks and sizes stand in for those of scale tiny, unless --whole; text encoders are the embedded model's.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from openhunyuan.cli.main import main as openhunyuan
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.recipes.registry import STAGES
from openhunyuan.recipes.scales import SIZES
from openhunyuan.train.tasks.autoencode import TileSizes

PROMPT = "a large red circle moves right on a black background"
MICRO = replace(
    SIZES["tiny"],
    dit=DiTConfig(
        hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=2, num_refiner_blocks=1,
        rope_axes_dim=(4, 6, 6), text_dim=128, pooled_dim=96, guidance_embed=False,
    ),
    vae=VAEConfig(block_out_channels=(12, 24, 40, 56), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0),
    low=16,
    mid=32,
    high=32,
    short=(5,),
    long=(5, 9),
    vae_curriculum=((5, 16), (9, 32)),
    tiles=TileSizes(tile_size=24, tile_stride=16, tile_frames=8, tile_frame_stride=4),
    pixels=2 * 9 * 32 * 32,
    autocast="none",
)  # fmt: skip


def main() -> int:
    """Run the chain in an empty directory; 0 when every command was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs-dir", type=Path, help="kept; default: a directory that is deleted")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--clips", type=int, default=2, help="scenes in each bucket")
    parser.add_argument("--whole", action="store_true", help="the networks and sizes of scale tiny as they are")
    options = parser.parse_args()
    if not options.whole:
        SIZES["tiny"] = MICRO
    runs = options.runs_dir or Path(tempfile.mkdtemp(prefix="train-smoke-"))
    began = time.perf_counter()
    try:
        common = f"--device cpu --steps {options.steps} --clips {options.clips} --runs-dir".split()
        for stage in STAGES:
            if code := _timed(stage, ["train", stage, *common, str(runs)]):
                return code
        video = runs / "smoke.mp4"
        model, lora = runs / "distill-steps" / "model", runs / "lora" / "lora.safetensors"
        made = ["generate", "--model", str(model), "--lora", str(lora), "--prompt", PROMPT, "--seed", "1"]
        if code := _timed("generate", [*made, "--output-path", str(video)]):
            return code
    finally:
        if options.runs_dir is None:
            shutil.rmtree(runs, ignore_errors=True)
    print(f"{len(STAGES)} stages and a video in {time.perf_counter() - began:.0f} s")
    return 0


def _timed(name: str, args: list[str]) -> int:
    began = time.perf_counter()
    code = openhunyuan(args)
    print(f"{name}: {time.perf_counter() - began:.1f} s" if not code else f"{name} failed with exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
