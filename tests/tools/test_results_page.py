"""The results page: its numbers are those of the files, what falls short is listed, and a hole is an error."""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.evals.reconstruction import reconstruct
from openhunyuan.evals.report import Count
from openhunyuan.evals.run import Frames, camera_scenes_for, evaluate, model_fingerprint
from openhunyuan.recipes.registry import RECIPES
from openhunyuan.tiny.world import heldout_scenes, parse_prompt, render
from openhunyuan.train.config import BatchShape, Stage, TrainConfig
from tools.results_page import Inputs, main, shown, write_page
from tools.results_tables import batch_of, duration, wilson
from tools.training_runs import panels, read_latents, read_runs, thin

FRAMES, SIZE = 5, 64
SECONDS = 2.0  # a step of the runs below


def write_run(folder: Path, name: str, steps: int = 40, stop: tuple[int, float] | None = None, done: int = 40) -> None:
    """A run of two stages as the training loop leaves it; ``stop``: (step, seconds) of a pause."""
    shapes = (BatchShape(batch_size=4, num_frames=1, height=64, width=64),)
    stages = (
        Stage(name="first", steps=steps // 2, shapes=shapes),
        Stage(name="second", steps=steps // 2, shapes=shapes),
    )
    folder.mkdir(parents=True)
    config = TrainConfig(name=name, stages=stages).model_dump(mode="json")
    (folder / "run.json").write_text(json.dumps({"train": config}))
    lines = []
    for step in range(2, done + 1, 2):
        time = 1000.0 + step * SECONDS + (stop[1] if stop and step > stop[0] else 0)
        record = {"step": step, "time": time, "stage": "first" if step <= steps // 2 else "second"}
        lines.append(record | {"seconds_per_step": SECONDS, "loss": 1 / step, "psnr": 20 + step, "grad_norm": 1.0})
        if step % 20 == 0:
            lines.append({"step": step, "time": time + 1, "val/psnr_video": 25.0 + step, "val/loss_image_t0.5": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_latents(folder: Path, seconds: tuple[float, ...], samples: int = 10) -> None:
    """An encoded set whose shards' file times are ``seconds`` apart."""
    folder.mkdir(parents=True)
    spec = {"num_frames": 33, "size": 64, "camera_prob": 0.1, "paraphrase_prob": 0.2, "split": "train", "seed": 3}
    shards, now = [], 5000.0
    for number, gap in enumerate((0.0, *seconds)):
        now += gap
        path = folder / f"shard-{number:05d}.safetensors"
        path.touch()
        os.utime(path, (now, now))
        shards.append({"file": path.name, "samples": samples, "key": ""})
    (folder / "index.json").write_text(json.dumps({"shards": shards, "provenance": {"world": spec}}))


def paint_red(prompts: list[str], seeds: list[int]) -> Frames:
    """The truth, but what was to be blue is red."""
    scenes = [parse_prompt(prompt) for prompt in prompts]
    return np.stack(
        [render(replace(s, color="red" if s.color == "blue" else s.color), FRAMES, SIZE, SIZE) for s in scenes if s]
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, micro_model_folder: Path) -> Inputs:
    root = tmp_path_factory.mktemp("results")
    for recipe in RECIPES:
        if recipe == "tiny-text":
            write_run(root / "runs" / recipe / "llm-run", "tiny-text-llm")
            write_run(root / "runs" / recipe / "clip-run", "tiny-text-clip")
            (root / "runs" / recipe / "report.json").write_text(
                json.dumps({"probe_mean": {"shape": 0.4321}, "std": 1.5})
            )
        else:
            write_run(root / "runs" / recipe, recipe, stop=(10, 500.0) if recipe == "tiny-vae" else None)
    write_latents(root / "runs" / "tiny-latents" / "video", (30.0, 900.0, 30.0, 30.0))
    scenes = heldout_scenes(40, 0)
    evaluate(
        paint_red,
        root / "alignment",
        model="tiny",
        fingerprint=model_fingerprint(str(micro_model_folder)),
        settings={"num_frames": FRAMES, "num_inference_steps": 9},
        split="heldout",
        scenes=[*[s for s in scenes if s.color == "blue"][:2], *[s for s in scenes if s.color == "green"][:2]],
        camera_scenes=camera_scenes_for("heldout", 1, 0),
        seed=0,
    )
    reconstruct(lambda v: v, "tiny", scenes[:2], 0, (FRAMES, SIZE, SIZE), folder=root / "recon")
    return Inputs(
        runs_dir=root / "runs",
        latents=root / "runs" / "tiny-latents",
        alignment=root / "alignment" / "report.json",
        reconstruction=root / "recon" / "report.json",
        videos=None,
        model=str(micro_model_folder),
        page=root / "docs" / "page.md",
        notes=("The machine was also doing something else.",),
        arguments=("--runs-dir", str(root / "runs")),
    )


@pytest.fixture(scope="module")
def text(inputs: Inputs) -> str:
    return write_page(inputs).read_text()


def test_numbers_are_those_of_the_files(inputs: Inputs, text: str) -> None:
    report = json.loads(inputs.alignment.read_text())
    assert "color, heldout prompts | ≥ 0.95 | 0.500 (2 of 4;" in text
    assert "| blue | 2 | 0 | 0 | 0.000 |" in text
    assert "| green | 2 | 2 | 0 | 1.000 |" in text
    assert report["fingerprint"] in text
    assert "num_inference_steps 9" in text
    assert "--num-inference-steps 9" in text
    recon = json.loads(inputs.reconstruction.read_text())
    assert f"| PSNR, mean over clips | {recon['psnr_mean']:.2f} dB |" in text
    assert "| probe mean | shape | 0.4321 |" in text
    assert "The machine was also doing something else." in text
    size = sum(p.stat().st_size for p in Path(inputs.model).rglob("*") if p.is_file())
    assert f"**{size:,}**" in text
    assert "$" not in text
    assert str(inputs.runs_dir) not in text


def test_what_falls_short_is_listed(text: str) -> None:
    part = text.split("## What falls short")[1].split("## Commands")[0]
    assert "- **color, heldout prompts**: 0.500" in part
    assert "- color *blue*: 0.000 (0 of 2); seen as red 2×." in part
    assert "color *green*" not in part
    assert re.search(r"- VAE, subject \*\w+\*: in no clip of the report\.", part)


def test_links_and_pictures_exist(inputs: Inputs, text: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "design" not in link]
    assert len(links) > 15
    for link in links:
        assert (inputs.page.parent / link).is_file(), link
        if link.endswith(".png"):
            assert (inputs.page.parent / link).read_bytes().startswith(b"\x89PNG")


def test_wall_time_is_of_work_and_not_of_pauses(inputs: Inputs, text: str) -> None:
    vae = next(run for run in read_runs(inputs.runs_dir) if run.name == "tiny-vae")
    # 20 steps of 2 s each, and one second of closing validation; the pause of 500 s is not work
    assert [(s.name, s.steps, s.seconds) for s in vae.stage_times()] == [("first", 20, 40.0), ("second", 20, 41.0)]
    assert inputs.latents is not None
    (latents,) = read_latents(inputs.latents)
    assert (latents.samples, latents.seconds) == (50, 150.0)
    runs = len(RECIPES) + 1
    assert f"| **{duration(81 * runs + 150)}** |" in text


def test_curves_are_thinned_to_means(inputs: Inputs, text: str) -> None:
    run = read_runs(inputs.runs_dir)[0]
    rows = thin(run, rows=4)
    training = [row for row in rows if "loss" in row]
    assert len(training) == 4
    assert training[0]["psnr"] == pytest.approx(np.mean([22, 24, 26, 28, 30]))
    assert [row["val/psnr_video"] for row in rows if "val/psnr_video" in row] == [45.0, 65.0]
    with (inputs.page.with_suffix("") / f"{run.name}.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert float(kept[-2]["minutes"]) == pytest.approx(40 * SECONDS / 60, rel=1e-3)
    assert float(kept[-1]["minutes"]) == pytest.approx((40 * SECONDS + 1) / 60, rel=1e-3)  # the closing validation
    drawn = panels(rows)
    assert drawn["psnr"] == ["psnr", "val/psnr_video"]
    assert drawn["validation, by noise level"] == ["val/loss_image_t0.5"]


def test_missing_or_foreign_inputs_are_named(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"nothing\.json is missing"):
        write_page(replace(inputs, alignment=tmp_path / "nothing.json", page=tmp_path / "page.md"))
    with pytest.raises(UserError, match="is not a report of `openhunyuan evaluate reconstruction`"):
        write_page(replace(inputs, reconstruction=inputs.alignment, page=tmp_path / "page.md"))
    with pytest.raises(UserError, match="run `openhunyuan train tiny-text` first"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match="no encoded latents"):
        read_latents(tmp_path)
    with pytest.raises(UserError, match="not all in"):
        write_page(replace(inputs, videos=tmp_path, page=tmp_path / "page.md"))
    other = tmp_path / "report.json"
    other.write_text(
        inputs.alignment.read_text()
        .replace('"fingerprint":"', '"fingerprint": "0')
        .replace('"fingerprint": "', '"fingerprint": "0')
    )
    with pytest.raises(UserError, match="measured on other weights"):
        write_page(replace(inputs, alignment=other, page=tmp_path / "page.md"))
    arguments = ["--runs-dir", str(tmp_path), "--alignment", "a.json", "--reconstruction", "b.json"]
    assert main([*arguments, "--output", str(tmp_path / "page.md")]) == 2
    assert "train tiny-text" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_a_page_is_written_again_from_what_the_one_before_kept(inputs: Inputs, text: str, tmp_path: Path) -> None:
    last = list(RECIPES)[-1]
    write_run(tmp_path / "runs" / last, last, steps=60, done=60)  # this recipe alone ran again, for longer
    write_latents(tmp_path / "runs" / "tiny-latents" / "new", (4.0, 4.0))
    again = replace(inputs, runs_dir=tmp_path / "runs", latents=tmp_path / "runs" / "tiny-latents")
    kept = inputs.page.with_suffix("")
    page = write_page(replace(again, page=tmp_path / "page.md", kept=kept)).read_text()

    def lines(of: str, start: str) -> list[str]:
        return [line for line in of.splitlines() if line.startswith(start)]

    for recipe in list(RECIPES)[:-1]:
        assert lines(page, f"| {recipe} |") == lines(text, f"| {recipe} |") != []
        assert (tmp_path / "page" / f"{recipe}.csv").exists() == (kept / f"{recipe}.csv").exists()
    assert lines(page, f"| {last} | {last}: second")[0].split(" | ")[2] == "30"
    assert lines(text, f"| {last} | {last}: second")[0].split(" | ")[2] == "20"
    assert lines(page, "| probe mean") == lines(text, "| probe mean") != []
    assert len(lines(page, "| encoding | latents: ")) == len(lines(text, "| encoding | latents: ")) + 1
    bare = replace(again, runs_dir=tmp_path / "bare", latents=None, page=tmp_path / "bare.md", kept=kept)
    same = write_page(bare).read_text()  # nothing ran again
    for start in ("| tiny-", "| encoding | latents: "):
        assert lines(same, start) == lines(text, start) != []
    with pytest.raises(UserError, match="no encoded latents"):  # asked for by name
        write_page(replace(bare, latents=tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"record\.json is missing"):
        write_page(replace(again, page=tmp_path / "other.md", kept=tmp_path))
    assert not (tmp_path / "other.md").exists()


def test_an_unfinished_run_is_refused_unless_allowed(tmp_path: Path) -> None:
    for recipe in RECIPES:
        write_run(tmp_path / recipe, recipe, done=30 if recipe == list(RECIPES)[-1] else 40)
    with pytest.raises(UserError, match="made 30 of 40 steps"):
        read_runs(tmp_path)
    assert read_runs(tmp_path, unfinished=True)[-1].steps == 30


def test_small_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [duration(s) for s in (7.6, 61, 3725)] == ["8 s", "1 min 01 s", "1 h 02 min"]
    low, high = wilson(Count(total=200, right=190, rejected=0))  # published value of the score interval: 0.910 to 0.973
    assert (round(low, 3), round(high, 3)) == (0.910, 0.973)
    one = {"name": "a", "shapes": [{"batch_size": 3, "num_frames": 9, "height": 64, "width": 64, "share": 4}]}
    assert batch_of(one) == "3 × 9×64×64"
    assert batch_of({"name": "a", "shapes": one["shapes"] * 2}) == "3 × 9×64×64 (4), 3 × 9×64×64 (4)"
    assert batch_of({"name": "text", "batch_size": 32, "num_frames": 1, "height": 16, "width": 16}) == "32"
    monkeypatch.chdir(tmp_path)
    assert [shown(a) for a in (str(tmp_path / "a.json"), "/elsewhere/b.json", "two words")] == [
        "a.json",
        "b.json",
        '"two words"',
    ]
