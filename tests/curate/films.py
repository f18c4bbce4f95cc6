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
    options: dict[str, str] | None = None,
) -> Path:
    """An mp4 with timestamps (in 1/1000 s), pixel format and sample aspect ratio of one's own."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        stream.options = {"crf": "10", **(options or {})}
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


def encode_hdr(path: Path, lights: np.ndarray, transfer: str, code: int) -> Path:
    """A ten-bit BT.2020 mp4 of even grey frames with these lights (cd/m²); `code` is the transfer's number."""
    import av

    from openhunyuan.curate.tone import hlg_to_scene, light_to_pq

    signals = np.linspace(0, 1, 10001)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.height = stream.width = 32
        stream.pix_fmt, stream.options = "yuv420p10le", {"crf": "1"}
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = code, 9, 9, 1
        for light in lights:
            if transfer == "pq":
                signal = float(light_to_pq(np.asarray(light)))
            else:
                signal = float(signals[np.abs(1000 * hlg_to_scene(signals) ** 1.2 - light).argmin()])
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), round(65535 * signal), np.uint16), "rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, src_color_range=2, dst_color_range=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def edit_tkhd(path: Path, matrix: Sequence[int]) -> Path:
    """The mp4 with this display matrix (nine numbers of 16.16 and 2.30) in its first track's header."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = b"".join((number % 2**32).to_bytes(4, "big") for number in matrix)
    path.write_bytes(content)
    return path


CLOCKWISE = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
"""The display matrix of a picture to be turned by a quarter to the right."""


def write_sound(path: Path) -> Path:
    """An mp4 with sound and no picture."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
