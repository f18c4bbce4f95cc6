"""`Clip`: the one record of curation. Every stage takes clips and returns clips; a manifest is a list of them.

A clip is an uninterrupted piece of one source video. Its id is a hash of content (the source's bytes and the span), so
the same footage gives the same ids on any machine and in any folder, and a renamed file changes nothing.
A dropped clip keeps its record and says which stage dropped it, why, and at which score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, model_validator

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record


class Drop(Record):
    """Why a clip left the set: the stage, one readable reason, and the number that decided, where there is one."""

    stage: str
    reason: str
    score: float | None = None


class Decision(Record):
    """What one filter said about a clip: the score it looked at, its value, and the limits. Every filter's answer is
    kept, not only that of the first one that failed. `value` is None where the score could not be had; `allowed` is
    in words, as "at least 0.5"."""

    filter: str
    score: str
    value: float | None
    allowed: str
    passed: bool


class CameraLabel(Record):
    """What a classifier says of the frames [first, last) of a clip's file: a move, and how sure it is (0 to 1)."""

    first: int
    last: int
    move: str
    confidence: float


class CameraEvidence(Record):
    """What the camera label of any frames of a caption is decided from: what was measured, second by second; the gate,
    the confidence that a label needs; and the table of the measure that said so, as "camera@0123456789abcdef"."""

    labels: tuple[CameraLabel, ...]
    gate: float
    measure: str


class ClipCaption(Record):
    """One caption of a clip. `captioner` names what wrote it ("truth", a model name) and `version` is its key (empty:
    unknown); `text` is the plain prompt; `fields` the structured caption as JSON (the seven fields of report section
    3.2), where there is one. `window`: the frames [first, last) of the clip's file that it is about; None: all.
    `camera`: what its camera label was decided from; None: nothing that was measured."""

    captioner: str
    text: str
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    version: str = ""
    window: tuple[int, int] | None = None
    camera: CameraEvidence | None = None

    @property
    def signature(self) -> str:
        """The captioner and its version, as "vision@0123456789abcdef"."""
        return f"{self.captioner}@{self.version}" if self.version else self.captioner


class Clip(Record):
    """A span of a source video.

    Frames count from 0 and the span is half open: [start_frame, end_frame). `start_pts` and `end_pts` are the same
    span in units of `time_base` seconds, exact, and `rate` the exact frames a second; `fps` is `rate` as a number.
    `transition` says how the clip begins: "start" of the video, a "cut", or a "fade" (any gradual transition).
    `height` and `width` are of the display frame (upright, square pixels).

    Once it has been cut out: `path` is the clip's own mp4, relative to the data folder, `sha256` the hash of its bytes,
    `first_frame` the frame of the span with which it begins, `file_frames` how many it has, `crop` the part of the
    display frame that it shows (left, top, right, bottom; None: all of it); `height` and `width` are then the file's.

    An image is a clip of one frame (`kind`); its file is a PNG. `sets`: the training sets of the ladder that it is in.
    """

    id: str
    kind: Literal["video", "image"] = "video"
    source: str
    source_sha256: str
    start_frame: int = Field(ge=0)
    end_frame: int
    fps: float = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    rate: str | None = None
    start_pts: int | None = None
    end_pts: int | None = None
    time_base: str | None = None
    transition: str = "start"
    path: str | None = None
    sha256: str | None = None
    first_frame: int = Field(default=0, ge=0)
    file_frames: int | None = None
    crop: tuple[int, int, int, int] | None = None
    captions: tuple[ClipCaption, ...] = ()
    camera: str | None = None
    tags: tuple[str, ...] = ()
    scores: dict[str, float] = Field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    duplicate_of: str | None = None
    concept: int | None = None
    weight: float | None = None
    sets: tuple[str, ...] = ()
    dropped: Drop | None = None

    @model_validator(mode="after")
    def _span_is_not_empty(self) -> Clip:
        if self.end_frame <= self.start_frame:
            raise ValueError(f"end_frame {self.end_frame} must be greater than start_frame {self.start_frame}")
        return self

    @property
    def num_frames(self) -> int:
        """Frames of the clip's file; of the span as long as it has none."""
        return self.file_frames if self.file_frames is not None else self.end_frame - self.start_frame

    @property
    def start_time(self) -> float:
        """Seconds from the start of the source: exact where the timestamps are known, else by the frame rate."""
        if self.start_pts is not None and self.time_base:
            return float(self.start_pts * Fraction(self.time_base))
        return self.start_frame / self.fps

    @property
    def end_time(self) -> float:
        """Seconds from the start of the source; the end of the last frame."""
        if self.end_pts is not None and self.time_base:
            return float(self.end_pts * Fraction(self.time_base))
        return self.end_frame / self.fps

    def drop(self, stage: str, reason: str, score: float | None = None) -> Clip:
        """This clip, marked as dropped. The first stage that drops a clip stays on record."""
        return (
            self if self.dropped else self.model_copy(update={"dropped": Drop(stage=stage, reason=reason, score=score)})
        )

    def captions_of(self, captioner: str | None = None) -> list[ClipCaption]:
        """The captions to use: the newest one, or those of all windows where its captioner wrote some; none if there
        are none. captioner: take that one's, by NAME or NAME@VERSION (a version may be cut short)."""
        name, _, version = (captioner or "").partition("@")
        wanted = [
            caption
            for caption in self.captions
            if captioner is None or (caption.captioner == name and caption.version.startswith(version))
        ]
        if not wanted or wanted[-1].window is None:
            return wanted[-1:]
        newest = wanted[-1].signature
        return [caption for caption in wanted if caption.window is not None and caption.signature == newest]

    def with_caption(self, caption: ClipCaption) -> Clip:
        return self.model_copy(update={"captions": (*self.captions, caption)})


def clip_id(source_sha256: str, start_frame: int, end_frame: int) -> str:
    """32 hex digits that depend on the source's bytes and the span only."""
    return hashlib.sha256(f"{source_sha256}|{start_frame}|{end_frame}".encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_jsonl(clips: Iterable[Clip]) -> str:
    return "".join(clip.model_dump_json() + "\n" for clip in clips)


def read_manifest(path: Path) -> list[Clip]:
    """Clips of a manifest (JSON lines). Raises UserError naming the line when one is not a clip."""
    if not path.is_file():
        raise UserError(f"There is no manifest at {path}; split some footage first.")
    clips = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            clips.append(Clip(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise UserError(f"Line {number} of {path} is not a clip: {error}") from None
    return clips
