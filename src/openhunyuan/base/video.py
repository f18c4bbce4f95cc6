"""Video and image files in and out, with the request that made them inside.

Videos are H.264 in mp4 (yuv420p, BT.709, the index first so that they start while loading): they play everywhere.
Frames are uint8 arrays [T, H, W, 3], RGB, 0..255. The metadata is one JSON object: in mp4 the container's ``comment``
tag, in PNG a ``tEXt`` chunk called ``comment``.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhunyuan.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TAG = "comment"


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    fps: float,
    metadata: Mapping[str, Any] | None = None,
    crf: int = 16,
) -> None:
    """Write frames [T, H, W, 3] uint8 as an mp4, atomically.

    Args:
        path: the file to write; its folder is made.
        frames: uint8 RGB; height and width even (4:2:0 halves both).
        fps: frames a second, > 0.
        metadata: any JSON object, kept in the container's comment tag.
        crf: x264 quality, 0 (lossless) .. 51; 16 is visually lossless.
    """
    import numpy as np

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise UserError(f"Frames must be a uint8 array [T, H, W, 3], not {frames.dtype} {list(frames.shape)}.")
    write_frames(path, frames, fps, metadata, crf)


def write_frames(
    path: str | os.PathLike[str],
    frames: Iterable[Any],
    fps: float | Fraction,
    metadata: Mapping[str, Any] | None = None,
    crf: int = 16,
    repeatable: bool = False,
    preset: str = "medium",
) -> int:
    """Write frames as they come, each uint8 RGB [H, W, 3] of one even size, as an mp4, atomically.

    A frame may also be one of `cropped_native`, which is encoded as it is. ``fps`` may be an exact
    fraction. ``repeatable``: the same frames give the same bytes, for files that are named by their content.
    ``preset``: x264's; faster ones make larger files. Returns the number of frames; memory stays at a few of them.
    """
    import av

    path = Path(path)
    if not fps > 0:
        raise UserError(f"fps is {fps}, but it must be above 0.")
    rate = fps if isinstance(fps, Fraction) else Fraction(fps).limit_denominator(1001)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
    count, stream = 0, None
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            if metadata is not None:
                container.metadata[_TAG] = json.dumps(metadata, ensure_ascii=True)
            for frame in frames:
                picture = _picture(frame)
                if stream is None:
                    height, width = picture.height, picture.width
                    if height % 2 or width % 2:
                        raise UserError(f"A video's height and width must be even, not {height}x{width}.")
                    stream = _x264(container, rate, height, width, crf, repeatable, preset)
                container.mux(stream.encode(picture))
                count += 1
            if stream is None:
                raise UserError(f"{path} would hold no frames.")
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def is_native(frame: Any) -> bool:
    """Whether a decoded frame of PyAV is as files are written here: yuv420p, BT.709, limited range."""
    return frame.format.name == "yuv420p" and int(frame.colorspace) == 1 and int(frame.color_range) != 2


def cropped_native(frame: Any, left: int, top: int, right: int, bottom: int) -> Any:
    """The part of an `is_native` frame inside a box of even coordinates, without converting a pixel."""
    import av
    import numpy as np

    part: Any = av.VideoFrame(right - left, bottom - top, "yuv420p")
    for number, (old, new) in enumerate(zip(frame.planes, part.planes, strict=True)):
        by = 2 if number else 1  # chroma has half the size
        source, target = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in (old, new))
        target[:, : new.width] = source[top // by : bottom // by, left // by : right // by]
    return part


def _picture(frame: Any) -> Any:
    """A frame as x264 takes it."""
    import av
    import numpy as np

    if isinstance(frame, av.VideoFrame):
        return frame
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return picture.reformat(
        format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG", threads=1
    )


def _x264(container: Any, rate: Fraction, height: int, width: int, crf: int, repeatable: bool, preset: str) -> Any:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": str(crf), "preset": preset}
    context = stream.codec_context
    if repeatable:
        # The number of threads decides about slices; and with macroblock-tree rate control, x264's vector code gives
        # other bytes in one run of ten (measured with x264 in PyAV 18.1; without it, or with asm=0, in none of 50).
        context.thread_count = 1
        stream.options = {**stream.options, "x264-params": "mbtree=0"}
    context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
    context.color_range = 1  # limited, as players expect
    return stream


def iter_video(path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """Decode a video frame by frame: uint8 [H, W, 3] each. Raises ``UserError`` if it cannot be read."""
    with _open(path) as container:
        yield from _decode(container, path)


def read_video(path: str | os.PathLike[str], max_frames: int | None = None) -> tuple[np.ndarray, float]:
    """Decode a video, or its first ``max_frames`` frames: (uint8 [T, H, W, 3], frames a second).

    Still images (PNG) are one frame at 1 fps. Raises ``UserError`` if the file is missing or not a video.
    """
    import numpy as np

    frames: list[np.ndarray] = []
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        for frame in _decode(container, path):
            frames.append(frame)
            if max_frames is not None and len(frames) >= max_frames:
                break
    if not frames:
        raise UserError(f"{path} holds no video frames.")
    fps = 1.0 if Path(path).suffix.lower() == ".png" else float(rate or 1)
    return np.stack(frames), fps


def _open(path: str | os.PathLike[str]) -> Any:
    import av
    from av.error import FFmpegError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"The video {path} does not exist.")
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a video ({type(error).__name__}).") from None
    if not container.streams.video:
        container.close()
        raise UserError(f"{path} holds no video stream.")
    return container


def _decode(container: Any, path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    from av.error import FFmpegError

    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    try:
        for frame in container.decode(stream):
            yield frame_to_rgb(frame)
    except FFmpegError as error:
        raise UserError(f"{path} is damaged: decoding failed ({type(error).__name__}).") from None


def frame_to_rgb(frame: Any, width: int | None = None, height: int | None = None) -> np.ndarray:
    """A decoded frame of PyAV as uint8 RGB [H, W, 3], at its own size or resized (area average)."""
    if frame.format.name in ("rgb24", "gray") and width is None:
        return frame.to_ndarray(format="rgb24")
    size = (width, height) if width is not None and height is not None else None
    return frame.reformat(format="rgb24", **_full_range(frame, size)).to_ndarray()


def frame_to_rgb48(frame: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """A decoded frame as uint16 RGB [H, W, 3] in full range, transfer as coded; resized to (width, height)."""
    return frame.reformat(format="rgb48le", **_full_range(frame, size)).to_ndarray()


def _full_range(frame: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    # One thread: starting several for every frame costs more processor time than the conversion.
    # 2 is "unspecified": untagged files are read as BT.709 from 720 lines up and BT.601 below, as players do.
    space = int(frame.colorspace)
    named = {1: "ITU709", 7: "SMPTE240M", 9: "BT2020", 10: "BT2020"}
    source = named.get(space, "ITU709" if space == 2 and frame.height >= 720 else "ITU601")
    how: dict[str, Any] = {"src_colorspace": source, "dst_color_range": "JPEG", "threads": 1}
    return how if size is None else {**how, "width": size[0], "height": size[1], "interpolation": "AREA"}


def write_image(path: str | os.PathLike[str], frame: np.ndarray, metadata: Mapping[str, Any] | None = None) -> None:
    """Write one frame, uint8 RGB [H, W, 3] (or [1, H, W, 3]), as a PNG, atomically. Lossless."""
    import numpy as np

    path = Path(path)
    if frame.ndim == 4 and len(frame) == 1:
        frame = frame[0]
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
        raise UserError(f"An image must be a uint8 array [H, W, 3], not {frame.dtype} {list(frame.shape)}.")
    height, width = int(frame.shape[0]), int(frame.shape[1])
    # Every row starts with its filter number, here 0 (none).
    rows = np.concatenate([np.zeros((height, 1), np.uint8), frame.reshape(height, width * 3)], axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    if metadata is not None:
        text = json.dumps(metadata, ensure_ascii=True).encode("ascii")
        chunks.append((b"tEXt", _TAG.encode() + b"\x00" + text))
    chunks += [(b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")]
    data = _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object inside an mp4 or PNG that this package wrote; ``UserError`` when there is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The file {path} does not exist.")
    with path.open("rb") as file:
        is_png = file.read(8) == _PNG_SIGNATURE
    if is_png:
        text = _png_text(path)
    else:
        with _open(path) as container:
            text = container.metadata.get(_TAG)
    try:
        value = json.loads(text) if text else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} carries no request of openhunyuan; only files that it generated can be read back.")
    return value


def _png_text(path: Path) -> str | None:
    data = path.read_bytes()
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind = data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        if kind == b"tEXt" and body.startswith(_TAG.encode() + b"\x00"):
            return body[len(_TAG) + 1 :].decode("latin-1")
        position += 12 + length
    return None
