"""Clips judged by people: what is asked, the answers, who agrees with whom, and the set of those that pass.

The report's last set, for supervised fine-tuning, was chosen by annotators on four aesthetic and three motion views
(section 3.1). Each view is judged good or not good. A clip passes when enough people judged it and a majority of them
found it good in every view.

    data/review/answers.jsonl   one line an answer, only ever added to; an annotator's newest about a file is the one
                                that counts; one server at a time takes answers
    data/review/rule.json       which set is reviewed, and how many people judge a clip

Answers are about files (their hash): a clip that is cut anew is asked about anew. `curate.serve_review` is the page.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from pydantic import Field, field_validator

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.record import Record, read_json, unknown
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.ladder import read_sets
from openhunyuan.curate.tables import locked

FOLDER, ANSWERS, RULE = "review", "answers.jsonl", "rule.json"
SFT, KEPT = "sft", "kept"
"""Sets that no threshold makes: clips that people let pass; all clips that were kept."""


class View(Record):
    """One thing that people judge."""

    key: str
    name: str
    group: str
    question: str


VIEWS = (
    View(key="colour", name="Colour harmony", group="aesthetic", question="Do the colours go together?"),
    View(key="lighting", name="Lighting", group="aesthetic", question="Is it lit well, neither flat nor burnt out?"),
    View(key="emphasis", name="Object emphasis", group="aesthetic", question="Is it clear what to look at?"),
    View(key="layout", name="Spatial layout", group="aesthetic", question="Is the frame composed well?"),
    View(key="speed", name="Motion speed", group="motion", question="Does it move, and neither crawl nor rush?"),
    View(key="integrity", name="Action integrity", group="motion", question="Is an action seen whole?"),
    View(key="blur", name="Motion blur", group="motion", question="Do moving things stay sharp enough?"),
)


def views_of(kind: str) -> tuple[View, ...]:
    """The views that a clip is judged on: of images, the aesthetic ones."""
    return tuple(view for view in VIEWS if kind == "video" or view.group == "aesthetic")


class Answer(Record):
    """What one person said about one file: each view good (true) or not, or that it was skipped, and why."""

    time: str
    annotator: str = Field(description="A name of at most 40 characters.")
    clip: str
    sha256: str
    views: dict[str, bool] = Field(default_factory=dict)
    skipped: str | None = Field(default=None, max_length=200)
    seconds: float = Field(default=0.0, ge=0, description="How long it took.")

    @field_validator("annotator")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        return name_of(value)


def name_of(text: str) -> str:
    """An annotator's name without space around it. Raises ValueError when it is none."""
    name = " ".join(text.split())
    if not name or len(name) > 40 or not name.isprintable():
        raise UserError("A name has 1 to 40 printable characters.")
    return name


class Rule(Record):
    """When a clip passes, and how many people are asked."""

    reviewed: str = Field(default=KEPT, description="The set that is reviewed.")
    people: int = Field(default=1, ge=1, le=100, description="People whose judgement a clip needs.")
    overlap: float = Field(default=0.1, ge=0, le=1, description="Share of the clips that everyone judges.")


def read_rule(data: Path | str) -> Rule:
    """The rule of a data folder; the default where none was written."""
    path = Path(data) / FOLDER / RULE
    return Rule.read(path) if path.is_file() else Rule()


def write_rule(data: Path | str, rule: Rule) -> None:
    write_atomic(Path(data) / FOLDER / RULE, (rule.model_dump_json(indent=2) + "\n").encode())


class Answers:
    """The answers of a data folder. Several threads and processes may add to it: none takes another's answer away."""

    def __init__(self, data: Path | str) -> None:
        self.path = Path(data) / FOLDER / ANSWERS
        self._lock = Lock()
        self._mark: tuple[int, int] | None = None
        self._newest: dict[tuple[str, str], Answer] = {}
        self._look()

    def newest(self) -> dict[tuple[str, str], Answer]:
        """(annotator, file hash) → the newest answer, in the order in which they were first given."""
        with self._lock:
            self._look()
            return dict(self._newest)

    def add(self, answer: Answer) -> None:
        """Append an answer. It is on disk when this returns."""
        with self._lock, _writing(self.path):
            self._look()
            with self.path.open("a+b") as file:
                _end_whole(file)
                file.write(answer.model_dump_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._newest[answer.annotator, answer.sha256] = answer
            self._mark = _mark(self.path)

    def _look(self) -> None:
        """Read the file where it is not as it was left: others add answers, or forget some."""
        mark = _mark(self.path)
        if mark != self._mark:
            self._newest = {(answer.annotator, answer.sha256): answer for answer in _read(self.path)}
            self._mark = mark


def _mark(path: Path) -> tuple[int, int] | None:
    """Changes when a file is added to or replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size


def _writing(path: Path) -> AbstractContextManager[None]:
    """Held while answers are written; waits for others."""
    return locked(path.with_name(".writing.lock"), None)


def serving(data: Path | str) -> AbstractContextManager[None]:
    """Be the only one that serves the review of a data folder. Raises UserError when there is another."""
    taken = f"The review of {data} is being served already; go on there, or end that server first."
    return locked(Path(data) / FOLDER / ".serving.lock", taken)


def _end_whole(file: BinaryIO) -> None:
    """Take away a last line without its end, which a death left half written."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _read(path: Path) -> list[Answer]:
    """The answers in whole lines. Raises UserError naming a line that is no answer."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    answers = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        try:
            answers.append(Answer(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise UserError(f"Line {number} of {path} is not an answer: {error}") from None
    return answers


def forget_answers(data: Path | str, clips: set[str]) -> int:
    """Remove all answers about these clips; returns how many there were."""
    path = Path(data) / FOLDER / ANSWERS
    if not path.is_file():
        return 0
    with _writing(path):
        answers = _read(path)
        left = [answer for answer in answers if answer.clip not in clips]
        if len(left) < len(answers):
            write_atomic(path, "".join(answer.model_dump_json() + "\n" for answer in left).encode())
    return len(answers) - len(left)


def verdict(answers: Sequence[Answer], rule: Rule) -> bool | None:
    """Whether a clip passes by these people; None as long as too few have judged it. A tie does not pass."""
    if len(answers) < rule.people:
        return None
    keys = {key for answer in answers for key in answer.views}
    return all(2 * sum(a.views.get(key, False) for a in answers) > len(answers) for key in keys)


def members(data: Path | str, clips: Iterable[Clip], name: str) -> list[Clip]:
    """The clips of one set: of the ladder, `sft`, or `kept`.

    Raises UserError, with the sets that there are, when there is none of this name or no clip in it.
    """
    clips = [clip for clip in clips if not clip.dropped]
    reports = {report.name: report for report in read_sets(data)}
    if name not in (*reports, SFT, KEPT):
        raise UserError(unknown("set", name, [*reports, SFT, KEPT]))
    if name == KEPT:
        chosen = clips
    elif name == SFT:
        rule, answers = read_rule(data), _by_file(Answers(data).newest().values())
        candidates = clips if rule.reviewed == KEPT else [clip for clip in clips if rule.reviewed in clip.sets]
        chosen = [clip for clip in candidates if verdict(answers.get(str(clip.sha256), []), rule)]
    else:
        chosen = [clip for clip in clips if name in clip.sets]
    if not chosen:
        why = {
            SFT: f"none has passed by people; have some judged with: openhunyuan curate review {data}",
            KEPT: "all were dropped",
        }.get(name) or (reports[name].refused if name in reports else None)
        raise UserError(f"The set {name} of {data} holds no clip{f': {why}' if why else ''}.")
    return chosen


def _by_file(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """File hash → judgements about it, skipped ones left out."""
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.skipped is None:
            found.setdefault(answer.sha256, []).append(answer)
    return found


class Review:
    """A review that goes on: which clip a person is asked about next, and how far all are."""

    def __init__(self, data: Path | str, clips: Iterable[Clip], rule: Rule) -> None:
        self.data, self.rule = Path(data), rule
        chosen = members(data, clips, rule.reviewed)
        # Mixed by hash, so that one source does not come in a row, and alike for all who judge.
        self.clips = {clip.id: clip for clip in sorted(chosen, key=lambda clip: _order(str(clip.sha256)))}
        self.answers = Answers(data)

    def next(self, annotator: str) -> Clip | None:
        """The next clip that this person has not judged and that needs it: begun ones first, so that they get done."""
        newest = self.answers.newest()
        count = Counter(sha256 for (_, sha256), answer in newest.items() if answer.skipped is None)
        waiting = [
            clip
            for clip in self.clips.values()
            if (annotator, clip.sha256) not in newest
            and (count[str(clip.sha256)] < self.rule.people or self.for_everyone(clip))
        ]
        return max(waiting, key=lambda clip: count[str(clip.sha256)], default=None)

    def for_everyone(self, clip: Clip) -> bool:
        """Whether the clip is one of those that everyone judges."""
        return int(_order(str(clip.sha256))[:8], 16) < self.rule.overlap * 2**32

    def answer(
        self, annotator: str, clip: Clip, views: Mapping[str, bool], skipped: str | None, seconds: float
    ) -> None:
        """Record an answer. Raises UserError unless it judges exactly the views of the clip, or skips it."""
        wanted = [view.key for view in views_of(clip.kind)]
        if skipped is not None and views:
            raise UserError("An answer either judges the views or skips the clip, not both.")
        if skipped is None and sorted(views) != sorted(wanted):
            raise UserError(f"An answer judges {', '.join(wanted)}, each true or false.")
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self.answers.add(
            Answer(
                time=time,
                annotator=annotator,
                clip=clip.id,
                sha256=str(clip.sha256),
                views=dict(views),
                skipped=skipped,
                seconds=round(seconds, 1),
            )
        )

    def counts(self) -> dict[str, int]:
        """Clips that passed, that did not, and that are open."""
        answers = _by_file(self.answers.newest().values())
        found = Counter(verdict(answers.get(str(clip.sha256), []), self.rule) for clip in self.clips.values())
        return {"passed": found[True], "failed": found[False], "open": found[None]}

    def agreement(self) -> list[Agreement]:
        """How far people agree about the clips of the review, view by view."""
        files = {str(clip.sha256) for clip in self.clips.values()}
        return agreement(a for a in self.answers.newest().values() if a.sha256 in files)


def _order(sha256: str) -> str:
    return hashlib.sha256(f"review|{sha256}".encode()).hexdigest()


@dataclass(frozen=True)
class Agreement:
    """About one view: clips that more than one person judged, the share of pairs of judgements that are alike, Fleiss'
    kappa over all, and Cohen's kappa of every two people (name, name, clips, kappa). A kappa is None where it cannot be
    had: with no common clip, or when all said the same."""

    view: str
    clips: int
    alike: float | None
    fleiss: float | None
    pairs: tuple[tuple[str, str, int, float | None], ...] = ()


def agreement(answers: Iterable[Answer]) -> list[Agreement]:
    """Agreement in every view, from the newest answers."""
    given = [answer for answer in answers if answer.skipped is None]
    names = sorted({answer.annotator for answer in given})
    result = []
    for view in VIEWS:
        table: dict[str, dict[str, bool]] = {}
        for answer in given:
            if view.key in answer.views:
                table.setdefault(answer.sha256, {})[answer.annotator] = answer.views[view.key]
        counts = [(sum(row.values()), len(row) - sum(row.values())) for row in table.values() if len(row) > 1]
        pairs = []
        for one, other in combinations(names, 2):
            common = [(row[one], row[other]) for row in table.values() if one in row and other in row]
            if common:
                pairs.append((one, other, len(common), cohen_kappa(common)))
        result.append(Agreement(view.key, len(counts), observed(counts), fleiss_kappa(counts), tuple(pairs)))
    return result


def cohen_kappa(pairs: Sequence[tuple[object, object]]) -> float | None:
    """Agreement of two people beyond chance, from their judgements of the same things (Cohen 1960)."""
    if not pairs:
        return None
    n = len(pairs)
    one, other = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(one[key] * other[key] for key in one) / n**2
    seen = sum(a == b for a, b in pairs) / n
    return None if chance >= 1 else (seen - chance) / (1 - chance)


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement of many people beyond chance (Fleiss 1971), from how many judgements of each kind a thing was given.

    The number of people may differ from thing to thing: every thing counts alike in the agreement seen, every judgement
    alike in what chance would give. Things that fewer than two judged are left out.
    """
    counts = [row for row in counts if sum(row) > 1]
    seen = observed(counts)
    if seen is None:
        return None
    total = sum(sum(row) for row in counts)
    chance = sum((sum(kind) / total) ** 2 for kind in zip(*counts, strict=True))
    return None if chance >= 1 else (seen - chance) / (1 - chance)


def observed(counts: Sequence[Sequence[int]]) -> float | None:
    """Share of pairs of judgements about the same thing that are alike, mean over things."""
    rows = [row for row in counts if sum(row) > 1]
    if not rows:
        return None
    return sum(sum(k * (k - 1) for k in row) / (sum(row) * (sum(row) - 1)) for row in rows) / len(rows)


def has_review(data: Path | str) -> bool:
    """Whether anyone has judged a clip of the folder."""
    return (Path(data) / FOLDER / ANSWERS).is_file()


def rule_from(data: Path | str, reviewed: str | None, people: int | None, overlap: float | None) -> Rule:
    """The rule of a folder with what is given changed; the set, where none was ever named: the best that was built."""
    path = Path(data) / FOLDER / RULE
    old = read_json(path) if path.is_file() else {}
    if reviewed is None and not old:
        built = [r.name for r in read_sets(data) if r.kind == "video" and not r.refused and r.kept]
        reviewed = built[-1] if built else KEPT
    changed = {"reviewed": reviewed, "people": people, "overlap": overlap}
    return Rule(**{**old, **{key: value for key, value in changed.items() if value is not None}})
