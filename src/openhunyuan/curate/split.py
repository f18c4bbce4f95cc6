"""Shot split: a source video in, its uninterrupted shots out.

Two detectors look at one pass of decoded frames:

- hard cuts: PySceneDetect's AdaptiveDetector (a frame that differs from its predecessor far more than its neighbours
  do), which the report names for this step (section 3.1);
- gradual transitions (fade out, fade in, dissolve): our own, because a cut detector sees no single large step in them.
  While one shot fades into another (or into black), the picture moves through pixel space on a straight line at even
  speed, and its colours change as a whole. Motion alone does not do both: it bends the line, or keeps the colours.

Frames inside a gradual transition, and black frames, belong to no clip.

A scan may keep what it has seen in parts (`Parts`), and one that was killed is then gone on with behind the last of
them. A cut depends on `window_width` frames on each side, so the frames before that place are looked at again; all
else is decided from what is kept of every frame.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.record import Record
from openhunyuan.base.require import require
from openhunyuan.curate.clip import Clip, clip_id, file_sha256
from openhunyuan.curate.footage import READING, Astray, Footage, Mark, Media, is_variable
from openhunyuan.curate.stage import Stage

STAGE = "split"
THUMB = 16  # side of the thumbnails on which gradual transitions are judged
ANALYSIS_SIDE = 256  # frames are reduced to at most this longer side, as PySceneDetect does by itself

VARIABLE = "variable frame rate"
"""Tag of the clips of a source whose frames come at uneven times."""

_THUMB_BYTES = THUMB * THUMB * 3
_BLOCK = 4096
"""Thumbnails that are compared at once."""

WHOLE = 0.9
"""Share of the frames or of the length a container promises that must decode; edit lists may hide a few."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Boundaries:
    """Where the shots of a video of `count` frames end: frames that begin a new shot by a hard cut, and half-open spans
    of frames that belong to no shot."""

    count: int
    cuts: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class Detector(ABC):
    """One more look for boundaries in the same pass of frames."""

    @abstractmethod
    def add(self, picture: np.ndarray) -> None:
        """See a frame, uint8 [h, w, 3], longer side at most `ANALYSIS_SIDE`; frames come in order."""

    @abstractmethod
    def combine(self, boundaries: Boundaries) -> Boundaries:
        """What the default detectors found, with what this one found."""


class Split(Stage):
    """Thresholds of the shot split. `min_seconds` and `max_seconds` are no part of the key: shots are found without
    them, and made into clips anew at every run (`pieces_of`, `clips_of`)."""

    name: ClassVar[str] = STAGE
    version: ClassVar[int] = 4

    min_seconds: float = Field(default=0.6, ge=0, description="Shorter shots are recorded as dropped.")
    max_seconds: float | None = Field(
        default=None, gt=0, description="Longer shots are cut into equal pieces no longer than this; None: kept whole."
    )
    adaptive_threshold: float = Field(
        default=3.5, gt=0, description="Of PySceneDetect's AdaptiveDetector, at the value its own benchmark found best."
    )
    window_width: int = Field(default=3, ge=1, description="Of the same detector: frames on each side.")
    min_content: float = Field(
        default=12.0,
        ge=0,
        description="Smallest mean change (0..255, over hue, saturation and brightness) that counts as a cut.",
    )
    fade_seconds: float = Field(
        default=0.25, gt=0, description="Length of the window in which a gradual transition is looked for."
    )

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        found = {name: value for name, value in described["parameters"].items() if name not in self.lengths}
        return {**described, "parameters": found, "reading": READING}

    @property
    def lengths(self) -> dict[str, float | None]:
        """How long clips may be."""
        return {"min_seconds": self.min_seconds, "max_seconds": self.max_seconds}

    def detector(self) -> Detector | None:
        """A further detector for one video."""
        return None


class Span(Record):
    """One shot or piece of a shot, in frames and in units of the time base; end exclusive."""

    start_frame: int
    end_frame: int
    start_pts: int | None
    end_pts: int | None
    transition: str


class Pieces(Stage):
    """How long the pieces of shots may be. Their spans lie in a table beside the shots', so that every clip that there
    ever was can be named by its source."""

    name: ClassVar[str] = STAGE

    split: str = Field(description="Key of the split.")
    max_seconds: float


class Shots(Record):
    """What the split found out about a source: its container's facts, its frames' times, its shots."""

    media: Media
    time_base: str
    num_frames: int
    variable: bool = Field(description="Whether the frames come at uneven times.")
    times: str = Field(description="The frames' times in units of the time base: `packed`.")
    spans: tuple[Span, ...]

    @property
    def pts(self) -> list[int | None]:
        """Time of every frame, and of the last one's end, in units of the time base. The last frame is as long as the
        one before where frames come at uneven times, else as the rate says."""
        times = unpacked(self.times)
        last, before = times[-1], times[-2] if self.variable else None
        if last is None:
            return [*times, None]
        step = round(1 / Fraction(self.media.rate) / Fraction(self.time_base))
        return [*times, last + (last - before if before is not None and before < last else step)]

    @property
    def seconds(self) -> np.ndarray:
        """The same in seconds, float64 [num_frames + 1]; a time that is not known lies evenly between its neighbours,
        or is that of an even rate where none is known."""
        places = np.arange(self.num_frames + 1)
        known = np.asarray([(i, t) for i, t in enumerate(self.pts) if t is not None], np.int64).reshape(-1, 2)
        if not len(known):
            return places / float(Fraction(self.media.rate))
        seconds = np.interp(places, known[:, 0], known[:, 1] * float(Fraction(self.time_base)))
        return np.maximum.accumulate(seconds)


_UNKNOWN = np.iinfo(np.int64).min


def packed(times: Sequence[int | None]) -> str:
    """Times of frames as a short text: base64 of the deflated steps between them (int64, little endian)."""
    numbers = np.asarray([_UNKNOWN if t is None else t for t in times], "<i8")
    return base64.b64encode(zlib.compress(np.diff(numbers, prepend=np.int64(0)).tobytes(), 9)).decode()


def unpacked(text: str) -> list[int | None]:
    """The times of a text of `packed`."""
    numbers = np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8"), dtype=np.int64)
    return [None if t == _UNKNOWN else t for t in numbers.tolist()]


@dataclass
class Seen:
    """What a scan keeps of the frames that it has looked at: their times, thumbnails (uint8 [n, `THUMB`, `THUMB`, 3] as
    bytes), and the frame numbers that begin a new shot by a hard cut, as far as they are decided."""

    pts: list[int | None] = field(default_factory=list)
    thumbs: bytearray = field(default_factory=bytearray)
    cuts: list[int] = field(default_factory=list)

    def thumb(self, number: int) -> bytes:
        return bytes(self.thumbs[number * _THUMB_BYTES : (number + 1) * _THUMB_BYTES])


@dataclass(frozen=True)
class Parts:
    """The parts of a scan on disk: files of so many `seconds` of a source in a folder of its own."""

    folder: Path
    seconds: float

    def read(self) -> Seen:
        """All parts together."""
        seen = Seen()
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            with np.load(path, allow_pickle=False) as part:
                seen.pts += part["pts"].tolist()
                seen.thumbs += part["thumbs"].tobytes()
                seen.cuts += part["cuts"].tolist()
        return seen

    def add(self, seen: Seen, frames: int, cuts: int) -> None:
        """Keep what was seen since there were so many frames and cuts."""
        content = io.BytesIO()
        thumbs = np.frombuffer(seen.thumbs[frames * _THUMB_BYTES :], np.uint8)
        np.savez(content, pts=np.asarray(seen.pts[frames:], np.int64), thumbs=thumbs, cuts=seen.cuts[cuts:])
        write_atomic(self.folder / f"{frames:09d}.npz", content.getvalue())


def find_shots(path: Path | str, config: Split | None = None, parts: Parts | None = None) -> Shots:
    """The shots of a video file, in order.

    parts: where the scan keeps what it has seen, and goes on from. Not used where the times of the frames are unknown
    or out of order, nor with a further detector, whose memory is not kept.
    Raises UserError when the file cannot be read as video, or when PySceneDetect or OpenCV is not installed.
    """
    path, config = Path(path), config or Split()
    try:
        return _found(path, config, parts)
    except Astray:
        assert parts is not None
        shutil.rmtree(parts.folder)
        return _found(path, config, parts)


def _found(path: Path, config: Split, parts: Parts | None) -> Shots:
    """Raises Astray where the frames behind the parts are not those that a whole scan meets."""
    with Footage(path) as footage:
        media, time_base, rate = footage.media, footage.time_base, Fraction(footage.media.rate)
        detector = config.detector()
        seen = _scan(footage, config, detector, None if detector else parts)
        pts = seen.pts
        if len(pts) < WHOLE * footage.promised:
            raise UserError(f"{path} is cut off: {len(pts)} of its {footage.promised} frames can be decoded.")
        promised, there = footage.promised_seconds, _seconds(pts, time_base) + 1 / rate
        if promised is not None and there < WHOLE * promised:
            raise UserError(f"{path} is cut off: {float(there):.2f} of its {float(promised):.2f} s can be decoded.")
    thumbs = np.frombuffer(seen.thumbs, np.uint8).reshape(-1, THUMB, THUMB, 3)
    window = max(4, 2 * round(config.fade_seconds * float(rate) / 2))
    cuts = tuple(n for n in sorted(set(seen.cuts)) if 0 < n < len(thumbs))
    found = Boundaries(len(thumbs), cuts, tuple(gradual_spans(thumbs, window)))
    if detector:
        found = detector.combine(found)
    shots = shots_between(found.count, found.cuts, found.spans)
    log.info("%s: %d frames, %d shots", path.name, len(thumbs), len(shots))
    result = Shots(
        media=media,
        time_base=f"{time_base.numerator}/{time_base.denominator}",
        num_frames=len(pts),
        variable=is_variable(pts, rate, time_base),
        times=packed(pts),
        spans=(),
    )
    ends = result.pts
    return result.model_copy(update={"spans": tuple(_span(ends, *shot) for shot in shots)})


def _span(ends: Sequence[int | None], start: int, end: int, transition: str) -> Span:
    return Span(start_frame=start, end_frame=end, start_pts=ends[start], end_pts=ends[end], transition=transition)


def pieces_of(shots: Shots, max_seconds: float | None) -> Shots:
    """The same source with shots that are longer than `max_seconds` in pieces that are not; None: as it is."""
    if max_seconds is None:
        return shots
    ends, seconds, fps = shots.pts, shots.seconds, float(Fraction(shots.media.rate))
    spans = []
    for shot in shots.spans:
        a, b = shot.start_frame, shot.end_frame
        edges = _edges_in_time(a, seconds[a : b + 1], max_seconds) if shots.variable else _edges(a, b, fps, max_seconds)
        for start, end in pairwise(edges):
            spans.append(_span(ends, start, end, shot.transition if start == a else "cut"))
    return shots.model_copy(update={"spans": tuple(spans)})


def _seconds(pts: Sequence[int | None], time_base: Fraction) -> Fraction:
    """From the first to the last known time."""
    known = [t for t in pts if t is not None]
    return (max(known) - min(known)) * time_base if known else Fraction(0)


def clips_of(
    path: Path | str, source_sha256: str, shots: Shots, min_seconds: float, kind: Literal["video", "image"] = "video"
) -> list[Clip]:
    """The spans as clips without files; videos that are too short are marked as dropped."""
    clips = []
    for span in shots.spans:
        clip = Clip(
            id=clip_id(source_sha256, span.start_frame, span.end_frame),
            source=str(path),
            source_sha256=source_sha256,
            start_frame=span.start_frame,
            end_frame=span.end_frame,
            start_pts=span.start_pts,
            end_pts=span.end_pts,
            time_base=shots.time_base,
            rate=shots.media.rate,
            fps=float(Fraction(shots.media.rate)),
            height=shots.media.height,
            width=shots.media.width,
            transition=span.transition,
            tags=source_tags(shots.media, shots.variable),
        )
        if kind == "image":
            clips.append(clip.model_copy(update={"kind": "image"}))
            continue
        seconds = clip.end_time - clip.start_time
        if seconds < min_seconds:
            clip = clip.drop(STAGE, f"shorter than {min_seconds:g} s", round(seconds, 3))
        clips.append(clip)
    return clips


def source_tags(media: Media, variable: bool) -> tuple[str, ...]:
    """Words about where a clip comes from that the container alone decides."""
    short = min(media.height, media.width)
    step = max((line for line in (144, 240, 360, 540, 720, 1080, 2160) if line <= short), default=None)
    tags = [
        "landscape" if media.width > media.height else "portrait" if media.width < media.height else "square",
        f"{step}p" if step else "below 144p",
        media.codec,
    ]
    tags += [VARIABLE] if variable else []
    tags += [f"{media.bits} bit"] if media.bits > 8 else []
    tags += ["hdr"] if media.transfer != "sdr" else []
    return tuple(tags)


def frame_of(clip: Clip) -> Clip:
    """The middle frame of a video clip, as an image."""
    middle = (clip.start_frame + clip.end_frame) // 2
    span = {"start_frame": middle, "end_frame": middle + 1, "start_pts": None, "end_pts": None}
    return clip.model_copy(
        update={**span, "id": clip_id(clip.source_sha256, middle, middle + 1), "kind": "image", "transition": "start"}
    )


def split_video(path: Path | str, config: Split | None = None) -> list[Clip]:
    """The shots of a video file in order, as clips without files; too short ones are marked as dropped.

    Raises UserError when the file cannot be read as video, or when PySceneDetect or OpenCV is not installed.
    """
    config = config or Split()
    shots = pieces_of(find_shots(path, config), config.max_seconds)
    return clips_of(path, file_sha256(Path(path)), shots, config.min_seconds)


def _scan(footage: Footage, config: Split, further: Detector | None, parts: Parts | None) -> Seen:
    """One pass over the video, from its beginning or behind the parts. Raises Astray, see `_found`."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    common: Any = require("scenedetect.common", extra="curate", package="scenedetect-headless")
    detector = cut_detector(config)
    fps, width = float(Fraction(footage.media.rate)), config.window_width
    seen = parts.read() if parts else Seen()
    # The detector decides `width` frames late, and about none of its first `width` frames, nor about the next one
    # where it has not seen what came before: so it begins anew so far back.
    start = len(seen.pts) - 2 * width - 1
    if start <= 0:
        start, seen = 0, Seen()
    known, decided = len(seen.pts), start + width + 1 if start else 0
    saved, in_order = (known, len(seen.cuts)), True

    def decide(number: int) -> None:
        found = detector.process_frame(common.FrameTimecode(number, fps), last)
        seen.cuts.extend(n for n in (c if isinstance(c, int) else c.frame_num for c in found) if n >= decided)

    last, end = None, 0
    for frame in footage.frames([Mark(n, int(seen.pts[n] or 0)) for n in range(start, known)]):
        end = frame.number + 1
        if end <= start:
            continue
        picture = frame.rgb(ANALYSIS_SIDE)
        thumb = cv2.resize(picture, (THUMB, THUMB), interpolation=cv2.INTER_AREA).tobytes()
        if frame.number < known:
            if (frame.pts, thumb) != (seen.pts[frame.number], seen.thumb(frame.number)):
                raise Astray
        else:
            before = seen.pts[-1] if seen.pts else None
            in_order = in_order and frame.pts is not None and (before is None or before < frame.pts)
            seen.pts.append(frame.pts)
            seen.thumbs += thumb
        if further:
            further.add(picture)
        last = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        decide(frame.number)
        if parts and in_order and len(seen.pts) - saved[0] >= parts.seconds * fps:
            parts.add(seen, *saved)
            saved = len(seen.pts), len(seen.cuts)
    if end < known:
        raise Astray
    # Repeating the last frame lets the detector decide about the end too.
    for number in range(end, end + width if last is not None else 0):
        decide(number)
    return seen


def cut_detector(config: Split) -> Any:
    """PySceneDetect's AdaptiveDetector, whose score of a frame (mean change of hue, saturation and brightness) OpenCV
    adds up, from the same whole numbers to the same score: a third of the detector's time."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    detectors: Any = require("scenedetect.detectors", extra="curate", package="scenedetect-headless")

    class Quick(detectors.AdaptiveDetector):
        before: np.ndarray | None = None

        def _calculate_frame_score(self, timecode: Any, frame_img: np.ndarray) -> float:
            before, self.before = self.before, cv2.cvtColor(frame_img, cv2.COLOR_BGR2HSV)
            if before is None:
                return 0.0
            size = float(before.shape[0] * before.shape[1])
            hue, saturation, brightness, _ = cv2.sumElems(cv2.absdiff(self.before, before))
            return (hue / size + saturation / size + brightness / size) / 3.0

    return Quick(
        adaptive_threshold=config.adaptive_threshold,
        window_width=config.window_width,
        min_content_val=config.min_content,
        min_scene_len=1,  # short shots are found and then dropped with a reason, not silently merged
    )


def gradual_spans(
    thumbs: np.ndarray,
    window: int,
    min_straightness: float = 0.85,
    min_distance: float = 10.0,
    min_colour_change: float = 5.0,
) -> list[tuple[int, int]]:
    """Half-open spans of frames inside fades, dissolves or black, from thumbnails uint8 [T, h, w, 3].

    A window of `window` + 1 frames is part of a gradual transition when all hold (levels are 0..255):
    the distance from its first to its last frame is at least `min_distance` (root mean square over pixels);
    that distance is at least `min_straightness` of the way travelled through the frames between, and no single step
    makes more than half of it (that would be a cut); and the sorted pixel values, which motion hardly changes, moved
    by `min_colour_change` on average. Beside the thumbnails, memory holds a few bytes a frame.
    """
    count = len(thumbs)
    flat = thumbs.reshape(count, -1)
    inside = flat.max(axis=1) < 20  # black, wherever it is
    if count > window:
        root = np.sqrt(flat.shape[1])
        steps = np.concatenate([_steps(flat[at : at + _BLOCK + 1]) for at in range(0, count - 1, _BLOCK)]) / root
        way = np.concatenate([[0.0], np.cumsum(steps)])
        for start in range(count - window):
            end = start + window
            distance = float(np.linalg.norm(flat[end].astype(np.float32) - flat[start])) / root
            if distance < min_distance or distance < min_straightness * (way[end] - way[start]):
                continue
            if steps[start:end].max() > 0.5 * distance:
                continue
            first, last = (np.sort(flat[at].reshape(-1, 3), axis=0).astype(np.float32) for at in (start, end))
            if float(np.abs(last - first).mean()) >= min_colour_change:
                inside[start + 1 : end] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _steps(flat: np.ndarray) -> np.ndarray:
    """Distance of each picture, uint8 [T, levels], from the one before: float32 [T - 1]."""
    return np.linalg.norm(np.diff(flat.astype(np.float32), axis=0), axis=1)


def shots_between(count: int, cuts: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """Shots (start, end, how it begins) of a video of `count` frames, between hard cuts and gradual spans.

    A cut reported within two frames of a gradual span is that span's edge, not another boundary.
    """
    begins: list[tuple[int, int, str]] = [(0, 0, "start")]  # (end of the previous shot, start of this one, how)
    begins += [(a, b, "fade") for a, b in spans]
    begins += [(c, c, "cut") for c in cuts if all(not a - 2 <= c <= b + 2 for a, b in spans)]
    begins.sort()
    shots = []
    for i, (_, start, how) in enumerate(begins):
        end = begins[i + 1][0] if i + 1 < len(begins) else count
        if end > start:
            shots.append((start, end, how))
    return shots


def _edges(start: int, end: int, fps: float, max_seconds: float) -> list[int]:
    """Edges of equal pieces of [start, end), none longer than `max_seconds`."""
    number = -(-(end - start) // max(1, int(max_seconds * fps)))
    return [start + round(i * (end - start) / number) for i in range(number + 1)]


def _edges_in_time(start: int, seconds: np.ndarray, max_seconds: float) -> list[int]:
    """The same of frames that begin, and the last one ends, at these times: pieces about equally long, and none longer
    but one frame that is."""
    whole, frames = float(seconds[-1] - seconds[0]), len(seconds) - 1
    # An edge lies at most one frame behind its time.
    room = max_seconds - float(np.diff(seconds).max())
    edges = np.array([0, frames])
    for longest in (max_seconds, room if room > 0 else max_seconds):
        number = min(frames, max(1, math.ceil(whole / longest - 1e-9)))
        times = seconds[0] + whole * np.arange(1, number) / number
        edges = np.unique([0, *np.searchsorted(seconds, times - 1e-9), frames])
        if np.diff(seconds[edges]).max() <= max_seconds + 1e-9:
            break
    return [start + int(edge) for edge in edges]
