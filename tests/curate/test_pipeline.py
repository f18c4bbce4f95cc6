"""The pipeline: stages in order, every drop on record, files that read back."""

import json
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import write_video
from openhunyuan.curate.clip import Clip, ClipCaption, clip_id, read_manifest, to_jsonl
from openhunyuan.curate.pipeline import Stage, curate, find_videos


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "raw"
    for name in ("b.mp4", "a.mp4"):
        shots = [np.full((24, 32, 32, 3), rng.integers(30, 220, 3)) for _ in range(3)]
        write_video(folder / name, np.concatenate(shots).astype(np.uint8), 24.0)
    (folder / "notes.txt").write_text("not footage")
    return folder


def drop_middle(clip: Clip) -> Clip:
    return clip.drop("middle", "is in the middle", 0.5) if clip.start_frame == 24 else clip


def caption(clip: Clip) -> Clip:
    assert clip.dropped is None, "a dropped clip must not reach a later stage"
    return clip.with_caption(ClipCaption(captioner="truth", text="a flat colour"))


def test_stages_run_in_order_and_nothing_vanishes(footage: Path, tmp_path: Path) -> None:
    videos = find_videos(footage)
    assert [v.name for v in videos] == ["a.mp4", "b.mp4"]
    out = tmp_path / "data"
    clips = curate(videos, out, [Stage("middle", drop_middle), Stage("caption", caption)])
    assert len(clips) == 6
    assert read_manifest(out / "manifest.jsonl") == clips
    assert [bool(c.captions) for c in clips] == [True, False, True] * 2
    assert {p.stem for p in (out / "clips").iterdir()} == {c.id for c in clips if not c.dropped}
    drops = [json.loads(line) for line in (out / "drops.jsonl").read_text().splitlines()]
    assert [(d["stage"], d["reason"], d["score"]) for d in drops] == [("middle", "is in the middle", 0.5)] * 2
    assert json.loads((out / "funnel.json").read_text()) == [
        {"stage": "split", "seen": 6, "kept": 6},
        {"stage": "middle", "seen": 6, "kept": 4},
        {"stage": "caption", "seen": 4, "kept": 4},
    ]


def test_the_same_footage_twice_is_kept_once(footage: Path, tmp_path: Path) -> None:
    (footage / "c.mp4").write_bytes((footage / "a.mp4").read_bytes())
    clips = curate(find_videos(footage), tmp_path / "data")
    assert len(clips) == 9
    assert sum(c.dropped is None for c in clips) == 6
    assert all(c.dropped.reason == "the same footage was seen before" for c in clips if c.dropped)


def test_two_runs_write_the_same_manifest(footage: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        curate(find_videos(footage), tmp_path / name)
    assert (tmp_path / "one/manifest.jsonl").read_bytes() == (tmp_path / "two/manifest.jsonl").read_bytes()


def test_stage_names_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="differ"):
        curate([], tmp_path, [Stage("split", caption)])


def test_no_footage_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No video"):
        find_videos(tmp_path)


def make_clip(**changes: object) -> Clip:
    fields: dict[str, object] = dict(
        id=clip_id("00", 0, 10),
        source="a.mp4",
        source_sha256="00",
        start_frame=0,
        end_frame=10,
        fps=24.0,
        height=32,
        width=32,
    )
    return Clip(**{**fields, **changes})


def test_the_first_drop_stays_on_record() -> None:
    clip = make_clip().drop("blur", "is blurred", 3.0).drop("text", "has text")
    assert clip.dropped is not None
    assert clip.dropped.stage == "blur"


def test_empty_spans_and_unknown_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="end_frame"):
        make_clip(end_frame=0)
    with pytest.raises(ValueError, match="framez"):
        make_clip(framez=3)


def test_a_broken_manifest_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(to_jsonl([make_clip()]) + '{"id": 3}\n')
    with pytest.raises(UserError, match="Line 2"):
        read_manifest(path)
    with pytest.raises(UserError, match="no manifest"):
        read_manifest(tmp_path / "none.jsonl")
