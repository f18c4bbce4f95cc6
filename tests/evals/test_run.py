"""The evaluation around a generator: right answers counted right, wrong ones named, videos cached, files written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openhunyuan.base.errors import UserError
from openhunyuan.caption.camera import CAMERA_MOVES
from openhunyuan.evals.report import AttributeReport, Report
from openhunyuan.evals.run import Frames, camera_scenes_for, evaluate, run_alignment, scenes_for
from openhunyuan.tiny.world import Scene, heldout_scenes, parse_prompt, render

NUM_FRAMES = 9


class Painter:
    """A generator that reads the prompt and renders it; it paints everything red that was to be blue."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, prompts: list[str], seeds: list[int]) -> Frames:
        self.prompts += prompts
        return np.stack([self._paint(p, s) for p, s in zip(prompts, seeds, strict=True)])

    @staticmethod
    def _paint(prompt: str, seed: int) -> Frames:
        scene = parse_prompt(prompt)
        assert scene is not None
        return render(replace(scene, seed=seed, color="red" if scene.color == "blue" else scene.color), NUM_FRAMES)


def run(folder: Path, generate: Painter, fingerprint: str = "f", scenes: list[Scene] | None = None) -> Report:
    return evaluate(
        generate,
        folder,
        model="painter",
        fingerprint=fingerprint,
        settings={"num_frames": NUM_FRAMES},
        split="heldout",
        scenes=heldout_scenes(16, 0) if scenes is None else scenes,
        camera_scenes=camera_scenes_for("heldout", 2, 0),
        seed=0,
        batch_size=5,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("alignment")
    return folder, run(folder, Painter())


def test_per_value_counts(done: tuple[Path, Report]) -> None:
    report = done[1]
    color = report.attributes["color"]
    blue = sum(s.color == "blue" for s in heldout_scenes(16, 0))
    assert blue > 0
    assert color.values["blue"].right == 0
    assert color.values["blue"].total == blue
    assert color.confusions == {"blue -> red": blue}
    assert report.accuracy("color") == (16 - blue) / 16
    for name in ("shape", "motion", "background"):
        assert report.accuracy(name) == 1, report.attributes[name].confusions
    assert report.all_correct == (16 - blue) / 16
    assert report.camera is not None
    assert report.camera.overall.total == 2


def test_files(done: tuple[Path, Report]) -> None:
    folder, report = done
    assert Report.model_validate_json((folder / "report.json").read_text()) == report
    page = (folder / "report.md").read_text()
    assert "| color | blue |" in page
    assert "blue -> red" in page
    with Image.open(folder / "worst.png") as sheet:
        assert sheet.width > 64
    assert len(list((folder / "videos").glob("*.npz"))) == 18


def test_every_value_has_a_row(done: tuple[Path, Report]) -> None:
    rows = {(name, value) for name, value, _ in done[1].rows()}
    for scene in heldout_scenes(16, 0):
        assert ("color", scene.color) in rows
        assert ("material", scene.material) in rows
    assert ("motion", "overall") in rows


def test_resumes_without_generating_again_but_not_with_other_weights(done: tuple[Path, Report]) -> None:
    folder, report = done
    (folder / report.samples[3].video).unlink()
    again = Painter()
    assert run(folder, again).samples == report.samples
    assert again.prompts == [report.samples[3].prompt]
    other = Painter()
    run(folder, other, fingerprint="g", scenes=heldout_scenes(16, 0)[:2])
    assert len(other.prompts) == 4


def test_scenes_are_of_their_split() -> None:
    assert all(s.heldout for s in scenes_for("heldout", 30, 1))
    assert not any(s.heldout for s in scenes_for("train", 30, 1))
    moves = camera_scenes_for("heldout", 26, 1)
    assert sorted(s.camera for s in moves) == sorted(2 * [m for m in CAMERA_MOVES if m != "static"])
    assert all(s.heldout for s in moves)


def test_rejections_are_counted_apart() -> None:
    report = AttributeReport.from_pairs([("red", None), ("red", "red"), ("blue", "red")], ["blue", "red"])
    assert list(report.values) == ["blue", "red"]
    assert report.values["red"].rejected == 1
    assert report.overall.right == 1
    assert report.confusions == {"red -> rejected": 1, "blue -> red": 1}


def test_bad_numbers_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split"):
        run_alignment(split="test", output_dir=tmp_path)
    with pytest.raises(UserError, match="at least 1"):
        run_alignment(num_prompts=0, output_dir=tmp_path)
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(UserError, match="cannot be made"):
        run_alignment(num_prompts=1, output_dir=tmp_path / "file" / "folder")


def test_first_frames_are_compared_with_the_given_pictures(tmp_path: Path) -> None:
    scenes = [replace(s, color="red") for s in heldout_scenes(3, 0)]
    images = [render(s, NUM_FRAMES)[0] for s in scenes]
    images[1] = 255 - images[1]

    def generate(prompts: list[str], seeds: list[int], given: list[Frames]) -> Frames:
        return np.stack([np.stack([image, *[image // 2] * (NUM_FRAMES - 1)]) for image in given])

    def report(name: str, given: list[Frames] | None) -> Report:
        return evaluate(
            generate, tmp_path / name, model="m", fingerprint="f", settings={"num_frames": NUM_FRAMES}, split="heldout",
            scenes=scenes, camera_scenes=[], seed=0, images=given,
        )  # fmt: skip

    done = report("exact", images)
    assert done.first_frame is not None and done.first_frame.mean == 99 and done.first_frame.above_28 == 1
    assert "First frame against the given picture" in (tmp_path / "exact" / "report.md").read_text()

    noisy = [np.clip(i.astype(int) + 20, 0, 255).astype(np.uint8) for i in images]
    wrong = evaluate(
        lambda prompts, seeds, given: np.stack([np.stack([i] * NUM_FRAMES) for i in noisy[: len(prompts)]]),
        tmp_path / "wrong", model="m", fingerprint="f", settings={}, split="heldout", scenes=scenes, camera_scenes=[],
        seed=0, images=images,
    )  # fmt: skip
    assert wrong.first_frame is not None and wrong.first_frame.worst < 24 and wrong.first_frame.above_28 == 0
