"""Reading footage as it was meant to be seen: upright, square pixels, exact timestamps.

Everything that curation reads of a source goes through `Footage`: rotation (a flag in the container) is applied, and
pixels that are not square are widened, so that sizes, crops and pictures all speak of the same display frame. Ten-bit
sources come out as eight bits; PQ and HLG light and BT.2020 colours are brought to BT.709 (`curate.tone`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.base.require import require
from openhunyuan.base.video import cropped_native, frame_to_rgb, frame_to_rgb48, is_native
from openhunyuan.curate.tone import to_sdr

READING = 2
"""Raised when the same file would give other pixels than before; part of the key of every stage that reads footage."""

_HDR_TRANSFERS = {16: "pq", 18: "hlg"}
_BT2020, _UNKNOWN = 9, 2


_BACK = Fraction(10)
"""Seconds before a frame at which it is looked for again, where seeking to it came out behind it."""


@dataclass(frozen=True)
class Mark:
    """A frame by its number, counted from 0, and its time in units of the stream's time base."""

    number: int
    pts: int


class Astray(Exception):
    """Frames behind a seek are not those that reading from the beginning gives."""


class Media(Record):
    """What a container says about its first video stream. `height` and `width` are of the display frame.

    rate: frames a second, exact, as "24000/1001". sar: width of a pixel over its height. rotation: degrees that the
    display turns the coded picture by. bits: of one sample. transfer: "sdr", "pq" or "hlg".
    wide: whether the primaries are those of BT.2020.
    """

    height: int
    width: int
    rate: str
    sar: str = "1/1"
    rotation: int = 0
    codec: str
    pixel_format: str
    bits: int = 8
    transfer: str = "sdr"
    wide: bool = False
    bit_rate: int | None = None


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its number, counted from 0, its time in units of the stream's time base, and its pixels."""

    number: int
    pts: int | None
    raw: Any
    media: Media

    def rgb(self, side: int | None = None) -> np.ndarray:
        """Display frame, uint8 [H, W, 3]; reduced so that its longer side is at most `side`."""
        width, height = fit(self.media.width, self.media.height, side)
        turned = self.media.rotation % 180 != 0
        coded = (height, width) if turned else (width, height)
        natural = coded == (self.raw.width, self.raw.height)
        size = None if natural else coded
        if self.media.wide or self.media.transfer != "sdr":
            pixels = to_sdr(frame_to_rgb48(self.raw, size), self.media.transfer, self.media.wide)
        else:
            pixels = frame_to_rgb(self.raw, *(size or ()))
        return upright(pixels, self.media.rotation)

    def part(self, left: int, top: int, right: int, bottom: int) -> Any:
        """What a clip file gets of the frame: the box of the display frame as uint8 [h, w, 3]; or as a frame of PyAV
        in the coded pixels, where those are what is written anyway."""
        media, raw = self.media, self.raw
        even = not (left % 2 or top % 2 or raw.width % 2 or raw.height % 2)
        as_coded = (media.width, media.height) == (raw.width, raw.height) and not media.rotation
        if even and as_coded and media.transfer == "sdr" and not media.wide and is_native(raw):
            return cropped_native(raw, left, top, right, bottom)
        return self.rgb()[top:bottom, left:right]

    def opencv_gray(self) -> np.ndarray:
        """uint8 [H, W] as `cv2.VideoCapture` would read it: upright, pixels as coded, BT.601 whatever the tag says.

        For scores that others define on it; a BT.709 source read as such gives other levels, and other flow.
        """
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        bgr = self.raw.to_ndarray(format="bgr24", threads=1)
        return cv2.cvtColor(upright(bgr, self.media.rotation), cv2.COLOR_BGR2GRAY)

    def vectors(self) -> np.ndarray | None:
        """The motion vectors that the codec stored for this frame, where they were asked for and it has some."""
        for item in self.raw.side_data:
            if "MOTION_VECTORS" in str(item.type):
                return item.to_ndarray()
        return None


def fit(width: int, height: int, side: int | None) -> tuple[int, int]:
    """Width and height reduced, in proportion, to a longer side of at most `side`."""
    scale = 1.0 if side is None else min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """Pixels [H, W, 3] turned by `rotation` degrees counter-clockwise (a multiple of 90)."""
    turns = rotation // 90 % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


class Footage:
    """A video file opened for reading; close it, or use it in a `with`.

    Raises UserError when it is missing, not a video, holds no moving picture, or has no frame that decodes.
    """

    def __init__(self, path: Path | str, motion_vectors: bool = False) -> None:
        self.path, self._motion_vectors = Path(path), motion_vectors
        if not self.path.is_file():
            raise UserError(f"The video {self.path} does not exist.")
        self._open()

    def _open(self) -> None:
        import av
        from av.error import FFmpegError

        try:
            self._container = av.open(str(self.path), metadata_errors="ignore")
        except (FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read as a video ({type(error).__name__}).") from None
        streams = [s for s in self._container.streams.video if "attached_pic" not in str(s.disposition)]
        if not streams:
            self._container.close()
            raise UserError(f"{self.path} holds no video stream.")
        self._stream: Any = streams[0]
        self._stream.codec_context.thread_count = 1  # workers are many, and each has one thread
        if self._motion_vectors:
            from av.codec.context import Flags2

            self._stream.codec_context.flags2 |= Flags2.export_mvs
        self._frames = self._decode()
        try:
            self._first = next(self._frames, None)
            if self._first is None:
                raise UserError(f"{self.path} holds no video frames.")
            self.media = _media(self._stream, self._first)
        except UserError:
            self._container.close()
            raise

    def __enter__(self) -> Footage:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def time_base(self) -> Fraction:
        """Seconds in one unit of a frame's `pts`."""
        return Fraction(self._stream.time_base or Fraction(self.media.rate) ** -1)

    @property
    def promised(self) -> int:
        """Frames that the container says it has; 0 where it does not say."""
        return int(self._stream.frames or 0)

    @property
    def promised_seconds(self) -> Fraction | None:
        """Length of the stream by a Matroska file's own word, which gives no number of frames; else None."""
        text = str(self._stream.metadata.get("DURATION", ""))
        hours, _, rest = text.partition(":")
        minutes, _, seconds = rest.partition(":")
        try:
            return 3600 * Fraction(hours) + 60 * Fraction(minutes) + Fraction(seconds)
        except ValueError:
            return None

    def frames(self, marks: Sequence[Mark] = ()) -> Iterator[Frame]:
        """Every frame from the first, once. Raises UserError where decoding fails.

        marks: frames whose times are known, in order, of a file in which no time comes twice; then frames before the
        first of them may be left out. A seek counts only when it meets that very time, and raises Astray where a later
        mark is not at its place, a frame is corrupt or decoding fails: read from the beginning then.
        """
        number, raw = 0, self._first
        sought = self._seek(marks[0]) if marks and marks[0].number else None
        if sought is not None:
            number, raw = marks[0].number, sought
        places = {} if sought is None else {mark.number: mark.pts for mark in marks}
        try:
            while raw is not None:
                if sought is not None and (raw.is_corrupt or places.get(number, raw.pts) != raw.pts):
                    raise Astray
                yield Frame(number, raw.pts, raw, self.media)
                number += 1
                raw = next(self._frames, None)
        except UserError:
            if sought is not None:
                raise Astray from None
            raise

    def _seek(self, mark: Mark) -> Any | None:
        """The decoded frame at a time, the frames behind it next; None, and all frames next, where it is not met."""
        from av.error import FFmpegError

        for back in (Fraction(0), _BACK):
            try:
                self._container.seek(mark.pts - int(back / self.time_base), stream=self._stream)
                self._frames = self._decode()
                for raw in self._frames:
                    if raw.pts is None or raw.pts > mark.pts:
                        break
                    if raw.pts == mark.pts:
                        return raw
            except (FFmpegError, OSError, UserError):
                break
        self._container.close()
        self._open()
        return None

    def _decode(self) -> Iterator[Any]:
        from av.error import FFmpegError

        number = 0
        try:
            for frame in self._container.decode(self._stream):
                yield frame
                number += 1
        except (FFmpegError, OSError) as error:
            raise UserError(
                f"{self.path} is damaged: decoding failed after frame {number} ({type(error).__name__})."
            ) from None


def _media(stream: Any, first: Any) -> Media:
    rate = Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 1)
    if not 0 < rate <= 1000:
        rate = Fraction(25)
    context = stream.codec_context
    sar = Fraction(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1)
    sar = sar if Fraction(1, 8) < sar < 8 else Fraction(1)
    rotation = int(first.rotation or 0) % 360
    rotation = round(rotation / 90) * 90 % 360
    width, height = max(1, round(first.width * sar)), first.height
    if rotation % 180:
        width, height = height, width
    transfer = _HDR_TRANSFERS.get(int(first.color_trc), "sdr")
    return Media(
        height=height,
        width=width,
        rate=f"{rate.numerator}/{rate.denominator}",
        sar=f"{sar.numerator}/{sar.denominator}",
        rotation=rotation,
        codec=context.name,
        pixel_format=first.format.name,
        bits=max((component.bits for component in first.format.components), default=8),
        transfer=transfer,
        wide=int(first.color_primaries) == _BT2020 or (transfer != "sdr" and int(first.color_primaries) == _UNKNOWN),
        bit_rate=stream.bit_rate or None,
    )


def is_variable(times: list[int | None], rate: Fraction, time_base: Fraction) -> bool:
    """Whether the frames come at uneven times: some step differs from the usual one by more than a tenth of a frame."""
    known = [t for t in times if t is not None]
    if len(known) < 3:
        return False
    steps = np.diff(np.asarray(known, dtype=np.int64)) * float(time_base) * float(rate)
    return bool((np.abs(steps - np.median(steps)) > 0.1 * np.median(steps) + 1.01 * float(time_base * rate)).any())
