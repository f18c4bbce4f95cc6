"""What every experiment shares: seeds and sizes, results kept per (arm, seed), and the page that is written from them.

An experiment is a module with ``run(study) -> Page``. What an arm measured at a seed is stored under a hash of its
settings, so that an experiment that was killed goes on where it stopped and changed settings are measured anew. The
rule that decides the verdict stands in the module and is applied to the numbers; no page is written by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from openhunyuan.base.files import write_atomic
from openhunyuan.train.config import Strict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORK = Path("runs/experiments")
PAGES = Path("docs/results/experiments")
ELSEWHERE = {"j-filters": "filters"}
"""Experiments whose page lies beside the folder of the others, and its name there."""
SEEDS = (0, 1, 2)
REPRODUCED, PARTLY, NOT = "reproduced", "partly reproduced", "not reproduced"


@dataclass
class Study:
    """One experiment as it is run here: where its files lie, its seeds, and whether it is only the smallest form."""

    letter: str
    name: str
    work: Path
    seeds: tuple[int, ...]
    quick: bool = False
    pages: Path = PAGES
    seconds: float = 0.0
    """CPU time of all results that were used, measured now or before."""
    revisions: set[str] = field(default_factory=set)
    """Revisions that these results were measured with."""

    @property
    def slug(self) -> str:
        """The name of its page, files and folder."""
        return f"{self.letter}-{self.name}"

    def place(self, arm: str, seed: int, settings: Strict | dict[str, Any]) -> Path:
        """The folder of an arm at a seed under these settings."""
        said = settings.model_dump(mode="json") if isinstance(settings, Strict) else settings
        key = hashlib.sha256(json.dumps([arm, seed, said], sort_keys=True).encode()).hexdigest()[:10]
        return self.work / self.slug / f"{arm.replace(' ', '-')}-{seed}-{key}"

    def measured(
        self, arm: str, seed: int, settings: Strict | dict[str, Any], make: Callable[..., dict[str, Any]], *given: Any
    ) -> dict[str, Any]:
        """What ``make(folder, *given)`` measures of an arm at a seed: JSON values, from disk if they are there."""
        folder = self.place(arm, seed, settings)
        held = folder / "result.json"
        if not held.exists():
            folder.mkdir(parents=True, exist_ok=True)
            started = time.process_time()
            values = make(folder, *given)
            record = {"values": values, "seconds": time.process_time() - started, "revision": revision()}
            write_atomic(held, json.dumps(record, indent=1).encode())
            print(f"{self.slug}: {arm}, seed {seed}: {record['seconds']:.0f} s", file=sys.stderr, flush=True)
        record = json.loads(held.read_text())
        self.seconds += record["seconds"]
        self.revisions.add(record["revision"])
        return record["values"]


def begin(letter: str, name: str, doc: str | None, argv: Sequence[str] | None = None) -> Study:
    """The study that a command line asks for."""
    parser = argparse.ArgumentParser(prog=command(letter, name), description=(doc or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds of training and noise")
    parser.add_argument("--quick", action="store_true", help="the smallest form, in seconds; its page stays in --work")
    parser.add_argument("--work", type=Path, default=WORK, help="latents, runs and results")
    parser.add_argument("--pages", type=Path, default=PAGES, help="where the page goes")
    args = parser.parse_args(argv)
    pages = args.work / "quick" if args.quick else args.pages
    return Study(letter, name, args.work, tuple(args.seeds), args.quick, pages)


def page_of(slug: str, pages: Path = PAGES) -> Path:
    """Where the page of an experiment lies."""
    return pages.parent / f"{ELSEWHERE[slug]}.md" if slug in ELSEWHERE else pages / f"{slug}.md"


def command(letter: str, name: str) -> str:
    return f"python -m experiments.{letter}_{name.replace('-', '_')}"


@dataclass(frozen=True)
class Page:
    """What an experiment found. ``rule``: what decides the verdict, ``scale``: what a run this small can show and what
    it cannot. ``rows`` are cells; the first row is the header."""

    title: str
    claim: str
    setup: Sequence[str]
    rule: str
    rows: Sequence[Sequence[str]]
    verdict: str
    found: Sequence[str]
    scale: str
    figure: Figure | None = None
    caption: str = ""


def write_page(study: Study, page: Page) -> Path:
    """Write the page and its picture; returns the page's path. Its command names what decides the numbers, not where
    files lay."""
    path = study.pages / f"{study.slug}.md" if study.quick else page_of(study.slug, study.pages)
    path.parent.mkdir(parents=True, exist_ok=True)
    smallest = " (the smallest form, whose numbers mean nothing)" if study.quick else ""
    seeds = ", ".join(map(str, study.seeds))
    said = command(study.letter, study.name)
    said += f" --seeds {' '.join(map(str, study.seeds))}" if study.seeds != SEEDS else ""
    said += " --quick" if study.quick else ""
    lines = [
        f"# {page.title}{smallest}",
        f"**Verdict: {page.verdict}.** Claim: {page.claim}",
        "## Found",
        bullets(page.found),
        table(page.rows),
    ]
    if page.figure is not None:
        page.figure.savefig(path.with_suffix(".png"), dpi=90)
        lines.append(f"![{page.caption}]({path.stem}.png)")
        lines.append(page.caption)
    lines += [
        "## What decides",
        page.rule,
        "## Setup",
        bullets([*page.setup, f"Seeds {seeds}; ± is the standard deviation over seeds."]),
        "## What this scale can and cannot show",
        page.scale,
        "## Command",
        f"```sh\n{said}\n```",
        f"Revision {', '.join(sorted(study.revisions))}; torch {torch.__version__}; measured on a shared "
        f"{os.cpu_count()}-core CPU ({processor()}), {torch.get_num_threads()} thread(s), "
        f"{study.seconds / 60:.1f} minutes of CPU time, encoding included where latents were new.",
    ]
    write_atomic(path, ("\n\n".join(lines) + "\n").encode())
    print(f"{path}: {page.verdict}")
    return path


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *body])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation, the mean alone for one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def all_below(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether each value lies below the other of its seed: a difference that no seed contradicts."""
    return all(value < other for value, other in zip(values, others, strict=True))


def judged(*parts: bool) -> str:
    """The verdict from the parts of a claim."""
    return REPRODUCED if all(parts) else PARTLY if any(parts) else NOT


def spoken(holds: bool) -> str:
    return "yes" if holds else "no"


def figure(columns: int, rows: int = 1) -> Figure:
    """A picture of so many panels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(4.6 * columns, 3.3 * rows), layout="constrained")


def finish(axes: Any, title: str, x: str, y: str, legend: bool = True) -> None:
    """Titles, labels and grid of a panel."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    if legend:
        axes.legend(fontsize=7)


def bars(axes: Any, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    """A bar a name: the mean, and a dot for every seed."""
    for place, seeds in enumerate(values):
        axes.bar(place, mean(seeds), color=f"C{place}", alpha=0.6)
        axes.plot([place] * len(seeds), seeds, "k.", markersize=4)
    axes.set_xticks(range(len(names)), names, fontsize=7)


def processor() -> str:
    """The processor's name as the kernel has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def revision() -> str:
    """The commit, marked where the code has changed since."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "src", "experiments"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
