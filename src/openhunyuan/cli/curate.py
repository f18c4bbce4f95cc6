"""``openhunyuan curate``: raw footage in, filtered clips out; a report about them; a source forgotten."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from openhunyuan.base.log import console
from openhunyuan.base.record import Record, unknown
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import step_bar
from openhunyuan.curate.models.choice import Choice, with_networks

if TYPE_CHECKING:
    from openhunyuan.curate.decide import Filter
    from openhunyuan.curate.engine import Engine
    from openhunyuan.curate.run import Curation, Plan

PROG = "openhunyuan curate"


class CurateOptions(Choice):
    """Split footage into shots, measure them, drop what a threshold refuses, cut the rest out.

    Started again it goes on where it stopped; with other thresholds it decides anew from the stored scores. The
    result: OUTPUT/manifest.jsonl (every clip, dropped ones with their reason), OUTPUT/store (the clips),
    OUTPUT/tables (the scores).

    openhunyuan curate report DATA makes a page about it; openhunyuan curate review DATA serves one on which people
    choose; openhunyuan curate forget SOURCE --output DATA removes a source and all that was made from it;
    openhunyuan curate fit-niqe DATA makes the measure niqe compare with the best of your own clips.
    """

    raw: str = Field(description="A video file, or a folder of them.")
    output: str = Field("data", description="Folder of the result.")
    threshold: tuple[str, ...] = Field(
        (),
        description='Change or add a threshold, as "motion.speed>=1.5" or, for one set of the ladder, '
        '"540p:blur.width<=2"; may be repeated.',
    )
    without: tuple[str, ...] = Field(
        (), description="Leave a filter out, by its name in the funnel; may be repeated. Scores are still measured."
    )
    ladder: Literal["none", "absolute", "calibrated"] = Field(
        "none",
        description="Make the report's sets 256p, 360p, 540p and 720p, each a part of the one before: by thresholds "
        "that are given, or by thresholds found so that as much is kept as the report kept.",
    )
    allow_proxy: tuple[str, ...] = Field(
        (), description="Build 540p and 720p from these scores though they stand in for a model, as clarity,text."
    )
    images: Literal["none", "files", "frames", "both"] = Field(
        "none", description="Take image files, single frames of the videos, or both, as images."
    )
    concepts: int = Field(
        0,
        ge=0,
        description="Groups of clips that look alike, for weights against common looks; the report has about 10,000; "
        "0 = the square root of the number of clips.",
    )
    min_seconds: float = Field(0.6, description="Shortest shot.")
    max_seconds: float = Field(20.0, description="Longer shots are cut into equal pieces no longer than this.")
    engine: Literal["processes", "ray"] = Field(
        "processes", description="Where the work is done: processes of this machine, or Ray. The result is the same."
    )
    ray_address: str | None = Field(
        None,
        description='With --engine ray: a running cluster, as HOST:6379, or "auto" for the one of this machine; '
        "without it, a Ray of this run's own.",
    )
    workers: int = Field(
        -1,
        ge=-1,
        description="Sources in work at once, each in a process of one thread; -1 = as many as there are cores, "
        "0 = in this process.",
    )
    timeout: float = Field(
        3600.0, gt=0, description="Seconds for one video, or two minutes of it, in one step; then it is quarantined."
    )
    retry: bool = Field(False, description="Try again what an earlier run quarantined.")


class ReportOptions(Record):
    """Write DATA/report.html: the funnel, scores with thresholds, strips of kept and dropped clips by reason."""

    data: str = Field(description="A folder that `openhunyuan curate` made.")
    strips: int = Field(12, ge=1, description="Clips shown for each reason.")


class ReviewOptions(Record):
    """Serve a page on which people judge clips: four aesthetic and three motion views, by the keyboard.

    The page answers to this machine only (to reach it from another one: ssh -L 8765:localhost:8765 HOST). Answers are
    written to DATA/review/answers.jsonl as they come; started again, everyone goes on where they stopped. The clips
    that pass are the set sft: openhunyuan encode DATA --set sft.
    """

    data: str = Field(description="A folder that `openhunyuan curate` made.")
    set: str | None = Field(
        None, description="The set to judge, or kept; default: the one before, first the best that was built."
    )
    people: int | None = Field(None, description="People whose judgement a clip needs; default: as before, first 1.")
    overlap: float | None = Field(
        None, description="Share of the clips that everyone judges, to see who agrees; default: as before, first 0.1."
    )
    port: int = Field(8765, ge=0, le=65535, description="Port on the loopback address; 0 takes a free one.")


class ForgetOptions(Record):
    """Remove a source from a data folder: its scores, clips, captions and latents. Prints the receipt.

    The source file itself is not touched. Its hash stays in forgotten.jsonl, and later runs leave it out.
    """

    source: str = Field(description="Path, file name or SHA-256 of the source.")
    output: str = Field("data", description="The folder of the curation run.")


class FitNiqeOptions(Record):
    """Fit the Gaussian of good pictures to the clips of a set; later runs compare with it: --niqe-weights FILE.

    Of every frame looked at, the squares of 96 pixels that are about as sharp as its sharpest count.
    """

    data: str = Field(description="A folder that `openhunyuan curate` made.")
    set: str = Field("kept", description="The set of good clips: 720p, sft (what people let pass), …, or kept.")
    frames: int = Field(4, ge=1, description="Frames of each clip that are looked at.")
    output: str = Field("niqe.safetensors", description="The file.")


def run(args: Sequence[str]) -> int:
    """Curate, or one of the smaller jobs."""
    if args and args[0] == "report":
        return _report(parse(ReportOptions, args[1:], f"{PROG} report", positional=("data",)))
    if args and args[0] == "review":
        return _review(parse(ReviewOptions, args[1:], f"{PROG} review", positional=("data",)))
    if args and args[0] == "forget":
        return _forget(parse(ForgetOptions, args[1:], f"{PROG} forget", positional=("source",)))
    if args and args[0] == "fit-niqe":
        return _fit_niqe(parse(FitNiqeOptions, args[1:], f"{PROG} fit-niqe", positional=("data",)))
    return _curate(parse(CurateOptions, args, PROG, positional=("raw",)))


def _curate(options: CurateOptions) -> int:
    from openhunyuan.base.require import require
    from openhunyuan.curate.find import find_videos, said_of
    from openhunyuan.curate.run import curate
    from openhunyuan.infer.output import check_folder

    plan = _plan(options)
    for module, package in (("cv2", "opencv-python-headless"), ("scenedetect", "scenedetect-headless")):
        require(module, extra="curate", package=package)
    require("pyarrow", extra="curate")
    ignored: Counter[str] = Counter()
    find_videos(options.raw, None, options.images in ("files", "both"), ignored)
    if ignored:
        console(stderr=True).print(f"Other files, left out: {said_of(ignored)}.", markup=False)
    check_folder(Path(options.output))
    with _engine(options) as engine, step_bar() as show:
        result = curate(options.raw, options.output, plan, retry=options.retry, on_progress=show, engine=engine)
    _table(result)
    _sets(Path(options.output))
    print(Path(options.output) / "manifest.jsonl")
    return 0


def _engine(options: CurateOptions) -> Engine:
    from openhunyuan.base.errors import UserError
    from openhunyuan.curate.engine import Processes

    if options.engine == "ray":
        from openhunyuan.curate.ray_engine import RayEngine

        return RayEngine(None if options.workers < 0 else options.workers, options.timeout, options.ray_address)
    if options.ray_address is not None:
        raise UserError("--ray-address is for --engine ray; add it, or leave the address out.")
    return Processes((os.cpu_count() or 1) if options.workers < 0 else options.workers, options.timeout)


def _plan(options: CurateOptions) -> Plan:
    """The plan with what the options change. Raises UserError for what it has not."""
    from functools import partial

    from openhunyuan.base.errors import UserError
    from openhunyuan.curate.decide import with_threshold
    from openhunyuan.curate.ladder import YIELD
    from openhunyuan.curate.split import Split
    from openhunyuan.recipes.curate import LADDER_PLAN, PLAN

    if options.allow_proxy and options.ladder == "none":
        raise UserError("--allow-proxy says what sets may rest on; it needs --ladder absolute or --ladder calibrated.")
    plan = PLAN if options.ladder == "none" else LADDER_PLAN
    lengths = {"min_seconds": options.min_seconds, "max_seconds": options.max_seconds}
    plan = with_networks(replace(plan, split=Split(**{**plan.split.model_dump(), **lengths})), options)
    filters, measures, ladder = plan.filters, plan.measures, plan.ladder
    if ladder:
        allowed = tuple(n.strip() for text in options.allow_proxy for n in text.split(",") if n.strip())
        ladder = ladder.model_copy(update={"calibrated": options.ladder == "calibrated", "allow_proxy": allowed})
    for text in options.threshold:
        name, colon, rest = text.partition(":")
        if not colon:
            filters = with_threshold(filters, text, measures)
        elif ladder is None:
            raise UserError(f"'{text}' is for the set {name}, but there are no sets; add --ladder absolute.")
        else:
            change = partial(with_threshold, text=rest, measures=measures, more=(YIELD,))
            ladder = ladder.changed(change, name.strip())
    every = (*filters, *(f for one in (ladder.sets if ladder else ()) for f in one.filters))
    names = [*dict.fromkeys(f.name for f in every), "duplicate"]
    for name in options.without:
        if name not in names:
            raise UserError(unknown("filter", name, names))

    def with_out(filters: Sequence[Filter]) -> tuple[Filter, ...]:
        return tuple(f for f in filters if f.name not in options.without)

    return replace(
        plan,
        filters=with_out(filters),
        duplicates=None if "duplicate" in options.without else plan.duplicates,
        concepts=plan.concepts and plan.concepts.model_copy(update={"count": options.concepts}),
        ladder=ladder and ladder.changed(with_out),
        images=options.images,
    )


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


def _sets(data: Path) -> None:
    from rich.table import Table

    from openhunyuan.curate.ladder import read_sets

    reports = read_sets(data)
    if not reports:
        return
    table = Table("set", "clips", "of the pool", "wanted", box=None)
    for r in reports:
        wanted = "" if r.wanted is None else f"{100 * r.wanted:g} %"
        table.add_row(r.name, "refused" if r.refused else str(r.kept), f"{100 * r.share:.1f} %", wanted)
    out = console(stderr=True)
    out.print(table)
    for reason in dict.fromkeys(r.refused for r in reports if r.refused):
        names = ", ".join(r.name for r in reports if r.refused == reason)
        out.print(f"{names} not built: {reason}", markup=False)
    for sentence in filter(None, (r.lacks for r in reports)):
        out.print(sentence, markup=False)


def _report(options: ReportOptions) -> int:
    from openhunyuan.curate.report import write_report

    print(write_report(options.data, options.strips))
    return 0


def _review(options: ReviewOptions) -> int:
    from openhunyuan.curate.review import Review, rule_from, write_rule
    from openhunyuan.curate.run import read_clips
    from openhunyuan.curate.serve_review import ReviewServer

    data = Path(options.data)
    clips = read_clips(data)
    rule = rule_from(data, options.set, options.people, options.overlap)
    review = Review(data, clips, rule)
    server = ReviewServer(review, options.port)
    write_rule(data, rule)
    out = console(stderr=True)
    out.print(f"{len(review.clips)} clips of the set {rule.reviewed}; Ctrl+C ends")
    print(server.url, flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        counts = review.counts()
        out.print(f"{counts['passed']} pass, {counts['failed']} do not, {counts['open']} are open")
    return 0


def _fit_niqe(options: FitNiqeOptions) -> int:
    from openhunyuan.base.errors import UserError
    from openhunyuan.curate.fit_niqe import fit_to_clips
    from openhunyuan.curate.measures.niqe import save
    from openhunyuan.infer.output import check_folder

    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output {output} must end in .safetensors.")
    check_folder(output.absolute().parent)
    with step_bar() as show:
        good, count = fit_to_clips(options.data, options.set, options.frames, show)
    save(good, output)
    console(stderr=True).print(f"fitted to {count} squares")
    print(output)
    return 0


def _forget(options: ForgetOptions) -> int:
    import json
    from dataclasses import asdict

    from openhunyuan.curate.forget import folders_with, forget
    from openhunyuan.curate.run import read_clips
    from openhunyuan.latents.shards import remove_samples
    from openhunyuan.latents.tars import remove_from_tars

    data = Path(options.output)
    read_clips(data)

    def remove(clips: set[str]) -> tuple[int, int]:
        """Samples taken out of latents and of exports."""

        def gone(about: dict[str, object]) -> bool:
            return about.get("clip") in clips

        # Found by their files: what a run that died left has no index.
        buckets = folders_with(data, "*moments-*.safetensors*", "*texts-*.safetensors*", "left-out-*.json")
        datasets = {*(bucket.parent for bucket in buckets), *folders_with(data, "shard-*.safetensors")}
        return (
            sum(remove_samples(folder, gone) for folder in sorted(datasets)),
            sum(remove_from_tars(folder, gone) for folder in folders_with(data, "*.tar*")),
        )

    print(json.dumps(asdict(forget(data, options.source, remove)), indent=2, ensure_ascii=False))
    return 0
