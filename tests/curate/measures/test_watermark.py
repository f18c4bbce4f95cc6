"""Marks by the small network, and the comparison of a source's shots."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import save_safetensors
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.measures.watermark import Standing, Watermark, across_shots, mark_row
from openhunyuan.curate.models.small import MarkNet
from openhunyuan.tiny.marks import Mark, paste
from tests.curate.measures.test_measures import measured, moving


def logo(frames: np.ndarray, left: int, top: int, side: int = 22) -> np.ndarray:
    """Frames with a solid two-coloured square on them."""
    levels = np.full((side, side, 3), (240, 240, 240), np.uint8)
    levels[5:-5, 5:-5] = (200, 20, 60)
    result = frames.copy()
    paste(result, Mark(levels, np.ones((side, side), np.float32)), left, top)
    return result


@pytest.mark.parametrize("left, top", [(8, 8), (224, 8), (8, 112), (226, 114)])
def test_a_logo_in_a_corner_is_found_where_it_is(left: int, top: int) -> None:
    row = measured(Watermark(), logo(moving(5, 36, step=3.0), left, top))
    assert row["chance"] > 0.5
    x, y = (row["box"][0] + row["box"][2]) / 2 * 256, (row["box"][1] + row["box"][3]) / 2 * 144
    assert abs(x - left - 11) < 14
    assert abs(y - top - 11) < 14
    assert row["places"][2] == max(row["places"][2::3])


def test_a_clip_without_a_mark_has_none() -> None:
    assert measured(Watermark(), moving(5, 36, step=3.0))["chance"] < 0.5


def test_bars_are_no_marks_and_a_mark_between_them_is_found_where_it_is() -> None:
    bare = moving(5, 36, step=3.0)
    barred = np.zeros((len(bare), 200, 256, 3), np.uint8)
    barred[:, 28:172] = bare
    # The edges of the bars last, but what is said of the picture is what is said of it without them, to a row.
    row = measured(Watermark(), barred)
    assert row["chance"] == pytest.approx(measured(Watermark(), bare[:, 1:-1])["chance"], abs=1e-3)
    assert row["chance"] < 0.5
    row = measured(Watermark(), logo(barred, 224, 36))
    assert row["chance"] > 0.5
    x, y = (row["box"][0] + row["box"][2]) / 2 * 256, (row["box"][1] + row["box"][3]) / 2 * 200
    assert abs(x - 235) < 14
    assert abs(y - 47) < 14
    assert row["places"][1] * 200 == pytest.approx(47, abs=14)
    assert 0 < row["area"] < 0.1


def test_what_stays_is_seen_and_what_moves_is_not() -> None:
    standing = Standing()
    for frame in logo(moving(6, 8, step=9.0), 30, 40):
        standing.add(frame)
    features = standing.features()
    assert features.shape == (8, 144, 256)
    assert features.dtype == np.float32
    edges = np.abs(features[4])
    assert edges[44:58, 28:33].max() > 1.0
    assert edges[:30].max() < 0.3
    spread = features[3]
    assert spread[42:60, 32:50].max() == -1.0
    assert spread[80:].mean() > -0.5
    part = standing.features(0.5, 0.0, 1.0, 1.0)
    assert part[6, 0, 0] == pytest.approx(1.0, abs=0.02)
    assert part[6, 0, -1] == pytest.approx(-1.0, abs=0.02)


def test_the_row_names_the_likeliest_mark_first() -> None:
    chances = np.zeros((18, 32), np.float32)
    chances[2:4, 2:6] = 0.9
    chances[15, 28:30] = 0.2
    row = mark_row(chances, edge=0.3)
    assert row["chance"] == pytest.approx(0.9)
    assert row["box"] == [2 / 32, 2 / 18, 6 / 32, 4 / 18]
    assert row["area"] == pytest.approx(8 / (32 * 18))
    places = np.reshape(row["places"], (-1, 3))
    assert places[0, 2] == pytest.approx(0.9)
    assert places[-1, 2] == pytest.approx(0.2)
    assert mark_row(np.zeros((18, 32), np.float32), edge=0.3)["places"] == []


def test_a_line_low_in_the_middle_is_a_subtitle_and_no_mark() -> None:
    chances = np.zeros((18, 32), np.float32)
    chances[15, 8:13] = chances[15, 15:24] = 0.95  # two words
    assert mark_row(chances, edge=0.3)["chance"] == 0.0
    chances[15, 27:30] = 0.8  # a logo beside it
    assert mark_row(chances, edge=0.3)["chance"] == pytest.approx(0.8)
    title = np.zeros((18, 32), np.float32)
    title[6, 8:24] = 0.95
    assert mark_row(title, edge=0.3)["chance"] == pytest.approx(0.95)


def clip(number: int, start: int, end: int, source: str = "a") -> Clip:
    return Clip(
        id=f"c{number}",
        source=f"{source}.mp4",
        source_sha256=source,
        start_frame=start,
        end_frame=end,
        fps=24.0,
        height=144,
        width=256,
    )


def faint(*places: float) -> dict[str, dict[str, object]]:
    return {"watermark": {"chance": max(places[2::3], default=0.0), "places": list(places)}}


def test_a_faint_place_that_several_shots_share_is_a_mark() -> None:
    clips = [clip(0, 0, 50), clip(1, 50, 90), clip(2, 100, 170), clip(3, 0, 60, "b")]
    rows = {
        "c0": faint(0.9, 0.1, 0.4),
        "c1": faint(0.91, 0.1, 0.35, 0.2, 0.5, 0.3),
        "c2": faint(0.5, 0.5, 0.4),
        "c3": faint(0.9, 0.1, 0.4),
    }
    found = {name: row["watermark"]["across"] for name, row in across_shots(clips, rows).items()}
    assert 0.5 < found["c0"] < 0.9  # two faint witnesses are no proof
    assert 0.45 < found["c1"] < found["c0"]
    assert found["c2"] == pytest.approx(0.4)  # nothing is there in other shots
    assert found["c3"] == pytest.approx(0.4)  # another source is no witness
    assert "across" not in rows["c0"]["watermark"]


def test_pieces_of_one_long_shot_are_no_witnesses_of_each_other() -> None:
    clips = [clip(0, 0, 240), clip(1, 240, 480)]
    rows = {"c0": faint(0.9, 0.1, 0.4), "c1": faint(0.9, 0.1, 0.4)}
    assert across_shots(clips, rows)["c0"]["watermark"]["across"] == pytest.approx(0.4)
    longer = [clip(0, 0, 240), clip(1, 240, 420)]
    assert across_shots(longer, rows)["c0"]["watermark"]["across"] > 0.5


def test_a_sure_mark_stays_sure_and_a_clip_without_a_row_is_left_alone() -> None:
    clips = [clip(0, 0, 50), clip(1, 50, 90)]
    rows = {"c0": faint(0.9, 0.1, 0.97), "c1": {"motion": {"speed": 1.0}}}
    found = across_shots(clips, rows)
    assert found["c0"]["watermark"]["across"] == pytest.approx(0.97, abs=1e-3)
    assert found["c1"] == rows["c1"]


def test_weights_are_part_of_the_key_and_their_place_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    state = MarkNet().state_dict()
    save_safetensors(one, state)
    save_safetensors(other, state)
    assert Watermark(file=str(one)).key == Watermark(file=str(other)).key != Watermark().key
    assert Watermark().describe()["weights"] == Watermark().weights
    assert str(tmp_path) not in str(Watermark(file=str(one)).describe())
    with pytest.raises(UserError, match="There are no weights at"):
        Watermark(file=str(tmp_path / "none.safetensors")).check()
    del state["head.bias"]
    save_safetensors(one, state)
    with pytest.raises(UserError, match="is no small network watermark: it lacks 1 tensors"):
        Watermark(file=str(one)).check()
