"""Experiments in their smallest form end to end; results that are kept, verdicts that follow the numbers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from experiments import c_image_first, d_schedules, e_guidance, h_captions, i_balance
from experiments.common import NOT, PARTLY, REPRODUCED, Study, all_below, judged, spread, table
from experiments.index import EXPERIMENTS, index, verdict
from experiments.networks import SMALL, distance, embedded, encoded, new_dit, noise_seeds, sampled, texts, world
from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.caption.schema import PROMPT_PARTS, combine, part_text
from openhunyuan.diffusion.schedule import sigmas
from openhunyuan.infer.pipeline import Pipeline
from openhunyuan.infer.request import Request
from openhunyuan.tiny.world import heldout_scenes
from openhunyuan.train.config import Stage

PROMPTS = ["a large red circle moves right on a black background", "a small green star stays still"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents are encoded once for all tests, as for all experiments."""
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("letter", "name"), EXPERIMENTS)
def test_the_smallest_form_ends_in_a_page_and_goes_on_from_its_results(
    letter: str, name: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"experiments.{letter}_{name.replace('-', '_')}")
    command = ["--quick", "--seeds", "0", "--work", str(work)]
    module.main(command)
    page = work / "quick" / f"{letter}-{name}.md"
    first = page.read_text()
    assert verdict(page) in (REPRODUCED, PARTLY, NOT)
    assert page.with_suffix(".png").stat().st_size > 5000
    assert re.search(r"\b(nan|inf)\b", first) is None

    def trained_again(*_: object) -> None:
        raise AssertionError("what was measured is measured again")

    for again in ("flow", "trained", "sampled"):
        monkeypatch.setattr(module, again, trained_again, raising=False)
    module.main(command)
    assert page.read_text() == first


def test_an_arm_that_failed_is_measured_again_and_others_are_kept(tmp_path: Path) -> None:
    study, calls = Study("x", "test", tmp_path, (0, 1)), []

    def make(folder: Path, value: float) -> dict[str, float]:
        calls.append(value)
        if value == 2.0 and len(calls) == 2:
            raise RuntimeError("killed")
        return {"loss": value}

    assert study.measured("arm", 0, {"steps": 3}, make, 1.0) == {"loss": 1.0}
    with pytest.raises(RuntimeError, match="killed"):
        study.measured("arm", 1, {"steps": 3}, make, 2.0)
    assert study.measured("arm", 0, {"steps": 3}, make, 1.0) == {"loss": 1.0}
    assert study.measured("arm", 1, {"steps": 3}, make, 2.0) == {"loss": 2.0}
    assert calls == [1.0, 2.0, 2.0]
    study.measured("arm", 0, {"steps": 4}, make, 1.0)
    assert calls[-1] == 1.0 and len(calls) == 4, "other settings are another result"


def test_sampling_is_the_pipelines() -> None:
    size, seeds = VideoSize(5, 64, 64), [3, 4]
    mine = sampled(embedded().dit, PROMPTS, size, sigmas(3, 2.0), seeds, true_cfg_scale=3.0)
    pipe = Pipeline(embedded())
    asked = {"num_frames": 5, "num_inference_steps": 3, "flow_shift": 2.0, "true_cfg_scale": 3.0}
    for prompt, seed, latents in zip(PROMPTS, seeds, mine, strict=True):
        theirs = pipe.sample(pipe.resolve(Request(prompt=prompt, seed=seed, **asked)))
        assert distance(latents[None], theirs) < 1e-6


def test_grids_of_the_schedules() -> None:
    for steps in d_schedules.Sizes().steps:
        for name in ("shift 7", d_schedules.LQ):
            levels = d_schedules._levels(steps, name)
            assert len(levels) == steps + 1 and levels[0] == 1 and levels[-1] == 0
            assert bool((levels.diff() < 0).all())
    shifted, quadratic = (d_schedules._levels(10, name) for name in ("shift 7", d_schedules.LQ))
    assert shifted[1] < quadratic[1]


def test_verdicts_follow_the_numbers() -> None:
    assert [judged(*parts) for parts in ((True, True), (True, False), (False, False))] == [REPRODUCED, PARTLY, NOT]
    assert all_below([1.0, 2.0], [1.5, 2.5])
    assert not all_below([1.0, 2.6], [1.5, 2.5]), "one seed contradicts"
    assert spread([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert table([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def _guidance(student: float, far: float, cost: float) -> dict:
    shares = {"all": 0.9, "shape": 0.9, "motion": 0.9, "seconds": 10.0}
    one = {"teacher": shares | {"bare_distance": 0.4}, "student": shares | {"all": student, "distance": far}}
    one["student"]["seconds"] = cost
    return {"curve": [(1, 0.5)], "bare": shares} | {f"w{scale:g}": one for scale in e_guidance.Sizes().scales}


@pytest.mark.parametrize(
    ("student", "far", "cost", "wanted"),
    [
        (0.88, 0.05, 5.2, REPRODUCED),
        (0.80, 0.05, 5.2, PARTLY),
        (0.88, 0.20, 5.2, PARTLY),
        (0.88, 0.05, 9.0, PARTLY),
        (0.80, 0.20, 9.0, NOT),
    ],
)
def test_the_guidance_verdict(student: float, far: float, cost: float, wanted: str) -> None:
    assert e_guidance._page(e_guidance.Sizes(), [_guidance(student, far, cost)] * 2).verdict == wanted


def test_when_a_curve_comes_to_a_loss() -> None:
    points = [(10, 0.9), (20, 0.7), (30, 0.5)]
    assert c_image_first.reached(points, 0.6) == pytest.approx(25)
    assert c_image_first.reached(points, 0.95) == 10
    assert c_image_first.reached(points, 0.4) == float("inf")


def test_prompts_of_every_form_say_the_same_scene() -> None:
    scene = heldout_scenes(1, 0)[0]
    form = {name: h_captions.written(scene.caption, scene.prompt, name, 3) for name in h_captions.FORMS}
    assert len(set(form.values())) == len(h_captions.FORMS)
    assert form["whole"] == combine(scene.caption, PROMPT_PARTS)
    assert sorted(form["shuffled"].lower()) == sorted(form["whole"].lower())
    assert form["short"] == scene.caption.short and scene.background_color not in form["short"]
    assert part_text(scene.caption, "background").lower() in form["shuffled"].lower()


def test_random_buckets_pass_every_sample_once_an_epoch(work: Path) -> None:
    sets = [encoded(work, world(8, frames, 64, seed=key)) for key, frames in ((115, 1), (41, 9))]
    source = i_balance.RandomBuckets(sets, [4, 2], processes=2, seed=5)
    stage = Stage(name="test", steps=10, shapes=(i_balance.shape(1, 1, 64),))
    drawn = [bucket for step in range(200) for bucket in source.drawn(step)]
    assert drawn.count(1) / len(drawn) == pytest.approx(4 / 6, abs=0.08), "four batches of six"
    for step in range(5):
        parts = source.batch(step, stage, stage.shapes[0])["parts"]
        assert [weight for weight, _ in parts] == [0.5, 0.5]
        for bucket, (_, part) in zip(source.drawn(step), parts, strict=True):
            assert part["latents"].shape[:3] == ((4, 16, 1), (2, 16, 3))[bucket]
            assert all(8 * bucket <= number < 8 * bucket + 8 for number, _ in part["keys"].tolist())


def test_the_text_of_a_batch_is_what_the_sets_hold(work: Path) -> None:
    dataset = encoded(work, world(8, 1, 64, seed=115))
    mine = texts([dataset[0].prompt], "image")["text_states"][0]
    assert torch.allclose(mine, dataset[0].states.float(), atol=2e-2)


def test_networks_without_a_refiner_train_and_sample() -> None:
    bare = new_dit(SMALL.model_copy(update={"num_refiner_blocks": 0}), seed=0)
    assert sum(p.numel() for p in bare.parameters()) < sum(p.numel() for p in new_dit(SMALL, 0).parameters())
    latents = sampled(bare, PROMPTS, VideoSize(1, 64, 64), sigmas(2), noise_seeds(0, 2), 1.0)
    assert latents.shape == (2, 16, 1, 8, 8) and bool(torch.isfinite(latents).all())


def test_the_list_says_what_was_not_run(tmp_path: Path) -> None:
    (tmp_path / "d-schedules.md").write_text("# d\n\n**Verdict: partly reproduced.** Claim: it holds.\n")
    lines = index(tmp_path).splitlines()
    assert sum("not run" in line and "python -m" in line for line in lines) == len(EXPERIMENTS) - 1
    assert next(line for line in lines if "d-schedules.md" in line).endswith("| **partly reproduced** |")
    (tmp_path / "d-schedules.md").write_text("# d\n")
    with pytest.raises(UserError, match="no verdict"):
        index(tmp_path)
