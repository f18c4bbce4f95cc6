"""Every file that is a video is found, and every one that cannot be taken is spoken of."""

import os
from collections import Counter
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.find import begins_as_image, begins_as_video, find_videos, is_image, printable, said_of


def test_videos_are_known_by_extension_or_by_their_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/B.MOV").touch()
    (tmp_path / "film.dat").write_bytes(b"\0\0\0 ftypisom\0\0\0\0")
    (tmp_path / "no extension").write_bytes(b"\x1aE\xdf\xa3" + bytes(12))
    for name in (".hidden.mp4", "film.mp4.part", "photo.heic", "photo", "notes.txt", "song.m4a"):
        (tmp_path / name).write_bytes(b"\0\0\0 ftypheic\0\0\0\0" if "photo" in name else b"\0\0\0 ftypM4A \0\0\0\0")
    told: list[tuple[str, str]] = []
    found = find_videos(tmp_path, lambda path, why: told.append((path, why)))
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["film.dat", "no extension", "sub/B.MOV"]
    assert told == []
    assert begins_as_video(b"RIFF\0\0\0\0AVI LIST")
    assert not begins_as_video(b"RIFF\0\0\0\0WAVEfmt ")


def packets(size: int, start: int, count: int = 8) -> bytes:
    """A transport stream in packets of this size, 0x47 at `start` of each."""
    return count * (bytes(start) + b"\x47" + bytes(size - start - 1))


@pytest.mark.parametrize(
    "head",
    [
        packets(188, 0),
        packets(192, 4),
        b"\0\0\1\xba" + bytes(12),
        b"\0\0\1\xb3" + bytes(12),
        b"OggS" + bytes(24) + b"\x80theora",
        bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
        bytes.fromhex("060e2b34020501010d0102010102"),
    ],
)
def test_a_video_with_a_foreign_name_is_found(tmp_path: Path, head: bytes) -> None:
    for name in ("film.mp3", "film.bin"):
        (tmp_path / name).write_bytes(head)
    assert [p.name for p in find_videos(tmp_path)] == ["film.bin", "film.mp3"]


JPEG, PNG, MP4 = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"\0\0\0 ftypisom\0\0\0\0"


def test_how_a_file_begins_decides_between_video_and_image(tmp_path: Path) -> None:
    for name, content in {
        "film.jpg": MP4, "photo.mp4": JPEG, "photo.png": PNG, "raw.bin": b"II*\0", "empty.mp4": b"", "empty.jpg": b"",
        "photo.mp4.part": JPEG,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    told: dict[str, str] = {}
    ignored: Counter[str] = Counter()
    found = find_videos(tmp_path, told.__setitem__, ignored=ignored)
    assert [p.name for p in found] == ["empty.mp4", "film.jpg"]
    assert told == {
        str(tmp_path / "photo.mp4"): "is an image with the name of a video; images are taken with --images files"
    }
    assert ignored == {".bin": 1, ".jpg": 1, ".mp4": 1, ".part": 1, ".png": 1}
    both = find_videos(tmp_path, told.__setitem__, images=True)
    assert {p.name: is_image(p) for p in both} == {
        "empty.jpg": True, "empty.mp4": False, "film.jpg": False, "photo.mp4": True, "photo.png": True,
    }  # fmt: skip
    assert len(told) == 1
    with pytest.raises(UserError, match=r"photo.mp4 is an image; images are taken with --images files"):
        find_videos(tmp_path / "photo.mp4")
    for head in (b"RIFF\0\0\0\0WEBP", b"BM\x10\0\0\0\0\0\0\0", b"MM\0*"):
        assert begins_as_image(head)
    assert not begins_as_image(b"RIFF\0\0\0\0AVI ") and not begins_as_image(b"BMW, a film") and not begins_as_image(b"")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.mts", "b.M2TS", "c.vob", "d.ogv", "e.mxf", "f.asf", "g.m2v"):
        (tmp_path / name).touch()
    for name in ("x.mp3", "y.mp3", ".hidden", "notes", "z.jpg", "song.ogg"):
        (tmp_path / name).write_bytes(b"OggS" + bytes(24) + b"\x01vorbis")
    for name, content in (("g.txt", b"G" * 400), ("short.txt", b"G")):
        (tmp_path / name).write_bytes(content.ljust(2000, b"."))
    ignored: Counter[str] = Counter()
    assert len(find_videos(tmp_path, ignored=ignored)) == 7
    assert ignored == {".mp3": 2, "hidden": 1, "without ending": 1, ".jpg": 1, ".ogg": 1, ".txt": 2}
    assert said_of(ignored).startswith("8 (2 .")
    for video in find_videos(tmp_path):
        video.unlink()
    with pytest.raises(UserError, match=r"No video .*; other files there: 8 "):
        find_videos(tmp_path)


def test_what_cannot_be_taken_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    bad = os.fsencode(tmp_path) + b"/\xff.mp4"
    try:
        Path(os.fsdecode(bad)).touch()
    except OSError:  # file systems that take no such names have no such problem
        bad = b""
    told: dict[str, str] = {}
    assert find_videos(tmp_path, told.__setitem__) == [tmp_path / "a.mp4"]
    assert told.pop(str(tmp_path / "gone.mp4")) == "No such file or directory"
    assert told.pop(str(tmp_path / "pipe.mp4")) == "is no regular file"
    assert told == ({f"{tmp_path}/\\xff.mp4": "its name is not Unicode text (UTF-8); rename it"} if bad else {})
    assert printable(os.fsdecode(b"a\xffb")) == "a\\xffb"


def test_links_that_go_round_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.mp4").touch()
    (tmp_path / "raw/round").symlink_to(tmp_path / "raw")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.mp4").touch()
    (tmp_path / "raw/link").symlink_to(tmp_path / "elsewhere")
    assert [p.name for p in find_videos(tmp_path / "raw")] == ["a.mp4", "b.mp4"]


def test_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No video"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="No video"):
        find_videos(tmp_path / "nowhere")
