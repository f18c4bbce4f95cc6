"""What few sampling steps cost and lose: the embedded model and its step-distilled variant, every row from one run.

    python -m benchmarks.few_steps --num-prompts 200

Each row makes the videos of the same held-out prompts from the same noise. "all right" is the share whose colour,
shape, motion and background are as asked (`evaluate alignment`); "detail" is the mean change between neighbouring
pixels (both ways, all frames) over that of the same scenes as the world renders them: blur lowers it, which alignment
does not see.
Seconds are processor time of making the videos, text encoding and VAE included, divided by their number; rows take
turns batch by batch, so that other work on the machine meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.evals.alignment import measure
from openhunyuan.evals.report import ATTRIBUTES
from openhunyuan.evals.run import scenes_for
from openhunyuan.infer.pipeline import Pipeline
from openhunyuan.tiny.world import Scene, render


@dataclass(frozen=True)
class Row:
    """A model and how it samples; None is its default."""

    model: str
    steps: int | None = None
    true_cfg_scale: float | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        said = {"num_inference_steps": self.steps, "true_cfg_scale": self.true_cfg_scale}
        return {name: value for name, value in said.items() if value is not None}


def rows_of(fast: str) -> tuple[Row, ...]:
    plain = [Row("tiny", steps, 1.0) for steps in (8, 4, 2, 1)]
    return (Row("tiny"), Row("tiny", 8), *plain, *(Row(fast, steps) for steps in (None, 4, 2)))


@dataclass
class Found:
    """What a row gave. ``calls``: of the transformer, for one video."""

    model: str
    steps: int
    guided: bool
    calls: int
    right: dict[str, float]
    all_right: float
    detail: float
    seconds: float


def detail(frames: np.ndarray) -> float:
    """Mean change between neighbouring pixels of uint8 [T, H, W, 3], in levels."""
    values = frames.astype(np.float32)
    return float((np.abs(np.diff(values, axis=1)).mean() + np.abs(np.diff(values, axis=2)).mean()) / 2)


def compare(rows: Sequence[Row], scenes: Sequence[Scene], batch_size: int, seed: int) -> list[Found]:
    """Every row on every scene."""
    pipes = {name: Pipeline.from_pretrained(name, "cpu") for name in {row.model for row in rows}}
    spent = dict.fromkeys(rows, 0.0)
    seen: dict[Row, list[dict[str, bool]]] = {row: [] for row in rows}
    sharp: dict[Row, list[float]] = {row: [] for row in rows}
    for start in range(0, len(scenes), batch_size):
        part = scenes[start : start + batch_size]
        truth = [detail(render(scene, 33, 64, 64)) for scene in part]
        seeds = [seed + start + i for i in range(len(part))]
        for row in rows:
            began = time.process_time()
            videos = pipes[row.model].generate_batch(
                [scene.prompt for scene in part], seeds, batch_size=batch_size, **row.overrides
            )
            spent[row] += time.process_time() - began
            for scene, video, wanted in zip(part, videos, truth, strict=True):
                seen[row].append(measure(video).correct(scene))
                sharp[row].append(detail(video) / wanted)
        print(f"{start + len(part)} of {len(scenes)}", flush=True)
    found = []
    for row in rows:
        settings = {**pipes[row.model].defaults.model_dump(), **row.overrides}
        guided = settings["true_cfg_scale"] != 1
        answers = seen[row]
        found.append(
            Found(
                row.model,
                settings["num_inference_steps"],
                guided,
                settings["num_inference_steps"] * (2 if guided else 1),
                {name: float(np.mean([a[name] for a in answers])) for name in ATTRIBUTES},
                float(np.mean([all(a.values()) for a in answers])),
                float(np.mean(sharp[row])),
                spent[row] / len(scenes),
            )
        )
    return found


def table(found: Sequence[Found]) -> str:
    """Markdown; seconds also as a ratio to the first row."""
    lines = [
        f"| model | steps | guidance | calls | {' | '.join(ATTRIBUTES)} | all right | detail | CPU s | of row 1 |",
        "| --- " + "| --: " * (len(ATTRIBUTES) + 7) + "|",
    ]
    for row in found:
        right = " | ".join(f"{row.right[name]:.3f}" for name in ATTRIBUTES)
        ratio = row.seconds / found[0].seconds
        how = "two passes" if row.guided else "one pass"
        lines.append(
            f"| {row.model} | {row.steps} | {how} | {row.calls} | {right} | {row.all_right:.3f} | {row.detail:.2f} "
            f"| {row.seconds:.2f} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_steps", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--num-prompts", type=int, default=200, help="held-out prompts")
    parser.add_argument("--batch-size", type=int, default=16, help="videos a call")
    parser.add_argument("--seed", type=int, default=0, help="chooses prompts and noise")
    parser.add_argument("--fast", default="tiny-fast", help="the distilled model, name or folder")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(argv)
    found = compare(rows_of(args.fast), scenes_for("heldout", args.num_prompts, args.seed), args.batch_size, args.seed)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
