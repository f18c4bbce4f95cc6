"""Captioning a data folder: the contract of a captioner, and the run that calls it clip by clip.

Captions are rows of the table `caption`, addressed by the hash of the clip's file and the captioner's key, so that a
clip is captioned once by each captioner, a run that stops goes on, and a clip that was cut anew is captioned anew.
A captioner that declines gives a row with the reason; it is counted, and not asked again unless that is wanted.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from openhunyuan.base.errors import UserError
from openhunyuan.caption.schema import Caption
from openhunyuan.curate.clip import Clip, Drop
from openhunyuan.curate.run import attach_captions, read_clips, write_manifest
from openhunyuan.curate.stage import Outcome, Stage
from openhunyuan.curate.tables import TABLES, Table, read_rows

TABLE = "caption"


@dataclass(frozen=True)
class Item:
    """What a captioner is given: the clip, its file, and what was measured of it."""

    clip: Clip
    path: Path
    scores: dict[str, float]
    palette: tuple[float, ...] = ()


@dataclass(frozen=True)
class Captioned:
    """A caption, and the text that stands for it where one text is wanted."""

    caption: Caption
    text: str


class Declined(Exception):
    """A captioner that will not caption a clip. The text says why, in its own words."""


class TryLater(Exception):
    """A failure that is not the clip's: a server that is down or overloaded. Nothing is recorded about the clip."""


GIVE_UP = 5
"""Such failures in a row, after which a run stops."""


class Captioner(Stage):
    """Base of captioners. `name` is what captions are signed with."""

    @abstractmethod
    def caption(self, item: Item) -> Captioned:
        """The caption of one clip. Raises Declined for a refusal, UserError for a failure that is the clip's, TryLater
        for one that is not."""


@dataclass(frozen=True)
class CaptionReport:
    """What a run did: captions made now and found, clips declined and failed now, with one reason of each kind."""

    written: int
    known: int
    declined: int
    failed: int
    reasons: tuple[tuple[str, int], ...]


def caption_clips(
    data: Path | str,
    captioner: Captioner,
    parallel: int = 1,
    retry: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CaptionReport:
    """Caption the kept clips of a data folder, and put the captions into its manifest.

    parallel: clips asked about at the same time. retry: ask again where an earlier run was declined or failed.
    Raises UserError when there is no kept clip, or when none could be captioned.
    """
    data = Path(data)
    clips = read_clips(data)
    kept = [clip for clip in clips if not clip.dropped and clip.sha256 and clip.path]
    if not kept:
        raise UserError(f"No clip of {data} was kept; there is nothing to caption.")
    table = Table(data, captioner, TABLE)
    palettes = _palettes(data)
    waiting: dict[str, Item] = {}
    known = 0
    for clip in kept:
        row = table.rows().get(str(clip.sha256), [None])[0]
        failed_before = row is not None and (row["error"] is not None or row["reason"] is not None)
        if row is None or (retry and failed_before):
            item = Item(clip, data / str(clip.path), dict(clip.scores), palettes.get(clip.id, ()))
            waiting[str(clip.sha256)] = item
        else:
            known += not failed_before
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    done = in_a_row = 0

    def finish(outcome: Outcome, lasting: bool) -> None:
        nonlocal done, in_a_row
        in_a_row = 0 if lasting else in_a_row + 1
        if lasting:
            table.add([outcome])
        kind = "declined" if outcome.drop else "failed" if outcome.error else "written"
        counts[kind] += 1
        if kind != "written":
            reasons[outcome.drop.reason if outcome.drop else str(outcome.error)] += 1
        done += 1
        if on_progress:
            on_progress(done, len(waiting))
        if in_a_row == GIVE_UP:
            raise UserError(f"{outcome.error} {counts['written']} of {len(waiting)} clips were captioned before.")

    if on_progress:
        on_progress(0, len(waiting))
    try:
        _ask(captioner, list(waiting.items()), parallel, finish)
    finally:
        table.merge()
        write_manifest(data, attach_captions(data, clips))
    report = CaptionReport(
        counts["written"], known, counts["declined"], counts["failed"], tuple(reasons.most_common(5))
    )
    if report.written + report.known == 0:
        why = reasons.most_common(1)[0][0] if reasons else "all were declined or failed before; ask again with --retry"
        raise UserError(f"No clip of {data} was captioned: {why}.")
    return report


def _ask(
    captioner: Captioner, items: list[tuple[str, Item]], parallel: int, finish: Callable[[Outcome, bool], None]
) -> None:
    """Ask about every item, a few at a time; answers are handed over one by one, in this thread."""
    if parallel <= 1:
        for key, item in items:
            finish(*_one(captioner, key, item))
        return
    queue = list(reversed(items))
    with ThreadPoolExecutor(parallel) as pool:
        running = set()
        try:
            while queue or running:
                while queue and len(running) < parallel:
                    running.add(pool.submit(_one, captioner, *queue.pop()))
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    finish(*future.result())
        finally:
            for future in running:
                future.cancel()


def _one(captioner: Captioner, key: str, item: Item) -> tuple[Outcome, bool]:
    """(what came out, whether to remember it)."""
    try:
        made = captioner.caption(item)
    except Declined as refusal:
        return Outcome(key, drop=Drop(stage=TABLE, reason=" ".join(str(refusal).split()))), True
    except TryLater as error:
        return Outcome(key, error=str(error)), False
    except UserError as error:
        return Outcome(key, error=str(error)), True
    fields = json.dumps(made.caption.model_dump(mode="json"), ensure_ascii=False)
    return Outcome(key, ({"captioner": captioner.name, "text": made.text, "fields": fields},)), True


def _palettes(data: Path) -> dict[str, tuple[float, ...]]:
    """Clip → its palette, of whichever version of the measure there is."""
    found: dict[str, tuple[float, ...]] = {}
    for folder in sorted(data.glob(f"{TABLES}/quality/*")):
        for key, rows in read_rows(folder).items():
            found[key] = tuple(rows[0].get("palette") or ())
    return found
