"""What training left on disk: the runs' records and metrics, their wall time, the encoded latents, learning curves."""

from __future__ import annotations

import csv
import itertools
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.recipes.registry import RECIPES

CURVE_ROWS = 150
"""Training records kept of each curve, each the mean of its stretch; validation records are all kept."""
NOT_CURVES = ("step", "time", "seconds_per_step", "data_wait", "lr_factor")


@dataclass(frozen=True)
class StageTime:
    """Steps and seconds that one stage of a run took."""

    name: str
    steps: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """One directory of the training loop: its record (run.json) and its metrics (records in order).

    Of a run that is ``kept`` the directory is gone: these are the rows of its curve, their times without pauses.
    """

    recipe: str
    folder: Path
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    kept: bool = False

    @property
    def name(self) -> str:
        return str(self.record["train"]["name"])

    @property
    def steps(self) -> int:
        """Steps made."""
        return max(int(m["step"]) for m in self.metrics)

    @property
    def planned(self) -> int:
        """Steps of the configuration."""
        return sum(int(s["steps"]) for s in self.record["train"]["stages"])

    @property
    def training(self) -> list[dict[str, Any]]:
        """The records of training steps (without validation)."""
        return [m for m in self.metrics if "seconds_per_step" in m]

    def clock(self) -> list[float]:
        """Seconds of work at each training record.

        The difference of two timestamps counts, validation and samples included. Where it is far above what the
        record says its steps took, the run was stopped in between; there the steps' own time counts.
        """
        if self.kept:
            return [float(record["time"]) for record in self.training]
        total, previous = 0.0, None
        clock: list[float] = []
        for record in self.training:
            steps = int(record["step"]) - (int(previous["step"]) if previous else 0)
            own = float(record["seconds_per_step"]) * steps
            elapsed = float(record["time"]) - float(previous["time"]) if previous else own
            total += own if elapsed > 1.5 * own + 10 else elapsed
            clock.append(total)
            previous = record
        return clock

    def stage_of(self, step: int) -> str:
        """The stage that made a step (1-based), by the configuration: a record's own label may be an older name."""
        for stage in self.record["train"]["stages"]:
            if step <= int(stage["steps"]):
                return str(stage["name"])
            step -= int(stage["steps"])
        return str(self.record["train"]["stages"][-1]["name"])

    def stage_times(self) -> list[StageTime]:
        """Every stage that was begun, in order; the last includes the closing validation."""
        clock = self.clock()
        last = self.training[-1]
        unlogged = float(last["seconds_per_step"]) * (self.steps - int(last["step"]))
        closing = max(0.0, float(self.metrics[-1]["time"]) - float(last["time"]))
        ends = [(int(record["step"]), now) for record, now in zip(self.training, clock, strict=True)]
        # a long silence at the end is a pause before a resume that only validated
        ends.append((self.steps, clock[-1] + (closing if closing <= 1.5 * unlogged + 300 else unlogged)))
        stages: dict[str, StageTime] = {}
        step, seconds = 0, 0.0
        for end, now in ends:
            name = self.stage_of(end)
            held = stages.get(name, StageTime(name, 0, 0.0))
            stages[name] = StageTime(name, held.steps + end - step, held.seconds + now - seconds)
            step, seconds = end, now
        return list(stages.values())


def read_runs(runs_dir: Path, unfinished: bool = False) -> list[Run]:
    """The runs of every recipe, in the order of ``make reproduce-embedded``."""
    runs: list[Run] = []
    for recipe in RECIPES:
        folder = runs_dir / recipe
        logs = [folder / "metrics.jsonl"] if (folder / "metrics.jsonl").is_file() else folder.glob("*/metrics.jsonl")
        found = [_read_run(recipe, log.parent) for log in logs]
        if not found and unfinished:
            continue
        if not found:
            raise UserError(f"{folder} holds no metrics.jsonl; run `openhunyuan train {recipe}` first.")
        runs += sorted(found, key=lambda run: float(run.metrics[0]["time"]))
    for run in runs:
        if run.steps < run.planned and not unfinished:
            raise UserError(
                f"{run.folder} has made {run.steps} of {run.planned} steps; finish it, or give --unfinished to write"
                " the page with the run marked."
            )
    return runs


def _read_run(recipe: str, folder: Path) -> Run:
    path = folder / "metrics.jsonl"
    try:
        metrics = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        record = json.loads((folder / "run.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} lacks metrics.jsonl or run.json, or they are damaged ({error}).") from error
    run = Run(recipe, folder, record, metrics)
    if not run.training:
        raise UserError(f"{path} has no record of a training step yet.")
    return run


def read_kept(folder: Path) -> list[Run]:
    """The runs whose curves an earlier page kept in its folder, in the order of that page; UserError for a hole."""
    return [_read_kept(folder, name) for name in read_record(folder)["runs"]]


def _read_kept(folder: Path, name: str) -> Run:
    try:
        with (folder / f"{name}.csv").open(newline="") as file:
            rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
        record = json.loads((folder / f"{name}.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} lacks {name}.csv or {name}.json, or they are damaged ({error}).") from error
    recipe = max((r for r in RECIPES if name == r or name.startswith(f"{r}-")), key=len, default=None)
    if recipe is None:
        raise UserError(f"{folder / name}.csv is not the curve of a recipe; the recipes are {', '.join(RECIPES)}.")
    metrics: list[dict[str, Any]] = []
    for row in rows:
        values = {k: v if k == "stage" else float(v) for k, v in row.items() if k not in ("step", "minutes")}
        metrics.append({"step": int(row["step"]), "time": 60 * float(row["minutes"]), **values})
    return Run(recipe, folder, record, metrics, kept=True)


def read_record(folder: Path) -> dict[str, Any]:
    """What a page keeps beside the curves: names of its runs, its encoded sets, the report of the text models."""
    path = folder / "record.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); it is written with the results page.") from error


def join_runs(kept: list[Run], found: list[Run]) -> list[Run]:
    """Kept runs and those found on disk, which stand for kept ones of the same name; in the order of the recipes."""
    names = {run.name for run in found}
    both = [run for run in kept if run.name not in names] + found
    order = list(RECIPES)
    return sorted(both, key=lambda run: order.index(run.recipe))


@dataclass(frozen=True)
class LatentSet:
    """One encoded set of world latents: what it is, and how long encoding took (None: not to be told)."""

    name: str
    spec: dict[str, Any]
    samples: int
    seconds: float | None


def _date(shard: tuple[int, float]) -> float:
    return shard[1]


def read_latents(folder: Path) -> list[LatentSet]:
    """The encoded sets; the time of each from its shards' file times.

    Shards in a row give the seconds a sample; processes that end theirs together make some gaps short, and a stop makes
    one long: gaps above three times the upper quartile do not count. A set of one shard takes the rate of a set of the
    same clip size.
    """
    rates: dict[tuple[int, int], float] = {}
    found: list[tuple[str, dict[str, Any], int]] = []
    for path in sorted(folder.glob("*/index.json")):
        index = json.loads(path.read_text())
        spec = index["provenance"].get("world")
        if spec is None:
            continue
        shards = [(int(s["samples"]), (path.parent / s["file"]).stat().st_mtime) for s in index["shards"]]
        spans = [(after[1] - before[1]) / after[0] for before, after in itertools.pairwise(sorted(shards, key=_date))]
        working = [span for span in spans if span <= 3 * float(np.quantile(spans, 0.75))]
        if working and sum(working) > 0:
            rates[spec["num_frames"], spec["size"]] = statistics.fmean(working)
        found.append((path.parent.name, spec, sum(n for n, _ in shards)))
    if not found:
        raise UserError(f"{folder} holds no encoded latents; give the folder with --latents.")
    return [
        LatentSet(name, spec, count, count * rate if (rate := rates.get((spec["num_frames"], spec["size"]))) else None)
        for name, spec, count in found
    ]


def thin(run: Run, rows: int = CURVE_ROWS) -> list[dict[str, Any]]:
    """The curve that is kept: at most ``rows`` means of training records, and every validation record, by step."""
    training, clock = run.training, run.clock()
    stretch = max(1, -(-len(training) // rows))
    kept: list[dict[str, Any]] = []
    start = 0
    while start < len(training):
        end = start + 1
        stage = run.stage_of(int(training[start]["step"]))
        while end < len(training) and end - start < stretch and run.stage_of(int(training[end]["step"])) == stage:
            end += 1
        part = training[start:end]
        means = {
            key: statistics.fmean(float(m[key]) for m in part if key in m)
            for key in dict.fromkeys(k for m in part for k in m)
            if key not in ("step", "time", "data_wait") and not isinstance(part[-1].get(key, 0), str)
        }
        last = part[-1]
        kept.append({"step": last["step"], "minutes": clock[end - 1] / 60, "stage": stage, **means})
        start = end
    for record in run.metrics:
        values = {k: v for k, v in record.items() if k.startswith("val/")}
        if values:
            minutes = float(np.interp(record["step"], [m["step"] for m in training], clock)) / 60
            if record is run.metrics[-1]:  # it closes the run, whose whole time it says
                minutes = sum(stage.seconds for stage in run.stage_times()) / 60
            kept.append({"step": record["step"], "minutes": minutes, **values})
    return sorted(kept, key=lambda row: (row["step"], "stage" not in row))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV with five significant digits; a row has only the columns that it measured."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def panels(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Panel title -> the columns drawn in it: each training metric with the validation metrics that share its name."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    training = [k for k in keys if k not in (*NOT_CURVES, "stage", "minutes") and not k.startswith("val/")]
    result: dict[str, list[str]] = {key: [key] for key in sorted(training, key=lambda k: k != "loss")}
    for key in keys:
        if not key.startswith("val/"):
            continue
        words = key.removeprefix("val/").split("_")
        home = next((t for t in training if t in words), "validation")
        if words[-1].startswith("t") and words[-1][1:].replace(".", "").isdigit():
            home = "validation, by noise level"
        result.setdefault(home, []).append(key)
    return result


def draw_curves(path: Path, title: str, rows: list[dict[str, Any]]) -> None:
    """One PNG of a run: a panel for each metric, dotted lines where a stage begins."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    drawn = panels(rows)
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * lines), layout="constrained")
    figure.suptitle(title, fontsize=10)
    starts: dict[str, int] = {}
    step = 0
    for row in rows:
        if row.get("stage") and row["stage"] not in starts:
            starts[row["stage"]] = step
        step = int(row["step"])
    for place, (name, keys) in enumerate(drawn.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        values: list[float] = []
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            values += y
            style = {"marker": ".", "linewidth": 1.2} if key.startswith("val/") else {"linewidth": 0.9, "color": "0.55"}
            label = f"held out: {key[4:]}" if key.startswith("val/") else "training"
            axes.plot(x, y, label=label, **style)
        for start in [s for s in starts.values() if s]:
            axes.axvline(start, color="0.7", linestyle=":", linewidth=0.8)
        if values and min(values) > 0 and max(values) > 6 * min(values):
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=7)
        axes.tick_params(labelsize=7, which="both")
        axes.grid(alpha=0.25, linewidth=0.5)
        if len(keys) > 1 or keys[0].startswith("val/"):
            axes.legend(fontsize=6)
    figure.savefig(path, dpi=85)
