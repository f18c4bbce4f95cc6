"""Captioning a data folder: the contract of a captioner, and the run that calls it clip by clip.

Captions are rows of the table `caption`, addressed by the hash of the clip's file and the captioner's key, so that a
clip is captioned once by each captioner, a run that stops goes on, and a clip that was cut anew is captioned anew.
A captioner that declines gives a row with the reason; it is counted, and not asked again unless that is wanted. A
captioner may divide long clips into windows, each with a row of its own. The camera's move is not the captioner's
business: the label of the table `camera`, where it is sure enough, is put into every caption of the clip, whoever wrote
it and when; and so are the tags, which are words for what was measured.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.caption.camera import CAMERA_GATE, camera_labels, gated_camera
from openhunyuan.caption.schema import Caption
from openhunyuan.caption.tags import caption_tags
from openhunyuan.curate.clip import CameraEvidence, Clip, Drop
from openhunyuan.curate.run import CAPTION, RUN, attach_captions, caption_order, read_clips, write_manifest
from openhunyuan.curate.split import VARIABLE
from openhunyuan.curate.stage import Outcome, Stage
from openhunyuan.curate.tables import TABLES, Table, all_tables, alone, read_rows


@dataclass(frozen=True)
class Item:
    """What a captioner is given: the clip, its file, and what was measured of it. `window`: the frames [first, last) of
    the file that are to be captioned; None: all."""

    clip: Clip
    path: Path
    scores: dict[str, float]
    palette: tuple[float, ...] = ()
    camera: CameraEvidence | None = None
    window: tuple[int, int] | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The window, or all frames."""
        return self.window or (0, self.clip.num_frames)


@dataclass(frozen=True)
class Captioned:
    """A caption, and the text that stands for it where one text is wanted."""

    caption: Caption
    text: str


class Declined(Exception):
    """A captioner that will not caption a clip. The text says why, in its own words."""


class TryLater(Exception):
    """A failure that is not the clip's: a server that is down or overloaded. Nothing is recorded about the clip."""


MEASURE = "measure"
"""In a row of a measure: the table that it is of, as "camera@0123456789abcdef"."""

GIVE_UP = 5
"""Such failures in a row, after which a run stops."""


class Captioner(Stage):
    """Base of captioners. `name` is what captions are signed with."""

    @abstractmethod
    def caption(self, item: Item) -> Captioned:
        """The caption of one clip, or of its window. Raises Declined for a refusal, UserError for a failure that is the
        clip's, TryLater for one that is not."""

    def windows(self, clip: Clip) -> list[tuple[int, int]]:
        """The windows [first, last) of a clip that are captioned one by one; none: the clip as a whole."""
        return []


@dataclass(frozen=True)
class CaptionReport:
    """What a run did: captions made now and found, clips declined and failed now, with one reason of each kind.

    Of the `kept` clips, `others` have the captions to use from other captioners (their signatures, and of how many
    clips), and `none` have none."""

    written: int
    known: int
    declined: int
    failed: int
    reasons: tuple[tuple[str, int], ...]
    kept: int
    others: tuple[tuple[str, int], ...]
    none: int


def caption_clips(
    data: Path | str,
    captioner: Captioner,
    parallel: int = 1,
    retry: bool = False,
    camera_gate: float = CAMERA_GATE,
    on_progress: Callable[[int, int], None] | None = None,
) -> CaptionReport:
    """Caption the kept clips of a data folder, and put the captions into its manifest.

    parallel: clips asked about at the same time. retry: ask again where an earlier run was declined or failed.
    camera_gate: confidence from which a camera label enters a caption.
    Raises UserError when there is no kept clip, when another run is writing to the folder, or when no clip could be
    captioned.
    """
    read_clips(data)  # a folder that is none is told before a lock is left in it
    with alone(Path(data)):
        return _caption(Path(data), captioner, parallel, retry, camera_gate, on_progress)


def _caption(
    data: Path,
    captioner: Captioner,
    parallel: int,
    retry: bool,
    camera_gate: float,
    on_progress: Callable[[int, int], None] | None,
) -> CaptionReport:
    clips = read_clips(data)
    kept = [clip for clip in clips if not clip.dropped and clip.sha256 and clip.path]
    if not kept:
        raise UserError(f"No clip of {data} was kept; there is nothing to caption.")
    palettes, cameras = _measured(data, "quality"), _measured(data, "camera")
    items: dict[str, Item] = {}
    for clip in kept:
        palette = tuple(palettes.get(clip.id, {}).get("palette") or ())
        camera = None
        if row := cameras.get(clip.id):
            labels = camera_labels(row, *place_in_file(clip))
            camera = CameraEvidence(labels=labels, gate=camera_gate, measure=row[MEASURE])
        items[str(clip.sha256)] = Item(clip, data / str(clip.path), dict(clip.scores), palette, camera)
    _relabel(data, items)
    table = Table(data, captioner, CAPTION)
    waiting: dict[str, Item] = {}
    known = 0
    for key, item in items.items():
        rows = table.rows().get(key, [])
        good = [row for row in rows if row["error"] is None and row["reason"] is None]
        if not rows or (retry and len(good) < len(rows)):
            waiting[key] = item
        elif good:
            known += 1
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    done = in_a_row = 0

    def finish(outcome: Outcome, lasting: bool) -> None:
        nonlocal done, in_a_row
        in_a_row = 0 if lasting else in_a_row + 1
        kind = "declined" if outcome.drop else "failed" if outcome.error else "written"
        if kind == "written" and not counts[kind]:
            caption_order(data, newest=captioner.key)
        if lasting:
            table.add([outcome])
        counts[kind] += 1
        for row in outcome.table_rows():
            if why := row["reason"] or row["error"]:
                reasons[why] += 1
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
        clips = attach_captions(data, clips)
        write_manifest(data, clips)
    used = Counter(clip.captions[-1].signature if clip.captions else "" for clip in clips if clip.sha256 in items)
    none = used.pop("", 0)
    del used[f"{captioner.name}@{captioner.key}"]
    report = CaptionReport(
        counts["written"],
        known,
        counts["declined"],
        counts["failed"],
        tuple(reasons.most_common(5)),
        len(kept),
        tuple(used.most_common()),
        none,
    )
    if report.written + report.known == 0:
        why = reasons.most_common(1)[0][0] if reasons else "all were declined or failed before; ask again with --retry"
        raise UserError(f"No clip of {data} was captioned: {why}.")
    return report


def _ask(
    captioner: Captioner,
    items: list[tuple[str, Item]],
    parallel: int,
    finish: Callable[[Outcome, bool], None],
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
    """(what came out, whether to remember it). A clip is captioned if one of its windows is; those that are not have a
    row with the reason."""
    rows: list[dict[str, Any]] = []
    worst: Outcome | None = None
    for window in captioner.windows(item.clip) or [None]:
        part = replace(item, window=window)
        place = {"first": window[0], "last": window[1]} if window else {}
        empty = {"captioner": captioner.name, "text": None, "fields": None, **place}
        try:
            made = captioner.caption(part)
        except Declined as refusal:
            reason = " ".join(str(refusal).split())
            worst = worst or Outcome(key, drop=Drop(stage=CAPTION, reason=reason))
            rows.append({**empty, "reason": reason})
        except TryLater as error:
            return Outcome(key, error=str(error)), False
        except UserError as error:
            worst = worst or Outcome(key, error=str(error))
            rows.append({**empty, "error": str(error)})
        else:
            fields = json.dumps(made.caption.model_dump(mode="json"), ensure_ascii=False)
            rows.append({**empty, "text": made.text, "fields": fields})
    if worst is not None and all(row["text"] is None for row in rows):
        return worst, True
    return Outcome(key, _labelled(rows, item)), True


def _relabel(data: Path, items: Mapping[str, Item]) -> None:
    """Bring the camera's move and the tags of all captions there are up to what is measured now."""
    for table in all_tables(data):
        if table.folder.parent.name == CAPTION:
            rows = {key: table.rows()[key] for key in items if key in table.rows()}
            new = {key: _labelled(found, items[key]) for key, found in rows.items()}
            table.add(Outcome(key, labelled) for key, labelled in new.items() if list(labelled) != rows[key])
            table.merge()


def _labelled(rows: Sequence[dict[str, Any]], item: Item) -> tuple[dict[str, Any], ...]:
    """The rows with the tags, and the camera's move as it is labelled now, with what it was decided from (`camera`, as
    JSON); what there is where nothing was measured."""
    found = []
    for row in rows:
        if row.get("text") is not None:
            fields = {**json.loads(row["fields"]), "tags": caption_tags(item.clip, item.scores)}
            evidence = item.camera
            if evidence and (evidence.labels or row.get("camera")):
                first, last = (0, item.clip.num_frames) if row.get("first") is None else (row["first"], row["last"])
                inside = tuple(label for label in evidence.labels if label.first < last and label.last > first)
                fields["camera"] = gated_camera(inside, first, last, evidence.gate)
                row = {**row, "camera": evidence.model_copy(update={"labels": inside}).model_dump_json()}
            row = {**row, "fields": json.dumps(fields, ensure_ascii=False)}
        found.append(row)
    return tuple(found)


def place_in_file(clip: Clip) -> tuple[int, float]:
    """(frames that a clip's file leaves out at the start, frames of the file for each that was measured). A clip whose
    frames come at uneven times is measured at its own average rate (`ClipSpan.uneven`), and its file has the source's.
    """
    if VARIABLE not in clip.tags or clip.start_pts is None or clip.end_pts is None:
        return clip.first_frame, 1.0
    whole = (clip.end_time - clip.start_time) * clip.fps
    return round(whole) - clip.num_frames, whole / (clip.end_frame - clip.start_frame)


def _measured(data: Path, stage: str) -> dict[str, dict[str, Any]]:
    """Clip → its row of a measure: of the version in the plan of the last run, else of whichever there is; `MEASURE`
    names the table."""
    found: dict[str, dict[str, Any]] = {}
    stages = read_json(data / RUN).get("stages", []) if (data / RUN).is_file() else []
    planned = {about["key"] for about in stages}
    for folder in sorted(data.glob(f"{TABLES}/{stage}/*"), key=lambda folder: (folder.name in planned, folder.name)):
        name = {MEASURE: f"{stage}@{folder.name}"}
        found.update({key: rows[0] | name for key, rows in read_rows(folder).items()})
    return found
