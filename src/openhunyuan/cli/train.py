"""``openhunyuan train``: run a named recipe, resuming where its directory stands."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from openhunyuan.base.device import pick_device
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, unknown
from openhunyuan.base.require import require
from openhunyuan.cli.parse import parse
from openhunyuan.cli.watch import watch
from openhunyuan.infer.output import check_folder
from openhunyuan.recipes.registry import RECIPES, SCALES, SMALL_NETWORKS, STAGES, Scale
from openhunyuan.train.running import Running, run_with

if TYPE_CHECKING:
    from openhunyuan.parallel.apply import Layout
    from openhunyuan.recipes import run_stage
    from openhunyuan.train.estimate import Workload


class TrainOptions(Record):
    """Run a recipe. Every run is a directory: run.json, metrics.jsonl, tensorboard/, samples/, checkpoints/."""

    runs_dir: str = Field(
        "runs", description="Directory of the runs; a recipe finds what it needs in its siblings here."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one.")
    scale: Scale = Field("tiny", description="Stages: whose sizes are taken, the embedded model's or the report's.")
    from_: str | None = Field(
        None,
        alias="from",
        description="Stages: a run (name or directory) or a model (name or path) to start from; default: the run of "
        "the stage's parent in --runs-dir.",
    )
    data: str | None = Field(
        None,
        description="Folder that is trained on: encoded latents (openhunyuan encode), for the VAE curated clips. "
        "Default: the synthetic world. Of the embedded model's recipes only tiny-video takes one.",
    )
    name: str | None = Field(None, description="Stages: the run's directory in --runs-dir; default: the stage's name.")
    steps: int | None = Field(
        None, ge=1, description="Training steps; default: the stage's own, and 300 for tiny-video with --data."
    )
    lr_scale: float | None = Field(
        None,
        gt=0,
        description="Stages: factor of the learning rates of what the stage makes (a discriminator keeps its own). "
        "They are for young weights; finished ones need smaller ones.",
    )
    global_batch: int | None = Field(
        None, ge=1, description="Stages on latents: samples of a step, over all processes; default: the stage's own."
    )
    text_model: str | None = Field(
        None, description="flow-image-256: model whose text encoders captions go through; default at tiny: tiny."
    )
    clips: int = Field(
        256, ge=1, description="Stages at tiny scale without --data: scenes of the world in each bucket."
    )
    perceptual: str | None = Field(
        None,
        description="Stages of the VAE: lpips:VGG16_FILE,LINEAR_FILE, clip:FOLDER, or none; default at tiny: none.",
    )
    camera_prob: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Stages at tiny scale without --data: share of the scenes whose camera moves; default: 0.15.",
    )
    decoder_only: bool = Field(
        False,
        description="Stages of the VAE: the encoder stays, so that latents and transformers made with it stay valid.",
    )
    image_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Stages on latents, from weights that read a first frame: share of steps that give one; default: "
        "as the run before had it, 0.5 for a model.",
    )
    stored_texts: bool = Field(
        False, description="Stages on latents: train on the texts as encoded, not on texts assembled in every epoch."
    )
    sample_latents: bool = Field(
        False,
        description="With --data: latents are drawn anew in every epoch from the distribution that the VAE gave, "
        "instead of its mean.",
    )
    uniform: bool = Field(
        False,
        description="With --data: all clips come equally often, not by the weights that curation gave their concepts.",
    )
    memory: float | None = Field(
        None,
        gt=0,
        description="Stages on latents: GB of its device that a process may use; the largest micro-batch of every "
        "bucket that fits is found by trying, and kept in --runs-dir. Default: those of the scale.",
    )
    tensor: int = Field(
        1, ge=1, description="Stages on latents, torchrun: processes that split heads and channels of the same samples."
    )
    ulysses: int = Field(
        1,
        ge=1,
        description="Stages on latents, torchrun: processes that share a video's tokens and deal its heads out.",
    )
    ring: int = Field(
        1, ge=1, description="Stages on latents, torchrun: such groups that pass a video's keys and values round."
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0 = as many as the machine has.")
    dry_run: bool = Field(
        False, description="Print parameters, operations, tokens, memory and time of the recipe, and start nothing."
    )
    price_per_gpu_hour: float | None = Field(
        None, gt=0, description="--dry-run: also the cost, at this price of an hour of one device."
    )
    processes: int = Field(
        1,
        ge=1,
        description="--dry-run: processes (devices) that share the work, as under torchrun. With --memory: find the "
        "micro-batches of a run of so many, in this one, and start nothing.",
    )
    replicas: int = Field(
        1, ge=1, description="Stages on latents, --dry-run: groups of processes that each hold all weights (HSDP)."
    )
    recompute: bool = Field(
        False, description="Stages on latents, --dry-run: activations within blocks are computed again, not kept."
    )
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
        description="--dry-run: share of the matrix speed that training is taken to reach.",
    )
    tflops: float | None = Field(
        None, gt=0, description="--dry-run: matrix speed of all devices together; default: measured on this one."
    )


_MADE = {**RECIPES, **SMALL_NETWORKS}

LAYOUT = ("tensor", "ulysses", "ring")
STAGE_OPTIONS = (
    "scale", "from_", "name", "lr_scale", "global_batch", "text_model", "clips", "perceptual", "camera_prob",
    "decoder_only", "image_share", "stored_texts", "memory", *LAYOUT,
)  # fmt: skip
"""What the embedded model's recipes do not take."""


_DRY_RUN = ("price_per_gpu_hour", "processes", "replicas", "recompute")


def usage() -> str:
    """The recipes and their options."""
    lines = ["usage: openhunyuan train RECIPE [OPTIONS]", "", "the report's stages, in order; each starts from a run:"]
    for name, stage in STAGES.items():
        start = f"from {stage.parent}" if stage.parent else "from nothing"
        lines += [f"  {name:<22}  {stage.makes}", f"  {'':<22}  {start}; reads {stage.reads}"]
    lines += ["", "at three scales (--scale):"]
    lines += [f"  {name:<22}  {what}" for name, what in SCALES.items()]
    lines += ["", "the embedded model's recipes, in the order they need each other:"]
    for name, recipe in RECIPES.items():
        needs = f"; needs {', '.join(recipe.needs)}" if recipe.needs else ""
        lines.append(f"  {name:<22}  {recipe.makes}{needs}")
    lines += ["", "the small networks of curation:"]
    lines += [f"  {name:<22}  {recipe.makes}" for name, recipe in SMALL_NETWORKS.items()]
    return "\n".join(lines)


def run(args: Sequence[str]) -> int:
    """Check what the recipe needs, then train."""
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        print("\nOptions of a recipe: openhunyuan train RECIPE --help")
        return 0
    name = args[0]
    if name not in _MADE and name not in STAGES:
        raise UserError(unknown("recipe", name, [*_MADE, *STAGES]))
    options = parse(TrainOptions, args[1:], f"openhunyuan train {name}")
    runs_dir = Path(options.runs_dir)
    _only_in_a_dry_run(name, options)
    if name in STAGES:
        _check_stage_options(options)
    else:
        _refuse_stage_options(name, options)
    folder = runs_dir / (options.name or name)
    if options.dry_run:
        return _dry_run(lambda: _workloads(name, options), options)
    if options.report:
        return _report(folder)
    if options.watch:
        return watch(_runs_in(folder))
    for package in options.log:
        require(package, package)
    if options.sample_latents and options.data is None:
        raise UserError("--sample-latents needs encoded latents, which hold their distribution; give them with --data.")
    if options.uniform and options.data is None:
        raise UserError("--uniform is for clips of curation, whose concepts have weights; give them with --data.")
    with run_with(Running(log=("tensorboard", *options.log))):
        if name in STAGES:
            return _stage(name, options, runs_dir)
        if options.data is not None:
            return _train_on_data(name, options, Path(options.data), runs_dir)
        return _train(name, options, runs_dir)


def _train(name: str, options: TrainOptions, runs_dir: Path) -> int:
    recipe = _MADE[name]
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


def _only_in_a_dry_run(name: str, options: TrainOptions) -> None:
    also = ("replicas", "recompute", *(["processes"] if options.memory else []))
    only = [option for option in _DRY_RUN if name not in STAGES or option not in also]
    given = [option for option in only if getattr(options, option) != TrainOptions.model_fields[option].default]
    if given and not options.dry_run:
        raise UserError(
            f"--{given[0].replace('_', '-')} is for --dry-run; add that. How many processes share a run is said by "
            "torchrun (docs/guides/train.md)."
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
    import torch

    from openhunyuan.recipes import own_data

    if options.threads:
        torch.set_num_threads(options.threads)
    steps, device = options.steps or 300, pick_device(options.device)
    print(own_data.train(data, runs_dir, steps, device, sample_latents=options.sample_latents, uniform=options.uniform))
    return 0


def _refuse_stage_options(name: str, options: TrainOptions) -> None:
    given = [field for field in STAGE_OPTIONS if getattr(options, field) != TrainOptions.model_fields[field].default]
    if given:
        option = given[0].strip("_").replace("_", "-")
        whose = "of the embedded model" if name in RECIPES else "of curation"
        raise UserError(f"{name} is a recipe {whose} and takes no --{option}; the stages do.")


def _check_stage_options(options: TrainOptions) -> None:
    if options.name is not None and (not options.name or Path(options.name).name != options.name):
        raise UserError(f"--name is '{options.name}', but it must be the name of a directory, without a path.")
    if options.data and options.camera_prob is not None:
        raise UserError("--camera-prob is for the synthetic world; the clips of --data are as they are: leave it out.")
    if options.data and not Path(options.data).is_dir():
        raise UserError(f"The folder {options.data} of --data does not exist.")


def _stage(name: str, options: TrainOptions, runs_dir: Path) -> int:
    """Run a stage of the report."""
    check_folder(runs_dir)
    import torch

    from openhunyuan.recipes import run_stage

    if options.threads:
        torch.set_num_threads(options.threads)
    print(run_stage.train(name, runs_dir, _chosen(options)))
    return 0


def _chosen(options: TrainOptions) -> run_stage.Options:
    from openhunyuan.recipes import run_stage

    return run_stage.Options(
        source=options.from_,
        data=Path(options.data) if options.data else None,
        device=pick_device(options.device),
        layout=_layout(options),
        scale=options.scale,
        text_model=options.text_model,
        steps=options.steps,
        clips=options.clips,
        perceptual=options.perceptual,
        stored_texts=options.stored_texts,
        sample_latents=options.sample_latents,
        uniform=options.uniform,
        name=options.name,
        memory=options.memory,
        decoder_only=options.decoder_only,
        camera_prob=options.camera_prob,
        image_share=options.image_share,
        lr_scale=options.lr_scale,
        global_batch=options.global_batch,
        processes=options.processes,
    )


def _layout(options: TrainOptions) -> Layout:
    from openhunyuan.parallel.apply import Layout

    return Layout(**{name: getattr(options, name) for name in ("replicas", "recompute", *LAYOUT)})


def _workloads(name: str, options: TrainOptions) -> list[Workload]:
    """The runs of a recipe or a stage, to be counted."""
    if name in STAGES:
        from openhunyuan.recipes.stage_costs import workloads

        return workloads(name, _chosen(options))
    return importlib.import_module(_MADE[name].module).workloads()


def _report(folder: Path) -> int:
    """Write the pages of the runs in a recipe's directory."""
    from openhunyuan.train.report import write_report

    for run_dir in _runs_in(folder):
        print(write_report(run_dir))
    return 0


def _dry_run(workloads: Callable[[], list[Workload]], options: TrainOptions) -> int:
    """Count the recipe's runs; the device's speed is measured for a moment, nothing is written."""
    import torch

    from openhunyuan.base.device import measure_matmul
    from openhunyuan.train.estimate import estimate

    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    if options.tflops:
        speed = 1e12 * options.utilization * options.tflops / options.processes
        source = f"{options.utilization:.0%} of {options.tflops:g} TFLOP/s"
    else:
        speed = 1e9 * options.utilization * measure_matmul(device, torch.float32)
        source = f"{options.utilization:.0%} of the fp32 matrix products just measured on {device}"
    layout = _layout(options)
    for workload in workloads():
        counted = estimate(workload, layout, options.processes)
        print("\n".join(counted.lines(speed, source, options.price_per_gpu_hour)))
    return 0
