"""Clip files hold exactly their frames, whatever the source's clock."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_video
from openhunyuan.curate.cut import Cut, Piece, crop_pixels, cut_pieces
from openhunyuan.curate.footage import Footage, Mark
from openhunyuan.curate.tables import stored
from tests.curate.films import FPS, encode, save, shot


def piece(name: str, start: int, end: int, **changes: object) -> Piece:
    return Piece(**{"clip": name, "start": start, "end": end, "crop": (0, 0, 64, 64), **changes})


def test_files_hold_exactly_their_frames(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 40), shot(2, 30))
    source, _ = read_video(video)
    pieces = [piece("b", 40, 70), piece("a", 3, 40), piece("inside", 10, 20)]
    made = cut_pieces(video, pieces, tmp_path, Cut())
    for one in pieces:
        file = made[one.key]
        frames, fps = read_video(tmp_path / stored(file.sha256))
        assert fps == FPS
        assert frames.shape == (one.end - one.start, 64, 64, 3) == (file.frames, file.height, file.width, 3)
        expected = source[one.start : one.end].astype(float)
        assert np.abs(frames - expected).mean() < 2.0
        # The neighbouring frame is further away, so the span is right to the frame.
        assert np.abs(frames[1:] - expected[1:]).mean() < np.abs(frames[1:] - expected[:-1]).mean()


def test_the_same_piece_gives_the_same_bytes(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 20))
    made, held = set(), []
    for number in range(8):  # x264 has been seen to depend on what the memory held before
        held.append(np.full(300_000 + 70_000 * number, 31 * number, np.uint8))
        (file,) = cut_pieces(video, [piece("a", 2, 18)], tmp_path / str(number), Cut()).values()
        made.add(file.sha256)
        held = held[-3:]
    assert len(made) == 1


def test_crops_are_even_and_where_they_should_be(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 8))
    (file,) = cut_pieces(video, [piece("a", 0, 8, crop=(5, 11, 60, 64))], tmp_path, Cut()).values()
    assert (file.height, file.width) == (52, 54)
    frames, _ = read_video(tmp_path / stored(file.sha256))
    source = read_video(video)[0].astype(float)
    # Colours are stored at half the size, and an odd crop moves them by half a pixel of theirs.
    right = np.abs(frames - source[:, 11:63, 5:59]).mean()
    assert right < 4.0
    for y, x in ((10, 5), (12, 5), (11, 6)):
        assert right < np.abs(frames - source[:, y : y + 52, x : x + 54]).mean()


def test_pixels_that_are_as_files_are_written_are_not_converted(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 8))
    with Footage(video) as footage:
        source = np.stack([frame.raw.to_ndarray() for frame in footage.frames()])
    for number, (left, top, right, bottom) in enumerate([(0, 0, 64, 64), (4, 10, 60, 62)]):
        cut = piece(str(number), 0, 8, crop=(left, top, right, bottom))
        (file,) = cut_pieces(video, [cut], tmp_path, Cut(crf=0)).values()
        with Footage(tmp_path / stored(file.sha256)) as footage:
            found = np.stack([frame.raw.to_ndarray() for frame in footage.frames()])
        height, width = bottom - top, right - left
        assert (found[:, :height] == source[:, top:bottom, left:right]).all()
        halves = source[:, 64:].reshape(8, 2, 32, 32)[:, :, top // 2 : bottom // 2, left // 2 : right // 2]
        assert (found[:, height:].reshape(8, 2, height // 2, width // 2) == halves).all()


def test_uneven_times_become_even(tmp_path: Path) -> None:
    """Each output frame is the one that was on screen at its time: a frame that stays long is repeated."""
    levels = np.linspace(30, 220, 6)
    frames = np.broadcast_to(levels[:, None, None, None], (6, 32, 32, 3))
    pts = [0, 100, 200, 500, 600, 700]  # the third stays for three tenths of a second
    video = encode(tmp_path / "a.mp4", frames, pts=pts)
    with Footage(video) as footage:
        rate, base = Fraction(footage.media.rate), footage.time_base
    end = round(Fraction(800, 1000) / base)
    one = piece("a", 0, 6, crop=(0, 0, 32, 32), end_pts=end, even=False)
    (file,) = cut_pieces(video, [one], tmp_path, Cut(crf=0)).values()
    out, fps = read_video(tmp_path / stored(file.sha256))
    assert fps == pytest.approx(float(rate), abs=0.01)
    assert file.frames == round(float(rate) * 0.8)
    shown = [int(np.abs(levels - level).argmin()) for level in out.mean(axis=(1, 2, 3))]
    expected = [max(i for i, t in enumerate(pts) if t <= 1000 * k / float(rate) + 1e-6) for k in range(file.frames)]
    assert shown == expected
    assert shown.count(2) > shown.count(0)


def test_a_source_that_shrank_is_noticed(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 20))
    with pytest.raises(UserError, match="changed since"):
        cut_pieces(video, [piece("a", 0, 40)], tmp_path, Cut())


def test_shares_become_pixels_rounded_inwards() -> None:
    assert crop_pixels((0.1, 0.0, 1.0, 0.99), 64, 48) == (7, 0, 64, 47)
    assert crop_pixels((0.0, 0.125, 1.0, 0.875), 256, 144) == (0, 18, 256, 126)


def test_pieces_that_are_sought_have_the_same_bytes(tmp_path: Path) -> None:
    video = encode(tmp_path / "a.mp4", shot(1, 60), options={"g": "12", "bf": "2"})
    with Footage(video) as footage:
        times = [frame.pts or 0 for frame in footage.frames()]
    pieces = [piece("a", 20, 30), piece("inside", 25, 28), piece("b", 40, 60)]
    whole = cut_pieces(video, pieces, tmp_path / "whole", Cut())
    marks = [Mark(number, times[number]) for number in (20, 25, 40)]
    assert cut_pieces(video, pieces, tmp_path / "sought", Cut(), marks) == whole
    wrong = [marks[0], marks[1], Mark(40, times[40] + 1)]  # found out on the way: read from the beginning
    assert cut_pieces(video, pieces, tmp_path / "astray", Cut(), wrong) == whole
