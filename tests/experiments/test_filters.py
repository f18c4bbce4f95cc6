"""The pool of clips that filters are judged on, what is found in generated clips, and the verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import j_filters
from experiments.common import NOT, PARTLY, REPRODUCED, Page
from experiments.footage import FILTER_NAMES, KINDS, PLANTED, Piece, faults, plan, read_piece, shot_of, spread_frames
from experiments.j_filters import ALONE, ARMS, CLEAN, EVERYTHING, FILTERED, LEFT_OUT, SEEN, UNSPLIT, UNTUNED, Clips
from openhunyuan.base.video import read_video, write_video
from openhunyuan.curate.clip import Clip
from openhunyuan.recipes.curate import FILTERS, PLAN, POOL
from openhunyuan.tiny.raw import RawTruth, write_raw_footage
from openhunyuan.tiny.world import heldout_scenes, render
from openhunyuan.train.config import Stage


def test_plans_of_all_filters_and_of_all_but_one() -> None:
    everything, nothing = plan(FILTER_NAMES), plan(())
    assert everything.filters == FILTERS and everything.crop == PLAN.crop and everything.duplicates == PLAN.duplicates
    assert [f.name for f in nothing.filters] == ["duration", "size", "aspect"] and nothing.duplicates is None
    assert nothing.crop is not None and not (nothing.crop.border or nothing.crop.subtitles)
    for name, names in FILTER_NAMES.items():
        assert len(names) == 1, "each filter by itself"
        without, alone = plan([other for other in FILTER_NAMES if other != name]), plan([name])
        refusing = {f.name for f in FILTERS}.intersection(names)
        assert {f.name for f in FILTERS} - {f.name for f in without.filters} == refusing
        assert {f.name for f in alone.filters} - {f.name for f in nothing.filters} == refusing
    assert {name for names in FILTER_NAMES.values() for name in names} >= {f.name for f in FILTERS if f not in POOL}
    assert without.measures == everything.measures, "shots and measures are made once for all choices"


def test_every_filter_has_as_much_to_find() -> None:
    assert {sum(PLANTED.count(kind) for kind in kinds) for kinds in KINDS.values()} == {2}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RawTruth]:
    """Ten seconds of footage, as ``footage`` keeps it."""
    folder = tmp_path_factory.mktemp("footage")
    return folder, write_raw_footage(
        folder / "raw" / "a.mp4", 3, 10.0, height=64, width=64, defects=("near_duplicate",)
    )


def _piece(truth: RawTruth, number: int, **more: object) -> Piece:
    shot = truth.shots[number]
    clip = Clip(
        id=f"{number}",
        source=truth.file,
        source_sha256="a",
        start_frame=shot.clear_start,
        end_frame=shot.clear_end,
        fps=truth.fps,
        height=64,
        width=64,
    ).model_copy(update=more)
    return Piece(clip, shot_of(clip, truth))


def test_the_pool_has_all_spoiled_shots_and_what_they_repeat(truth: tuple[Path, RawTruth]) -> None:
    pieces = [_piece(truth[1], number) for number in range(len(truth[1].shots))]
    spoiled = [piece for piece in pieces if piece.kind == "near_duplicate"]
    assert spoiled and all(piece.spoiled_for == "duplicates" for piece in spoiled)
    originals = {piece.shot.defects[0].duplicate_of for piece in spoiled}
    kept = {piece.shot.index for piece in j_filters.chosen(pieces, 0.0)}
    assert kept == originals | {piece.shot.index for piece in spoiled}
    assert j_filters.chosen(pieces, 1.0) == pieces


def test_a_moved_clip_runs_over_the_cut_beside_it(truth: tuple[Path, RawTruth]) -> None:
    folder, said = truth
    piece = _piece(said, 1, crop=(0, 8, 64, 56))
    frames, _ = read_video(folder / "raw" / "a.mp4")
    length = piece.clip.end_frame - piece.clip.start_frame
    first = piece.clip.start_frame + round(0.5 * length)
    moved = read_piece(folder, piece, 5, 0.5)
    assert np.array_equal(moved, frames[[first + n for n in spread_frames(length, 5)], 8:56])
    assert first + length > piece.shot.end_frame, "the cut lies within"
    last = _piece(said, len(said.shots) - 1)
    assert len(read_piece(folder, last, 5, 0.5)) == 5, "the end of the file holds it"
    assert all(0.05 <= abs(j_filters.moved_by(_piece(said, n))) <= 0.5 for n in range(len(said.shots)))


def test_a_whole_clip_is_read_from_its_file(truth: tuple[Path, RawTruth]) -> None:
    folder, said = truth
    frames, fps = read_video(folder / "raw" / "a.mp4")
    write_video(folder / "data" / "clip.mp4", frames[:20], fps, crf=0)
    piece = _piece(said, 0, path="clip.mp4", file_frames=20)
    stored, _ = read_video(folder / "data" / "clip.mp4")
    assert spread_frames(20, 5) == [0, 5, 10, 14, 19]
    assert np.array_equal(read_piece(folder, piece, 5), stored[[0, 5, 10, 14, 19]])


def test_what_is_found_in_generated_clips(tmp_path: Path) -> None:
    scene = next(s for s in heldout_scenes(20, 1) if s.motion == "right" and s.size == "large")
    clip = render(scene, 17, 64, 64)
    still, barred = np.repeat(clip[8:9], 17, axis=0), clip.copy()
    barred[:, :9] = barred[:, -9:] = 0
    grey = np.rint(112 + 0.15 * (clip.astype(np.float32) - 112)).astype(np.uint8)
    found = faults(tmp_path, [clip, still, barred, grey])
    for name in ("motion", "frozen"):
        assert [name in one for one in found] == [False, True, False, False]
    assert ["borders" in one for one in found] == [False, False, True, False]
    assert ["contrast" in one for one in found] == [False, False, False, True]


def test_a_clip_meets_the_same_noise_whatever_else_is_trained_on(tmp_path: Path) -> None:
    import torch

    from openhunyuan.latents.shards import LatentSample

    samples = [
        LatentSample(torch.full((16, 2, 8, 8), float(n)), torch.zeros(3, 4), torch.zeros(5), f"{n}") for n in range(5)
    ]
    few, stage = Clips(samples[3:], [3, 4], seed=0), Stage(name="t", steps=9, shapes=(j_filters.shape(2, 5, 64),))
    for step in range(3):
        batch = few.batch(step, stage, stage.shapes[0])
        assert sorted(batch["keys"].tolist()) == [[3, step], [4, step]], "every clip once an epoch"
        assert batch["latents"][:, 0, 0, 0, 0].tolist() == [float(number) for number, _ in batch["keys"].tolist()]


def _found(everything: float, right: float, without: float) -> dict:
    def one(loss: float, right: float, refused: float) -> dict:
        return {"loss": loss, "right": {"all": right}, "faults": dict.fromkeys(SEEN, refused), "any": refused}

    found = {arm: [one(without, 0.8, 0.2) for _ in range(2)] for arm in (UNTUNED, *ARMS)}
    found[FILTERED] = [one(0.5, 0.8, 0.2)] * 2
    found[EVERYTHING] = [one(everything, right, 0.6)] * 2
    return found


@pytest.mark.parametrize(
    ("everything", "right", "without", "wanted"),
    [
        (0.6, 0.7, 0.55, REPRODUCED),
        (0.6, 0.7, 0.45, PARTLY),
        (0.4, 0.9, 0.55, PARTLY),
        (0.4, 0.9, 0.45, NOT),
        (0.4, 0.8, 0.5, NOT),
    ],
)
def test_the_verdict(everything: float, right: float, without: float, wanted: str) -> None:
    page = _page(_found(everything, right, without))
    assert page.verdict == wanted
    assert {row[0] for row in page.rows[1:]} == {UNTUNED, *ARMS} and {*LEFT_OUT, *ALONE, UNSPLIT} <= set(ARMS)


@pytest.mark.parametrize(("alone", "wanted"), [(0.58, REPRODUCED), (0.62, PARTLY)])
def test_a_filter_that_others_cover_is_judged_alone(alone: float, wanted: str) -> None:
    found = _found(0.6, 0.7, 0.55)
    found["all but frozen"] = found[FILTERED]
    for one in found["only frozen"]:
        one["loss"] = alone
    page = _page(found, spare="all but frozen")
    assert page.verdict == wanted
    assert any("others refuse the same clips, for: frozen." in sentence for sentence in page.found)


def _page(found: dict, spare: str = "") -> Page:
    keys = {arm: ["a"] if arm in (FILTERED, spare) else ["a", "b"] for arm in ARMS}
    counts = {arm: dict.fromkeys((*KINDS, CLEAN), 1) for arm in ARMS}
    pool = {"shots": 4, "arms": keys, "counts": counts, "kinds": {}}
    hits = {name: {"planted": 1.0, "found": 1.0, "wrong": 0.0} for name in SEEN}
    return j_filters._page(j_filters.Sizes(), pool, hits, found)
