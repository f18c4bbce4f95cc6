"""Footage as it was meant to be seen: exact times, uneven times, square pixels, upright, ten bits, damage."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.footage import Astray, Footage, Mark, fit, is_variable, upright
from openhunyuan.curate.split import split_video
from tests.curate.films import encode, save, shot


def gradient(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that get brighter: the level says which frame it is."""
    levels = np.linspace(30, 220, count)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def test_frames_have_numbers_times_and_display_size(tmp_path: Path) -> None:
    with Footage(save(tmp_path / "a.mp4", shot(1, 10))) as footage:
        frames = list(footage.frames())
        assert [f.number for f in frames] == list(range(10))
        seconds = [f.pts * footage.time_base for f in frames if f.pts is not None]
        assert seconds == [Fraction(i, 24) for i in range(10)]
        assert frames[0].rgb().shape == (64, 64, 3)
        assert frames[0].rgb(32).shape == (32, 32, 3)
        assert footage.media.rate == "24/1"


def test_pixels_that_are_not_square_are_widened(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", gradient(6), sar=Fraction(4, 3))
    with Footage(path) as footage:
        assert (footage.media.width, footage.media.height) == (64, 32)
        assert next(footage.frames()).rgb().shape == (32, 64, 3)


def test_a_turned_picture_is_upright() -> None:
    picture = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    assert upright(picture, 90).shape == (3, 2, 3)
    # A quarter turn counter-clockwise brings the last column to the top.
    assert (upright(picture, 90)[0] == picture[:, 2]).all()
    assert (upright(picture, 0) == picture).all()


def test_ten_bits_come_out_as_eight(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", gradient(6), pixel_format="yuv420p10le")
    with Footage(path) as footage:
        assert footage.media.bits == 10
        frames = np.stack([f.rgb() for f in footage.frames()])
    assert frames.dtype == np.uint8
    assert np.abs(frames.astype(float) - gradient(6)).max() < 8


def test_uneven_times_are_noticed(tmp_path: Path) -> None:
    pts = [0, 40, 80, 200, 240, 280, 400, 440]
    path = encode(tmp_path / "a.mp4", gradient(8), pts=pts)
    with Footage(path) as footage:
        times = [f.pts for f in footage.frames()]
        assert is_variable(times, Fraction(footage.media.rate), footage.time_base)
    clip = split_video(path)[0]
    assert "variable frame rate" in clip.tags
    assert clip.start_time == 0
    assert not is_variable([0, 41, 83, 125, 166], Fraction(24), Fraction(1, 1000)), "rounded to a coarse clock"


@pytest.mark.parametrize(
    "size, side, wanted", [((100, 50), 50, (50, 25)), ((10, 10), 50, (10, 10)), ((9, 3), 3, (3, 1))]
)
def test_fit(size: tuple[int, int], side: int, wanted: tuple[int, int]) -> None:
    assert fit(*size, side) == wanted


def test_what_is_no_video_is_one_sentence(tmp_path: Path) -> None:
    empty, text, cut = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4"
    empty.write_bytes(b"")
    text.write_text("not a video")
    whole = save(tmp_path / "a.mp4", shot(1, 20)).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path in (empty, text, tmp_path / "none.mp4"):
        with pytest.raises(UserError):
            Footage(path)
    with pytest.raises(UserError), Footage(cut) as footage:
        list(footage.frames())


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="no video stream"):
        Footage(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_frames_behind_a_seek_are_those_of_the_whole(tmp_path: Path, name: str) -> None:
    video = encode(tmp_path / name, np.concatenate([shot(1, 40), shot(2, 40)]), options={"g": "12", "bf": "3"})
    with Footage(video) as footage:
        whole = [(f.number, f.pts, f.raw.to_ndarray()) for f in footage.frames()]
    for first in (1, 12, 13, 47, 79):
        marks = [Mark(number, int(whole[number][1] or 0)) for number in range(first, 80, 9)]
        with Footage(video) as footage:
            found = [(f.number, f.pts, f.raw.to_ndarray()) for f in footage.frames(marks)]
        assert [f[:2] for f in found] == [f[:2] for f in whole[first:]]
        assert all((a[2] == b[2]).all() for a, b in zip(found, whole[first:], strict=True))


def test_a_time_that_is_not_met_is_not_trusted(tmp_path: Path) -> None:
    video = encode(tmp_path / "a.mp4", shot(1, 60), options={"g": "12"})
    with Footage(video) as footage:
        times = [f.pts or 0 for f in footage.frames()]
    with Footage(video) as footage:
        assert [f.number for f in footage.frames([Mark(30, times[30] + 1)])] == list(range(60)), "from the beginning"
    with Footage(video) as footage, pytest.raises(Astray):
        list(footage.frames([Mark(30, times[30]), Mark(40, times[41])]))
