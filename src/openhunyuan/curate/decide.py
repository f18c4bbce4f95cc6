"""From scores to decisions: thresholds, crops, duplicates, concepts. Cheap, and made anew from the stored scores and
pairs (`curate.pairs`) at every run, so that a changed threshold changes decisions and computes none of them again.

Every filter gives every clip a decision, whether or not another one has already dropped it; the first that failed is
the reason on record. Duplicates are looked for among the clips that passed everything else, so that the copy that is
kept is never one that another filter drops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, unknown
from openhunyuan.curate.clip import Clip, Decision
from openhunyuan.curate.concepts import Concepts, cluster
from openhunyuan.curate.cut import crop_pixels, whole
from openhunyuan.curate.duplicates import Duplicates, better_of
from openhunyuan.curate.measures.measure import Measure
from openhunyuan.curate.measures.watermark import across_shots
from openhunyuan.curate.split import VARIABLE

CLIP_SCORES = ("clip.seconds", "clip.short_side", "clip.aspect", "crop.left")
"""Scores that need no measure: length (of videos); shorter side in pixels and width over height of what the crop
leaves; the share of the picture inside the bars that a subtitle crop would leave."""

GROUPS = ("duplicates", "motion", "text", "clarity", "aesthetic", "source", "other")
"""What the report's figure 4 tells apart among the reasons for which clips are left out."""

Rows = Mapping[str, Mapping[str, Any]]
"""Measure name → its row for one clip."""


class Filter(Record):
    """One threshold: a clip passes when its score is within the limits. A score that could not be had passes, and the
    decision says so."""

    name: str = Field(description="The filter's name: in drops, in the funnel, in the report.")
    score: str = Field(description="<measure>.<column>, as motion.speed.")
    at_least: float | None = None
    at_most: float | None = None
    reason: str = Field(description="What is said of a clip that fails, as 'hardly moves'.")
    group: str = Field(default="other", description="Where figure 4 of the report counts it: one of GROUPS.")
    removes: float = Field(
        default=0.0, ge=0, description="In a calibrated set: its part of what is taken away, against the others' parts."
    )

    @property
    def allowed(self) -> str:
        """The limits in words."""
        parts = [f"at least {self.at_least:g}" if self.at_least is not None else ""]
        parts += [f"at most {self.at_most:g}" if self.at_most is not None else ""]
        return " and ".join(part for part in parts if part) or "anything"

    def decide(self, value: float | None) -> Decision:
        low, high = self.at_least, self.at_most
        passed = value is None or ((low is None or value >= low) and (high is None or value <= high))
        return Decision(filter=self.name, score=self.score, value=value, allowed=self.allowed, passed=passed)


class Crop(Record):
    """What is cropped away: black bars, and subtitles at the bottom where enough of the picture stays."""

    border: bool = Field(default=True, description="Crop black bars away.")
    subtitles: bool = Field(default=True, description="Crop subtitles away.")
    text: str = Field(default="text", description="The measure that says where they are.")
    keep: float = Field(default=0.8, gt=0, le=1, description="Least part of the picture that a subtitle crop leaves.")
    margin: float = Field(
        default=0.018,
        ge=0,
        description="Distance from the text, as a share of the height; a third of it where too little would be left.",
    )
    drops: bool = Field(default=True, description="Drop clips whose subtitles take more; else they stay uncropped.")


@dataclass(frozen=True)
class Looks:
    """What is known of what clips look like, which is too much to be held as rows.

    pairs: clip → its place → the pairs (i, j), i < j, of places of which the second shows what the first shows.
    vectors: clips → what they are grouped by, [n, D].
    """

    pairs: Callable[[Mapping[str, int]], Iterable[tuple[int, int]]] = lambda places: ()
    vectors: Callable[[Sequence[str]], np.ndarray] = lambda clips: np.zeros((len(clips), 1))


@dataclass(frozen=True)
class Decided:
    """All clips with decisions, and which filters there were, in order."""

    clips: tuple[Clip, ...]
    filters: tuple[str, ...]


MEASURED, SUBTITLES, DUPLICATE = "measured", "subtitles", "duplicate"


def decide(
    clips: Sequence[Clip],
    rows: Mapping[str, Rows],
    errors: Mapping[str, str],
    filters: Sequence[Filter],
    crop: Crop | None,
    duplicates: Duplicates | None,
    concepts: Concepts | None,
    looks: Looks | None = None,
) -> Decided:
    """Decisions for clips that the split left (dropped ones pass through).

    rows: clip id → measure → row. errors: clip id → why a measure has none. Crop, duplicates and concepts need the
    rows of `border`, `text`, `fingerprint`, or of what they name instead; where a measure was not run, they leave the
    clip as it is. looks: for duplicates and concepts.
    """
    looks = looks or Looks()
    rows = across_shots([clip for clip in clips if not clip.dropped], rows)
    result = []
    for clip in clips:
        if clip.dropped or clip.id in errors:
            result.append(clip.drop(MEASURED, errors.get(clip.id, "")))
            continue
        result.append(_one(clip, rows.get(clip.id, {}), filters, crop))
    if duplicates:
        result = _without_duplicates(result, rows, duplicates, looks)
    if concepts:
        result = with_concepts(result, rows, concepts, looks)
    names = [MEASURED, *(f.name for f in filters)]
    names += [SUBTITLES] if crop and crop.subtitles and crop.drops else []
    return Decided(tuple(result), (*names, *([DUPLICATE] if duplicates else [])))


def _one(clip: Clip, rows: Rows, filters: Sequence[Filter], crop: Crop | None) -> Clip:
    scores = {
        f"{name}.{column}": float(value)
        for name, row in rows.items()
        for column, value in row.items()
        if isinstance(value, int | float) and column not in ("key", "score")
    }
    first = int(scores.get("clear_start.offset", 0))
    box, left = plan_crop(clip, rows, crop)
    width, height = box[2] - box[0], box[3] - box[1]
    scores |= {
        "clip.short_side": float(min(width, height)),
        "clip.aspect": width / max(height, 1),
        "crop.left": left,
    }
    if clip.kind == "video":
        scores["clip.seconds"] = seconds_from(clip, first)
    decisions = [f.decide(scores.get(f.score)) for f in filters]
    if crop and crop.subtitles and crop.drops:
        # What a subtitle crop would leave, of the picture inside the bars.
        allowed = f"at least {crop.keep:g}"
        passed = left >= crop.keep - 1e-6
        decisions.append(Decision(filter=SUBTITLES, score="crop.left", value=left, allowed=allowed, passed=passed))
    clip = clip.model_copy(
        update={
            "scores": {name: round(value, 6) for name, value in sorted(scores.items())},
            "decisions": tuple(decisions),
            "first_frame": first,
            "crop": None if box == whole(clip.width, clip.height) else box,
        }
    )
    reasons = {f.name: f.reason for f in filters} | {SUBTITLES: "has subtitles that take too much of the picture"}
    for decision in decisions:
        if not decision.passed:
            clip = clip.drop(decision.filter, reasons[decision.filter], decision.value)
    return clip


def seconds_from(clip: Clip, first: int) -> float:
    """Seconds of a clip from its frame `first` on, before it has a file. Where frames come at uneven times, the whole
    is exact, and the frames before `first` count as long as the clip's others."""
    frames = clip.end_frame - clip.start_frame
    if VARIABLE in clip.tags and clip.end_pts is not None:
        return (clip.end_time - clip.start_time) * (frames - first) / frames
    return (frames - first) / clip.fps


def plan_crop(clip: Clip, rows: Rows, crop: Crop | None) -> tuple[tuple[int, int, int, int], float]:
    """(the part of the display frame to keep, share of the picture inside the bars that a subtitle crop leaves)."""
    box = whole(clip.width, clip.height)
    if crop is None:
        return box, 1.0
    border = rows.get("border")
    if crop.border and border is not None and border["share"] > 0:
        box = crop_pixels(border["box"], clip.width, clip.height)
    text = rows.get(crop.text)
    if not crop.subtitles or text is None or text["subtitle_top"] >= 1.0:
        return box, 1.0
    far, near = (int(np.floor((text["subtitle_top"] - m) * clip.height)) for m in (crop.margin, crop.margin / 3))
    enough = box[1] + int(np.ceil(crop.keep * (box[3] - box[1]) - 1e-6))
    bottom = min(box[3], max(far, min(near, enough)))
    left = max(0.0, (bottom - box[1]) / max(1, box[3] - box[1]))
    if left < crop.keep - 1e-6:
        return box, left
    return (box[0], box[1], box[2], bottom), left


def better_copies(
    clips: Iterable[Clip], looks: Looks, first: Mapping[str, tuple[float, ...]] | None = None
) -> dict[str, str]:
    """Clip → the better clip that it is a duplicate of.

    first: what makes a clip better before all else (larger is better).
    """
    clips = list(clips)
    ids = [clip.id for clip in clips]
    worth = [(*(first or {}).get(clip.id, ()), *_worth(clip)) for clip in clips]
    return better_of(ids, worth, looks.pairs({clip: place for place, clip in enumerate(ids)}))


def _without_duplicates(clips: list[Clip], rows: Mapping[str, Rows], config: Duplicates, looks: Looks) -> list[Clip]:
    better = better_copies((clip for clip in clips if not clip.dropped), looks)
    result = []
    for clip in clips:
        if not clip.dropped and config.by in rows.get(clip.id, {}):
            passed = clip.id not in better
            decision = Decision(
                filter=DUPLICATE, score="duplicate", value=float(not passed), allowed="none better", passed=passed
            )
            clip = clip.model_copy(
                update={"decisions": (*clip.decisions, decision), "duplicate_of": better.get(clip.id)}
            )
            if not passed:
                clip = clip.drop(DUPLICATE, f"shows the same as clip {better[clip.id]}")
        result.append(clip)
    return result


def _worth(clip: Clip) -> tuple[float, ...]:
    """What makes a clip better than its duplicates: more pixels, then nothing to crop for text, sharper, longer."""
    left, top, right, bottom = clip.crop or whole(clip.width, clip.height)
    return (
        float((right - left) * (bottom - top)),
        -max(clip.scores.get("text.share", 0.0), clip.scores.get("ppocr.share", 0.0)),
        -round(clip.scores.get("clarity.edge_width", clip.scores.get("blur.width", 0.0)), 1),
        clip.scores.get("clip.seconds", 0.0),
    )


def with_concepts(clips: list[Clip], rows: Mapping[str, Rows], config: Concepts, looks: Looks) -> list[Clip]:
    """The kept clips with their concept and weight; videos and images are grouped apart."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("video", "image"):
        chosen = [c for c in clips if c.kind == kind and not c.dropped and config.by in rows.get(c.id, {})]
        if chosen:
            groups, weights = cluster(looks.vectors([clip.id for clip in chosen]), config)
            for clip, group, weight in zip(chosen, groups, weights, strict=True):
                found[clip.id] = {"concept": int(group), "weight": round(float(weight), 6)}
    return [clip.model_copy(update=found[clip.id]) if clip.id in found else clip for clip in clips]


_THRESHOLD = re.compile(r"\s*([a-z0-9_.]+)\s*(>=|<=)\s*([-+0-9.eE]+)\s*")


def known_scores(measures: Sequence[Measure]) -> list[str]:
    """The scores that a threshold can be put on."""
    return [*CLIP_SCORES, *(f"{m.name}.{column}" for m in measures for column in m.columns)]


def with_threshold(
    filters: Sequence[Filter], text: str, measures: Sequence[Measure], more: Sequence[str] = ()
) -> tuple[Filter, ...]:
    """The filters with one threshold changed or added: "motion.speed>=1.5", "blur.width<=2".

    more: scores known beside those of clips and measures.
    Raises UserError for text of another form or a score that no measure gives.
    """
    match = _THRESHOLD.fullmatch(text)
    try:
        value = float(match[3]) if match else float("nan")
    except ValueError:
        match = None
    if not match:
        raise UserError(f"'{text}' is not a threshold; write one like motion.speed>=1.5 or blur.width<=2.")
    score, key = match[1], "at_least" if match[2] == ">=" else "at_most"
    known = [*known_scores(measures), *more]
    if score not in known:
        raise UserError(unknown("score", score, known))
    changed = [f.model_copy(update={key: value}) if f.score == score else f for f in filters]
    if score not in [f.score for f in filters]:
        words = f"has {score} {'below' if key == 'at_least' else 'above'} {value:g}"
        group = next((m.group for m in measures if m.name == score.split(".")[0]), "other")
        changed.append(Filter(name=score, score=score, reason=words, group=group, **{key: value}))
    return tuple(changed)
