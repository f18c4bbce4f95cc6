"""One decode of a part of a source, all measures of all clips in it.

The decoder runs over the part once; of each frame that a clip's measures look at, one `View` is made and shown to all
of them. A clip whose measures are all known already costs nothing but the decoding up to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openhunyuan.curate.engine import call
from openhunyuan.curate.footage import Astray, Mark
from openhunyuan.curate.measures.measure import CLOCK, ON_SCREEN, ClipSpan, Measure, Reader, View
from openhunyuan.curate.stage import Outcome
from openhunyuan.curate.stills import open_footage


@dataclass(frozen=True)
class Work:
    """One clip and the measures that it lacks."""

    clip: ClipSpan
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class AnalyseJob:
    """What one worker is given: a source and the work on clips of it. marks: their first frames, where the source may
    be sought in (`Footage.frames`)."""

    path: str
    works: tuple[Work, ...]
    marks: tuple[Mark, ...] = ()


def analyse(job: AnalyseJob) -> list[tuple[str, Outcome]]:
    """(stage key, outcome) for every measure of every clip of the job.

    A measure that fails on a clip gives an error for that clip; the others go on. Raises UserError when the source
    cannot be decoded to the end of its last clip.
    """
    try:
        return _analyse(job)
    except Astray:
        return _analyse(replace(job, marks=()))


def _analyse(job: AnalyseJob) -> list[tuple[str, Outcome]]:
    results: list[tuple[str, Outcome]] = []
    waiting = sorted(job.works, key=lambda work: (work.clip.start, work.clip.end))
    vectors = any(measure.reads_motion_vectors for work in waiting for measure in work.measures)
    running: list[_Running] = []
    with open_footage(Path(job.path), vectors) as footage:
        for frame in footage.frames(job.marks):
            while waiting and waiting[0].clip.start <= frame.number:
                running.append(_Running(waiting.pop(0)))
            for one in running:
                for index in one.clip.indices(frame.number):
                    if one.wants(index):
                        one.show(View(frame, one.clip, index))
            for one in [r for r in running if r.clip.end == frame.number + 1]:
                results += one.finish()
                running.remove(one)
            if not waiting and not running:
                break
    for work in [*(one.work for one in running), *waiting]:
        results += [
            (measure.key, Outcome(work.clip.id, error="the source ended before the clip did"))
            for measure in work.measures
        ]
    return results


class _Running:
    """A clip whose frames are passing by."""

    def __init__(self, work: Work) -> None:
        self.work, self.clip = work, work.clip
        self.readers: list[tuple[Measure, Reader]] = [(m, m.begin(work.clip)) for m in work.measures]
        self.failed: dict[str, str] = {}

    def wants(self, index: int) -> bool:
        return self.clip.wants(index) or any(reader.wants(index) for _, reader in self.readers)

    def show(self, view: View) -> None:
        for measure, reader in self.readers:
            if measure.name not in self.failed:
                self._try(measure, lambda reader=reader: reader.add(view))

    def finish(self) -> list[tuple[str, Outcome]]:
        results = []
        for measure, reader in self.readers:
            row = None if measure.name in self.failed else self._try(measure, reader.finish)
            error = self.failed.get(measure.name)
            if row is not None and self.clip.shown:
                row[CLOCK] = ON_SCREEN
            outcome = Outcome(self.clip.id, error=error) if row is None else Outcome(self.clip.id, (row,))
            results.append((measure.key, outcome))
        return results

    def _try(self, measure: Measure, step: Callable[[], Any]) -> Any:
        value, error, disk = call(lambda _: step(), None)
        if disk is not None:
            raise disk
        if error is not None:
            self.failed[measure.name] = error
        return value


def clip_works(clips: Sequence[ClipSpan], measures: Sequence[Measure], known: dict[str, set[str]]) -> list[Work]:
    """The work that is left: `known` holds, by a measure's key, the ids of the clips that it has seen."""
    works = []
    for clip in clips:
        missing = tuple(measure for measure in measures if clip.id not in known.get(measure.key, set()))
        if missing:
            works.append(Work(clip, missing))
    return works
