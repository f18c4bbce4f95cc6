"""A curation run: a folder of footage and a plan in; clips, tables and a manifest out.

    sources → shots → measures → pairs → decisions (and training sets) → cut → manifest

Image files, and single frames of videos where that is wanted, take the same way without what needs time.

What is known is not computed again. A source is known by the hash of its bytes; its path, size and times only save
hashing it anew. Shots and cuts are addressed by source and clip, measures by clip, and each by the key of its stage; so
a renamed file costs nothing, a changed file is another source, a changed parameter runs its own stage again, and a
changed threshold runs none. Every answer is on disk before the next one is asked for, a long source is measured and cut
in parts (`in_parts`), and a scan for shots keeps what it has seen (`split.Parts`): a run that is killed loses the parts
that its workers were at.

    data/store/, data/tables/   files and rows (`curate.tables`)
    data/manifest.jsonl         every clip, dropped ones with stage, reason and score
    data/drops.jsonl            the drops alone
    data/funnel.json            how many clips each filter saw and kept
    data/quarantine.jsonl       sources and clips that could not be read, with the stage and the error
    data/run.json               the plan: every stage with its key, every threshold
    data/sets.parquet, sets.json    with a ladder: every verdict; what each training set took (`curate.ladder`)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.curate.analyse import AnalyseJob, analyse, clip_works
from openhunyuan.curate.clip import CameraEvidence, Clip, ClipCaption, file_sha256, read_manifest, to_jsonl
from openhunyuan.curate.concepts import Concepts
from openhunyuan.curate.cut import Cut, Piece, cut_pieces, whole
from openhunyuan.curate.decide import (
    DUPLICATE,
    MEASURED,
    Crop,
    Filter,
    Looks,
    Rows,
    better_copies,
    decide,
    with_concepts,
)
from openhunyuan.curate.duplicates import Duplicates
from openhunyuan.curate.engine import Engine, Processes
from openhunyuan.curate.find import find_videos, is_image
from openhunyuan.curate.footage import Mark, Media
from openhunyuan.curate.ladder import SETS, VERDICTS, Climbed, Ladder, check, climb, write_sets
from openhunyuan.curate.measures.measure import CLOCK, ON_SCREEN, ClipSpan, Measure
from openhunyuan.curate.pairs import PairJob, Pairs, compare, compare_all, pairs_of
from openhunyuan.curate.split import STAGE as SPLIT
from openhunyuan.curate.split import Parts, Pieces, Shots, Span, Split, clips_of, find_shots, frame_of, pieces_of
from openhunyuan.curate.stage import Outcome, Resources, Stage, together
from openhunyuan.curate.stills import Images, look_at
from openhunyuan.curate.tables import TABLES, Table, alone, read_rows, read_vectors, stored, sweep

MANIFEST, QUARANTINE, FORGOTTEN, RUN = "manifest.jsonl", "quarantine.jsonl", "forgotten.jsonl", "run.json"
FUNNEL = "funnel.json"
CUT = "cut"
CAPTION = "caption"
ORDER = f"{TABLES}/{CAPTION}/order.json"
"""Keys of the captioners, the one that captioned last at the end: not file times, which a copy may lose."""

CHANGED: dict[str, Any] = {"error": "the source changed while it was read; run again"}
"""Stands for the row of a source that became another file during the run: nothing is written down about it."""

SCAN = ".scan"
"""Folder of unfinished scans for shots in a data folder."""

VECTORS = {"fingerprint": "appearance", "embedding": "vector"}
"""What clips are grouped by, by the measure's name."""

PART_SECONDS = 120.0
"""Footage that is scanned, measured or cut in one go: what a run that is killed loses, or, but for scans, a part that
takes too long."""

MOST_PARTS = 4
"""Parts of a source that cannot be sought in: each is read from the beginning."""

Item = TypeVar("Item")

OnProgress = Callable[[str, int, int], None]
"""Called with (step, done, in all)."""


@dataclass(frozen=True)
class Plan:
    """What a run does: a list of stages and what is decided from their scores.

    ladder: with one, `filters` hold for all of its sets, and a clip is kept that is in at least one of them.
    images: whether image files, single frames of the videos (the middle one of each clip), or both are taken too.
    """

    split: Split = field(default_factory=Split)
    measures: tuple[Measure, ...] = ()
    filters: tuple[Filter, ...] = ()
    crop: Crop | None = None
    duplicates: Duplicates | None = None
    concepts: Concepts | None = None
    cut: Cut = field(default_factory=Cut)
    ladder: Ladder | None = None
    images: Literal["none", "files", "frames", "both"] = "none"

    def __post_init__(self) -> None:
        names = [measure.name for measure in self.measures]
        if len(set(names)) != len(names):
            raise UserError(f"A plan has each measure once, but it has {', '.join(sorted(names))}.")
        if self.ladder:
            check(self.ladder, self.filters, self.measures)

    def measures_of(self, kind: str) -> tuple[Measure, ...]:
        """The measures that say something about videos, or about images."""
        return tuple(m for m in self.measures if kind == "video" or not m.needs_time)

    def measure(self, name: str) -> Measure | None:
        """The measure of this name, if the plan has it."""
        return next((measure for measure in self.measures if measure.name == name), None)

    @property
    def pairs(self) -> Pairs | None:
        """The comparison of clips; None where no duplicates are looked for, or what is compared is not measured."""
        twins = self.duplicates
        measure = twins and self.measure(twins.by)
        return Pairs(config=twins, of=measure.key) if twins and measure else None

    def describe(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON."""
        stages = (self.split, *self.measures, *([self.pairs] if self.pairs else []), self.cut)
        return {
            "stages": [{**stage.describe(), "key": stage.key} for stage in stages],
            "lengths": self.split.lengths,
            "proxies": {m.name: m.proxy for m in self.measures if m.proxy},
            "filters": [f.model_dump(mode="json") for f in self.filters],
            "crop": self.crop and self.crop.model_dump(mode="json"),
            "duplicates": self.duplicates and self.duplicates.model_dump(mode="json"),
            "concepts": self.concepts and self.concepts.model_dump(mode="json"),
            "ladder": self.ladder and self.ladder.model_dump(mode="json"),
            "images": self.images,
        }


class Sources(Stage):
    """Paths and the hashes of their bytes."""

    name: ClassVar[str] = "sources"


@dataclass(frozen=True)
class Failure:
    """A source or clip that a stage could not deal with."""

    source: str
    stage: str
    error: str
    clip: str | None = None


@dataclass(frozen=True)
class FunnelRow:
    """How many clips a filter saw, and how many it let through."""

    stage: str
    seen: int
    kept: int


@dataclass(frozen=True)
class Curation:
    """What a run gave."""

    clips: tuple[Clip, ...]
    failures: tuple[Failure, ...]
    funnel: tuple[FunnelRow, ...]
    sources: int
    repeated: int
    forgotten: int

    @property
    def kept(self) -> list[Clip]:
        return [clip for clip in self.clips if not clip.dropped]


def curate(
    raw: Path | str,
    data: Path | str,
    plan: Plan,
    workers: int = 0,
    timeout: float = 3600.0,
    retry: bool = False,
    on_progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> Curation:
    """Curate a video file or a folder of them into the folder `data`; goes on where an earlier run stopped.

    workers: processes of one thread; 0 works here. timeout: seconds for one source, or part of it (`PART_SECONDS`), in
    one step. retry: try again what is quarantined. engine: another one than these processes; it is left open, and
    changes nothing but the time.
    Raises UserError when there is no footage, another run is at work in `data`, or no clip is kept (everything is
    written before).
    """
    raw, data = Path(raw), Path(data)
    for stage in (plan.split, *plan.measures):
        stage.check()
    failures: list[Failure] = []
    images = plan.images in ("files", "both")
    videos = find_videos(raw, lambda path, why: failures.append(Failure(path, "find", why)), images)
    data.mkdir(parents=True, exist_ok=True)
    with alone(data), ExitStack() as stack:
        sweep(data)
        engine = engine or stack.enter_context(Processes(workers, timeout))
        engine.prepare(str(raw), str(data))
        return _Run(data, plan, engine, retry, on_progress or (lambda *_: None), failures).all(videos)


class _Run:
    def __init__(
        self,
        data: Path,
        plan: Plan,
        engine: Engine,
        retry: bool,
        progress: OnProgress,
        failures: list[Failure],
    ) -> None:
        self.data, self.plan, self.progress, self.failures = data, plan, progress, failures
        self.engine, self.retry = engine, retry
        self.paths: dict[str, Path] = {}  # hash of a source → where it lies, as it was asked for
        self.images: set[str] = set()  # hashes of those that are image files
        self.tables: dict[str, Table] = {}  # of the measures, by their keys
        self.marks: dict[str, tuple[str, Path]] = {}  # absolute path → the file's mark when its hash was known

    def all(self, videos: Sequence[Path]) -> Curation:
        repeated, forgotten = self._sources(videos)
        shots = self._shots()
        clips = [clip for digest, found in shots.items() for clip in self._clips(digest, found)]
        rows, errors = self._measures(clips, shots)
        decided, filters, climbed = self._decide(clips, rows, errors, self._looks(clips, rows))
        cut = self._cut(decided, shots)
        result = attach_captions(self.data, cut)
        funnel = count_funnel(result, (SPLIT, *filters, CUT))
        curation = Curation(tuple(result), tuple(self.failures), tuple(funnel), len(videos), repeated, forgotten)
        if climbed:
            write_sets(self.data, climbed)
        else:
            for name in (SETS, VERDICTS):
                (self.data / name).unlink(missing_ok=True)
        write_run(self.data, curation, self.plan)
        if not curation.kept:
            where = max(funnel, key=lambda row: row.seen - row.kept)
            why = f"the first unreadable one: {self.failures[0].error}" if self.failures else ""
            if result:
                why = f"most of {len(result)} were dropped by {where.stage}"
            raise UserError(f"No clip was kept of {len(videos)} videos ({why}); see {self.data / 'drops.jsonl'}.")
        return curation

    def _clips(self, digest: str, shots: Shots) -> list[Clip]:
        """The clips of a source: its shots, or its picture; and its shots' middle frames, where they are wanted."""
        path, plan = self.paths[digest], self.plan
        if digest in self.images:
            return clips_of(path, digest, shots, 0.0, "image")
        clips = clips_of(path, digest, shots, plan.split.min_seconds)
        if plan.images in ("frames", "both"):
            clips += [frame_of(clip) for clip in clips if not clip.dropped and clip.num_frames > 1]
        return clips

    def _decide(
        self, clips: Sequence[Clip], rows: dict[str, Rows], errors: dict[str, str], looks: Looks
    ) -> tuple[Sequence[Clip], Sequence[str], Climbed | None]:
        """(clips with decisions, the filters in their order, what the ladder found)."""
        plan, ladder = self.plan, self.plan.ladder
        if ladder is None:
            decided = decide(clips, rows, errors, plan.filters, plan.crop, plan.duplicates, plan.concepts, looks)
            return decided.clips, decided.filters, None
        crop = plan.crop and plan.crop.model_copy(update={"drops": False})  # each set has its own threshold for it
        scored = decide(clips, rows, errors, (), crop, None, None)
        twins = plan.duplicates
        better = None if twins is None else lambda chosen, first: better_copies(chosen, looks, first)
        rests = {"crop": crop.text if crop else "text", DUPLICATE: twins.by if twins else "fingerprint"}
        climbed = climb(scored.clips, ladder, plan.filters, plan.measures, better, rests)
        if plan.concepts:
            climbed.clips = with_concepts(climbed.clips, rows, plan.concepts, looks)
        return climbed.clips, (MEASURED, *climbed.filters), climbed

    def _looks(self, clips: Sequence[Clip], rows: dict[str, Rows]) -> Looks:
        """Compare what was not compared yet; what all clips look like, for decisions."""
        looks, plan = Looks(), self.plan
        if stage := plan.pairs:
            by = stage.config.by
            seen = [clip for clip in clips if by in rows.get(clip.id, {})]
            kinds = [[clip.id for clip in seen if clip.kind == kind] for kind in ("video", "image")]
            folder = compare_all(self.data, self.tables[stage.of], stage, kinds, self._compare).folder
            looks = replace(looks, pairs=partial(pairs_of, folder))
        if plan.concepts and (measure := plan.measure(plan.concepts.by)):
            folder = self.tables[measure.key].folder
            looks = replace(looks, vectors=partial(read_vectors, folder, VECTORS[measure.name]))
        return looks

    def _compare(self, jobs: Sequence[PairJob]) -> Iterable[Any]:
        return self._each("comparing", compare, jobs)

    def _each(
        self, step: str, function: Callable[[Any], Any], jobs: Sequence[Any], resources: Resources | None = None
    ) -> Iterable[Any]:
        """Results of jobs as they come, with progress."""
        self.progress(step, 0, len(jobs))
        for done, result in enumerate(self.engine.map(function, jobs, resources), start=1):
            yield result
            self.progress(step, done, len(jobs))

    def _lacks(self, table: Table, key: str) -> bool:
        """Whether a table has no answer for a key, or one that is to be tried again."""
        rows = table.rows().get(key)
        return rows is None or (self.retry and rows[0]["error"] is not None)

    def _as_hashed(self, path: str | Path) -> bool:
        """Whether a source is still the file whose hash is known: what was read of another must not be kept."""
        mark, video = self.marks[str(path)]
        try:
            return file_mark(video) == mark
        except OSError:
            return False

    def _sources(self, videos: Sequence[Path]) -> tuple[int, int]:
        """Fill `paths`; returns how many sources repeat another one's bytes, and how many are to be forgotten."""
        table = Table(self.data, Sources())
        marks = {}
        for video in videos:
            try:
                marks[video] = file_mark(video)
            except OSError as error:
                self.failures.append(Failure(str(video), "sources", str(error.strerror)))
        unknown = [(video, mark) for video, mark in marks.items() if mark not in table.rows()]
        errors: dict[Path, str] = {}
        for result in self._each("hashing", _hash, unknown):
            video, mark = result.item
            if result.error:
                errors[video] = result.error
            else:
                table.add([Outcome(mark, ({"path": str(video), "sha256": result.value},))])
        self.failures += [Failure(str(video), "sources", errors[video]) for video in marks if video in errors]
        table.merge()
        gone = forgotten_sources(self.data)
        repeated = forgotten = 0
        for video, mark in marks.items():
            if mark not in table.rows():
                continue
            digest = table.rows()[mark][0]["sha256"]
            if digest in gone:
                forgotten += 1
            elif digest in self.paths:
                repeated += 1
            else:
                self.paths[digest] = video
                if is_image(video):
                    self.images.add(digest)
                self.marks[str(video.absolute())] = mark, video
        return repeated, forgotten

    def _shots(self) -> dict[str, Shots]:
        """Shots of every source that could be read, in the order of the sources."""
        found = {}
        scans = self.data.absolute() / SCAN
        for stage, step, function, still in (
            (self.plan.split, "shots", partial(_find_shots, self.plan.split, Parts(scans, PART_SECONDS)), False),
            (Images(), "images", _look_at, True),
        ):
            paths = {digest: path for digest, path in self.paths.items() if (digest in self.images) == still}
            if not paths:
                continue
            table = Table(self.data, stage)
            jobs = [(digest, path.absolute()) for digest, path in paths.items() if self._lacks(table, digest)]
            for result in self._each(step, function, jobs, stage.resources):
                digest, path = result.item
                rows = () if result.error else (shots_row(result.value),)
                if self._as_hashed(path):
                    table.add([Outcome(digest, rows, error=result.error)])
            table.merge()
            for digest, path in paths.items():
                row = table.rows().get(digest, [CHANGED])[0]
                if row["error"]:
                    self.failures.append(Failure(str(path), stage.name, row["error"]))
                else:
                    found[digest] = shots_of(row)
        shutil.rmtree(scans, ignore_errors=True)
        return self._in_pieces({digest: found[digest] for digest in self.paths if digest in found})

    def _in_pieces(self, shots: dict[str, Shots]) -> dict[str, Shots]:
        """Sources with their long shots in pieces."""
        split = self.plan.split
        if split.max_seconds is None:
            return shots
        shots = {d: s if d in self.images else pieces_of(s, split.max_seconds) for d, s in shots.items()}
        table = Table(self.data, Pieces(split=split.key, max_seconds=split.max_seconds))
        new = [digest for digest in shots if digest not in table.rows() and digest not in self.images]
        table.add(Outcome(digest, ({"spans": shots_row(shots[digest])["spans"]},)) for digest in new)
        return shots

    def _measures(self, clips: Sequence[Clip], shots: dict[str, Shots]) -> tuple[dict[str, Rows], dict[str, str]]:
        """(clip → measure → row, clip → error) of the clips that the split left."""
        tables = self.tables = {measure.key: Table(self.data, measure) for measure in self.plan.measures}
        uneven = {clip.id for clip in clips if shots[clip.source_sha256].variable and clip.kind == "video"}

        def knows(table: Table, clip: str) -> bool:
            row = table.rows()[clip][0]
            as_shown = clip not in uneven or bool(row["error"]) or row.get(CLOCK) == ON_SCREEN
            return as_shown and not self._lacks(table, clip)

        known = {key: {clip for clip in table.rows() if knows(table, clip)} for key, table in tables.items()}
        of_source: dict[str, list[Clip]] = {}
        for clip in clips:
            if not clip.dropped:
                of_source.setdefault(clip.source_sha256, []).append(clip)
        jobs = []
        for digest, path in self.paths.items():
            if digest not in shots:
                continue
            works = []
            seconds = shots[digest].seconds if shots[digest].variable else None
            for kind in ("video", "image"):
                spans = [clip_span(clip, seconds) for clip in of_source.get(digest, ()) if clip.kind == kind]
                works += clip_works(spans, self.plan.measures_of(kind), known)
            for part, marks in in_parts(works, [(w.clip.start, w.clip.end) for w in works], shots[digest]):
                jobs.append(AnalyseJob(str(path.absolute()), part, marks))
        for result in self._each("measuring", analyse, jobs, together(m.resources for m in self.plan.measures)):
            answers = result.value or [
                (measure.key, Outcome(work.clip.id, error=result.error))
                for work in result.item.works
                for measure in work.measures
            ]
            if self._as_hashed(result.item.path):
                for key, table in tables.items():
                    table.add(outcome for stage, outcome in answers if stage == key)
        rows: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for measure in self.plan.measures:
            table = tables[measure.key]
            table.merge()
            videos_only = measure.needs_time
            sources = {c.id: c.source for c in clips if not c.dropped and (c.kind == "video" or not videos_only)}
            for clip, source in sources.items():
                row = table.rows().get(clip, [CHANGED])[0]
                if row["error"]:
                    errors.setdefault(clip, f"could not be measured: {row['error']}")
                    self.failures.append(Failure(source, measure.name, row["error"], clip))
                else:
                    rows.setdefault(clip, {})[measure.name] = row
        return rows, errors

    def _cut(self, clips: Sequence[Clip], shots: dict[str, Shots]) -> list[Clip]:
        """The clips with their files; those that could not be cut are dropped."""
        table = Table(self.data, self.plan.cut)
        pieces = {clip.id: piece_of(clip, shots[clip.source_sha256]) for clip in clips if not clip.dropped}

        def lacks(piece: Piece) -> bool:
            if self._lacks(table, piece.key):
                return True
            row = table.rows()[piece.key][0]
            return not row["error"] and not (self.data / _file_of(row)).is_file()

        wanted: dict[str, list[Piece]] = {}
        for clip in clips:
            if clip.id in pieces and lacks(pieces[clip.id]):
                wanted.setdefault(clip.source_sha256, []).append(pieces[clip.id])
        data = str(self.data.absolute())
        jobs = [
            CutJob(str(self.paths[digest].absolute()), part, data, self.plan.cut, marks)
            for digest, found in wanted.items()
            for part, marks in in_parts(found, [(piece.start, piece.end) for piece in found], shots[digest])
        ]
        for result in self._each("cutting", _cut, jobs):
            files = result.value or {}
            for piece in result.item.pieces if self._as_hashed(result.item.source) else ():
                if piece.key in files:
                    table.add([Outcome(piece.key, (files[piece.key],))])
                else:
                    table.add([Outcome(piece.key, error=result.error or "was not cut")])
        table.merge()
        shutil.rmtree(self.data / ".work", ignore_errors=True)
        done = []
        for clip in clips:
            if clip.id in pieces:
                row = table.rows().get(pieces[clip.id].key, [CHANGED])[0]
                if row["error"]:
                    self.failures.append(Failure(clip.source, CUT, row["error"], clip.id))
                    clip = clip.drop(CUT, f"could not be cut: {row['error']}")
                else:
                    clip = clip.model_copy(
                        update={
                            "path": _file_of(row),
                            "sha256": row["sha256"],
                            "file_frames": row["frames"],
                            "height": row["height"],
                            "width": row["width"],
                        }
                    )
            done.append(clip)
        return done


@dataclass(frozen=True)
class CutJob:
    """What one worker is given to cut: pieces of one source."""

    source: str
    pieces: tuple[Piece, ...]
    data: str
    config: Cut
    marks: tuple[Mark, ...] = ()


def _hash(item: tuple[Path, str]) -> str:
    return file_sha256(item[0].absolute())


def _look_at(item: tuple[str, Path]) -> Shots:
    return look_at(item[1])


def _file_of(row: dict[str, Any]) -> str:
    """Where the file of a row of cuts lies in a data folder."""
    return stored(row["sha256"], row.get("suffix") or ".mp4")


def _find_shots(config: Split, scans: Parts, item: tuple[str, Path]) -> Shots:
    # A folder by the file's mark: what was seen of a file that changed meanwhile is not found again.
    name = hashlib.sha256(f"{config.key}|{file_mark(item[1])}".encode()).hexdigest()[:32]
    return find_shots(item[1], config, replace(scans, folder=scans.folder / name))


def _cut(job: CutJob) -> dict[str, dict[str, Any]]:
    files = cut_pieces(job.source, job.pieces, job.data, job.config, job.marks)
    return {key: file.model_dump() for key, file in files.items()}


def file_mark(path: Path) -> str:
    """A text that changes when a file is replaced or written to: path, size, times of content and of status."""
    status = path.stat()
    return f"{path}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"


def shots_row(shots: Shots) -> dict[str, Any]:
    """Shots as a row of a table."""
    row = shots.model_dump(mode="json")
    return {**row.pop("media"), **row}


def shots_of(row: dict[str, Any]) -> Shots:
    """The shots of a row."""
    media = {name: row[name] for name in Media.model_fields}
    spans = tuple(Span(**span) for span in row["spans"] or ())
    rest = {name: row[name] for name in ("time_base", "num_frames", "variable", "times")}
    return Shots(media=Media(**media), spans=spans, **rest)


def clip_span(clip: Clip, seconds: np.ndarray | None) -> ClipSpan:
    """A clip as measures see it. seconds: of the source's frames, where they come at uneven times."""
    start, end = clip.start_frame, clip.end_frame
    if seconds is None or clip.kind == "image":
        return ClipSpan(clip.id, start, end, clip.fps)
    return ClipSpan.uneven(clip.id, start, end, seconds[start : end + 1])


def in_parts(
    items: Sequence[Item], spans: Sequence[tuple[int, int]], shots: Shots
) -> list[tuple[tuple[Item, ...], tuple[Mark, ...]]]:
    """Items of one source, each with its frames [start, end), in their order in time and in parts of at most
    `PART_SECONDS`, or of one item that is longer; and with each part its first frames, for seeking."""
    if not items:
        return []
    pts = shots.pts
    times = [t for t in pts if t is not None]
    in_order = len(times) == len(pts) and all(a < b for a, b in pairwise(times))
    longest = PART_SECONDS * float(Fraction(shots.media.rate))
    if not in_order:
        longest = max(longest, shots.num_frames / MOST_PARTS)
    parts: list[list[int]] = []
    begin = 0
    for number in sorted(range(len(items)), key=lambda number: spans[number]):
        start, end = spans[number]
        if not parts or end - begin > longest:
            parts.append([])
            begin = start
        parts[-1].append(number)
    found = []
    for part in parts:
        starts = sorted({spans[number][0] for number in part}) if in_order else []
        marks = tuple(Mark(start, times[start]) for start in starts)
        found.append((tuple(items[number] for number in part), marks))
    return found


def piece_of(clip: Clip, shots: Shots) -> Piece:
    """What is to be cut for a clip: its span from the clear start on, its crop."""
    return Piece(
        clip=clip.id,
        start=clip.start_frame + clip.first_frame,
        end=clip.end_frame,
        crop=clip.crop or whole(clip.width, clip.height),
        end_pts=clip.end_pts,
        even=not shots.variable,
        image=clip.kind == "image",
    )


def attach_captions(data: Path, clips: Sequence[Clip]) -> list[Clip]:
    """The clips with every caption that was ever written for their files, oldest captioner first."""
    captions: dict[str, list[ClipCaption]] = {}
    cameras: dict[str, str] = {}
    for version in caption_order(data):
        for row in (row for rows in read_rows(data / TABLES / CAPTION / version).values() for row in rows):
            if row["error"] is None and row["reason"] is None:
                fields = json.loads(row["fields"])
                # A row with a window is about these frames of the clip; its camera is not the whole clip's.
                window = None if row.get("first") is None else (row["first"], row["last"])
                evidence = CameraEvidence(**json.loads(row["camera"])) if row.get("camera") else None
                caption = ClipCaption(
                    captioner=row["captioner"], text=row["text"], fields=fields, version=version, window=window,
                    camera=evidence,
                )  # fmt: skip
                captions.setdefault(row["key"], []).append(caption)
                if fields.get("camera") and window is None:
                    cameras[row["key"]] = fields["camera"]
    return [
        clip.model_copy(
            update={"captions": tuple(captions.get(clip.sha256 or "", ())), "camera": cameras.get(clip.sha256 or "")}
        )
        for clip in clips
    ]


def caption_order(data: Path, newest: str | None = None) -> list[str]:
    """Keys of the captioners in the order in which they last captioned a clip, kept in `ORDER`. newest: the key of the
    one that is about to."""
    path = data / ORDER
    known: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    # Folders from before the order was kept: file times tell once, and are not asked again.
    parts = {folder: [*folder.glob("*.parquet")] for folder in data.glob(f"{TABLES}/{CAPTION}/*") if folder.is_dir()}
    times = {f.name: max(p.stat().st_mtime_ns for p in found) for f, found in parts.items() if found}
    order = [*sorted(times.keys() - {*known}, key=lambda key: (times[key], key)), *known]
    if newest is not None:
        order = [*(key for key in order if key != newest), newest]
    if order != known:
        write_atomic(path, (json.dumps(order) + "\n").encode())
    return order


def forgotten_sources(data: Path) -> set[str]:
    """Hashes of the sources that are to be forgotten."""
    path = data / FORGOTTEN
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {json.loads(line)["sha256"] for line in lines}


def count_funnel(clips: Iterable[Clip], stages: Sequence[str]) -> list[FunnelRow]:
    """One row a stage, in order: clips that were still there, clips that it left."""
    clips = list(clips)
    rows, seen = [], len(clips)
    for stage in stages:
        kept = seen - sum(1 for clip in clips if clip.dropped and clip.dropped.stage == stage)
        rows.append(FunnelRow(stage, seen, kept))
        seen = kept
    return rows


def read_clips(data: Path | str) -> list[Clip]:
    """All clips of a data folder. Raises UserError when it was not made by a curation run."""
    data = Path(data)
    if not (data / MANIFEST).is_file():
        raise UserError(f"{data} holds no {MANIFEST}; make it with: openhunyuan curate RAW --output {data}.")
    return read_manifest(data / MANIFEST)


def write_manifest(data: Path, clips: Sequence[Clip]) -> None:
    """Replace the manifest."""
    write_atomic(data / MANIFEST, to_jsonl(clips).encode())


def write_run(data: Path, curation: Curation, plan: Plan) -> None:
    """Write the views of a run; the manifest last: where it is, the others are."""
    drops = [{"clip": c.id, "source": c.source, **c.dropped.model_dump()} for c in curation.clips if c.dropped]
    write_atomic(data / "drops.jsonl", _lines(drops))
    write_atomic(data / QUARANTINE, _lines(asdict(failure) for failure in curation.failures))
    write_funnel(data, curation.funnel)
    counts = {"sources": curation.sources, "repeated": curation.repeated, "forgotten": curation.forgotten}
    write_atomic(data / RUN, _pretty({**counts, **plan.describe()}))
    write_manifest(data, curation.clips)


def write_funnel(data: Path, rows: Sequence[FunnelRow]) -> None:
    write_atomic(data / FUNNEL, _pretty([asdict(row) for row in rows]))


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
