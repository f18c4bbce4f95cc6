"""The report's stages: their configs at every scale, links of the chain on micro networks, and what is refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openhunyuan.base.video import read_video
from openhunyuan.cli.main import main
from openhunyuan.latents.shards import LatentSample, ShardDataset, ShardWriter
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import load_dit, load_model
from openhunyuan.parallel.apply import Layout
from openhunyuan.recipes import registry
from openhunyuan.recipes.lineage import find_origin
from openhunyuan.recipes.networks import with_picture_channels
from openhunyuan.recipes.run_stage import Options
from openhunyuan.recipes.scales import SIZES, aspect_buckets
from openhunyuan.recipes.stage_costs import workloads
from openhunyuan.recipes.stages import STAGES, LatentRecipe, VaeRecipe, shortened
from openhunyuan.train.estimate import estimate
from openhunyuan.train.metrics import read_metrics
from tests.parallel.launch import launch
from tests.recipes.micro_scale import MICRO


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def go(stage: str, runs: Path, *more: str) -> int:
    return main(["train", stage, "--runs-dir", str(runs), "--device", "cpu", "--steps", "2", "--clips", "2", *more])


@pytest.fixture(scope="module")
def chain(micro_scale, micro_model_folder, tmp_path_factory) -> Path:
    """flow-image-256 from the micro model → distill-guidance → lora, and image-to-video-concat beside it."""
    runs = tmp_path_factory.mktemp("runs")
    assert go("flow-image-256", runs, "--from", str(micro_model_folder)) == 0
    assert go("distill-guidance", runs, "--from", "flow-image-256") == 0
    assert go("lora", runs) == 0
    assert go("image-to-video-concat", runs, "--from", "flow-image-256") == 0
    return runs


# -- configs ---------------------------------------------------------------------------------------------------------


def test_the_table_and_the_functions_name_the_same_stages_and_parents_come_first():
    assert list(STAGES) == list(registry.STAGES)
    seen: set[str] = set()
    for name, entry in registry.STAGES.items():
        assert entry.parent is None or entry.parent in seen
        assert STAGES[name]("tiny").train.name == name
        seen.add(name)


@pytest.mark.parametrize("scale", registry.SCALES)
def test_the_report_s_numbers(scale: registry.Scale):
    vae = STAGES["vae"](scale)
    assert isinstance(vae, VaeRecipe)
    loss = vae.loss
    assert (loss.l1_weight, loss.perceptual_weight, loss.adversarial_weight, loss.kl_weight) == (1, 0.1, 0.05, 1e-6)
    for stage in vae.train.stages:
        assert [shape.share for shape in stage.shapes] == [4, 1] and stage.shapes[1].num_frames == 1
    sizes = [stage.shapes[0].num_frames * stage.shapes[0].height for stage in vae.train.stages]
    assert sizes == sorted(sizes)
    assert STAGES["vae-tiling"](scale).loss.tiling_prob == 0.5
    mix = STAGES["flow-mix-256-512"](scale)
    assert isinstance(mix, LatentRecipe) and len(mix.image_scales) == 2 and mix.global_batch >= 2
    batches = {shape.height * shape.width: shape.batch_size for shape in mix.train.stages[0].shapes}
    assert batches[min(batches)] >= batches[max(batches)]
    guidance = STAGES["distill-guidance"](scale).task
    assert (guidance.low, guidance.high) == (1.0, 8.0)
    for name in ("flow-video-low-short", "flow-video-low-long", "flow-video-high-long", "flow-sft"):
        images, videos = STAGES[name](scale).images_to_videos
        assert 0 < images < videos


def test_the_paper_scale_is_the_report_s_and_ends_at_the_release_s_sizes():
    sizes = SIZES["paper"]
    assert (sizes.dit.hidden_size, sizes.dit.num_double_blocks, sizes.dit.num_single_blocks) == (3072, 20, 40)
    assert sizes.vae.block_out_channels == (128, 256, 512, 512) and sizes.long[-1] == 129
    assert set(aspect_buckets(960)) == {(720, 1280), (1280, 720), (1104, 832), (832, 1104), (960, 960)}
    assert set(aspect_buckets(720)) == {(544, 960), (960, 544), (624, 832), (832, 624), (720, 720)}


def test_a_shortened_recipe_keeps_every_stage_and_starts_late_terms_in_proportion():
    short = shortened(STAGES["vae"]("tiny"), 3)
    assert isinstance(short, VaeRecipe)
    assert [stage.steps for stage in short.train.stages] == [1, 1, 1]
    assert short.loss.adversarial_start == 1 and short.train.sample_every == 0


@pytest.mark.parametrize("stage", ["flow-video-high-long", "lora"])
def test_costs_of_the_13b_are_counted_without_computing(stage: str):
    (workload,) = workloads(stage, Options("paper"))
    cost = estimate(workload)
    every = sum(count for count, _ in cost.parameters.values())
    assert 12.8e9 < every < 13.3e9
    recipe = STAGES[stage]("paper")
    assert cost.samples == pytest.approx(recipe.train.total_steps * recipe.global_batch, rel=0.02)
    if stage == "flow-video-high-long":
        step = next(s for s in cost.stages if s.shape.num_frames == 129 and s.shape.width == 1280)
        # 12.1 PFLOP forward at 720×1280×129 with 256 text tokens; three times that with the backward pass, and once
        # more because blocks are computed again.
        assert step.flops / step.steps == pytest.approx(4 * 12.1e15, rel=0.01)


def test_a_teacher_is_whole_in_every_process_and_what_is_trained_is_not():
    (workload,) = workloads("distill-guidance", Options("node"))
    one, eight = estimate(workload), estimate(workload, Layout(tensor=4), 8)
    (every, trained), (teacher, none) = one.parameters["model"], one.parameters["teacher"]
    assert trained == every and none == 0
    assert 4 * teacher < eight.weights < 4 * teacher + 4 * every / 4  # 2 shards, of blocks in 4 parts
    # Each of 4 processes runs the teacher's two passes; of the student's four, with recomputation, each runs its part.
    assert (2 * 4 + 4) / 6 < eight.flops / one.flops < (2 * 4 + 4 * 1.2) / 6
    state = [estimate(workload, Layout(), n).state - 4 * teacher for n in (1, 8)]
    assert state[1] == pytest.approx(state[0] / 8, rel=1e-3)


def test_new_picture_channels_change_nothing_at_first():
    torch.manual_seed(0)
    dit = DiT(MICRO.dit)
    wide = with_picture_channels(dit)
    assert wide.config.in_channels == 33
    x, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 3, 32)
    inputs = (torch.tensor([500.0]), text, torch.ones(1, 3, dtype=torch.bool), torch.randn(1, 32))
    with torch.no_grad():
        torch.testing.assert_close(wide(torch.cat([x, torch.randn(1, 17, 2, 4, 4)], 1), *inputs), dit(x, *inputs))


def test_micro_batches_are_found_by_probing_and_kept(micro_scale, micro_model_folder, tmp_path, capsys):
    half = 0.5e-9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    start = ("--from", str(micro_model_folder))
    assert go("flow-image-256", tmp_path, *start, "--memory", f"{half:.3f}") == 0
    ((key, found),) = json.loads((tmp_path / "micro-batches.json").read_text()).items()
    (stage,) = run_json(tmp_path, "flow-image-256")["train"]["stages"]
    sizes = {f"{s['num_frames']}x{s['height']}x{s['width']}": s["batch_size"] for s in stage["shapes"]}
    assert sizes == found and set(found.values()) == {STAGES["flow-image-256"]("tiny").global_batch}
    assert go("flow-image-256", tmp_path, *start, "--memory", f"{half:.3f}") == 0  # the same run, from what is kept
    assert list(json.loads((tmp_path / "micro-batches.json").read_text())) == [key]
    capsys.readouterr()
    assert go("flow-image-256", tmp_path, *start, "--name", "small", "--memory", "0.001") == 2
    said = capsys.readouterr().err
    assert "does not fit into 0.001 GB" in said and not (tmp_path / "small" / "checkpoints").exists()


def test_micro_batches_of_two_processes_are_found_by_one_that_starts_nothing(
    micro_scale, micro_model_folder, tmp_path, capsys
):
    half = 0.5e-9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    words = ("--from", str(micro_model_folder), "--memory", f"{half:.3f}", "--processes")
    assert go("flow-image-256", tmp_path, *words, "2", "--tensor", "2") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "micro-batches.json")
    (found,) = json.loads((tmp_path / "micro-batches.json").read_text()).values()
    assert set(found.values()) == {STAGES["flow-image-256"]("tiny").global_batch}
    assert not (tmp_path / "flow-image-256").exists()
    assert "3 processes cannot work on the same samples" in refused(
        capsys, go("flow-image-256", tmp_path, *words, "3", "--tensor", "2")
    )


@pytest.mark.slow  # two processes
def test_two_processes_probe_and_train_and_one_finds_what_they_kept(micro_scale, micro_model_folder, tmp_path, capsys):
    half = 0.5e-9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    words = ("--from", str(micro_model_folder), "--memory", f"{half:.3f}")
    fixed = ("--device", "cpu", "--steps", "2", "--clips", "2", "--runs-dir", tmp_path)
    launch("tests.recipes.micro_scale", 2, "train", "flow-image-256", *fixed, *words)
    kept = (tmp_path / "micro-batches.json").read_text()
    (stage,) = run_json(tmp_path, "flow-image-256")["train"]["stages"]
    assert {shape["batch_size"] for shape in stage["shapes"]} == set(*(f.values() for f in json.loads(kept).values()))
    assert go("flow-image-256", tmp_path, *words, "--processes", "2") == 0
    assert (tmp_path / "micro-batches.json").read_text() == kept


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("layout", [("--ring", "2"), ("--tensor", "2")])
def test_a_stage_trains_with_a_video_s_tokens_or_the_network_on_two_processes(layout, tmp_path):
    words = ("--from", "tiny", "--steps", "2", "--clips", "2", "--device", "cpu", "--runs-dir", tmp_path)
    launch("openhunyuan", 2, "train", "flow-image-256", *words, *layout)
    launch("openhunyuan", 1, "train", "flow-image-256", *words, "--name", "one")
    many, one = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("flow-image-256", "one"))
    losses = [[record["loss"] for record in records if "loss" in record] for records in (many, one)]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-2)
    weights = [load_dit(tmp_path / name / "model" / "dit").state_dict() for name in ("flow-image-256", "one")]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0.05, atol=0.01)


# -- links -----------------------------------------------------------------------------------------------------------


def run_json(runs: Path, name: str) -> dict:
    return json.loads((runs / name / "run.json").read_text())


def test_a_run_says_what_it_started_from(chain: Path, micro_model_folder: Path):
    assert run_json(chain, "flow-image-256")["lineage"]["kind"] == "model"
    lineage = run_json(chain, "distill-guidance")["lineage"]
    assert lineage["from"] == "flow-image-256" and lineage["checkpoint"] == "step_00000002"
    assert lineage == find_origin("lora", "flow-image-256", chain).record
    assert run_json(chain, "lora")["lineage"]["from"] == "distill-guidance"
    assert run_json(chain, "lora")["base"]["text"] == str(micro_model_folder)


def test_the_links_carry_weights(chain: Path):
    image, student = (load_dit(chain / name / "model" / "dit") for name in ("flow-image-256", "distill-guidance"))
    assert student.config.guidance_embed and not image.config.guidance_embed
    before, after = image.state_dict(), student.state_dict()
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 0.2  # two small steps away, in fp16
    wide = load_model(str(chain / "image-to-video-concat" / "model"))
    assert wide.dit.config.in_channels == 33 and wide.spec.image_condition_type == "latent_concat"
    assert not wide.spec.image_optional


def test_the_lora_of_the_chain_makes_a_video(chain: Path, tmp_path: Path):
    out = tmp_path / "out.mp4"
    model, lora = chain / "distill-guidance" / "model", chain / "lora" / "lora.safetensors"
    made = ["generate", "--model", str(model), "--lora", str(lora), "--prompt", "a red circle", "--seed", "1"]
    assert main([*made, "--num-inference-steps", "2", "--output-path", str(out)]) == 0
    assert read_video(out)[0].shape == (9, 32, 32, 3)


def test_the_vae_goes_on_from_its_parent(micro_scale, micro_model_folder: Path, tmp_path: Path):
    assert go("vae", tmp_path, "--from", str(micro_model_folder)) == 0
    assert go("vae-tiling", tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "vae-tiling" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/seam_video" in line for line in lines)
    assert run_json(tmp_path, "vae-tiling")["lineage"]["from"] == "vae"


def test_a_decoder_is_tuned_while_the_encoder_and_its_latents_stay(micro_scale, micro_model_folder, tmp_path):
    assert go("vae", tmp_path, "--from", str(micro_model_folder), "--decoder-only") == 0
    tuned, start = (
        load_file(folder / "vae" / "model.safetensors") for folder in (tmp_path / "vae", micro_model_folder)
    )
    kept = {name for name in start if torch.equal(tuned[name].float(), start[name].half().float())}
    assert kept >= {name for name in start if name.startswith(("encoder.", "quant_conv."))}
    assert "decoder.conv_in.conv.weight" not in kept


def test_how_often_the_camera_moves_and_a_first_frame_is_given(micro_scale, micro_model_folder, tmp_path):
    start = ["--from", str(micro_model_folder)]
    assert go("image-to-video", tmp_path, *start, "--camera-prob", "1") == 0
    run = run_json(tmp_path, "image-to-video")
    assert run["data"] == {"world": {"clips": 2, "camera_prob": 1.0}}
    folders = [path for path in (tmp_path / "world-latents").glob("*-camera1") if "heldout" not in path.name]
    samples = [sample for folder in folders for sample in ShardDataset(folder).samples]
    assert samples and all(sample.metadata["camera"] != "static" for sample in samples)
    assert go("flow-sft", tmp_path, "--from", "image-to-video", "--image-share", "0.25") == 0
    assert run_json(tmp_path, "flow-sft")["image_share"] == 0.25


def test_rates_and_batches_of_one_s_own(micro_scale, micro_model_folder, tmp_path):
    start = ["--from", str(micro_model_folder)]
    assert go("flow-sft", tmp_path, *start, "--lr-scale", "0.1", "--global-batch", "3") == 0
    run, own = run_json(tmp_path, "flow-sft"), STAGES["flow-sft"]("tiny")
    assert isinstance(own, LatentRecipe)
    for rate in ("lr", "muon_lr"):
        assert run["train"]["optimizer"][rate] == pytest.approx(getattr(own.train.optimizer, rate) / 10)
    assert run["recipe"]["global_batch"] == 3
    lr = Options(lr_scale=0.5).recipe("vae").train.optimizer.lr
    assert lr == pytest.approx(STAGES["vae"]("tiny").train.optimizer.lr / 2)


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    err = capsys.readouterr().err
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    return err


def shards(folder: Path, model: Path, shape=(16, 1, 2, 2), prompt: str = "a red circle", count: int = 3) -> Path:
    made = {"model": load_model(str(model)).weights_name()}
    with ShardWriter(folder / "latents", provenance=made) as writer:
        for _ in range(count):
            writer.add(LatentSample(torch.randn(shape), torch.randn(4, 32), torch.randn(32), prompt))
    return folder


def test_data_that_cannot_be_used(micro_scale, micro_model_folder, tmp_path, capsys):
    def attempt(data: Path) -> str:
        start = ["--from", str(micro_model_folder), "--data", str(data)]
        return refused(capsys, go("flow-image-256", tmp_path / "runs", *start))

    assert "the buckets are 1x16x16" in attempt(shards(tmp_path / "long", micro_model_folder, (16, 9, 2, 2)))
    assert "has no caption" in attempt(shards(tmp_path / "mute", micro_model_folder, prompt=" "))
    whole = shards(tmp_path / "cut", micro_model_folder)
    file = next((whole / "latents").glob("shard-*"))
    file.write_bytes(file.read_bytes()[:-40])
    assert "cut off" in attempt(whole)
    other = shards(tmp_path / "other", micro_model_folder)
    index = other / "latents" / "index.json"
    index.write_text(index.read_text().replace(load_model(str(micro_model_folder)).weights_name(), "x-1-2-3"))
    assert "made with another VAE or other text encoders" in attempt(other)
    assert "holds no latents" in attempt(tmp_path)
    assert not (tmp_path / "runs" / "flow-image-256").exists()


def test_parents_that_cannot_be_used(chain: Path, micro_model_folder: Path, tmp_path: Path, capsys):
    def attempt(stage: str, *more: str) -> str:
        return refused(capsys, go(stage, tmp_path, *more))

    assert "starts from a run of flow-image-256, but there is none" in attempt("flow-mix-256-512")
    assert "made a LoRA, which nothing can start from" in attempt("lora", "--from", str(chain / "lora"))
    assert "33 input channels" in attempt("flow-sft", "--from", str(chain / "image-to-video-concat"))
    assert "guidance in one pass already" in attempt("distill-guidance", "--from", str(chain / "distill-guidance"))
    half = tmp_path / "half"
    shutil.copytree(chain / "flow-image-256", half)
    (newest,) = (half / "checkpoints").glob("step_00000002")
    shutil.rmtree(newest)
    assert "is not finished (0 of 2 steps)" in attempt("flow-mix-256-512", "--from", str(half))
    assert "Unknown model" in attempt("flow-sft", "--from", "nowhere")


def test_a_parent_of_another_scale(chain: Path, tmp_path: Path, capsys):
    wide = MICRO.dit.model_copy(update={"hidden_size": 64, "rope_axes_dim": (8, 12, 12)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", replace(MICRO, dit=wide))
        err = refused(capsys, go("flow-sft", tmp_path, "--from", str(chain / "flow-image-256")))
    assert "trains a transformer of width 64" in err and "has width 32" in err


def test_a_run_whose_parent_changed_is_not_gone_on_with(chain: Path, tmp_path: Path, capsys):
    for name in ("flow-image-256", "distill-guidance"):
        shutil.copytree(chain / name, tmp_path / name)
    path = tmp_path / "distill-guidance" / "run.json"
    path.write_text(path.read_text().replace(run_json(tmp_path, "distill-guidance")["lineage"]["sha256"], "0" * 64))
    err = refused(capsys, go("distill-guidance", tmp_path, "--from", "flow-image-256"))
    assert "holds a run that started from flow-image-256 step_00000002 (000000000000)" in err


@pytest.mark.parametrize(
    "args, message",
    [
        (["flow-image-25"], "did you mean flow-image-256"),
        (["flow-sft", "--scale", "huge"], "huge"),
        (["flow-sft", "--data", "nowhere"], "The folder nowhere of --data does not exist"),
        (["lora", "--name", "a/b"], "it must be the name of a directory"),
        (["tiny-image", "--scale", "paper"], "takes no --scale"),
        (["vae", "--scale", "node"], "reads curated clips; give them with --data"),
        (["vae", "--decoder-only"], "say whose with --from"),
        (["flow-sft", "--from", "tiny", "--decoder-only"], "is for the stages of the VAE"),
        (["vae", "--global-batch", "8"], "is for the stages on latents"),
        (["tiny-image", "--lr-scale", "0.5"], "takes no --lr-scale"),
        (["flow-sft", "--lr-scale", "0"], "it must be above 0"),
        (["vae", "--camera-prob", "0.5"], "is for the stages on latents"),
        (["vae", "--image-share", "0.5"], "says itself how first frames are given"),
        (["image-to-video", "--from", "tiny", "--image-share", "0.5"], "says itself how first frames are given"),
        (["flow-image-256", "--from", "tiny", "--image-share", "0.5"], "read no first frame"),
        (["flow-sft", "--data", ".", "--camera-prob", "0.5"], "is for the synthetic world"),
        (["tiny-image", "--image-share", "0.5"], "takes no --image-share"),
    ],
)
def test_options_that_do_not_fit(args: list[str], message: str, tmp_path: Path, capsys):
    assert message in refused(capsys, main(["train", *args, "--runs-dir", str(tmp_path)]))


def test_samples_of_the_world_carry_their_captions(chain: Path):
    (folder,) = (chain / "world-latents").glob("1x16x16-2")
    assert all(sample.metadata["caption"]["short"] for sample in ShardDataset(folder).samples)
