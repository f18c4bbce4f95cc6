"""``openhunyuan curate``: raw footage in, filtered clips out; a report about them; a source forgotten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from openhunyuan.base.log import console
from openhunyuan.base.record import Record, unknown
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import step_bar
from openhunyuan.curate.models.choice import Choice, with_networks

if TYPE_CHECKING:
    from openhunyuan.curate.run import Curation

PROG = "openhunyuan curate"


class CurateOptions(Choice):
    """Split footage into shots, measure them, drop what a threshold refuses, cut the rest out.

    Started again it goes on where it stopped; with other thresholds it decides anew from the stored scores. The
    result: OUTPUT/manifest.jsonl (every clip, dropped ones with their reason), OUTPUT/store (the clips),
    OUTPUT/tables (the scores).

    openhunyuan curate report DATA makes a page about it; openhunyuan curate forget SOURCE --output DATA removes a
    source and all that was made from it.
    """

    raw: str = Field(description="A video file, or a folder of them.")
    output: str = Field("data", description="Folder of the result.")
    threshold: tuple[str, ...] = Field(
        (), description='Change or add a threshold, as "motion.speed>=1.5" or "clarity.edge_width<=2"; may be repeated.'
    )
    without: tuple[str, ...] = Field(
        (), description="Leave a filter out, by its name in the funnel; may be repeated. Scores are still measured."
    )
    min_seconds: float = Field(0.6, description="Shortest shot.")
    max_seconds: float = Field(20.0, description="Longer shots are cut into equal pieces no longer than this.")
    workers: int = Field(-1, ge=-1, description="Processes of one thread; -1 = as many as there are cores, 0 = none.")
    timeout: float = Field(3600.0, gt=0, description="Seconds for one video in one step; then it is quarantined.")
    retry: bool = Field(False, description="Try again what an earlier run quarantined.")


class ReportOptions(Record):
    """Write DATA/report.html: the funnel, scores with thresholds, strips of kept and dropped clips by reason."""

    data: str = Field(description="A folder that `openhunyuan curate` made.")
    strips: int = Field(12, ge=1, description="Clips shown for each reason.")


class ForgetOptions(Record):
    """Remove a source from a data folder: its scores, clips, captions and latents. Prints the receipt.

    The source file itself is not touched. Its hash stays in forgotten.jsonl, and later runs leave it out.
    """

    source: str = Field(description="Path, file name or SHA-256 of the source.")
    output: str = Field("data", description="The folder of the curation run.")


def run(args: Sequence[str]) -> int:
    """Curate, or one of the two smaller jobs."""
    if args and args[0] == "report":
        return _report(parse(ReportOptions, args[1:], f"{PROG} report", positional=("data",)))
    if args and args[0] == "forget":
        return _forget(parse(ForgetOptions, args[1:], f"{PROG} forget", positional=("source",)))
    return _curate(parse(CurateOptions, args, PROG, positional=("raw",)))


def _curate(options: CurateOptions) -> int:
    from openhunyuan.base.errors import UserError
    from openhunyuan.base.require import require
    from openhunyuan.curate.decide import with_threshold
    from openhunyuan.curate.run import curate, find_videos
    from openhunyuan.curate.split import Split
    from openhunyuan.infer.output import check_folder
    from openhunyuan.recipes.curate import PLAN

    lengths = {"min_seconds": options.min_seconds, "max_seconds": options.max_seconds}
    plan = with_networks(replace(PLAN, split=Split(**{**PLAN.split.model_dump(), **lengths})), options)
    filters = plan.filters
    for text in options.threshold:
        filters = with_threshold(filters, text, plan.measures)
    names = [*(f.name for f in filters), "duplicate"]
    for name in options.without:
        if name not in names:
            raise UserError(unknown("filter", name, names))
    plan = replace(
        plan,
        filters=tuple(f for f in filters if f.name not in options.without),
        duplicates=None if "duplicate" in options.without else plan.duplicates,
    )
    for module, package in (("cv2", "opencv-python-headless"), ("scenedetect", "scenedetect-headless")):
        require(module, extra="curate", package=package)
    require("pyarrow", extra="curate")
    find_videos(options.raw)
    check_folder(Path(options.output))
    workers = (os.cpu_count() or 1) if options.workers < 0 else options.workers
    with step_bar() as show:
        result = curate(options.raw, options.output, plan, workers, options.timeout, options.retry, on_progress=show)
    _table(result)
    print(Path(options.output) / "manifest.jsonl")
    return 0


def _table(result: Curation) -> None:
    from rich.table import Table

    table = Table("filter", "left", "dropped", box=None)
    for row in result.funnel:
        table.add_row(row.stage, str(row.kept), str(row.seen - row.kept or ""))
    out = console(stderr=True)
    out.print(table)
    for count, words in (
        (result.repeated, "repeat the bytes of another video"),
        (result.forgotten, "were to be forgotten and left out"),
        (len(result.failures), "could not be read or measured: see quarantine.jsonl"),
    ):
        if count:
            out.print(f"{count} {words}")


def _report(options: ReportOptions) -> int:
    from openhunyuan.curate.report import write_report

    print(write_report(options.data, options.strips))
    return 0


def _forget(options: ForgetOptions) -> int:
    import json
    from dataclasses import asdict

    from openhunyuan.curate.forget import clips_from, find_source, forget
    from openhunyuan.curate.run import read_clips
    from openhunyuan.latents.shards import remove_samples

    data = Path(options.output)
    read_clips(data)
    sha256 = find_source(data, options.source)
    clips = set(clips_from(data, sha256))
    latents = sum(
        remove_samples(index.parent, lambda about: about.get("clip") in clips) for index in data.glob("*/index.json")
    )
    print(json.dumps(asdict(forget(data, sha256, latents)), indent=2, ensure_ascii=False))
    return 0
