"""``openhunyuan train``: run a named recipe, resuming where its directory stands."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from openhunyuan.base.device import pick_device
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, unknown
from openhunyuan.base.require import require
from openhunyuan.cli.parse import parse
from openhunyuan.cli.watch import watch
from openhunyuan.infer.output import check_folder
from openhunyuan.recipes.registry import RECIPES, Recipe
from openhunyuan.train.running import Running, run_with


class TrainOptions(Record):
    """Run a recipe. Every run is a directory: run.json, metrics.jsonl, tensorboard/, samples/, checkpoints/."""

    runs_dir: str = Field(
        "runs", description="Directory of the runs; a recipe finds what it needs in its siblings here."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one.")
    data: str | None = Field(
        None,
        description="For tiny-video: train the embedded model further on the latents of this folder "
        "(openhunyuan encode), instead of the recipe's own data.",
    )
    steps: int = Field(300, ge=1, description="With --data: training steps.")
    threads: int = Field(0, ge=0, description="CPU threads; 0 = as many as the machine has.")
    dry_run: bool = Field(
        False, description="Print parameters, operations, tokens, memory and time of the recipe, and start nothing."
    )
    price_per_gpu_hour: float | None = Field(
        None, gt=0, description="--dry-run: also the cost, at this price of an hour of one device."
    )
    processes: int = Field(
        1, ge=1, description="--dry-run: processes (devices) that share the work, as under torchrun."
    )
    replicas: int = Field(1, ge=1, description="--dry-run: groups of processes that each hold all weights (HSDP).")
    recompute: bool = Field(False, description="--dry-run: activations within blocks are computed again, not kept.")
    log: tuple[Literal["wandb"], ...] = Field(
        (), description="wandb: metrics also go to Weights & Biases (an extra), beside metrics.jsonl and TensorBoard."
    )
    watch: bool = Field(
        False,
        description="Show the processes of the recipe's run: last heartbeat, step times, who is slow or silent.",
    )
    report: bool = Field(False, description="Write report.html of the recipe's runs as they stand, and start nothing.")
    utilization: float = Field(
        0.25,
        gt=0,
        le=1,
        description="--dry-run: share of the measured matrix speed that training is taken to reach.",
    )


_DRY_RUN = ("price_per_gpu_hour", "processes", "replicas", "recompute")


def usage() -> str:
    """The recipes and their options."""
    lines = [f"  {name:<11}  {recipe.makes}" for name, recipe in RECIPES.items()]
    return "\n".join(
        ["usage: openhunyuan train RECIPE [OPTIONS]", "", "recipes, in the order they need each other:", *lines]
    )


def run(args: Sequence[str]) -> int:
    """Check what the recipe needs, then train."""
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        print("\nOptions of a recipe: openhunyuan train RECIPE --help")
        return 0
    name = args[0]
    if name not in RECIPES:
        raise UserError(unknown("recipe", name, RECIPES))
    options = parse(TrainOptions, args[1:], f"openhunyuan train {name}")
    recipe, runs_dir = RECIPES[name], Path(options.runs_dir)
    _only_in_a_dry_run(options)
    if options.dry_run:
        return _dry_run(recipe, options)
    if options.report:
        return _report(runs_dir / name)
    if options.watch:
        return watch(_runs_in(runs_dir / name))
    for package in options.log:
        require(package, package)
    with run_with(Running(log=("tensorboard", *options.log))):
        if options.data is not None:
            return _train_on_data(name, options, Path(options.data), runs_dir)
        return _train(name, options, runs_dir)


def _train(name: str, options: TrainOptions, runs_dir: Path) -> int:
    recipe = RECIPES[name]
    missing = [need for need in recipe.needs if not (runs_dir / need).is_dir()]
    if missing:
        raise UserError(
            f"Recipe {name} needs {' and '.join(missing)} in {runs_dir}; run `openhunyuan train {missing[0]}` first."
        )
    check_folder(runs_dir)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    print(importlib.import_module(recipe.module).train(runs_dir, device=pick_device(options.device)))
    return 0


def _only_in_a_dry_run(options: TrainOptions) -> None:
    given = [name for name in _DRY_RUN if getattr(options, name) != TrainOptions.model_fields[name].default]
    if given and not options.dry_run:
        raise UserError(
            f"--{given[0].replace('_', '-')} is for --dry-run; add that. A recipe trains in one process; how several "
            "share a run of your own is said by torchrun and a Layout (docs/guides/train.md)."
        )


def _runs_in(folder: Path) -> list[Path]:
    """A recipe's directory is a run, or holds several."""
    runs = [path.parent for path in sorted([*folder.glob("run.json"), *folder.glob("*/run.json")])]
    if not runs:
        raise UserError(f"There is no run in {folder}; train the recipe first, or give its --runs-dir.")
    return runs


def _train_on_data(name: str, options: TrainOptions, data: Path, runs_dir: Path) -> int:
    if name != "tiny-video":
        raise UserError(f"Only the recipe tiny-video takes --data; {name} makes its own.")
    check_folder(runs_dir)
    from openhunyuan.recipes import own_data

    own_data.check_latents(data)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    print(own_data.train(data, runs_dir, options.steps, pick_device(options.device)))
    return 0


def _report(folder: Path) -> int:
    """Write the pages of the runs in a recipe's directory."""
    from openhunyuan.train.report import write_report

    for run_dir in _runs_in(folder):
        print(write_report(run_dir))
    return 0


def _dry_run(recipe: Recipe, options: TrainOptions) -> int:
    """Count the recipe's runs; the device's speed is measured for a moment, nothing is written."""
    import torch

    from openhunyuan.base.device import measure_matmul
    from openhunyuan.parallel.apply import Layout
    from openhunyuan.train.estimate import estimate

    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    speed = 1e9 * options.utilization * measure_matmul(device, torch.float32)
    source = f"{options.utilization:.0%} of the fp32 matrix products just measured on {device}"
    layout = Layout(replicas=options.replicas, recompute=options.recompute)
    for workload in importlib.import_module(recipe.module).workloads():
        counted = estimate(workload, layout, options.processes)
        print("\n".join(counted.lines(speed, source, options.price_per_gpu_hour)))
    return 0
