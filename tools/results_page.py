"""The results page of the embedded model, written from what its runs and evaluations left on disk.

    python -m tools.results_page --runs-dir runs --alignment report.json --reconstruction recon.json --model DIR

fills ``tools/results_page.md`` to ``docs/results/embedded-model.md`` and writes, in a folder beside it, learning curves
(CSV and PNG), the configuration of every run, and frames. Every number on the page is read from a file or counted here;
the targets alone are constants. A missing, unfinished or foreign input is an error: a page with a hole would look like
a result. Where only some recipes ran again, ``--kept docs/results/embedded-model`` takes the curves of the others, the
encoded sets and the report of the text models from the page before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from openhunyuan.base.errors import UserError
from openhunyuan.evals.reconstruction import ReconstructionReport
from openhunyuan.evals.report import Report, Sample
from openhunyuan.evals.run import model_fingerprint
from openhunyuan.evals.sheet import Row, write_sheet
from openhunyuan.models.zoo import ModelSpec, check_model
from openhunyuan.recipes.registry import RECIPES
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, COLORS
from openhunyuan.tiny.world import heldout_scenes, render
from tools.results_tables import (
    CAMERA_TARGET,
    TARGET,
    alignment_tables,
    camera_tables,
    data_table,
    model_tables,
    recipe_table,
    shortfalls,
    spoken,
    table,
    text_table,
    time_tables,
    vae_tables,
    verdicts,
)
from tools.training_runs import (
    LatentSet,
    Run,
    draw_curves,
    join_runs,
    read_kept,
    read_latents,
    read_record,
    read_runs,
    thin,
    write_csv,
)

Frames = NDArray[np.uint8]
RoundTrip = Callable[[Frames], Frames]
Kind = TypeVar("Kind", bound=BaseModel)

PAGE = Path("docs/results/embedded-model.md")
DESIGN = Path("docs/design/embedded-model.md")
TEMPLATE = Path(__file__).with_suffix(".md")


# ------------------------------------------------------------------------------------------------ reports and model


def _file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing; it should hold {what}.")
    return path


def read_report(path: Path, kind: type[Kind], command: str) -> Kind:
    """A report of ``openhunyuan evaluate``; UserError names the command that writes it."""
    try:
        return kind.model_validate_json(_file(path, f"the report that `{command} --json {path}` writes").read_text())
    except ValidationError as error:
        raise UserError(
            f"{path} is not a report of `{command}`: {error.errors()[0]['msg']}; write it again."
        ) from error


def vae_round_trip(folder: Path) -> RoundTrip:
    """uint8 [T, H, W, 3] -> the same clip after the model's VAE (posterior mode), on the CPU in float32."""
    import torch

    from openhunyuan.models.load import load_vae

    vae = load_vae(folder / "vae")

    @torch.inference_mode()
    def round_trip(frames: Frames) -> Frames:
        x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        y = vae.decode(vae.encode(x).mode())[0]
        return ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()

    return round_trip


def colour_sheets(folder: Path, round_trip: RoundTrip, size: tuple[int, int, int], seed: int) -> dict[str, Path]:
    """Rendered above reconstructed, one pair for each palette colour: role -> picture."""
    scenes = heldout_scenes(96, seed)
    pictures: dict[str, Path] = {}
    for role, field, palette in (("subject", "color", COLORS), ("background", "background_color", BACKGROUND_COLORS)):
        rows: list[Row] = []
        for colour in palette:
            scene = next((s for s in scenes if getattr(s, field) == colour), replace(scenes[0], **{field: colour}))
            clip = render(scene, *size)
            rows += [
                Row(clip, f"{colour}, rendered: {scene.prompt}"),
                Row(round_trip(clip), f"{colour}, after the VAE"),
            ]
        pictures[role] = folder / f"vae-{role}-colours.png"
        write_sheet(pictures[role], rows, f"Every {role} colour, rendered and after the VAE", columns=6)
    return pictures


def sample_sheets(folder: Path, report: Report, videos: Path) -> dict[str, Path]:
    """Frames of the first prompt of each value, right or wrong: attribute -> picture; and the first failures."""
    pictures: dict[str, Path] = {}
    for name in ("color", "shape", "motion", "background_color", "material", "camera"):
        samples = report.camera_samples if name == "camera" else report.samples
        counted = report.camera if name == "camera" else report.attributes.get(name)
        if counted is None or not samples:
            continue
        rows = [
            sample_row(next(s for s in samples if s.asked.get(name) == value), videos, name)
            for value in counted.values
            if any(s.asked.get(name) == value for s in samples)
        ]
        pictures[name] = folder / f"samples-{name.replace('_', '-')}.png"
        write_sheet(pictures[name], rows, f"The first prompt of each {spoken(name)}", columns=6)
    failed = [s for s in [*report.samples, *report.camera_samples] if not all(s.correct.values())][:12]
    if failed:
        pictures["failures"] = folder / "failures.png"
        write_sheet(pictures["failures"], [sample_row(s, videos) for s in failed], "The first failures", columns=6)
    return pictures


def sample_row(sample: Sample, videos: Path, attribute: str | None = None) -> Row:
    """Frames and caption of a generated video; the caption says what was measured wrong."""
    with np.load(videos / sample.video) as archive:
        frames = archive["frames"]
    wrong = [f"{k}: {sample.seen.get(k) or 'rejected'}" for k, ok in sample.correct.items() if not ok]
    if attribute and attribute not in sample.correct and sample.seen.get(attribute) != sample.asked.get(attribute):
        wrong.append(f"{attribute}: {sample.seen.get(attribute) or 'rejected'}")
    return Row(frames, f"{sample.prompt}  [{', '.join(wrong)}]" if wrong else sample.prompt)


def picture(page: Path, path: Path, text: str) -> list[str]:
    return [f"![{text}]({path.relative_to(page.parent).as_posix()})", ""]


# ------------------------------------------------------------------------------------------------ the page


def commands(report: Report, recon: ReconstructionReport, spec: ModelSpec, arguments: Sequence[str]) -> list[str]:
    """The commands, with every option that differs from its default."""
    measured = [
        f"--split {report.split}",
        f"--num-prompts {report.num_prompts}",
        f"--camera-prompts {len(report.camera_samples)}",
        f"--seed {report.seed}",
    ]
    defaults = spec.defaults.model_dump()
    for name in ("num_inference_steps", "true_cfg_scale", "flow_shift", "num_frames"):
        if name in report.settings and report.settings[name] != defaults[name]:
            measured.append(f"--{name.replace('_', '-')} {report.settings[name]}")
    model = "" if report.model == "tiny" else f" --model {shown(report.model)}"
    other = "" if recon.model == "tiny" else f" --model {shown(recon.model)}"
    videos = f"--num-videos {recon.num_videos} --seed {recon.seed}"
    return [
        "```sh",
        "make reproduce-embedded   # " + ", ".join(RECIPES),
        f"openhunyuan evaluate alignment{model} {' '.join(measured)} --json report.json",
        f"openhunyuan evaluate reconstruction{other} {videos} --json recon.json",
        "python -m tools.results_page " + " ".join(shown(a) for a in arguments),
        "```",
        "",
    ]


def shown(argument: str) -> str:
    """A path of this machine without its folders; anything else as it is, quoted if it has spaces."""
    path = Path(argument)
    if path.is_absolute():
        argument = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return f'"{argument}"' if " " in argument else argument


def environment() -> list[tuple[str, str]]:
    """Machine, versions and revision, as found now."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    rows = [
        ("processor", cpu),
        ("cores", str(os.cpu_count())),
        ("accelerator", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("Python", platform.python_version()),
        ("PyTorch", torch.__version__),
        ("revision", revision()),
    ]
    if info.parent.joinpath("meminfo").is_file():
        kilobytes = int(info.parent.joinpath("meminfo").read_text().split("MemTotal:")[1].split()[0])
        rows.insert(2, ("memory", f"{kilobytes / 2**20:.0f} GiB"))
    return rows


def revision() -> str:
    """The commit, and whether tracked source files differ from it (the page itself does not count)."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--"]
        sources = ["src", "pyproject.toml", "constraints.txt"]
        changed = subprocess.run([*status, *sources], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError("The git revision cannot be read; run this in a checkout with git installed.") from error
    return f"`{commit}`" + (" with uncommitted changes in the source" if changed else "")


@dataclass(frozen=True)
class Inputs:
    """Everything the page is made of; see ``main`` for the options they come from."""

    runs_dir: Path
    latents: Path | None
    alignment: Path
    reconstruction: Path
    videos: Path | None
    model: str
    page: Path = PAGE
    notes: tuple[str, ...] = ()
    unfinished: bool = False
    kept: Path | None = None
    arguments: tuple[str, ...] = ()


def read_training(inputs: Inputs) -> tuple[list[Run], list[LatentSet], dict[str, Any]]:
    """Runs, encoded sets and the text models' report: from the runs' directories, and from the page before if kept."""
    runs = read_runs(inputs.runs_dir, inputs.unfinished or inputs.kept is not None)
    own = inputs.runs_dir / "tiny-latents"
    nothing_new = inputs.kept is not None and inputs.latents is None and not own.exists()
    latents = [] if nothing_new else read_latents(inputs.latents or own)
    path = inputs.runs_dir / "tiny-text" / "report.json"
    if inputs.kept is None:
        return runs, latents, json.loads(_file(path, "what `openhunyuan train tiny-text` writes").read_text())
    record = read_record(inputs.kept)
    names = {found.name for found in latents}
    latents += [LatentSet(**held) for held in record["latents"] if held["name"] not in names]
    text = json.loads(path.read_text()) if path.is_file() else record["text"]
    return join_runs(read_kept(inputs.kept), runs), sorted(latents, key=lambda held: held.name), text


def write_page(inputs: Inputs) -> Path:
    """Check every input, then write the page and its folder anew; returns the page."""
    runs, latents, text_report = read_training(inputs)
    report = read_report(inputs.alignment, Report, "openhunyuan evaluate alignment")
    recon = read_report(inputs.reconstruction, ReconstructionReport, "openhunyuan evaluate reconstruction")
    folder, spec = check_model(inputs.model)
    if report.fingerprint != model_fingerprint(inputs.model):
        raise UserError(
            f"{inputs.alignment} was measured on other weights than {inputs.model}; name its model, or evaluate again."
        )
    text = text_table(text_report)
    machine = environment()
    videos = videos_of(inputs, report)

    page = inputs.page
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    for old in [p for end in ("png", "csv", "json") for p in pictures.glob(f"*.{end}")]:
        old.unlink()
    record = {"runs": [run.name for run in runs], "latents": [asdict(held) for held in latents], "text": text_report}
    (pictures / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    samples = sample_sheets(pictures, report, videos)
    size = (spec.defaults.num_frames, spec.defaults.height, spec.defaults.width)
    colours = colour_sheets(pictures, vae_round_trip(folder), size, recon.seed)
    failures: list[str] = []
    if "failures" in samples:
        count = sum(not all(s.correct.values()) for s in [*report.samples, *report.camera_samples])
        shown_first = picture(page, samples.pop("failures"), "The first failures")
        failures = [f"In {count} videos something is wrong; the first of them:", "", *shown_first]
    verdict = [
        (what, target, got, "yes" if ok else "**no**") for what, target, got, ok in verdicts(report, recon, folder)
    ]
    sections: dict[str, Sequence[str]] = {
        "verdicts": table(("what", "target", "measured", "reached"), verdict, left=4),
        "notes": [line for note in inputs.notes for line in (note, "")],
        "shortfalls": shortfalls(report, recon, folder) or ["- nothing."],
        "commands": commands(report, recon, spec, inputs.arguments),
        "machine": table(("where this page was written", ""), machine, left=2),
        "times": time_tables(runs, latents),
        "alignment": alignment_tables(report),
        "camera": camera_tables(report),
        "samples": [
            *(line for n, path in samples.items() for line in picture(page, path, f"The first of each {spoken(n)}")),
            *failures,
        ],
        "vae": vae_tables(recon),
        "colours": [
            line
            for role, path in colours.items()
            for line in picture(page, path, f"Every {role} colour, rendered and after the VAE")
        ],
        "recipes": recipe_table(runs),
        "data": data_table(latents),
        "text": text,
        "files": model_tables(folder),
        "curves": curve_sections(page, pictures, runs),
    }
    words = {
        "settings": ", ".join(f"{k} {v}" for k, v in report.settings.items() if v not in ("", None)),
        "fingerprint": report.fingerprint,
        "target": f"{TARGET:.2f}",
        "camera_target": f"{CAMERA_TARGET:.2f}",
        "num_prompts": str(report.num_prompts),
        "split": report.split,
        "seed": str(report.seed),
        "design": os.path.relpath(DESIGN, page.parent),
    }
    filled = string.Template(TEMPLATE.read_text()).substitute(
        words, **{name: "\n".join(lines) for name, lines in sections.items()}
    )
    page.write_text("\n".join(line.rstrip() for line in filled.splitlines()) + "\n")
    return page


def curve_sections(page: Path, pictures: Path, runs: Sequence[Run]) -> list[str]:
    """Keep every run's curve and configuration beside the page; their part of it."""
    lines: list[str] = []
    for run in runs:
        rows = thin(run)
        write_csv(pictures / f"{run.name}.csv", rows)
        draw_curves(pictures / f"{run.name}.png", f"{run.name}: {run.steps} steps", rows)
        (pictures / f"{run.name}.json").write_text(json.dumps(run.record, indent=1) + "\n")
        files = [f"[{run.name}{end}]({pictures.name}/{run.name}{end})" for end in (".csv", ".json")]
        lines += [f"### {run.name}", "", f"Curve and configuration: {', '.join(files)}", ""]
        lines += picture(page, pictures / f"{run.name}.png", f"Learning curves of {run.name}")
    return lines


def videos_of(inputs: Inputs, report: Report) -> Path:
    """The folder that holds every video of the alignment report: as given, beside the report, or the default one."""
    default = Path("outputs") / f"alignment-{report.split}-{report.seed}"
    folders = [inputs.videos] if inputs.videos else [inputs.alignment.parent, default]
    samples = [*report.samples, *report.camera_samples]
    for folder in folders:
        if all((folder / sample.video).is_file() for sample in samples):
            return folder
    places = " or ".join(str(folder) for folder in folders)
    raise UserError(f"The videos of {inputs.alignment} are not all in {places}; give their folder with --videos.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: returns 0, or 2 after one sentence on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m tools.results_page", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--runs-dir", type=Path, default=Path("runs"), help="where the recipes ran")
    add(
        "--latents",
        type=Path,
        help="encoded latents; default: tiny-latents in the runs directory; with --kept there may be none",
    )
    add("--alignment", type=Path, required=True, help="JSON of `openhunyuan evaluate alignment`")
    add("--reconstruction", type=Path, required=True, help="JSON of `openhunyuan evaluate reconstruction`")
    add("--videos", type=Path, help="output folder of the alignment evaluation; default: found by itself")
    add("--model", default="tiny", help="the model that was evaluated: a name or a folder")
    add("--output", type=Path, default=PAGE, help="the page; its pictures go to the folder of the same name")
    add("--note", action="append", default=[], help="a paragraph under the first table; may be repeated")
    add("--kept", type=Path, help="folder of a page whose curves stand for the recipes that did not run again")
    add("--unfinished", action="store_true", help="take runs that stopped early or never started")
    options = parser.parse_args(arguments)
    inputs = Inputs(
        runs_dir=options.runs_dir,
        latents=options.latents,
        alignment=options.alignment,
        reconstruction=options.reconstruction,
        videos=options.videos,
        model=options.model,
        page=options.output,
        notes=tuple(options.note),
        unfinished=options.unfinished,
        kept=options.kept,
        arguments=tuple(arguments),
    )
    try:
        print(write_page(inputs))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
