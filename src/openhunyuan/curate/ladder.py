"""The ladder: training sets of rising quality, each a part of the one before (report section 3.1, figure 4).

    pool → 256p → 360p → 540p → 720p        and, for images, pool → image-256 → image-512

Every set has thresholds of its own, and those of the sets below it hold too, so that a threshold never falls. They are
given (absolute), or found from the pool so that as much of it is left as figure 4 says (calibrated: the figure gives
what each group of filters takes away; thresholds themselves were never published).

Every filter of every set decides about every clip, whatever else has failed: the table `sets.parquet` has a row for
each, and one a clip of a set that was refused. All of it is made anew from stored scores at every run; a changed
threshold measures nothing.

A score that only stands in for the report's model (`Measure.proxy`, without `FACTS`) does not build the sets from 540p
on, unless it is allowed by name. A filter without a limit, on a model's score for which nobody has tuned one, waits for
a threshold: a calibrated set finds it, an absolute one is made without the filter and says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.record import Record, read_json, unknown
from openhunyuan.base.require import require
from openhunyuan.curate.clip import Clip, Decision
from openhunyuan.curate.decide import DUPLICATE, GROUPS, MEASURED, Filter, known_scores
from openhunyuan.curate.measures.measure import Measure

SETS, VERDICTS = "sets.json", "sets.parquet"
PASSED, FAILED, NO_SCORE, NOT_COMPARED, REFUSED = "passed", "failed", "no score", "not compared", "refused"

YIELD, LISTED = "source.yield", "source.listed"
"""Scores of a clip's source: the share of its clips that are in the set below; 1 where the set takes the source."""


FACTS = frozenset(
    f"quality.{column}"
    for column in (
        "brightness", "contrast", "dark_share", "bright_share", "noise", "blockiness", "frozen_share", "flicker",
    )
)  # fmt: skip
"""Scores of proxies that are plain facts about the picture and stand in for no model."""

Change = Callable[[Sequence[Filter]], tuple[Filter, ...]]
"""Filters → other filters."""

RESTS = {"crop": "text", DUPLICATE: "fingerprint"}
"""Which measure a score rests on that is not called after its measure."""


class TrainingSet(Record):
    """One rung. Its filters are those that begin here or are tighter than below; the rest is inherited."""

    name: str
    kind: Literal["video", "image"] = "video"
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the pool to calibrate to; None: thresholds are as given."
    )
    filters: tuple[Filter, ...] = ()
    sources: tuple[str, ...] = Field(default=(), description="Patterns (*, ?) of the sources taken; empty: all.")
    refuse_proxies: bool = Field(default=False, description="Not built from scores that stand in for a model.")


class Ladder(Record):
    """Training sets from the widest to the best, videos and images apart."""

    sets: tuple[TrainingSet, ...]
    calibrated: bool = False
    allow_proxy: tuple[str, ...] = Field(default=(), description="Measures allowed though they stand in for a model.")

    @model_validator(mode="after")
    def _names_differ(self) -> Ladder:
        names = [one.name for one in self.sets]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"a ladder has at least one set and each once, but it has {', '.join(names) or 'none'}")
        return self

    def of(self, kind: str) -> tuple[TrainingSet, ...]:
        """The sets of videos, or of images."""
        return tuple(one for one in self.sets if one.kind == kind)

    def changed(self, change: Change, name: str | None = None) -> Ladder:
        """With the filters of one set, or of all, changed. Raises UserError when there is no such set."""
        names = [one.name for one in self.sets]
        if name is not None and name not in names:
            raise UserError(unknown("set", name, names))
        chosen = names if name is None else [name]
        sets = [s.model_copy(update={"filters": change(s.filters)}) if s.name in chosen else s for s in self.sets]
        return self.model_copy(update={"sets": tuple(sets)})


@dataclass(frozen=True)
class Attribution:
    """What one filter did on the way into one set, in clips.

    removed: left the set because of it first. alone: nothing else kept them out. fails: of the whole pool.
    """

    filter: str
    group: str
    score: str
    at_least: float | None
    at_most: float | None
    removed: int
    alone: int
    fails: int


@dataclass(frozen=True)
class SetReport:
    """What became of one set; `wanted` and `share` are of the pool. `refused`: why it was not built."""

    name: str
    kind: str
    pool: int
    before: int
    kept: int
    wanted: float | None = None
    filters: tuple[Attribution, ...] = ()
    refused: str | None = None
    waiting: tuple[str, ...] = ()
    """Scores of filters that the set was made without, for want of a limit."""

    @property
    def share(self) -> float:
        return self.kept / self.pool if self.pool else 0.0

    @property
    def lacks(self) -> str:
        """One sentence about the filters that wait for a limit; empty when there is none."""
        if not self.waiting:
            return ""
        example = f'--threshold "{self.name}:{self.waiting[0]}>=VALUE"'
        return (
            f"{self.name} was made without a limit on {' and '.join(self.waiting)}, for which nobody has tuned one: "
            f"give it with {example}, or take --ladder calibrated."
        )


@dataclass
class Column:
    """The verdicts of one filter of one set over clips of its kind, in their order."""

    set: str
    filter: Filter
    values: np.ndarray  # float64 [clips], NaN where there is none
    passed: np.ndarray  # bool [clips]
    seen: np.ndarray  # bool [clips]: whether there was anything to decide on

    def verdict(self, index: int) -> str:
        if not self.seen[index]:
            return NOT_COMPARED if self.filter.name == DUPLICATE else NO_SCORE
        return PASSED if self.passed[index] else FAILED


@dataclass
class Climbed:
    """Clips with their sets, what each set took, every verdict, the sets that were refused to clips and why, and the
    filters of the first sets, which drop."""

    clips: list[Clip]
    reports: list[SetReport] = field(default_factory=list)
    columns: list[tuple[list[str], Column]] = field(default_factory=list)
    refused: list[tuple[list[str], str, str]] = field(default_factory=list)
    filters: tuple[str, ...] = ()


Better = Callable[[Sequence[Clip], Mapping[str, tuple[float, ...]]], dict[str, str]]
"""(clips, what makes each better before all else) → clip → the better clip that it is a duplicate of."""


@dataclass(frozen=True)
class _Climb:
    """What all sets have in common."""

    ladder: Ladder
    base: Sequence[Filter]
    measures: Sequence[Measure]
    better: Better | None
    rests: Mapping[str, str]


def climb(
    clips: Sequence[Clip],
    ladder: Ladder,
    base: Sequence[Filter],
    measures: Sequence[Measure],
    better: Better | None = None,
    rests: Mapping[str, str] = RESTS,
) -> Climbed:
    """Put every clip into its sets.

    clips: with scores; those that are dropped already (they could not be measured) are in the pool, but in no set.
    base: filters of all sets. measures: what gave the scores. better: finds duplicates; None leaves them in.
    rests: the measure behind scores with another name, as of duplicates; it may be a proxy.
    Raises UserError for a threshold on a score that nothing gives, and for a proxy that is none.
    """
    check(ladder, base, measures)
    climb = _Climb(ladder, base, measures, better, rests)
    result = Climbed(list(clips))
    for kind in ("video", "image"):
        places = [i for i, c in enumerate(clips) if c.kind == kind and not _before_the_pool(c)]
        if places and ladder.of(kind):
            _climb_kind(result, places, ladder.of(kind), climb)
    firsts = {sets[0].name for kind in ("video", "image") if (sets := ladder.of(kind))}
    names = [column.filter.name for _, column in result.columns if column.set in firsts]
    result.filters = tuple(dict.fromkeys(names))
    return result


def _before_the_pool(clip: Clip) -> bool:
    """Whether the split dropped it as too short: the pool has a minimum duration."""
    return clip.dropped is not None and clip.dropped.stage == "split"


def _climb_kind(result: Climbed, places: Sequence[int], sets: Sequence[TrainingSet], climb: _Climb) -> None:
    clips = [result.clips[i] for i in places]
    ids = [clip.id for clip in clips]
    members = np.array([not clip.dropped for clip in clips], dtype=bool)
    holds = {f.name: f for f in climb.base}
    below = np.ones(len(clips), dtype=bool)
    found: list[tuple[TrainingSet, np.ndarray, list[Column]]] = []
    refused: str | None = None
    for number, one in enumerate(sets):
        refused = refused or _refusal(one, sets[: number + 1], climb)
        if refused:
            result.reports.append(
                SetReport(one.name, one.kind, len(clips), int(members.sum()), 0, one.keep, (), refused)
            )
            result.refused.append((ids, one.name, refused))
            continue
        filters, waiting = _limited(_tightened(holds, one), climb.ladder.calibrated and one.keep is not None)
        columns = _columns(one, number == 0, sets, clips, members, below, filters, climb)
        holds = {c.filter.name: c.filter for c in columns if c.filter.name != DUPLICATE}
        after = members & _all_passed(columns, len(clips))
        result.reports.append(replace(_report(one, columns, below, members, after), waiting=waiting))
        result.columns += [(ids, column) for column in columns]
        found.append((one, after, columns))
        members = below = after
    for index, place in enumerate(places):
        result.clips[place] = _placed(clips[index], index, found)


def _columns(
    one: TrainingSet,
    first: bool,
    sets: Sequence[TrainingSet],
    clips: list[Clip],
    members: np.ndarray,
    below: np.ndarray,
    filters: Sequence[Filter],
    climb: _Climb,
) -> list[Column]:
    """The verdicts of one set, in the order in which they count: what is given, duplicates, what is calibrated."""
    sources = _sources(clips, below, one)
    calibrate = climb.ladder.calibrated and one.keep is not None
    given = [f for f in filters if not (calibrate and f.removes)]
    columns = [_column(one, f, clips, sources) for f in given]
    left = members & _all_passed(columns, len(clips))
    if first and climb.better:
        columns.append(_duplicates(one, clips, left, sets, climb.better))
        left &= columns[-1].passed
    if calibrate and one.keep is not None:
        wanted = round(one.keep * len(clips))
        found = _calibrated([f for f in filters if f not in given], clips, left, wanted, sources)
        columns += [_column(one, f, clips, sources) for f in found]
    return columns


def _placed(clip: Clip, index: int, found: Sequence[tuple[TrainingSet, np.ndarray, list[Column]]]) -> Clip:
    """The clip with its sets; one that is in none is dropped by what kept it out of the first."""
    sets = tuple(one.name for one, members, _ in found if members[index])
    first = found[0][2] if found else []
    decisions = [
        Decision(
            filter=c.filter.name,
            score=c.filter.score,
            value=None if np.isnan(c.values[index]) else float(c.values[index]),
            allowed=c.filter.allowed,
            passed=bool(c.passed[index]),
        )
        for c in first
        if c.seen[index] or c.filter.name != DUPLICATE
    ]
    clip = clip.model_copy(update={"sets": sets, "decisions": (*clip.decisions, *decisions)})
    for column in first:
        if not column.passed[index]:
            twin = column.filter.name == DUPLICATE
            reason = f"shows the same as clip {clip.duplicate_of}" if twin else column.filter.reason
            value = None if twin or np.isnan(column.values[index]) else float(column.values[index])
            clip = clip.drop(column.filter.name, reason, value)
    return clip


def _refusal(one: TrainingSet, below: Sequence[TrainingSet], climb: _Climb) -> str | None:
    """Why a set is not built: the proxies that it and the sets below it rest on, with what allows them."""
    if not one.refuse_proxies:
        return None
    filters = [*climb.base, *(f for each in below for f in each.filters)]
    used = {f.score.split(".")[0] for f in filters if f.score not in FACTS} | ({DUPLICATE} if climb.better else set())
    used = {climb.rests.get(name, name) for name in used}
    allowed = climb.ladder.allow_proxy
    stand_ins = [m for m in climb.measures if m.proxy and m.name in used and m.name not in allowed]
    if not stand_ins:
        return None
    what = "; ".join(f"{m.name}: {m.proxy}" for m in stand_ins)
    allow = ",".join([*allowed, *(m.name for m in stand_ins)])
    return f"it would rest on scores that stand in for a model ({what}); allow them with --allow-proxy {allow}"


def _tightened(holds: Mapping[str, Filter], one: TrainingSet) -> list[Filter]:
    """The filters of a set: those that it inherits, and its own in their order, no looser than below."""
    own = [_tighter(holds.get(f.name), f) for f in one.filters]
    if one.sources:
        reason = "is of no source that the set takes"
        own.append(Filter(name="source list", score=LISTED, at_least=1.0, reason=reason, group="source"))
    names = {f.name for f in own}
    return [*(f.model_copy(update={"removes": 0.0}) for f in holds.values() if f.name not in names), *own]


def _limited(filters: Sequence[Filter], calibrate: bool) -> tuple[list[Filter], tuple[str, ...]]:
    """(the filters that have a limit or will be given one by calibration, the scores of the others)."""
    left = [f for f in filters if (f.at_least, f.at_most) != (None, None) or (calibrate and f.removes)]
    known = {f.score for f in left}
    return left, tuple(dict.fromkeys(f.score for f in filters if f.score not in known))


def _tighter(below: Filter | None, own: Filter) -> Filter:
    if below is None:
        return own
    low = [x for x in (below.at_least, own.at_least) if x is not None]
    high = [x for x in (below.at_most, own.at_most) if x is not None]
    return own.model_copy(update={"at_least": max(low) if low else None, "at_most": min(high) if high else None})


def _sources(clips: Sequence[Clip], below: np.ndarray, one: TrainingSet) -> dict[str, np.ndarray]:
    """The scores that are the source's, not the clip's."""
    every, good = Counter(c.source for c in clips), Counter()
    for clip, member in zip(clips, below, strict=True):
        good[clip.source] += bool(member)
    listed = {s: float(not one.sources or any(fnmatchcase(s, p) for p in one.sources)) for s in every}
    return {
        YIELD: np.array([good[c.source] / every[c.source] for c in clips], dtype=float),
        LISTED: np.array([listed[c.source] for c in clips], dtype=float),
    }


def _values(score: str, clips: Sequence[Clip], sources: Mapping[str, np.ndarray]) -> np.ndarray:
    if score in sources:
        return sources[score]
    return np.array([clip.scores.get(score, np.nan) for clip in clips], dtype=float)


def _column(one: TrainingSet, filter_: Filter, clips: Sequence[Clip], sources: Mapping[str, np.ndarray]) -> Column:
    values = _values(filter_.score, clips, sources)
    return Column(one.name, filter_, values, _passes(filter_, values), ~np.isnan(values))


def _passes(filter_: Filter, values: np.ndarray) -> np.ndarray:
    """Which values are within the limits; what could not be had is."""
    low = -np.inf if filter_.at_least is None else filter_.at_least
    high = np.inf if filter_.at_most is None else filter_.at_most
    return np.isnan(values) | ((values >= low) & (values <= high))


def _all_passed(columns: Sequence[Column], count: int) -> np.ndarray:
    passed = np.ones(count, dtype=bool)
    for column in columns:
        passed &= column.passed
    return passed


def _duplicates(
    one: TrainingSet, clips: list[Clip], left: np.ndarray, sets: Sequence[TrainingSet], better: Better
) -> Column:
    """Which of the clips that are left are duplicates; the copy that climbs highest by its own scores is kept."""
    chosen = [clip for clip, is_left in zip(clips, left, strict=True) if is_left]
    found = better(chosen, {clip.id: (float(_height(clip, sets)),) for clip in chosen})
    for index, clip in enumerate(clips):
        if clip.id in found:
            clips[index] = clip.model_copy(update={"duplicate_of": found[clip.id]})
    twin = np.array([clip.id in found for clip in clips], dtype=bool)
    line = Filter(
        name=DUPLICATE, score=DUPLICATE, at_most=0.0, reason="shows the same as another clip", group="duplicates"
    )
    return Column(one.name, line, np.where(left, twin.astype(float), np.nan), ~twin, left.copy())


def _height(clip: Clip, sets: Sequence[TrainingSet]) -> int:
    """How many sets a clip would be in by its own scores and the thresholds as given."""
    for number, one in enumerate(sets):
        if not all(f.decide(clip.scores.get(f.score)).passed for f in one.filters if not f.score.startswith("source.")):
            return number
    return len(sets)


def _calibrated(
    filters: Sequence[Filter], clips: Sequence[Clip], left: np.ndarray, wanted: int, sources: Mapping[str, np.ndarray]
) -> list[Filter]:
    """Thresholds that leave about `wanted` clips: what is too many is shared out as `Filter.removes` says.

    Each filter takes the worst of what the ones before it left, never more than its part (equal scores stand or fall
    together), and what it could not take is left to the next ones.
    """
    left = left.copy()
    result = []
    for number, one in enumerate(filters):
        values, rising = _values(one.score, clips, sources), one.at_most is None
        known = values[left & ~np.isnan(values)]
        too_many = int(left.sum()) - wanted
        part = max(0, round(too_many * one.removes / sum(f.removes for f in filters[number:])))
        if known.size:
            # With nothing to take away, the threshold is the worst score that was let in.
            one = one.model_copy(update={"at_least" if rising else "at_most": _worst(known, part, rising)})
        result.append(one)
        left &= _passes(one, values)
    return result


def _worst(values: np.ndarray, count: int, rising: bool) -> float:
    """The limit that at most `count` of `values` fail; 0: none does."""
    ordered = np.sort(values if rising else -values)
    limit = float(ordered[min(count, len(ordered) - 1)])
    return limit if rising else -limit


def _report(
    one: TrainingSet, columns: Sequence[Column], before: np.ndarray, measured: np.ndarray, after: np.ndarray
) -> SetReport:
    """before: clips of the set below (of the pool); measured: those of them that have scores."""
    lines = [_unmeasured(before, measured)] if (before & ~measured).any() else []
    failed = np.stack([~c.passed for c in columns]) if columns else np.zeros((0, len(before)), bool)
    first = failed.argmax(axis=0) if len(failed) else np.zeros(len(before), int)
    lost = measured & ~after
    lines += [
        Attribution(
            filter=c.filter.name,
            group=c.filter.group,
            score=c.filter.score,
            at_least=c.filter.at_least,
            at_most=c.filter.at_most,
            removed=int((lost & failed[i] & (first == i)).sum()),
            alone=int((lost & failed[i] & (failed.sum(axis=0) == 1)).sum()),
            fails=int(failed[i].sum()),
        )
        for i, c in enumerate(columns)
    ]
    return SetReport(one.name, one.kind, len(after), int(before.sum()), int(after.sum()), one.keep, tuple(lines))


def _unmeasured(before: np.ndarray, measured: np.ndarray) -> Attribution:
    count = int((before & ~measured).sum())
    return Attribution(MEASURED, "other", MEASURED, None, None, count, count, count)


def check(ladder: Ladder, base: Sequence[Filter], measures: Sequence[Measure]) -> None:
    """Refuse a ladder that cannot be decided, before anything is measured. Raises UserError."""
    proxies = {m.name: m.proxy for m in measures}
    for name in ladder.allow_proxy:
        if name not in proxies:
            raise UserError(unknown("proxy", name, [n for n, proxy in proxies.items() if proxy]))
        if not proxies[name]:
            stand_ins = ", ".join(n for n, proxy in proxies.items() if proxy)
            raise UserError(f"{name} is no proxy, it is what it is called; proxies are {stand_ins}.")
    known_names = [*known_scores(measures), YIELD, LISTED]
    scores: dict[tuple[str, str], str] = {}
    for one in ladder.sets:
        for f in (*base, *one.filters):
            if f.score not in known_names:
                raise UserError(unknown("score", f.score, known_names))
            known = scores.setdefault((one.kind, f.name), f.score)
            if known != f.score:
                raise UserError(f"The filter {f.name} looks at {known} in one set and at {f.score} in {one.name}.")
            if f.group not in GROUPS:
                raise UserError(unknown("group", f.group, GROUPS))
            if f.removes and None not in (f.at_least, f.at_most):
                raise UserError(f"The filter {f.name} of {one.name} cannot be calibrated: it needs one limit, not two.")


def write_sets(data: Path, climbed: Climbed) -> None:
    """Write `sets.parquet` (clip, set, filter, group, score, value, at_least, at_most, verdict, reason) and
    `sets.json`."""
    write_atomic(data / VERDICTS, verdict_table(climbed))
    rows = [{**asdict(r), "share": round(r.share, 6)} for r in climbed.reports]
    write_atomic(data / SETS, (json.dumps({"sets": rows}, indent=2, ensure_ascii=False) + "\n").encode())


def verdict_table(climbed: Climbed) -> bytes:
    """Verdicts as a Parquet file: one row a clip, set and filter; of a refused set one a clip, with the reason."""
    arrow: Any = require("pyarrow", extra="curate")
    parquet: Any = require("pyarrow.parquet", extra="curate")
    word = arrow.dictionary(arrow.int32(), arrow.string())
    schema = arrow.schema(
        [("clip", arrow.string())]
        + [(name, word) for name in ("set", "filter", "group", "score")]
        + [(name, arrow.float64()) for name in ("value", "at_least", "at_most")]
        + [("verdict", word), ("reason", word)]
    )
    sink = arrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:

        def write(ids: Sequence[str], about: Mapping[str, Any]) -> None:
            """Rows of these clips. about: a value for all of them, or a list of one for each; else null."""
            found = {"clip": list(ids), **about}
            parts = [found.get(name) for name in schema.names]
            arrays = [
                arrow.array(part if isinstance(part, list) else [part] * len(ids), type=kind)
                for part, kind in zip(parts, schema.types, strict=True)
            ]
            writer.write_table(arrow.table(arrays, schema=schema))

        for ids, column in climbed.columns:
            values = [None if np.isnan(v) else float(v) for v in column.values]
            limits = column.filter.model_dump(include={"group", "score", "at_least", "at_most"})
            verdicts = [column.verdict(i) for i in range(len(ids))]
            write(
                ids, {"set": column.set, "filter": column.filter.name, **limits, "value": values, "verdict": verdicts}
            )
        for ids, name, why in climbed.refused:
            write(ids, {"set": name, "verdict": REFUSED, "reason": why})
    return sink.getvalue().to_pybytes()


def read_verdicts(data: Path | str) -> list[dict[str, Any]]:
    """The rows of `sets.parquet`. Raises UserError when the run had no ladder."""
    parquet: Any = require("pyarrow.parquet", extra="curate")
    path = Path(data) / VERDICTS
    if not path.is_file():
        raise UserError(
            f"{data} has no sets; make them with: openhunyuan curate RAW --output {data} --ladder absolute."
        )
    return parquet.read_table(path).to_pylist()


def read_sets(data: Path | str) -> list[SetReport]:
    """What each set became; empty when the run had no ladder."""
    path = Path(data) / SETS
    if not path.is_file():
        return []
    reports = []
    for row in read_json(path)["sets"]:
        lines = tuple(Attribution(**line) for line in row["filters"])
        known = {k: v for k, v in row.items() if k != "share"}
        reports.append(SetReport(**{**known, "filters": lines, "waiting": tuple(row.get("waiting", ()))}))
    return reports


def forget_verdicts(data: Path, clips: set[str]) -> None:
    """Remove the rows of these clips; the counts in `sets.json` stay until the next run."""
    arrow: Any = require("pyarrow", extra="curate")
    compute: Any = require("pyarrow.compute", extra="curate")
    parquet: Any = require("pyarrow.parquet", extra="curate")
    path = data / VERDICTS
    if path.is_file() and clips:
        table = parquet.read_table(path)
        left = table.filter(compute.invert(compute.is_in(table["clip"], arrow.array(sorted(clips)))))
        sink = arrow.BufferOutputStream()
        parquet.write_table(left, sink, compression="zstd")
        write_atomic(path, sink.getvalue().to_pybytes())
