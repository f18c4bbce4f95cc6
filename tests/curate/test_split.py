"""Shot split on footage whose cuts and fades are known exactly."""

from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.split import Split, gradual_spans, shots_between, split_video
from openhunyuan.tiny.raw import write_raw_footage
from tests.curate.films import FPS, save, shot


def black(count: int) -> np.ndarray:
    return np.zeros((count, 64, 64, 3), np.float32)


def fade(frames: np.ndarray, start: float, end: float) -> np.ndarray:
    return frames * np.linspace(start, end, len(frames))[:, None, None, None]


def spans(path: Path) -> list[tuple[int, int, str]]:
    return [(c.start_frame, c.end_frame, c.transition) for c in split_video(path)]


def test_hard_cuts_are_exact(tmp_path: Path) -> None:
    video = save(tmp_path / "a.mp4", shot(1, 40), shot(2, 30), shot(3, 25))
    assert spans(video) == [(0, 40, "start"), (40, 70, "cut"), (70, 95, "cut")]


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
