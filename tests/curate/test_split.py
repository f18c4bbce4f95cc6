"""Shot split on footage whose cuts and fades are known exactly."""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from openhunyuan.base.errors import UserError
from openhunyuan.curate import split as module
from openhunyuan.curate.cut import Cut
from openhunyuan.curate.footage import READING, Frame, Mark
from openhunyuan.curate.split import (
    Parts,
    Seen,
    Split,
    cut_detector,
    find_shots,
    gradual_spans,
    packed,
    pieces_of,
    shots_between,
    split_video,
    unpacked,
)
from openhunyuan.curate.stills import Images
from openhunyuan.tiny.raw import write_raw_footage
from tests.curate.films import FPS, encode, save, shot


def black(count: int) -> np.ndarray:
    return np.zeros((count, 64, 64, 3), np.float32)


def fade(frames: np.ndarray, start: float, end: float) -> np.ndarray:
    return frames * np.linspace(start, end, len(frames))[:, None, None, None]


def spans(path: Path) -> list[tuple[int, int, str]]:
    return [(c.start_frame, c.end_frame, c.transition) for c in split_video(path)]


def test_hard_cuts_are_exact(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 40), shot(2, 30), shot(3, 25))
    assert spans(video) == [(0, 40, "start"), (40, 70, "cut"), (70, 95, "cut")]


def test_frames_are_scored_as_pyscenedetect_scores_them() -> None:
    frames = np.concatenate([shot(1, 6), shot(2, 6)]).clip(0, 255).astype(np.uint8)
    quick, plain = cut_detector(Split()), AdaptiveDetector(min_scene_len=1)
    for number, frame in enumerate(frames):
        for detector in (quick, plain):
            detector.process_frame(FrameTimecode(number, FPS), frame)
        assert quick._frame_score == plain._frame_score
    assert quick.before is not None
    assert (plain._frame_score or 0.0) > 0


def test_motion_alone_is_one_shot(tmp_path: Path) -> None:
    assert spans(save(tmp_path / "a.mp4", shot(4, 90))) == [(0, 90, "start")]


def test_a_fade_through_black_belongs_to_no_clip(tmp_path: Path) -> None:
    first, second = shot(1, 52), shot(2, 52)
    video = save(tmp_path / "a.mp4", first[:40], fade(first[40:], 1, 0), black(6), fade(second[:12], 0, 1), second[12:])
    a, b = spans(video)
    assert a[0] == 0
    assert 36 <= a[1] <= 43
    assert 67 <= b[0] <= 74
    assert b[1:] == (110, "fade")


def test_a_dissolve_belongs_to_no_clip(tmp_path: Path) -> None:
    first, second = shot(1, 52), shot(5, 52)
    weight = np.linspace(0, 1, 12)[:, None, None, None]
    video = save(tmp_path / "a.mp4", first[:40], (1 - weight) * first[40:] + weight * second[:12], second[12:])
    a, b = spans(video)
    assert 37 <= a[1] <= 43
    assert 49 <= b[0] <= 55
    assert b[2] == "fade"


def test_short_shots_are_dropped_with_a_reason(tmp_path: Path) -> None:
    clips = split_video(save(tmp_path / "a.mp4", shot(1, 40), shot(2, 6), shot(3, 40)))
    assert [c.dropped is None for c in clips] == [True, False, True]
    assert clips[1].dropped is not None
    assert (clips[1].dropped.stage, clips[1].dropped.score) == ("split", 0.25)


def test_long_shots_are_cut_into_equal_pieces(tmp_path: Path) -> None:
    clips = split_video(save(tmp_path / "a.mp4", shot(1, 100)), Split(max_seconds=1.5))
    assert [c.num_frames for c in clips] == [33, 34, 33]
    assert clips[1].start_time == pytest.approx(33 / 24)


def test_pieces_of_uneven_frames_are_equal_in_time(tmp_path: Path) -> None:
    times = [*range(0, 2000, 20), *range(2000, 10000, 200)]  # 2 s of 50 frames a second, 8 s of 5
    video = encode(tmp_path / "a.mp4", shot(1, len(times)), pts=times)
    shots = find_shots(video)
    assert shots.variable
    assert shots.seconds[-1] == pytest.approx(10.0), "the last frame is as long as the one before"
    found = pieces_of(shots, 2.5).spans
    assert [(found[0].start_frame, found[-1].end_frame)] == [(0, len(times))]
    assert all(a.end_frame == b.start_frame for a, b in pairwise(found))
    lengths = [shots.seconds[s.end_frame] - shots.seconds[s.start_frame] for s in found]
    assert max(lengths) <= 2.5 and min(lengths) > 1.5
    clips = split_video(video, Split(max_seconds=2.5))
    assert [c.end_time - c.start_time for c in clips] == pytest.approx(lengths)
    alone = pieces_of(shots, 0.1).spans
    assert all(s.end_frame - s.start_frame == 1 for s in alone if s.start_frame >= 100), "frames longer than the limit"


def test_how_long_clips_may_be_is_no_part_of_the_key() -> None:
    assert Split(min_seconds=2, max_seconds=5).key == Split().key
    assert Split(window_width=4).key != Split().key


def test_what_reads_footage_has_the_reading_in_its_key() -> None:
    for stage in (Split(), Cut(), Images()):
        assert stage.describe()["reading"] == READING


def test_times_of_frames_go_through_a_short_text() -> None:
    for times in ([0], [5, None, -3, 2**40], [i * 1001 for i in range(100_000)]):
        assert unpacked(packed(times)) == times
    assert len(packed([i * 1001 for i in range(100_000)])) < 2000


def test_ids_depend_on_content_not_on_names(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 40), shot(2, 30))
    copy = tmp_path / "b.mp4"
    copy.write_bytes(video.read_bytes())
    assert [c.id for c in split_video(video)] == [c.id for c in split_video(copy)]
    other = save(tmp_path / "c.mp4", shot(1, 40), shot(3, 30))
    assert {c.id for c in split_video(video)}.isdisjoint(c.id for c in split_video(other))


def test_a_missing_or_unreadable_source_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        split_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UserError):
        split_video(tmp_path / "text.mp4")


def test_gradual_spans_finds_black_and_nothing_in_a_still() -> None:
    still = np.full((30, 16, 16, 3), 90, np.uint8)
    assert gradual_spans(still, 6) == []
    still[10:15] = 0
    assert gradual_spans(still, 6) == [(10, 15)]


def test_gradual_spans_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    scenes = rng.uniform(0, 255, (6, 16, 16, 3))
    parts = []
    for one, other in pairwise(scenes):
        weight = np.linspace(0, 1, 9)[:, None, None, None]
        parts += [np.repeat(one[None], 20, axis=0), (1 - weight) * one + weight * other]
    x = (np.concatenate(parts) + rng.normal(0, 1, (145, 16, 16, 3))).clip(0, 255).astype(np.uint8)
    whole = gradual_spans(x, 6)
    assert len(whole) == 5
    flat, window = x.reshape(len(x), -1).astype(np.float32), 6
    steps = np.linalg.norm(np.diff(flat, axis=0), axis=1) / np.sqrt(768)
    for size in (1, 7, 144):
        monkeypatch.setattr(module, "_BLOCK", size)
        assert gradual_spans(x, window) == whole
        blocks = [module._steps(x.reshape(145, -1)[at : at + size + 1]) for at in range(0, 144, size)]
        assert (np.concatenate(blocks) / np.sqrt(768) == steps).all()


def test_gradual_spans_needs_little_memory_beside_the_thumbnails() -> None:
    x = np.zeros((30_000, 16, 16, 3), np.uint8)
    x[:, :, :8] = np.random.default_rng(0).integers(0, 255, (30_000, 1, 1, 1))
    tracemalloc.start()
    gradual_spans(x, 6)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * x.nbytes, "block by block; all of them in float32 alone are four times as much"


class Killed(Exception):
    """A scan ends here."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Parts, int], int]:
    """Scans that end when so many parts are kept (0: only with the video); gives the number of frames looked at."""
    looked: list[int] = []
    rgb, add = Frame.rgb, Parts.add

    def counted(frame: Frame, side: int | None = None) -> np.ndarray:
        looked.append(frame.number)
        return rgb(frame, side)

    monkeypatch.setattr(Frame, "rgb", counted)

    def scan(path: Path, parts: Parts, after: int) -> int:
        left = [after]

        def adding(self: Parts, seen: Seen, frames: int, cuts: int) -> None:
            add(self, seen, frames, cuts)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        monkeypatch.setattr(Parts, "add", adding)
        looked.clear()
        try:
            find_shots(path, None, parts)
        except Killed:
            assert after
        return len(looked)

    return scan


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.7, 100.0])
def test_a_scan_in_parts_finds_the_same_shots(
    tmp_path: Path, seconds: float, killed: Callable[[Path, Parts, int], int]
) -> None:
    """Killed behind every second part, with the parts' edges on, beside and far from cuts and in a fade."""
    first, second = shot(1, 52), shot(2, 52)
    faded = (first[:40], fade(first[40:], 1, 0), black(6), fade(second[:12], 0, 1), second[12:])
    video = save(tmp_path / "a.mp4", *faded, shot(3, 50), shot(4, 43), shot(5, 40))
    whole, parts = find_shots(video), Parts(tmp_path / "parts", seconds)
    assert [s.start_frame for s in whole.spans][2:] == [110, 160, 203] and whole.spans[1].transition == "fade"
    part = int(np.ceil(seconds * FPS))
    for number in range(243 // part // 2):
        assert killed(video, parts, 2) <= 2 * part + 7, "what was seen is hardly looked at again"
        assert len(list(parts.folder.glob("*.npz"))) == 2 * (number + 1)
    assert find_shots(video, None, parts) == whole
    assert find_shots(video, None, parts) == whole, "all parts are there"


def test_parts_of_other_frames_are_not_gone_on_with(tmp_path: Path, killed: Callable[[Path, Parts, int], int]) -> None:
    one = save(tmp_path / "a.mp4", shot(1, 40), shot(2, 40))
    other = save(tmp_path / "b.mp4", shot(3, 60), shot(2, 40))
    parts = Parts(tmp_path / "parts", 1.0)
    killed(one, parts, 2)
    assert killed(other, parts, 0) >= 100
    assert find_shots(other, None, parts) == find_shots(other)
    assert len(list(parts.folder.glob("*.npz"))) == 4, "of the other alone"
    short = save(tmp_path / "c.mp4", shot(1, 20))
    assert find_shots(short, None, parts) == find_shots(short), "shorter than the parts"


def test_frames_whose_times_are_out_of_order_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: Callable[[Path, Parts, int], int]
) -> None:
    video, parts = save(tmp_path / "a.mp4", shot(1, 60)), Parts(tmp_path / "parts", 1.0)
    frames = module.Footage.frames

    def twice(footage: module.Footage, marks: Sequence[Mark] = ()) -> Iterator[Frame]:
        for frame in frames(footage, marks):
            yield replace(frame, pts=512 * 30) if frame.number in (30, 31) else frame

    monkeypatch.setattr(module.Footage, "frames", twice)
    killed(video, parts, 0)
    assert [path.name for path in parts.folder.glob("*.npz")] == ["000000000.npz"], "up to the time that comes twice"
    assert find_shots(video, None, parts).num_frames == 60


def test_a_cut_at_the_edge_of_a_fade_is_not_a_second_boundary() -> None:
    assert shots_between(100, [39, 70], [(40, 50)]) == [(0, 40, "start"), (50, 70, "fade"), (70, 100, "cut")]
    assert shots_between(30, [], [(0, 5), (25, 30)]) == [(5, 25, "fade")]


def test_every_shot_of_raw_footage_is_found(tmp_path: Path) -> None:
    """Cuts, fades, dissolves, near-duplicates, still and slow shots, overlays, borders: against the planted truth."""
    truth = write_raw_footage(tmp_path / "raw.mp4", seed=4, duration_s=40.0, fps=FPS, height=64, width=64)
    found = split_video(tmp_path / "raw.mp4")
    assert {"cut", "fade"} <= {s.transition for s in truth.shots}
    assert len(found) == len(truth.shots)
    for clip, true in zip(found, truth.shots, strict=True):
        assert clip.dropped is None
        assert abs(clip.start_frame - true.clear_start) <= (0 if true.transition in ("start", "cut") else 4)
        assert abs(clip.end_frame - true.clear_end) <= 4
