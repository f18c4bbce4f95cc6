"""Cutting clips out: frame-exact, cropped, upright, at an even frame rate, into the content-addressed store.

Clips are decoded and encoded again, never copied at key frames, so that a file holds exactly its frames. A source whose
frames come at uneven times is brought to its average rate: each output frame is the one that was on screen at its time.
Images are written as PNG, without loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.base.video import write_frames
from openhunyuan.curate.footage import READING, Astray, Footage, Frame, Mark
from openhunyuan.curate.stage import Stage
from openhunyuan.curate.stills import Still, open_footage
from openhunyuan.curate.tables import store_file


class Cut(Stage):
    """How clips are encoded."""

    name: ClassVar[str] = "cut"
    version: ClassVar[int] = 3

    crf: int = Field(default=12, ge=0, le=51, description="x264 quality of clip files: 0 is lossless, 51 the worst.")
    preset: Literal["superfast", "veryfast", "fast", "medium", "slow"] = Field(
        default="veryfast", description="x264 preset of clip files: slower ones make smaller files."
    )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "reading": READING}


class Piece(Record):
    """What is to be cut out of a source: frames [start, end) and the crop of the display frame (left, top, right,
    bottom). `clip` is the clip's id."""

    clip: str
    start: int
    end: int
    crop: tuple[int, int, int, int]
    end_pts: int | None = None
    even: bool = Field(default=True, description="Whether the source's frames come at even times.")
    image: bool = Field(default=False, description="Whether the piece is one frame, to be written as a picture.")

    @property
    def key(self) -> str:
        """Address of the piece's file in the table of cuts."""
        return f"{self.clip}-{self.start}-{self.end}-{'-'.join(map(str, self.crop))}{'-image' if self.image else ''}"


class CutFile(Record):
    """The file that was made: its hash, size and length."""

    sha256: str
    frames: int
    height: int
    width: int
    suffix: str = ".mp4"


def cut_pieces(
    source: Path | str,
    pieces: Sequence[Piece],
    data: Path | str,
    config: Cut,
    marks: Sequence[Mark] = (),
) -> dict[str, CutFile]:
    """Write the pieces of one source into the store of `data`; returns the files by the pieces' keys.

    Pieces that begin while another is being written wait for a second pass: memory stays at a few frames.
    marks: the pieces' first frames, where the source may be sought in (`Footage.frames`).
    Raises UserError when the source ends before a piece does.
    """
    data = Path(data)
    made: dict[str, CutFile] = {}
    waiting = sorted(pieces, key=lambda piece: (piece.start, piece.end))
    while waiting:
        later: list[Piece] = []
        with open_footage(source) as footage:
            frames = footage.frames([mark for mark in marks if mark.number >= waiting[0].start])
            position = 0
            for place, piece in enumerate(waiting):
                if piece.start < position:
                    later.append(piece)
                    continue
                try:
                    made[piece.key] = _cut(frames, piece, footage, data, config)
                except Astray:
                    marks, later = (), [*later, *waiting[place:]]
                    break
                position = piece.end
        waiting = sorted(later, key=lambda piece: (piece.start, piece.end))
    return made


def _cut(frames: Iterator[Frame], piece: Piece, footage: Footage | Still, data: Path, config: Cut) -> CutFile:
    left, top, right, bottom = piece.crop
    if piece.image:
        return _picture(frames, piece, data)
    right, bottom = left + (right - left) // 2 * 2, top + (bottom - top) // 2 * 2  # 4:2:0 needs even sizes
    if right <= left or bottom <= top:
        raise UserError(f"Clip {piece.clip} would be smaller than two pixels.")
    rate = Fraction(footage.media.rate)
    span = _span(frames, piece)
    if not piece.even and piece.end_pts is not None:
        span = evenly(span, piece.end_pts, rate, footage.time_base)
    temporary = data / ".work" / f"{piece.key}.mp4"
    count = write_frames(
        temporary,
        (frame.part(left, top, right, bottom) for frame in span),
        rate,
        metadata={"clip": piece.clip},
        crf=config.crf,
        repeatable=True,
        preset=config.preset,
    )
    return CutFile(sha256=store_file(data, temporary), frames=count, height=bottom - top, width=right - left)


def _picture(frames: Iterator[Frame], piece: Piece, data: Path) -> CutFile:
    from PIL import Image

    left, top, right, bottom = piece.crop
    (frame,) = _span(frames, piece)
    pixels = np.ascontiguousarray(frame.rgb()[top:bottom, left:right])
    temporary = data / ".work" / f"{piece.key}.png"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(temporary, "PNG")
    height, width = pixels.shape[:2]
    return CutFile(sha256=store_file(data, temporary), frames=1, height=height, width=width, suffix=".png")


def _span(frames: Iterator[Frame], piece: Piece) -> Iterator[Frame]:
    """The piece's frames; leaves `frames` just behind them."""
    number = -1
    for frame in frames:
        number = frame.number
        if number >= piece.start:
            yield frame
        if number + 1 == piece.end:
            return
    raise UserError(f"The source of clip {piece.clip} ended at frame {number + 1}; it has changed since it was split.")


def evenly(frames: Iterator[Frame], end: int, rate: Fraction, time_base: Fraction) -> Iterator[Frame]:
    """Frames at uneven times → frames at `rate`: at each output time, the one whose time is nearest below it.

    The first output time is the first frame's own; end: of the last frame, in units of `time_base`. A frame may repeat,
    and one may be left out. Frames without a time stay as long as the one before them lets them.
    """
    step = 1 / (rate * time_base)  # units of the time base between two output frames
    shown: Frame | None = None
    start = done = total = 0
    for frame in frames:
        if shown is None:
            start = frame.pts or 0
            total = max(1, round((end - start) / step))
        while done < total and shown is not None and frame.pts is not None and start + done * step < frame.pts:
            yield shown
            done += 1
        shown = frame
    while done < total and shown is not None:
        yield shown
        done += 1


def whole(width: int, height: int) -> tuple[int, int, int, int]:
    """The crop that leaves everything."""
    return (0, 0, width, height)


def crop_pixels(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """A box in shares of the picture (left, top, right, bottom) → pixels, rounded inwards."""
    left, top, right, bottom = np.asarray(box, dtype=float)
    return (
        int(np.ceil(left * width - 1e-6)),
        int(np.ceil(top * height - 1e-6)),
        int(np.floor(right * width + 1e-6)),
        int(np.floor(bottom * height + 1e-6)),
    )
