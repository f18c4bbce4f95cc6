"""Finding footage: every video below a folder, by how its file begins or by its extension, and a word about all that
cannot be taken. How a file with either's extension begins decides whether it is a video or an image."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from openhunyuan.base.errors import UserError

VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv",
    ".mts", ".m2ts", ".vob", ".ogv", ".mxf", ".asf", ".m2v", ".3gp",
)  # fmt: skip

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

PARTIAL_SUFFIXES = (".part", ".crdownload", ".download", ".tmp", ".ytdl", ".aria2")
"""What downloads are called as long as they are not done."""

_SOUND_SUFFIXES = (".mka", ".m4a", ".m4b", ".wma", ".oga", ".opus")
"""Sound in the containers of videos."""

_NO_FILM = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis", b"M4A ", b"M4B ", b"crx ")
"""Brands of ISO files that are pictures or sound."""

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_MXF = bytes.fromhex("060e2b34020501010d010201")
HEAD = 2048
"""Bytes of a file's beginning that are looked at."""

Complain = Callable[[str, str], None]
"""Called with a path that can be printed, and why it is not taken."""


def find_videos(
    path: Path | str, complain: Complain | None = None, images: bool = False, ignored: Counter[str] | None = None
) -> list[Path]:
    """A video file, or all videos (and `images`) below a folder in sorted order. Raises UserError when there is none.

    A file is taken for a video by its extension, or, with another one, by its first bytes; one with either extension
    that begins as an image is an image. Hidden files and unfinished downloads are left out. `complain` is told of
    folders that cannot be read, of things that have a video's name and are no files, of images with a video's name
    where no images are taken, and of names that are no text. `ignored` counts the other files by their endings.
    """
    path = Path(path)
    complain = complain or (lambda *_: None)
    if path.is_file() and is_image(path) and not images:
        raise UserError(f"{printable(path)} is an image; images are taken with --images files.")
    ignored = Counter() if ignored is None else ignored
    videos = [path] if path.is_file() else sorted(_walk(path, complain, images, ignored))
    videos = [video for video in videos if _can_be_taken(video, complain)]
    if not videos:
        wanted = (*VIDEO_SUFFIXES, *(IMAGE_SUFFIXES if images else ()))
        what = "video or image" if images else "video"
        others = f"; other files there: {said_of(ignored)}" if ignored else ""
        raise UserError(f"No {what} ({', '.join(wanted)}) was found at {printable(path)}{others}.")
    return videos


def said_of(ignored: Counter[str]) -> str:
    """How many files are left out, and in brackets how many of each ending, the commonest first."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(8))
    return f"{ignored.total()} ({kinds}{', …' if len(ignored) > 8 else ''})"


def printable(path: Path | str) -> str:
    """The path as text; bytes that are no text are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(top: Path, complain: Complain, images: bool, ignored: Counter[str]) -> Iterator[Path]:
    """Files that may be videos, or images. Links to folders are followed, each folder once. The others are counted by
    what they are."""
    seen: set[tuple[int, int]] = set()

    def told(error: OSError) -> None:
        complain(printable(error.filename or top), error.strerror or str(error))

    for folder, folders, names in os.walk(top, onerror=told, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in names:
            file = Path(folder) / name
            suffix = file.suffix.lower()
            hidden = name.startswith(".")
            image = not hidden and suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and is_image(file)
            if not hidden and (images if image else _may_be_video(file)):
                yield file
                continue
            if image and suffix in VIDEO_SUFFIXES:
                complain(printable(file), "is an image with the name of a video; images are taken with --images files")
            ignored["hidden" if hidden else printable(suffix) or "without ending"] += 1


def _may_be_video(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    return suffix not in (*PARTIAL_SUFFIXES, *_SOUND_SUFFIXES) and begins_as_video(_head(path))


def has_image_name(path: Path | str) -> bool:
    """Whether a file is called as an image."""
    return str(path).lower().endswith(IMAGE_SUFFIXES)


def is_image(path: Path | str) -> bool:
    """Whether a file is an image: by how it begins, or, where that tells neither an image nor a video, by its name."""
    head = _head(Path(path))
    return begins_as_image(head) or (has_image_name(path) and not begins_as_video(head))


def _head(path: Path) -> bytes:
    """The first bytes of a file; none where it is no regular file, or cannot be read."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            with path.open("rb") as file:
                return file.read(HEAD)
    except OSError:
        pass
    return b""


def begins_as_image(head: bytes) -> bool:
    """Whether the first bytes are those of a JPEG, PNG, WebP, BMP or TIFF file."""
    webp, bmp = (head[:4], head[8:12]) == (b"RIFF", b"WEBP"), head[:2] == b"BM" and head[6:10] == bytes(4)
    return webp or bmp or head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*"))


def begins_as_video(head: bytes) -> bool:
    """Whether the first bytes, `HEAD` of them where there are so many, are those of an ISO (mp4, mov), Matroska, AVI,
    FLV, MPEG (transport, program or elementary stream), Ogg, ASF (wmv) or MXF file; Ogg with Theora or VP8."""
    iso = head[4:8] == b"ftyp" and head[8:12] not in _NO_FILM
    ogg = head[:4] == b"OggS" and (b"theora" in head or b"OVP80" in head)
    first = (b"\x1aE\xdf\xa3", b"FLV\x01", b"\0\0\1\xba", b"\0\0\1\xb3", _ASF, _MXF)
    return iso or ogg or head.startswith(first) or (head[:4], head[8:12]) == (b"RIFF", b"AVI ") or _is_transport(head)


def _is_transport(head: bytes) -> bool:
    """Whether 0x47 begins every packet of an MPEG transport stream: of 188 bytes, or 192 with a time before each."""
    return any(
        len(head) > start + 4 * size and set(head[start::size]) == {0x47} for start, size in ((0, 188), (4, 192))
    )


def _can_be_taken(path: Path, complain: Complain) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        complain(printable(path), "its name is not Unicode text (UTF-8); rename it")
        return False
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        complain(str(path), error.strerror or str(error))
        return False
    if not stat.S_ISREG(mode):
        complain(str(path), "is no regular file")
        return False
    return True
