"""Raw footage of the synthetic world: a long mp4 of many shots, with planted defects, and the exact truth about it.

What a data pipeline has to find in real footage — cuts, fades, and the shots that report section 3.1 filters out — is
put here on purpose, so that every stage of the pipeline can be measured against what is known:

    write_raw_footage("raw.mp4", seed=1)  →  raw.mp4, raw.mp4.truth.json

Shots partition the frames. Half of them are clean, the others carry one defect each, every kind once before any kind
comes twice. Clean shots always move; neighbouring shots never share a background, so that every cut can be seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.caption.schema import Caption
from openhunyuan.tiny.blurs import KINDS, blurred, kernel_of
from openhunyuan.tiny.world import Frames, Scene, clip_times, render, sample_scene

DEFECTS: tuple[str, ...] = (
    "near_duplicate",
    "static",
    "slow",
    "blur",
    "subtitles",
    "watermark",
    "logo",
    "letterbox",
    "low_contrast",
)
TRANSITIONS: tuple[str, ...] = ("cut", "fade", "dissolve")

SHOT_SECONDS = (1.6, 3.2)
FADE_SECONDS = 0.25
"""Half the length of a gradual transition: a fade spends it on the way to black and again on the way up."""

CAMERA_SHARE, PHOTO_SHARE = 0.45, 0.15
"""How many of the shots have a moving camera, and a photograph behind the subject."""

SLOW_SPAN = 0.06
"""The share of its motion that a too-slow shot shows."""

BLUR_WIDTHS = (0.05, 0.1)
"""How wide a blurred shot's steps are, as a fraction of the shorter side (`tiny.blurs` says what the width is)."""

CONTRAST = 0.15
CONTRAST_LEVEL = 112.0
"""Low contrast pulls every level towards this grey until `CONTRAST` of its distance is left."""

BAR_SHARE = 0.125
"""Height of each letterbox bar, as a fraction of the picture's."""

DUPLICATE_ZOOM = 1.04
DUPLICATE_GAIN = 1.06
"""A near-duplicate is its original a little larger (cropped to size) and a little brighter."""

WATERMARK_ALPHA = 0.55
SUBTITLES = (
    "Where does it go",
    "I saw it move",
    "Wait for me here",
    "It was red before",
    "Nothing stays still",
    "Look at the corner",
    "They come around",
    "Not this time",
)


Box = tuple[int, int, int, int]


class Defect(Record):
    """One planted defect. `start_frame`, `end_frame` (exclusive) count from the start of the file.

    `box` is (left, top, right, bottom) in pixels: the overlay's extent, or for a letterbox the picture between the
    bars. `text` is what a subtitle or watermark says, `duplicate_of` the index of the shot that a near-duplicate
    repeats. `blur` is a kind of `tiny.blurs`, over the whole picture: "motion" is that of a camera that pans steadily
    while the shutter is open, along `blur_angle` (radians from x to y). `blur_width` is a fraction of the shorter side.
    """

    kind: str
    start_frame: int
    end_frame: int
    box: Box | None = None
    text: str | None = None
    duplicate_of: int | None = None
    blur: str | None = None
    blur_width: float | None = None
    blur_angle: float | None = None


class Shot(Record):
    """One shot: frames [start_frame, end_frame), of which [clear_start, clear_end) are free of transitions.

    `transition` says how the shot begins: "start" for the first, else one of `TRANSITIONS`.
    """

    index: int
    start_frame: int
    end_frame: int
    clear_start: int
    clear_end: int
    transition: str
    scene: Scene
    prompt: str
    caption: Caption
    camera: str
    defects: tuple[Defect, ...] = ()


class Cut(Record):
    """One shot boundary: `frame` is the first frame of the new shot; the transition fills [start_frame, end_frame)."""

    frame: int
    kind: str
    start_frame: int
    end_frame: int


class RawTruth(Record):
    """Everything that is known about one raw video file."""

    file: str
    seed: int
    split: str
    fps: float
    height: int
    width: int
    num_frames: int
    shots: tuple[Shot, ...]
    cuts: tuple[Cut, ...]


def truth_path(path: str | os.PathLike[str]) -> Path:
    """Where the truth of a raw video lies: beside it, `.truth.json` added to the name."""
    return Path(f"{os.fspath(path)}.truth.json")


def read_truth(path: str | os.PathLike[str]) -> RawTruth:
    """The truth beside the raw video `path`; `UserError` if it is missing or does not fit."""
    return RawTruth.read(truth_path(path))


def write_raw_footage(
    path: str | os.PathLike[str],
    seed: int,
    duration_s: float = 60.0,
    fps: float = 24.0,
    height: int = 144,
    width: int = 256,
    *,
    split: str = "train",
    defects: Sequence[str] = DEFECTS,
    shot_seconds: tuple[float, float] = SHOT_SECONDS,
) -> RawTruth:
    """Write raw footage and its truth, deterministically from the arguments.

    Args:
        path: the mp4 (H.264, yuv420p); `<path>.truth.json` is written beside it.
        duration_s: length in seconds; about two shots of `shot_seconds` are needed per kind of defect.
        height, width: pixels, even, 32 or more.
        split: which scenes are used, see `sample_scene`.
        defects: the kinds to plant (none for clean footage).

    Raises `UserError` for sizes, lengths or kinds that cannot be made. Memory stays at one shot.
    """
    if height % 2 or width % 2 or min(height, width) < 32:
        raise UserError(f"Raw footage cannot be {height}x{width}; choose even sides of 32 pixels or more.")
    if not fps > 0 or not shot_seconds[0] <= shot_seconds[1]:
        raise UserError(f"Raw footage needs fps above 0 and shot_seconds in order, not {fps} and {shot_seconds}.")
    if round(shot_seconds[0] * fps) < 4 * _fade_frames(fps) or duration_s < shot_seconds[0]:
        raise UserError(
            f"Shots of {shot_seconds[0]} s in {duration_s} s of footage are too short; "
            f"choose shots of {4 * FADE_SECONDS} s or more and at least one shot's length of footage."
        )
    unknown = [kind for kind in defects if kind not in DEFECTS]
    if unknown:
        raise UserError(f"{unknown[0]!r} is not a defect; choose from {', '.join(DEFECTS)}.")

    rng = np.random.default_rng([seed, 0x0FAA])
    lengths = _shot_lengths(rng, round(duration_s * fps), (shot_seconds[0] * fps, shot_seconds[1] * fps))
    shots = _plan(rng, lengths, split, tuple(defects), _fade_frames(fps), (height, width))
    path = Path(path)
    truth = RawTruth(
        file=path.name,
        seed=seed,
        split=split,
        fps=fps,
        height=height,
        width=width,
        num_frames=sum(lengths),
        shots=tuple(shots),
        cuts=tuple(
            Cut(frame=shot.start_frame, kind=shot.transition, start_frame=before.clear_end, end_frame=shot.clear_start)
            for before, shot in pairwise(shots)
        ),
    )
    _write(path, _footage(truth), fps, height, width)
    side = truth_path(path)
    temporary = side.with_name(f".{side.name}.{os.getpid()}.tmp")
    temporary.write_text(truth.model_dump_json(indent=1) + "\n", encoding="utf-8")
    temporary.replace(side)
    return truth


# --------------------------------------------------------------------------------------------------------------- plan


def _fade_frames(fps: float) -> int:
    return max(2, round(FADE_SECONDS * fps))


def _shot_lengths(rng: np.random.Generator, total: int, bounds: tuple[float, float]) -> list[int]:
    """Shot lengths in frames, within `bounds` but for the last, which takes a remainder too short to stand alone."""
    low, high = round(bounds[0]), round(bounds[1])
    lengths: list[int] = []
    while (left := total - sum(lengths)) >= 2 * low:
        lengths.append(min(int(rng.integers(low, high + 1)), left - low))
    return [*lengths, total - sum(lengths)]


def _assign_defects(rng: np.random.Generator, count: int, kinds: tuple[str, ...]) -> list[str | None]:
    """A defect for every second shot; each kind once before any comes twice."""
    assigned: list[str | None] = [None] * count
    queue: list[str] = []
    for index in range(1, count, 2):
        if not kinds:
            break
        if not queue:
            queue = [kinds[i] for i in rng.permutation(len(kinds))]
        # A near-duplicate needs a clean original before it, and other footage between the two.
        pick = 0 if index >= 3 or queue[0] != "near_duplicate" else min(1, len(queue) - 1)
        if queue[pick] == "near_duplicate" and index < 3:
            continue
        assigned[index] = queue.pop(pick)
    return assigned


def _plan(
    rng: np.random.Generator,
    lengths: list[int],
    split: str,
    kinds: tuple[str, ...],
    fade: int,
    size: tuple[int, int],
) -> list[Shot]:
    planted = _assign_defects(rng, len(lengths), kinds)
    transitions = ["start", *(TRANSITIONS[i] for i in rng.choice(3, size=len(lengths) - 1, p=[0.6, 0.25, 0.15]))]
    shots: list[Shot] = []
    start = 0
    for index, (length, kind) in enumerate(zip(lengths, planted, strict=True)):
        end = start + length
        following = transitions[index + 1] if index + 1 < len(lengths) else "end"
        clear_start = start + (fade if transitions[index] in ("fade", "dissolve") else 0)
        clear_end = end - (fade if following in ("fade", "dissolve") else 0)
        original = None
        if kind == "near_duplicate":
            original = int(rng.choice([shot.index for shot in _originals(shots[:-1], shots[-1].scene)]))
            scene = shots[original].scene
        else:
            before = shots[-1].scene if shots else None
            # Where a near-duplicate follows, this scene must leave it an original with another background.
            earlier = shots if index + 1 < len(lengths) and planted[index + 1] == "near_duplicate" else None
            while True:
                scene = _scene_for(rng, split, kind)
                fits = before is None or not _same_background(scene, before)
                if fits and (earlier is None or _originals(earlier, scene)):
                    break
        shots.append(
            Shot(
                index=index,
                start_frame=start,
                end_frame=end,
                clear_start=clear_start,
                clear_end=clear_end,
                transition=transitions[index],
                scene=scene,
                prompt=scene.prompt,
                caption=scene.caption,
                camera=scene.camera,
                defects=_defects(rng, kind, start, end, original, size) if kind else (),
            )
        )
        start = end
    return shots


def _same_background(one: Scene, other: Scene) -> bool:
    return (one.background_color, one.photo) == (other.background_color, other.photo)


def _originals(shots: Sequence[Shot], neighbour: Scene) -> list[Shot]:
    """The clean shots that could be repeated right after `neighbour`."""
    return [shot for shot in shots if not shot.defects and not _same_background(shot.scene, neighbour)]


def _scene_for(rng: np.random.Generator, split: str, kind: str | None) -> Scene:
    """A scene that moves, or one that is fit for its defect."""
    if kind == "static":
        # Drawn as for a moving camera, which gives a still subject before a visible material.
        return replace(sample_scene(rng, split, camera_prob=1.0, photo_prob=PHOTO_SHARE), camera="static")
    while True:
        scene = sample_scene(rng, split, camera_prob=0.0 if kind == "slow" else CAMERA_SHARE, photo_prob=PHOTO_SHARE)
        # A sixteenth of an orbit is still a visible move, so no slow shot orbits.
        refused = ("still", "orbits") if kind == "slow" else ("still",)
        if scene.camera != "static" or scene.motion not in refused:
            return scene


def _defects(
    rng: np.random.Generator, kind: str, start: int, end: int, original: int | None, size: tuple[int, int]
) -> tuple[Defect, ...]:
    height, width = size
    if kind == "blur":
        # Of a generator of its own: what comes after does not depend on which blur this is.
        (own,) = rng.spawn(1)
        low, high = np.log(BLUR_WIDTHS)
        blur, share = KINDS[int(own.integers(len(KINDS)))], round(float(np.exp(own.uniform(low, high))), 4)
        angle = round(float(own.uniform(0, np.pi)), 4) if blur == "motion" else None
        where: dict[str, Any] = {"start_frame": start, "end_frame": end}
        return (Defect(kind=kind, **where, blur=blur, blur_width=share, blur_angle=angle),)
    if kind == "subtitles":
        middle = (start + end) // 2
        first, second = (SUBTITLES[int(i)] for i in rng.choice(len(SUBTITLES), 2, replace=False))
        return tuple(
            Defect(kind=kind, start_frame=a, end_frame=b, box=_subtitle_layout(text, height, width).box, text=text)
            for a, b, text in ((start, middle, first), (middle, end, second))
        )
    box, text = None, None
    if kind == "watermark":
        text = ("SAMPLE", "PREVIEW", "STOCK")[int(rng.integers(3))]
        box = _corner(int(rng.integers(4)), *_watermark_layout(text, height, width).extent, height, width)
    elif kind == "logo":
        side = _logo_side(height, width)
        box = _corner(int(rng.integers(4)), side, side, height, width)
    elif kind == "letterbox":
        bar = round(BAR_SHARE * height)
        box = (0, bar, width, height - bar)
    return (Defect(kind=kind, start_frame=start, end_frame=end, box=box, text=text, duplicate_of=original),)


def _corner(corner: int, box_width: int, box_height: int, height: int, width: int) -> Box:
    """The box of this size in a corner: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    margin = max(2, round(0.04 * min(height, width)))
    left = margin if corner % 2 == 0 else width - margin - box_width
    top = margin if corner < 2 else height - margin - box_height
    return (left, top, left + box_width, top + box_height)


# ------------------------------------------------------------------------------------------------------------- pixels


class _Lettering:
    """One line of text, laid out: its extent (width, height) with a border of one stroke, and its drawing."""

    def __init__(self, text: str, width: int, height: int) -> None:
        """The largest lettering that fits into `width` × `height` pixels."""
        import cv2

        self.text, self.font = text, cv2.FONT_HERSHEY_SIMPLEX
        unit, base = cv2.getTextSize(text, self.font, 1.0, 1)
        self.scale = min(width / (unit[0] + 4), height / (unit[1] + base + 4))
        self.stroke = max(1, round(1.6 * self.scale))
        (text_width, text_height), base = cv2.getTextSize(text, self.font, self.scale, self.stroke)
        self.rise = text_height + self.stroke
        self.extent = (text_width + 2 * self.stroke, text_height + base + 2 * self.stroke)
        self.box = (0, 0, *self.extent)

    def centred(self, bottom: int, width: int) -> _Lettering:
        left, top = (width - self.extent[0]) // 2, bottom - self.extent[1]
        self.box = (left, top, left + self.extent[0], top + self.extent[1])
        return self

    def draw(self, frame: Frames, color: tuple[int, int, int], box: Box, outlined: bool = False) -> None:
        import cv2

        x, y = box[0] + self.stroke, box[1] + self.rise
        # Outlined by shifted copies: a thicker stroke would change the letters' spacing in some OpenCV versions.
        around = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy] if outlined else []
        for dx, dy in around:
            cv2.putText(frame, self.text, (x + dx, y + dy), self.font, self.scale, (0, 0, 0), self.stroke, cv2.LINE_AA)
        cv2.putText(frame, self.text, (x, y), self.font, self.scale, color, self.stroke, cv2.LINE_AA)


def _subtitle_layout(text: str, height: int, width: int) -> _Lettering:
    return _Lettering(text, round(0.85 * width), max(10, round(0.13 * height))).centred(round(0.95 * height), width)


def _watermark_layout(text: str, height: int, width: int) -> _Lettering:
    return _Lettering(text, round(0.36 * width), max(9, round(0.11 * height)))


def _logo_side(height: int, width: int) -> int:
    return max(9, round(0.16 * min(height, width)))


def _clip_box(box: Box, height: int, width: int) -> tuple[slice, slice]:
    return slice(max(0, box[1]), min(height, box[3])), slice(max(0, box[0]), min(width, box[2]))


def _logo(side: int) -> tuple[Frames, NDArray[np.float32]]:
    """A badge: levels [side, side, 3] and coverage [side, side, 1]."""
    middle = (side - 1) / 2
    y, x = np.mgrid[:side, :side].astype(np.float32) - np.float32(middle)
    distance = np.hypot(x, y) / (side / 2)
    coverage = np.clip((1 - distance) * side / 2 + 0.5, 0, 1)[..., None]
    ring = (distance > 0.55) & (distance < 0.8) | (np.abs(x) < side * 0.08) & (distance < 0.55)
    levels = np.where(ring[..., None], np.array([248, 248, 248]), np.array([206, 20, 96])).astype(np.uint8)
    return levels, coverage


def _damage(defect: Defect, frames: Frames, first: int) -> None:
    """Apply one overlay or picture defect in place to frames [T, H, W, 3] whose first is frame `first` of the file."""
    import cv2

    height, width = frames.shape[1:3]
    if defect.kind == "blur" and defect.blur and defect.blur_width:
        kernel = kernel_of(defect.blur, defect.blur_width * min(height, width), defect.blur_angle or 0.0)
        for frame in frames:
            frame[:] = blurred(frame, kernel)
    elif defect.kind == "low_contrast":
        frames[:] = np.rint(CONTRAST_LEVEL + CONTRAST * (frames.astype(np.float32) - CONTRAST_LEVEL))
    elif defect.kind == "near_duplicate":
        centre = (width / 2 - 0.5, height / 2 - 0.5)
        zoom = cv2.getRotationMatrix2D(centre, 0.0, DUPLICATE_ZOOM)
        for frame in frames:
            larger = cv2.warpAffine(frame, zoom, (width, height), flags=cv2.INTER_LINEAR)
            frame[:] = np.clip(np.rint(larger * DUPLICATE_GAIN), 0, 255)
    elif defect.kind == "subtitles" and defect.text and defect.box:
        line = _subtitle_layout(defect.text, height, width)
        for index, frame in enumerate(frames):
            if defect.start_frame <= first + index < defect.end_frame:
                line.draw(frame, (255, 255, 255), defect.box, outlined=True)
    elif defect.kind == "watermark" and defect.text and defect.box:
        line = _watermark_layout(defect.text, height, width)
        for frame in frames:
            marked = frame.copy()
            line.draw(marked, (240, 240, 240), defect.box)
            frame[:] = np.rint(WATERMARK_ALPHA * marked.astype(np.float32) + (1 - WATERMARK_ALPHA) * frame)
    elif defect.kind == "logo" and defect.box:
        rows, columns = _clip_box(defect.box, height, width)
        levels, coverage = _logo(defect.box[2] - defect.box[0])
        region = frames[:, rows, columns].astype(np.float32)
        frames[:, rows, columns] = np.rint(region + coverage * (levels - region))


def _shot_frames(shot: Shot, head: int, tail: int, height: int, width: int) -> Frames:
    """A shot's frames [T, H, W, 3], with `head` frames before its start and `tail` after its end for dissolves."""
    count = shot.end_frame - shot.start_frame + head + tail
    times = clip_times(count)
    kinds = {defect.kind for defect in shot.defects}
    if "slow" in kinds:
        times = 0.5 + SLOW_SPAN * (times - 0.5)
    bars = next((defect.box for defect in shot.defects if defect.kind == "letterbox"), None)
    if bars is None:
        frames = render(shot.scene, height=height, width=width, times=times)
    else:
        frames = np.zeros((count, height, width, 3), np.uint8)
        frames[:, bars[1] : bars[3]] = render(shot.scene, height=bars[3] - bars[1], width=width, times=times)
    for defect in shot.defects:
        _damage(defect, frames, shot.start_frame - head)
    return frames


def _footage(truth: RawTruth) -> Iterator[Frames]:
    """The frames [H, W, 3] of the whole file, one after the other."""
    fade = _fade_frames(truth.fps)
    carried: Frames | None = None
    for shot in truth.shots:
        following = truth.shots[shot.index + 1].transition if shot.index + 1 < len(truth.shots) else "end"
        head = fade if shot.transition == "dissolve" else 0
        tail = fade if following == "dissolve" else 0
        frames = _shot_frames(shot, head, tail, truth.height, truth.width)
        if carried is not None:
            # The last 2·fade frames of the shot before (its own end and its tail) turn into this one's first.
            weight = ((np.arange(2 * fade, dtype=np.float32) + 1) / (2 * fade + 1))[:, None, None, None]
            frames[: 2 * fade] = np.rint((1 - weight) * carried + weight * frames[: 2 * fade])
            carried = None
        if shot.transition == "fade":
            frames[:fade] = np.rint(frames[:fade] * _ramp(fade))
        if following == "fade":
            frames[-fade:] = np.rint(frames[-fade:] * _ramp(fade)[::-1])
        if tail:
            carried = frames[-2 * fade :].copy()
            frames = frames[: -2 * fade]
        yield from frames


def _ramp(fade: int) -> NDArray[np.floating[Any]]:
    return (np.arange(fade, dtype=np.float32) / fade)[:, None, None, None]


def _write(path: Path, frames: Iterator[Frames], fps: float, height: int, width: int) -> None:
    """Encode frames as they come: raw footage is minutes long and never whole in memory."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.options = {"crf": "16", "preset": "veryfast"}
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = 1
            context.color_range = 1
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(
                    format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
                )
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
