"""How well the alignment measure says yes and no: acceptance of rendered truth, rejection of each kind of damage.

    python -m benchmarks.measure --scenes 400 --moves 130

Prints two tables; `--json` keeps the numbers. Truth is measured as rendered, and once more softened the way decoded
videos are (blur of 0.7 px, noise of ±4 and a colour shift of up to ±10 of 255).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from openhunyuan.caption.camera import CAMERA_MOVES
from openhunyuan.evals.alignment import measure
from openhunyuan.evals.damage import damaged_clips, damaged_moves, soften
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, MATERIALS
from openhunyuan.tiny.world import Scene, render, sample_scene


@dataclass
class Tally:
    """right out of total per (row, attribute), and the first errors in words."""

    total: Counter[tuple[str, str]] = field(default_factory=Counter)
    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: str, attribute: str, ok: bool, note: str) -> None:
        """Count one judgement."""
        self.total[row, attribute] += 1
        self.right[row, attribute] += ok
        if not ok:
            self.errors[row, attribute].append(note)


def spread_scenes(count: int, seed: int) -> list[Scene]:
    """Static-camera scenes of all combinations, every background in turn."""
    rng = np.random.default_rng([seed, 10])
    backgrounds = [(c, m) for c in BACKGROUND_COLORS for m in MATERIALS]
    scenes = []
    for index in range(count):
        color, material = backgrounds[index % len(backgrounds)]
        scenes.append(replace(sample_scene(rng, "any"), background_color=color, material=material))
    return scenes


def camera_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with a moving camera, the moves in turn."""
    rng = np.random.default_rng([seed, 11])
    moves = [m for m in CAMERA_MOVES if m != "static"]
    return [replace(sample_scene(rng, "any", camera_prob=1.0), camera=moves[i % len(moves)]) for i in range(count)]


def run(
    scenes: list[Scene], moves: list[Scene], num_frames: int, seed: int, progress: bool
) -> tuple[Tally, Tally, float]:
    """(acceptance, rejection, seconds per measured clip)."""
    rng = np.random.default_rng([seed, 12])
    accepted, rejected = Tally(), Tally()
    spent, clips = 0.0, 0
    for scene in track(scenes + moves, "measuring", console=Console(stderr=True), disable=not progress, transient=True):
        frames = render(scene, num_frames)
        for row, clip in (("rendered", frames), ("softened", soften(frames, rng))):
            started = time.perf_counter()
            seen = measure(clip)
            spent += time.perf_counter() - started
            clips += 1
            for name, ok in seen.correct(scene).items():
                kind = f"{row}, moving camera" if scene.camera != "static" else row
                accepted.add(kind, name, ok, f"{scene.prompt} (seed {scene.seed}) seen as {seen.seen()[name]}")
        make = damaged_clips if scene.camera == "static" else damaged_moves
        for damaged in make(scene, frames, rng):
            seen = measure(damaged.frames)
            for name in damaged.attributes:
                no = seen.seen()[name] != seen.asked(scene)[name]
                rejected.add(damaged.kind, name, no, f"{scene.prompt} (seed {scene.seed}) still accepted")
    return accepted, rejected, spent / max(clips, 1)


def table(title: str, tally: Tally, verb: str) -> Table:
    """One row per kind and attribute."""
    result = Table(title=title, title_justify="left")
    for column in ("clips", "attribute"):
        result.add_column(column)
    for column in ("judged", verb, "share"):
        result.add_column(column, justify="right")
    for key, total in tally.total.items():
        result.add_row(*key, str(total), str(tally.right[key]), f"{tally.right[key] / total:.4f}")
    return result


def main() -> None:
    """Run, print, and keep the numbers if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--moves", type=int, default=130)
    parser.add_argument("--num-frames", type=int, default=33)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--errors", type=int, default=3, help="errors to print per row")
    options = parser.parse_args()
    scenes, moves = spread_scenes(options.scenes, options.seed), camera_scenes(options.moves, options.seed)
    accepted, rejected, seconds = run(scenes, moves, options.num_frames, options.seed, progress=True)
    console = Console()
    console.print(table("Truth accepted", accepted, "accepted"))
    console.print(table("Damage rejected", rejected, "rejected"))
    console.print(f"{seconds:.3f} s per clip of {options.num_frames} frames")
    for tally in (accepted, rejected):
        for (row, attribute), notes in tally.errors.items():
            for note in notes[: options.errors]:
                console.print(f"{row}, {attribute}: {note}", style="dim")
    if options.json:
        rows = [
            {"table": name, "row": row, "attribute": attribute, "total": total, "right": tally.right[row, attribute]}
            for name, tally in (("accepted", accepted), ("rejected", rejected))
            for (row, attribute), total in tally.total.items()
        ]
        options.json.write_text(json.dumps({"seconds_per_clip": seconds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
