from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_video
from openhunyuan.tiny.blurs import KINDS
from openhunyuan.tiny.raw import (
    BLUR_WIDTHS,
    DEFECTS,
    TRANSITIONS,
    Defect,
    RawTruth,
    Shot,
    read_truth,
    write_raw_footage,
)
from openhunyuan.tiny.world import render

HEIGHT, WIDTH, FPS = 96, 160, 12.0


@dataclass(frozen=True)
class Footage:
    path: Path
    truth: RawTruth
    frames: NDArray[np.uint8]

    def clear(self, shot: Shot) -> NDArray[np.float64]:
        return self.frames[shot.clear_start : shot.clear_end].astype(float)

    def with_defect(self, kind: str) -> list[tuple[Shot, Defect]]:
        found = [(shot, shot.defects[0]) for shot in self.truth.shots if shot.defects and shot.defects[0].kind == kind]
        assert found
        return found


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    path = tmp_path_factory.mktemp("raw") / "raw.mp4"
    truth = write_raw_footage(path, seed=3, duration_s=60, fps=FPS, height=HEIGHT, width=WIDTH)
    frames, fps = read_video(path)
    assert fps == FPS
    return Footage(path, truth, frames)


def undissolved(footage: Footage) -> set[int]:
    """Shots with no dissolve at either end: their scene's time runs over exactly their own frames."""
    shots = footage.truth.shots
    ends = [*(shot.transition for shot in shots[1:]), "end"]
    return {shot.index for shot, end in zip(shots, ends, strict=True) if "dissolve" not in (shot.transition, end)}


def undamaged(shot: Shot) -> NDArray[np.float64]:
    """The clear frames of such a shot as they would be without any defect."""
    frames = render(shot.scene, shot.end_frame - shot.start_frame, HEIGHT, WIDTH)
    return frames[shot.clear_start - shot.start_frame : shot.clear_end - shot.start_frame].astype(float)


def test_truth_is_complete_and_read_back(footage: Footage) -> None:
    truth = footage.truth
    assert read_truth(footage.path) == truth
    assert len(footage.frames) == truth.num_frames == 60 * 12
    assert truth.shots[0].start_frame == 0 and truth.shots[-1].end_frame == truth.num_frames
    for before, shot, cut in zip(truth.shots[:-1], truth.shots[1:], truth.cuts, strict=True):
        assert before.end_frame == shot.start_frame == cut.frame
        assert cut.start_frame <= cut.frame <= cut.end_frame
        assert (cut.kind == "cut") == (cut.start_frame == cut.end_frame)
    assert {defect.kind for shot in truth.shots for defect in shot.defects} == set(DEFECTS)
    assert {shot.transition for shot in truth.shots[1:]} == set(TRANSITIONS)
    assert sum(not shot.defects for shot in truth.shots) >= len(truth.shots) // 2
    for shot in truth.shots:
        assert shot.start_frame <= shot.clear_start < shot.clear_end <= shot.end_frame
        assert shot.prompt == shot.scene.prompt and shot.caption == shot.scene.caption
        assert shot.camera == shot.scene.camera and not shot.scene.heldout


def test_hard_cuts_are_the_largest_steps(footage: Footage) -> None:
    steps = np.abs(np.diff(footage.frames.astype(float), axis=0)).mean((1, 2, 3))
    hard = [cut.frame for cut in footage.truth.cuts if cut.kind == "cut"]
    inside = np.concatenate([steps[shot.clear_start : shot.clear_end - 1] for shot in footage.truth.shots])
    assert min(steps[frame - 1] for frame in hard) > 1.5 * inside.max()


def test_fades_go_through_black_and_dissolves_mix(footage: Footage) -> None:
    level = footage.frames.astype(float).mean((1, 2, 3))
    for cut in footage.truth.cuts:
        if cut.kind == "fade":
            assert level[cut.frame - 1] < 3 and level[cut.frame] < 3
            assert level[cut.start_frame - 1] > 10 and level[cut.end_frame] > 10
        if cut.kind == "dissolve":
            before, after = (footage.frames[i].astype(float) for i in (cut.start_frame - 1, cut.end_frame))
            middle = footage.frames[cut.frame].astype(float)
            total = np.abs(before - after).mean()
            assert np.abs(middle - before).mean() > 0.2 * total and np.abs(middle - after).mean() > 0.2 * total


def test_clean_shots_move_and_match_their_scene(footage: Footage) -> None:
    for shot in footage.truth.shots:
        if shot.defects:
            continue
        frames = footage.clear(shot)
        assert np.abs(frames[-1] - frames[0]).mean() > 0.5, shot.prompt
    plain = [shot for shot in footage.truth.shots if not shot.defects and shot.index in undissolved(footage)]
    assert plain
    for shot in plain:
        # H.264 at quarter chroma costs a few levels, no more.
        assert np.abs(footage.clear(shot) - undamaged(shot)).mean() < 5, shot.prompt


def test_static_shots_stand_and_slow_shots_crawl(footage: Footage) -> None:
    def travelled(shot: Shot) -> float:
        frames = footage.clear(shot)
        return float(np.abs(frames[-1] - frames[0]).max(axis=-1).mean())

    clean = [travelled(shot) for shot in footage.truth.shots if not shot.defects]
    for shot, _ in footage.with_defect("static"):
        assert travelled(shot) < 1.0
        assert shot.scene.motion == "still" and shot.camera == "static"
    for shot, _ in footage.with_defect("slow"):
        assert travelled(shot) < 0.4 * np.median(clean)
        assert shot.scene.motion != "still"


def test_low_contrast(footage: Footage) -> None:
    clean = [shot for shot in footage.truth.shots if not shot.defects]
    for shot, _ in footage.with_defect("low_contrast"):
        low, high = np.percentile(footage.clear(shot).mean(-1), [0.5, 99.5])
        assert high - low < 45
    assert min(np.ptp(np.percentile(footage.clear(shot), [0.5, 99.5])) for shot in clean) > 80


@pytest.fixture(scope="module")
def blurs(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """Footage in which every second shot is blurred."""
    path = tmp_path_factory.mktemp("blurs") / "raw.mp4"
    options = {"fps": FPS, "height": HEIGHT, "width": WIDTH, "defects": ("blur",)}
    truth = write_raw_footage(path, seed=5, duration_s=40, **options, shot_seconds=(1.2, 1.6))
    return Footage(path, truth, read_video(path)[0])


def test_blurs_are_of_all_kinds_and_as_wide_as_the_truth_says(blurs: Footage) -> None:
    def steepest(frames: NDArray[np.float64], angle: float) -> float:
        down, across = np.gradient(frames[len(frames) // 2], axis=(0, 1))
        return float(np.abs(across * np.cos(angle) + down * np.sin(angle)).max())

    found = blurs.with_defect("blur")
    assert {defect.blur for _, defect in found} == set(KINDS)
    for shot, defect in found:
        assert defect.blur_width is not None and BLUR_WIDTHS[0] <= defect.blur_width <= BLUR_WIDTHS[1]
        assert (defect.blur_angle is None) == (defect.blur != "motion")
        if shot.index in undissolved(blurs):
            angle = defect.blur_angle or 0.0
            soft, sharp = blurs.clear(shot), undamaged(shot)
            assert steepest(soft, angle) < 0.55 * steepest(sharp, angle), (shot.prompt, defect)


def test_which_blur_it_is_changes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"duration_s": 16.0, "fps": 12.0, "height": 32, "width": 48, "defects": ("blur", "logo")}
    one = write_raw_footage(tmp_path / "a.mp4", 1, **options)
    monkeypatch.setattr("openhunyuan.tiny.raw.KINDS", ("gaussian",))
    two = write_raw_footage(tmp_path / "b.mp4", 1, **options)
    kinds = [{d.blur for shot in truth.shots for d in shot.defects if d.kind == "blur"} for truth in (one, two)]
    assert kinds[0] != kinds[1] == {"gaussian"}
    assert [shot.scene for shot in one.shots] == [shot.scene for shot in two.shots] and one.cuts == two.cuts


def test_letterbox_bars_are_black_and_the_picture_between(footage: Footage) -> None:
    for shot, defect in footage.with_defect("letterbox"):
        assert defect.box is not None
        frames = footage.clear(shot)
        _, top, _, bottom = defect.box
        assert frames[:, : top - 1].mean() < 3 and frames[:, bottom + 1 :].mean() < 3
        assert frames[:, top + 1 : bottom - 1].mean() > 10
        assert 0 < top < bottom < HEIGHT


def test_overlays_lie_in_their_boxes(footage: Footage) -> None:
    for kind in ("subtitles", "watermark", "logo"):
        for shot, _ in footage.with_defect(kind):
            if shot.index not in undissolved(footage):
                continue
            change = np.abs(footage.clear(shot) - undamaged(shot)).max(-1)
            for defect in shot.defects:
                assert defect.box is not None
                first = max(defect.start_frame, shot.clear_start) - shot.clear_start
                last = min(defect.end_frame, shot.clear_end) - shot.clear_start
                left, top, right, bottom = defect.box
                assert 0 <= left < right <= WIDTH and 0 <= top < bottom <= HEIGHT
                part = change[first:last]
                inside = part[:, top:bottom, left:right]
                assert (inside > 40).mean() > 0.03, (kind, shot.prompt)
                outside = part.copy()
                outside[:, max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = 0
                # What remains is the codec's rounding of coloured edges.
                assert outside.mean() < 0.25 * inside.mean(), (kind, shot.prompt)


def test_near_duplicates_resemble_their_original(footage: Footage) -> None:
    for shot, defect in footage.with_defect("near_duplicate"):
        assert defect.duplicate_of is not None and defect.duplicate_of < shot.index - 1
        original = footage.truth.shots[defect.duplicate_of]
        assert original.scene == shot.scene and not original.defects
        middle = (shot.clear_start + shot.clear_end) // 2
        here = footage.frames[middle].astype(float)
        there = footage.frames[(original.clear_start + original.clear_end) // 2].astype(float)
        other = footage.frames[footage.truth.shots[shot.index - 1].clear_start].astype(float)
        assert 0.5 < np.abs(here - there).mean() < 0.6 * np.abs(here - other).mean()


def test_footage_is_deterministic_and_options_hold(tmp_path: Path) -> None:
    options = {"duration_s": 8.0, "fps": 12.0, "height": 32, "width": 48}
    one = write_raw_footage(tmp_path / "a.mp4", 1, **options, defects=("blur",), split="heldout")
    two = write_raw_footage(tmp_path / "b.mp4", 1, **options, defects=("blur",), split="heldout")
    digests = [hashlib.sha256(read_video(tmp_path / name)[0].tobytes()).digest() for name in ("a.mp4", "b.mp4")]
    assert digests[0] == digests[1] and one.shots == two.shots
    assert all(shot.scene.heldout for shot in one.shots)
    assert {defect.kind for shot in one.shots for defect in shot.defects} == {"blur"}
    clean = write_raw_footage(tmp_path / "c.mp4", 2, **options, defects=())
    assert not any(shot.defects for shot in clean.shots)
    assert clean.shots != one.shots
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name + end for name in ("a.mp4", "b.mp4", "c.mp4") for end in ("", ".truth.json")
    )


def test_impossible_footage_is_refused(tmp_path: Path) -> None:
    for wrong in (
        {"height": 33},
        {"width": 16},
        {"fps": 0.0},
        {"duration_s": 0.5},
        {"shot_seconds": (0.2, 0.4)},
        {"defects": ("flicker",)},
    ):
        with pytest.raises(UserError):
            write_raw_footage(tmp_path / "x.mp4", 0, **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError):
        read_truth(tmp_path / "x.mp4")
    assert not list(tmp_path.iterdir())
