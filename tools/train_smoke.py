"""Every stage of the report at tiny scale for a few steps, each from its parent's checkpoint, and a video at the end.

    python -m tools.train_smoke [--runs-dir DIR] [--steps 2] [--clips 2]

Shows that the links hold, not that anything is learned. The commands are those of the command line, in one process.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from openhunyuan.cli.main import main as openhunyuan
from openhunyuan.recipes.registry import STAGES

PROMPT = "a large red circle moves right on a black background"


def main() -> int:
    """Run the chain in an empty directory; 0 when every command was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs-dir", type=Path, help="kept; default: a directory that is deleted")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--clips", type=int, default=2, help="scenes in each bucket")
    options = parser.parse_args()
    runs = options.runs_dir or Path(tempfile.mkdtemp(prefix="train-smoke-"))
    began = time.perf_counter()
    try:
        common = [
            "--runs-dir",
            str(runs),
            "--device",
            "cpu",
            "--steps",
            str(options.steps),
            "--clips",
            str(options.clips),
        ]
        for stage in STAGES:
            if code := _timed(stage, ["train", stage, *common]):
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
