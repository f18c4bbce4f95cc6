"""Small films with known content, for the tests of curation."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.video import write_video

FPS = 24.0


def shot(seed: int, count: int, side: int = 64) -> np.ndarray:
    """float32 [count, side, side, 3]: a coloured texture that pans, with a bright square crossing it."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(40, 200, 3)
    phase = rng.uniform(0, 6, 4)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    frames = np.empty((count, side, side, 3), np.float32)
    for t in range(count):
        wave = np.sin((x + t) / 5 + phase[0]) + np.sin((y - 0.5 * t) / 6 + phase[1])
        frames[t] = colour + 22 * wave[..., None]
        left = 4 + int(t * (side - 20) / count)
        frames[t, 24:36, left : left + 12] = 255 - colour
    return frames


def save(path: Path, *parts: np.ndarray) -> Path:
    """One mp4 of these parts."""
    write_video(path, np.concatenate(parts).clip(0, 255).astype(np.uint8), FPS)
    return path


def encode(
    path: Path,
    frames: np.ndarray,
    pts: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    sar: Fraction | None = None,
    rate: int = 24,
    codec: str = "libx264",
) -> Path:
    """An mp4 with timestamps (in 1/1000 s), pixel format and sample aspect ratio of one's own."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        stream.options = {"crf": "10"}
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        if pts is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames.clip(0, 255).astype(np.uint8)):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if pts is not None:
                picture.pts, picture.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
