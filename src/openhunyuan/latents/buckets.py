"""Buckets: the sizes that samples are encoded at, aspect × duration × scale, and which of them a clip goes to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import SIZE_MULTIPLE, VideoSize, aspect_buckets

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})x(\d{1,6})")
_SCALE = re.compile(r"(\d{1,6})x(\d{1,6})p")


def parse_buckets(texts: Iterable[str]) -> tuple[VideoSize, ...]:
    """Sizes from texts: "33x256x448" is one (frames, height, width), "33x256p" all aspect ratios up to 4:1 with about
    the area of 256x256. Each size once, in the order given.

    Raises:
        UserError: a text of neither form, or a size that the model cannot make.
    """
    sizes: dict[VideoSize, None] = {}
    for text in texts:
        if match := _SIZE.fullmatch(text):
            frames, height, width = (int(part) for part in match.groups())
            sizes[VideoSize(frames, height, width)] = None
        elif match := _SCALE.fullmatch(text):
            frames, side = (int(part) for part in match.groups())
            if not SIZE_MULTIPLE <= side <= 4096:
                raise UserError(f"The bucket {text} has side {side}, but it must be from {SIZE_MULTIPLE} to 4096.")
            for height, width in aspect_buckets(side, 16 if side < 540 else 32):
                sizes[VideoSize(frames, height, width)] = None
        else:
            raise UserError(
                f"'{text}' is not a bucket; write FRAMESxHEIGHTxWIDTH, as 33x256x448, or FRAMESxSIDEp, as 33x256p."
            )
    return tuple(sizes)


def choose_bucket(sizes: Sequence[VideoSize], num_frames: int, height: int, width: int) -> VideoSize | None:
    """The size at which a clip of so many frames (at the rate of the samples) and such a picture is encoded.

    Of those that it is long enough for: the largest scale that does not enlarge it, else the smallest; then the
    longest; then the nearest aspect ratio. A video becomes a one-frame sample only where there is no other size.
    None: it is too short for all.
    """
    moving = [size for size in sizes if not size.is_image]
    if num_frames > 1 and moving:
        sizes = moving
    fitting = [size for size in sizes if size.num_frames <= num_frames]
    if not fitting:
        return None
    scales = _scales(fitting)
    reached = [scale for scale in scales.values() if scale <= height * width]
    scale = max(reached) if reached else min(scales.values())
    fitting = [size for size in fitting if scales[size] == scale]
    longest = max(size.num_frames for size in fitting)
    aspect = math.log(width / height)
    return min(
        (size for size in fitting if size.num_frames == longest),
        key=lambda size: (abs(math.log(size.width / size.height) - aspect), size.height),
    )


def _scales(sizes: Iterable[VideoSize]) -> dict[VideoSize, int]:
    """Size → the smallest area of its scale. Sizes of one scale differ in area by what whole cells leave, which is
    little; a step of more than a quarter begins the next scale."""
    found: dict[VideoSize, int] = {}
    first = last = 0
    for size in sorted(sizes, key=lambda size: size.height * size.width):
        area = size.height * size.width
        if area > 1.25 * last:
            first = area
        found[size], last = first, area
    return found


def describe(size: VideoSize, fps: float | None) -> dict[str, object]:
    """A bucket in the three words that people use for it: aspect ratio, seconds (None without a rate), scale."""
    aspect = Fraction(size.width, size.height)
    return {
        "aspect": f"{aspect.numerator}:{aspect.denominator}",
        "seconds": round(size.num_frames / fps, 3) if fps else None,
        "scale": round(math.sqrt(size.height * size.width)),
    }
