"""The tables of the results page: reports and runs in, Markdown lines out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from openhunyuan.evals.reconstruction import ReconstructionReport
from openhunyuan.evals.report import ATTRIBUTES, AttributeReport, Count, Report
from openhunyuan.models.zoo import COMPONENTS, component_bytes, component_parameters
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, COLORS
from tools.training_runs import LatentSet, Run

TARGET, CAMERA_TARGET, PSNR_TARGET, SIZE_TARGET = 0.95, 0.90, 30.0, 20_000_000
COUNTS = ("prompts", "right", "rejected", "accuracy")
RECIPE = (
    "run",
    "stage",
    "batch × frames×height×width (share)",
    "steps",
    "optimizer",
    "peak rate",
    "schedule",
    "EMA",
    "seed",
)
DATA = ("set", "samples", "frames×height×width", "split", "camera moves", "other wordings", "seed")
COLOURS = ("role", "colour", "clips", "mean RGB", "mean distance", "worst distance", "recovered")
Cells = Sequence[object]


def table(header: Sequence[str], rows: Iterable[Cells], left: int = 1) -> list[str]:
    """A Markdown table; the first ``left`` columns are left-aligned, the numbers after them right."""
    marks = ["---" if i < left else "---:" for i in range(len(header))]
    return [f"| {' | '.join(str(c) for c in row)} |" for row in (header, marks, *rows)] + [""]


def spoken(name: str) -> str:
    """background_color -> background color."""
    return name.replace("_", " ")


def duration(seconds: float) -> str:
    """12 s, 7 min 30 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def wilson(count: Count) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927), 0..1; everything is possible when nothing was counted."""
    n, p, z = count.total, count.accuracy, 1.96
    if not n:
        return 0.0, 1.0
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def model_files(folder: Path) -> list[Path]:
    """Every file of a model folder."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


# ------------------------------------------------------------------------------------------------ targets


def verdicts(report: Report, recon: ReconstructionReport, folder: Path) -> list[tuple[str, str, str, bool]]:
    """(what, target, measured, reached) for every target."""

    def share(what: str, target: str, count: Count, least: float) -> tuple[str, str, str, bool]:
        low, high = wilson(count)
        got = f"{count.accuracy:.3f} ({count.right} of {count.total}; 95 % interval {low:.3f}–{high:.3f})"
        return what, target, got, count.accuracy >= least

    rows = [
        share(f"{name}, {report.split} prompts", f"≥ {TARGET:.2f}", report.attributes[name].overall, TARGET)
        for name in ATTRIBUTES
    ]
    if report.camera:
        what = "camera move, prompts that name one"
        rows.append(share(what, f"aim ≥ {CAMERA_TARGET:.2f}", report.camera.overall, CAMERA_TARGET))
    psnr = f"{recon.psnr_mean:.2f} dB (worst clip {recon.psnr_min:.2f})"
    rows.append(("VAE, mean PSNR on held-out videos", f"≥ {PSNR_TARGET:.0f} dB", psnr, recon.psnr_mean >= PSNR_TARGET))
    whole = sum(c.recovered == 1 for c in recon.colors)
    wanted = len(COLORS) + len(BACKGROUND_COLORS)
    rows.append(("VAE, palette colours recovered in every clip", f"{wanted}", f"{whole}", whole == wanted))
    size = sum(path.stat().st_size for path in model_files(folder))
    rows.append(("files of the model", f"≤ {SIZE_TARGET / 1e6:.0f} MB", f"{size / 1e6:.2f} MB", size <= SIZE_TARGET))
    return rows


def shortfalls(report: Report, recon: ReconstructionReport, folder: Path) -> list[str]:
    """One line for everything below its target, value by value."""
    lines = [
        f"- **{what}**: {got}, target {target}." for what, target, got, ok in verdicts(report, recon, folder) if not ok
    ]

    def below(label: str, counted: AttributeReport, target: float) -> None:
        for value, count in counted.values.items():
            if count.accuracy < target:
                wrong = [(k.split(" -> "), n) for k, n in counted.confusions.items()]
                seen = ", ".join(f"{pair[1]} {n}×" for pair, n in wrong if pair[0] == value)
                numbers = f"{count.accuracy:.3f} ({count.right} of {count.total})"
                lines.append(f"- {label} *{value}*: {numbers}; seen as {seen}.")

    for name, counted in report.attributes.items():
        below(spoken(name), counted, TARGET)
    if report.camera:
        below("camera", report.camera, CAMERA_TARGET)
    for name, counted in report.camera_attributes.items():
        count = counted.overall
        if count.total and count.accuracy < TARGET:
            numbers = f"{count.accuracy:.3f} ({count.right} of {count.total})"
            lines.append(f"- {name} in prompts that name a camera move: {numbers}.")
    for c in recon.colors:
        if c.recovered < 1:
            distances = f"mean Lab distance {c.mean_distance:.1f}, worst {c.worst_distance:.1f}"
            lines.append(
                f"- VAE, {c.role} *{c.color}*: recovered in {c.recovered:.3f} of {c.clips} clips ({distances})."
            )
    seen = {(c.role, c.color) for c in recon.colors}
    for role, palette in (("subject", COLORS), ("background", BACKGROUND_COLORS)):
        lines += [f"- VAE, {role} *{n}*: in no clip of the report." for n in palette if (role, n) not in seen]
    return lines


# ------------------------------------------------------------------------------------------------ evaluations


def count_rows(counted: AttributeReport) -> list[Cells]:
    """One row for each value, and the sum."""
    rows: list[Cells] = [(v, c.total, c.right, c.rejected, f"{c.accuracy:.3f}") for v, c in counted.values.items()]
    c = counted.overall
    return [*rows, ("**all**", c.total, c.right, c.rejected, f"**{c.accuracy:.3f}**")]


def alignment_tables(report: Report) -> list[str]:
    """A table for each attribute, and how many videos have all four right."""
    lines: list[str] = []
    for name, counted in report.attributes.items():
        body = table((spoken(name), *COUNTS), count_rows(counted))
        if name == "background":  # thirty combinations of colour and material: to look up, not to read through
            body = ["<details><summary>background, every combination</summary>", "", *body, "</details>", ""]
        lines += body
    named = ", ".join(ATTRIBUTES)
    return [*lines, f"Of {report.num_prompts} videos, {report.all_correct:.3f} have all of {named} right.", ""]


def camera_tables(report: Report) -> list[str]:
    """Every move, and the other attributes of the same videos."""
    if not report.camera:
        return ["No prompt that names a camera move was evaluated.", ""]
    others: list[Cells] = [
        (name, c.overall.total, c.overall.right, c.overall.rejected, f"{c.overall.accuracy:.3f}")
        for name, c in report.camera_attributes.items()
    ]
    moves = table(("camera move", *COUNTS), count_rows(report.camera))
    return [*moves, "The other attributes in the same videos:", "", *table(("attribute", *COUNTS), others)]


def vae_tables(recon: ReconstructionReport) -> list[str]:
    """Quality, every palette colour, and the attributes measured on reconstructions."""
    quality = [
        ("PSNR, mean over clips", f"{recon.psnr_mean:.2f} dB"),
        ("PSNR, worst clip", f"{recon.psnr_min:.2f} dB"),
        ("PSNR of the mean squared error", f"{recon.psnr_of_mean_error:.2f} dB"),
        ("SSIM, mean over clips", f"{recon.ssim_mean:.4f}"),
        ("SSIM, worst clip", f"{recon.ssim_min:.4f}"),
    ]
    colours: list[Cells] = []
    for c in recon.colors:
        rgb = " ".join(f"{v:.0f}" for v in c.mean_rgb)
        distances = (f"{c.mean_distance:.1f}", f"{c.worst_distance:.1f}")
        colours.append((c.role, c.color, c.clips, rgb, *distances, f"{c.recovered:.3f}"))
    ceiling = [(n, r.overall.total, r.overall.right, f"{r.overall.accuracy:.3f}") for n, r in recon.attributes.items()]
    size = f"{recon.num_frames}×{recon.height}×{recon.width}"
    return [
        f"{recon.num_videos} held-out videos of {size}, seed {recon.seed}.",
        "",
        *table(("quality", "value"), quality),
        "*Recovered*: share of clips in which the colour, averaged inside the object after the round trip, still gets",
        "its own name from the measure, which has a reject class. Distances are CIE76 in Lab.",
        "",
        *table(COLOURS, colours, left=2),
        "Attributes measured on the reconstructions: the ceiling for a generator that decodes with this VAE.",
        "",
        *table(("attribute", "clips", "right", "accuracy"), ceiling),
    ]


def text_table(report: dict[str, Any]) -> list[str]:
    """The numbers of the text recipe's own report, as they are in its file."""
    rows: list[Cells] = []
    for key, group in report.items():
        inner = group if isinstance(group, dict) else {"": group}
        rows += [(spoken(key), spoken(name), f"{v:.4g}") for name, v in inner.items() if isinstance(v, int | float)]
    return table(("measure", "of", "value"), rows, left=2)


# ------------------------------------------------------------------------------------------------ training and model


def batch_of(stage: dict[str, Any]) -> str:
    """batch × frames × height × width of each shape of a stage, with its share of the steps; text has no size."""
    shapes = stage.get("shapes") or [stage]  # records from before stages had several shapes hold one in the stage
    if stage["name"] == "text":
        return str(shapes[0]["batch_size"])
    sizes = [f"{s['batch_size']} × {s['num_frames']}×{s['height']}×{s['width']}" for s in shapes]
    return (
        ", ".join(f"{size} ({s['share']})" for size, s in zip(sizes, shapes, strict=True))
        if len(sizes) > 1
        else sizes[0]
    )


def recipe_table(runs: Sequence[Run]) -> list[str]:
    """Every stage of every run, from its run.json."""
    rows: list[Cells] = []
    for run in runs:
        train = run.record["train"]
        optimizer = train["optimizer"]
        for stage in train["stages"]:
            scale = stage.get("lr_scale", 1)
            rate = f"{optimizer['lr'] * scale:g}"
            if optimizer["name"] == "muon":
                rate += f", hidden matrices {optimizer['muon_lr'] * scale:g}"
            how = (optimizer["name"], rate, optimizer["schedule"], train["ema_decay"] or "–", train["seed"])
            rows.append((run.name, stage["name"], batch_of(stage), stage["steps"], *how))
    return table(RECIPE, rows, left=3)


def data_table(latents: Sequence[LatentSet]) -> list[str]:
    """The encoded sets that the transformer trained on."""
    rows: list[Cells] = []
    for held in latents:
        spec = held.spec
        size = f"{spec['num_frames']}×{spec['size']}×{spec['size']}"
        shares = (spec["camera_prob"], spec["paraphrase_prob"])
        rows.append((held.name, held.samples, size, spec["split"], *shares, spec["seed"]))
    return table(DATA, rows)


def time_tables(runs: Sequence[Run], latents: Sequence[LatentSet]) -> list[str]:
    """Wall time of every stage and set, and their sum."""
    rows: list[Cells] = []
    total = 0.0
    for run in runs:
        short = f", ended at step {run.steps} of {run.planned}" if run.steps < run.planned else ""
        for stage in run.stage_times():
            each = f"{stage.seconds / max(stage.steps, 1):.2f} s"
            rows.append((run.recipe, f"{run.name}: {stage.name}{short}", stage.steps, duration(stage.seconds), each))
            total += stage.seconds
    for held in latents:
        time = duration(held.seconds) if held.seconds is not None else "not known"
        each = f"{held.seconds / held.samples:.3f} s" if held.seconds is not None else ""
        rows.append(("encoding", f"latents: {held.name}", held.samples, time, each))
        total += held.seconds or 0
    rows.append(("**all**", "**`make reproduce-embedded`**", "", f"**{duration(total)}**", ""))
    return [
        *table(("recipe", "part", "steps or samples", "wall time", "each"), rows, left=2),
        "From the timestamps in `metrics.jsonl`, with validation and the samples rendered during the run. Pauses of",
        "runs that were stopped and resumed do not count. Encoding is timed by the dates of its files.",
        "Starting up, training tokenizers and fitting the VAE's start are not in the sum.",
        "",
    ]


def model_tables(folder: Path) -> list[str]:
    """Parameters and bytes of each part, and every file."""
    sizes, parameters = component_bytes(folder), component_parameters(folder)
    rows: list[Cells] = [(f"`{name}`", f"{parameters[name]:,}", f"{sizes[name]:,}") for name in COMPONENTS]
    files = [(f"`{p.relative_to(folder).as_posix()}`", p.stat().st_size) for p in model_files(folder)]
    rows.append(("**all files**", f"**{sum(parameters.values()):,}**", f"**{sum(size for _, size in files):,}**"))
    listed = table(("file", "bytes"), [(name, f"{size:,}") for name, size in files])
    each = ["<details><summary>every file</summary>", "", *listed, "</details>", ""]
    return [*table(("part", "parameters", "bytes"), rows), *each]
