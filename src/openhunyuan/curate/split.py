"""Shot split: a source video in, its uninterrupted shots out.

Two detectors look at one pass of decoded frames:

- hard cuts: PySceneDetect's AdaptiveDetector (a frame that differs from its predecessor far more than its neighbours
  do), which the report names for this step (section 3.1);
- gradual transitions (fade out, fade in, dissolve): our own, because a cut detector sees no single large step in them.
  While one shot fades into another (or into black), the picture moves through pixel space on a straight line at even
  speed, and its colours change as a whole. Motion alone does not do both: it bends the line, or keeps the colours.

Frames inside a gradual transition, and black frames, belong to no clip.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.require import require
from openhunyuan.base.video import iter_video, read_video, write_video
from openhunyuan.curate.clip import Clip, clip_id, file_sha256

STAGE = "split"
THUMB = 16  # side of the thumbnails on which gradual transitions are judged
ANALYSIS_SIDE = 256  # frames are reduced to at most this height before cuts are looked for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitConfig:
    """Thresholds of the shot split.

    min_seconds: shorter shots are recorded as dropped. max_seconds: longer shots are cut into equal pieces no longer
    than this (None: kept whole). adaptive_threshold, window_width: of PySceneDetect's AdaptiveDetector, at the
    values its own benchmark found best. min_content: smallest mean change (0..255, over hue, saturation and
    brightness) that counts as a cut. fade_seconds: length of the window in which a gradual transition is looked for.
    """

    min_seconds: float = 0.6
    max_seconds: float | None = None
    adaptive_threshold: float = 3.5
    window_width: int = 3
    min_content: float = 12.0
    fade_seconds: float = 0.25

    def __post_init__(self) -> None:
        if self.min_seconds < 0 or self.fade_seconds <= 0 or (self.max_seconds is not None and self.max_seconds <= 0):
            raise UserError("Shot lengths and the fade window are in seconds and must be positive.")


def split_video(path: Path | str, config: SplitConfig | None = None) -> list[Clip]:
    """The shots of a video file in order, as clips without files; too short ones are marked as dropped.

    Raises UserError when the file cannot be read as video, or when PySceneDetect or OpenCV is not installed.
    """
    path, config = Path(path), config or SplitConfig()
    first, fps = read_video(path, max_frames=1)
    height, width = first.shape[1:3]
    cuts, thumbs = _scan(iter_video(path), fps, config)
    window = max(4, 2 * round(config.fade_seconds * fps / 2))
    shots = shots_between(len(thumbs), cuts, gradual_spans(thumbs, window))

    source_sha256 = file_sha256(path)
    clips = []
    for start, end, transition in shots:
        for piece, (a, b) in enumerate(_pieces(start, end, fps, config.max_seconds)):
            clip = Clip(
                id=clip_id(source_sha256, a, b),
                source=str(path),
                source_sha256=source_sha256,
                start_frame=a,
                end_frame=b,
                fps=fps,
                height=height,
                width=width,
                transition=transition if piece == 0 else "cut",
            )
            seconds = clip.end_time - clip.start_time
            if seconds < config.min_seconds:
                clip = clip.drop(STAGE, f"shorter than {config.min_seconds:g} s", round(seconds, 3))
            clips.append(clip)
    log.info("%s: %d frames, %d shots", path.name, len(thumbs), len(shots))
    return clips


def cut_clips(clips: Sequence[Clip], folder: Path | str, crf: int = 12) -> list[Clip]:
    """Write each kept clip as its own mp4, `clips/<id>.mp4` under `folder`, frame-exact by decode and encode.

    The clips must all be of one source. A file that is already there is kept: its name is a hash of its content.
    An odd last row or column is cropped, because H.264 4:2:0 needs even sizes. Returns the clips with `path` set.
    """
    folder = Path(folder)
    if len({clip.source for clip in clips}) > 1:
        raise ValueError("cut_clips takes the clips of one source video at a time")
    result = [c if c.dropped else c.model_copy(update={"path": f"clips/{c.id}.mp4"}) for c in clips]
    wanted = sorted(
        (c for c in result if c.path and not (folder / c.path).is_file()), key=lambda c: (c.start_frame, c.end_frame)
    )
    if not wanted:
        return result
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for clip, frames in _spans(iter_video(wanted[0].source), wanted):
        even = frames[:, : clip.height // 2 * 2, : clip.width // 2 * 2]
        write_video(folder / str(clip.path), even, clip.fps, metadata={"clip": clip.id}, crf=crf)
    return result


def _spans(frames: Iterable[np.ndarray], clips: Sequence[Clip]) -> Iterator[tuple[Clip, np.ndarray]]:
    """Collect the frames [T, H, W, 3] of each clip from one pass; clips are sorted by start and may overlap."""
    open_clips: list[tuple[Clip, list[np.ndarray]]] = []
    waiting = list(clips)
    for number, frame in enumerate(frames):
        while waiting and waiting[0].start_frame == number:
            open_clips.append((waiting.pop(0), []))
        for _, collected in open_clips:
            collected.append(frame)
        for clip, collected in [o for o in open_clips if o[0].end_frame == number + 1]:
            yield clip, np.stack(collected)
        open_clips = [o for o in open_clips if o[0].end_frame > number + 1]
        if not waiting and not open_clips:
            return
    missing = [clip.id for clip, _ in open_clips] + [clip.id for clip in waiting]
    if missing:
        raise UserError(f"{clips[0].source} ended before clip {missing[0]} did; it has changed since it was split.")


def _scan(frames: Iterable[np.ndarray], fps: float, config: SplitConfig) -> tuple[list[int], np.ndarray]:
    """One pass over the video: (frame numbers that begin a new shot by a hard cut, thumbnails [T, 16, 16, 3])."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    detectors: Any = require("scenedetect.detectors", extra="curate", package="scenedetect-headless")
    common: Any = require("scenedetect.common", extra="curate", package="scenedetect-headless")
    detector = detectors.AdaptiveDetector(
        adaptive_threshold=config.adaptive_threshold,
        window_width=config.window_width,
        min_content_val=config.min_content,
        min_scene_len=1,  # short shots are found and then dropped with a reason, not silently merged
    )
    cuts: list[int] = []
    thumbs: list[np.ndarray] = []
    padding = config.window_width
    last = None
    for number, frame in enumerate(frames):
        scale = min(1.0, ANALYSIS_SIDE / frame.shape[0])
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame
        thumbs.append(cv2.resize(small, (THUMB, THUMB), interpolation=cv2.INTER_AREA))
        last = np.ascontiguousarray(small[:, :, ::-1])
        cuts += detector.process_frame(common.FrameTimecode(number, fps), last)
    # The detector decides `window_width` frames late; repeating the last frame lets it decide about the end too.
    for number in range(len(thumbs), len(thumbs) + padding if last is not None else 0):
        cuts += detector.process_frame(common.FrameTimecode(number, fps), last)
    numbers = sorted({c if isinstance(c, int) else c.frame_num for c in cuts})
    return [n for n in numbers if 0 < n < len(thumbs)], np.asarray(thumbs, dtype=np.uint8)


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
    by `min_colour_change` on average.
    """
    count = len(thumbs)
    x = thumbs.reshape(count, -1).astype(np.float32)
    inside = x.max(axis=1) < 20.0  # black, wherever it is
    if count > window:
        root = np.sqrt(x.shape[1])
        steps = np.linalg.norm(np.diff(x, axis=0), axis=1) / root
        way = np.concatenate([[0.0], np.cumsum(steps)])
        ordered = np.sort(thumbs.reshape(count, -1, 3), axis=1).astype(np.float32)
        for start in range(count - window):
            end = start + window
            distance = float(np.linalg.norm(x[end] - x[start])) / root
            if distance < min_distance or distance < min_straightness * (way[end] - way[start]):
                continue
            if steps[start:end].max() > 0.5 * distance:
                continue
            if float(np.abs(ordered[end] - ordered[start]).mean()) >= min_colour_change:
                inside[start + 1 : end] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


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


def _pieces(start: int, end: int, fps: float, max_seconds: float | None) -> list[tuple[int, int]]:
    """Equal pieces of [start, end), none longer than `max_seconds`."""
    longest = end - start if max_seconds is None else max(1, int(max_seconds * fps))
    number = -(-(end - start) // longest)
    edges = [start + round(i * (end - start) / number) for i in range(number + 1)]
    return list(pairwise(edges))
