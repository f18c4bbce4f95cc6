"""The sizes that released weights were made for, and what to say about others (release fact E.5)."""

from __future__ import annotations

import math

from openhunyuan.base.sizes import VideoSize

RESOLUTIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "540p": ((544, 960), (960, 544), (624, 832), (832, 624), (720, 720)),
    "720p": ((720, 1280), (1280, 720), (1104, 832), (832, 1104), (960, 960)),
}
"""Name -> sizes (height, width) that are officially supported, with up to 129 frames."""

RELEASED_FRAMES = 129
_SIZES = [size for sizes in RESOLUTIONS.values() for size in sizes]
_FAR = 2.0
"""Times as many (or as few) pixels as a model's own size: beyond this it is worth a word."""


def nearest_sizes(height: int, width: int, count: int = 2) -> list[tuple[int, int]]:
    """The supported sizes (height, width) nearest in shape, then in area, nearest first."""

    def distance(size: tuple[int, int]) -> float:
        shape = abs(math.log(size[0] / size[1] * width / height))
        area = abs(math.log(size[0] * size[1] / (height * width)))
        return 4 * shape + area  # Another shape is another picture; another area is the same one, larger or smaller.

    return sorted(_SIZES, key=distance)[:count]


def advice(size: VideoSize, own: VideoSize) -> str | None:
    """One sentence when ``size`` is not what a model was made for, with what to use instead; None when it is.

    Args:
        size: what is asked for.
        own: the model's default size; if that is a supported one, the table holds for the model.
    """
    if (own.height, own.width) in _SIZES:
        if (size.height, size.width) not in _SIZES:
            near = " or ".join(f"{height}x{width}" for height, width in nearest_sizes(size.height, size.width))
            return f"{size.height}x{size.width} is not a size these weights were made for; the nearest are {near}."
        if size.num_frames > RELEASED_FRAMES:
            return f"{size.num_frames} frames are more than the {RELEASED_FRAMES} these weights were made for."
        return None
    ratio = size.height * size.width / (own.height * own.width)
    if 1 / _FAR <= ratio <= _FAR and size.num_frames <= _FAR * own.num_frames:
        return None
    return (
        f"{size.num_frames} frames of {size.height}x{size.width} are far from what this model was made for, "
        f"{own.num_frames} frames of {own.height}x{own.width}."
    )
