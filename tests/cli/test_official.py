"""Official command lines: every flag has its row, and every official example means the same request."""

import re
import shlex
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.cli.generate import GenerateOptions
from openhunyuan.cli.official import OFFICIAL, field_names, table, translate
from openhunyuan.cli.parse import parse
from openhunyuan.infer.request import Request
from openhunyuan.infer.resolutions import RESOLUTIONS

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "official-flags.md"

# The names that the official argument parsers know (release facts G.1 and G.3).
TEXT_TO_VIDEO = """
apply-final-norm batch-size cfg-scale denoise-type disable-autocast dit-weight embedded-cfg-scale flow-reverse
flow-shift flow-solver hidden-state-skip-layer infer-steps latent-channels linear-schedule-end load-key model model-base
model-resolution name-suffix neg-prompt num-videos precision prompt prompt-template prompt-template-video reproduce
ring-degree rope-theta save-path save-path-suffix seed seed-type text-encoder text-encoder-2 text-encoder-precision
text-encoder-precision-2 text-len text-len-2 text-states-dim text-states-dim-2 tokenizer tokenizer-2 ulysses-degree
use-cpu-offload use-fp8 use-linear-quadratic-schedule vae vae-precision vae-tiling video-length video-size
"""
IMAGE_TO_VIDEO = """
i2v-condition-type i2v-dit-weight i2v-image-path i2v-mode i2v-resolution i2v-stability use-lora lora-path lora-scale
lora-rank gradient-checkpoint gradient-checkpoint-layers
"""
TRAINING = """
task-flag output-dir sample-dir micro-batch-size video-micro-batch-size global-batch-size gradient-accumulation-steps
global-seed resume init-from training-parts init-save final-save no-final-save epochs max-training-steps ckpt-every
rope-theta-rescale-factor rope-interpolation-factor log-every tensorboard profile lr warmup-min-lr warmup-num-steps
adam-beta1 adam-beta2 adam-eps weight-decay local-rank zero-stage data-type data-jsons-path sample-n-frames
sample-stride num-workers prefetch-factor same-data-batch uncond-p sematic-cond-drop-p flow-path-type flow-predict-type
flow-loss-weight flow-train-eps flow-sample-eps flow-snr-type
"""


def read(line: str, **environ: str) -> tuple[Request, GenerateOptions, list[str]]:
    """What a line after ``openhunyuan generate`` asks for: the request, all options, what is said."""
    translated = translate(shlex.split(line), environ)
    options = parse(GenerateOptions, translated.args, "openhunyuan generate")
    return Request(**options.shared(), prompt=options.prompt), options, translated.notes


def test_every_official_flag_has_one_row() -> None:
    names = [flag.name for flag in OFFICIAL]
    assert len(names) == len(set(names))
    wanted = {f"--{name}" for name in (TEXT_TO_VIDEO + IMAGE_TO_VIDEO + TRAINING).split()}
    assert set(names) == wanted


def test_the_page_has_the_table_of_the_code_and_the_sizes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table() in page
    for sizes in RESOLUTIONS.values():
        for height, width in sizes:
            assert f"{height}×{width}" in page


T2V, I2V = "ckpts/hunyuan-video-t2v-720p", "ckpts/hunyuan-video-i2v-720p"
COMMON = {"num_inference_steps": 50, "num_frames": 129, "output_dir": "./results"}
LANDSCAPE, PORTRAIT = {"height": 720, "width": 1280}, {"height": 1280, "width": 720}
PICTURE = {
    **COMMON, "model": I2V, "image": "./assets/demo/i2v/imgs/0.jpg", "i2v_resolution": "720p",
    "guidance_scale": 6.0, "seed": 0,
}  # fmt: skip
_SIZE = "--video-length 129 --infer-steps 50 --prompt 'a cat on a lawn' --flow-reverse"
_I2V = "--model HYVideo-T/2 --prompt 'a cat on a lawn' --i2v-mode --i2v-image-path ./assets/demo/i2v/imgs/0.jpg"

# The flags and values of every example of both official READMEs and their scripts; the prompt is ours.
EXAMPLES = {
    "one GPU": (
        f"--video-size 720 1280 {_SIZE} --use-cpu-offload --save-path ./results",
        {**COMMON, **LANDSCAPE, "model": T2V},
    ),
    "eight GPUs": (
        f"--video-size 1280 720 {_SIZE} --seed 42 --ulysses-degree 8 --ring-degree 1 --save-path ./results",
        {**COMMON, **PORTRAIT, "model": T2V, "seed": 42},
    ),
    "fp8": (
        "--dit-weight weights/mp_rank_00_model_states_fp8.pt --video-size 1280 720 --video-length 129 --infer-steps 50 "
        "--prompt 'a cat on a lawn' --seed 42 --embedded-cfg-scale 6.0 --flow-shift 7.0 --flow-reverse "
        "--use-cpu-offload --use-fp8 --save-path ./results",
        {
            **COMMON, **PORTRAIT, "model": "weights/mp_rank_00_model_states_fp8.pt", "seed": 42,
            "guidance_scale": 6.0, "flow_shift": 7.0,
        },
    ),
    "run_sample_video.sh": (
        f"--video-size 720 1280 {_SIZE} --seed 42 --embedded-cfg-scale 6.0 --flow-shift 7.0 --use-cpu-offload "
        "--save-path ./results",
        {**COMMON, **LANDSCAPE, "model": T2V, "seed": 42, "guidance_scale": 6.0, "flow_shift": 7.0},
    ),
    "run_sample_video_multigpu.sh": (
        f"--video-size 720 1280 {_SIZE} --seed 42 --embedded-cfg-scale 6.0 --flow-shift 7.0 --ulysses-degree=8 "
        "--ring-degree=1 --save-path ./results",
        {**COMMON, **LANDSCAPE, "model": T2V, "seed": 42, "guidance_scale": 6.0, "flow_shift": 7.0},
    ),
    "run_sample_video_fp8.sh": (
        "--dit-weight weights/mp_rank_00_model_states_fp8.pt --video-size 720 1280 --video-length 129 --infer-steps 50 "
        "--prompt 'a cat on a lawn' --seed 42 --embedded-cfg-scale 6.0 --flow-shift 7.0 --flow-reverse "
        "--use-cpu-offload --use-fp8 --save-path ./results",
        {
            **COMMON, **LANDSCAPE, "model": "weights/mp_rank_00_model_states_fp8.pt", "seed": 42,
            "guidance_scale": 6.0, "flow_shift": 7.0,
        },
    ),
    "image, stable": (
        f"{_I2V} --i2v-resolution 720p --i2v-stability --infer-steps 50 --video-length 129 --flow-reverse "
        "--flow-shift 7.0 --seed 0 --embedded-cfg-scale 6.0 --use-cpu-offload --save-path ./results",
        {**PICTURE, "flow_shift": 7.0, "i2v_stability": True},
    ),
    "image, dynamic": (
        f"{_I2V} --i2v-resolution 720p --infer-steps 50 --video-length 129 --flow-reverse --flow-shift 17.0 "
        "--embedded-cfg-scale 6.0 --seed 0 --use-cpu-offload --save-path ./results",
        {**PICTURE, "flow_shift": 17.0},
    ),
    "image, LoRA": (
        f"{_I2V} --i2v-resolution 720p --i2v-stability --infer-steps 50 --video-length 129 --flow-reverse "
        "--flow-shift 5.0 --embedded-cfg-scale 6.0 --seed 0 --use-cpu-offload --save-path ./results --use-lora "
        "--lora-scale 1.0 --lora-path ./ckpts/hunyuan-video-i2v-720p/lora/embrace_kohaya_weights.safetensors",
        {
            **PICTURE, "flow_shift": 5.0, "i2v_stability": True,
            "lora": ("./ckpts/hunyuan-video-i2v-720p/lora/embrace_kohaya_weights.safetensors:1",),
        },
    ),
    "image, eight GPUs": (
        f"{_I2V} --i2v-resolution 720p --i2v-stability --infer-steps 50 --video-length 129 --flow-reverse "
        "--flow-shift 7.0 --seed 0 --embedded-cfg-scale 6.0 --save-path ./results --ulysses-degree 8 --ring-degree 1",
        {**PICTURE, "flow_shift": 7.0, "i2v_stability": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_official_examples(name: str) -> None:
    line, fields = EXAMPLES[name]
    request, options, notes = read(line)
    assert request == Request(prompt="a cat on a lawn", **fields)
    assert options.quant == ("fp8" if "fp8" in name else "none")
    spoken = " ".join(notes)
    assert ("offload" in spoken) == ("--use-cpu-offload" in line)
    assert ("8 devices" in spoken) == ("--ulysses-degree" in line)


@pytest.mark.parametrize(
    "line, fields",
    [
        ("--video-size 720", {"height": 720, "width": 720}),
        ("--video_size 540 960", {"height": 544, "width": 960}),
        ("--video-length=33", {"num_frames": 33}),
        ("--cfg-scale 2 --neg-prompt 'a dog'", {"true_cfg_scale": 2.0, "negative_prompt": "a dog"}),
        ("--neg-prompt ''", {"negative_prompt": None}),
        ("--neg-prompt=-", {"negative_prompt": "-"}),
        ("--num-videos 2 --batch-size 3", {"num_videos": 6}),
        ("--save-path out --save-path-suffix a", {"output_dir": "out_a"}),
        ("--use-linear-quadratic-schedule", {"schedule": "linear-quadratic", "linear_schedule_end": None}),
        (
            "--use-linear-quadratic-schedule --linear-schedule-end 5",
            {"schedule": "linear-quadratic", "linear_schedule_end": 5},
        ),
        (
            "--schedule linear-quadratic --linear-schedule-end 5",
            {"schedule": "linear-quadratic", "linear_schedule_end": 5, "model": "tiny"},
        ),
        ("--linear-schedule-end 5", {"schedule": "shift", "linear_schedule_end": None}),
        ("--use-lora --lora-path a.safetensors", {"lora": ("a.safetensors:1",)}),
        ("--use-lora --lora-path a.safetensors --lora-scale 0.7", {"lora": ("a.safetensors:0.7",)}),
        ("--lora-path a.safetensors", {"lora": ()}),
        ("--i2v-mode --i2v-image-path a.png", {"image": "a.png", "i2v_resolution": "720p", "model": I2V}),
        ("--i2v-mode --image a.png --video-size 720 1280", {"height": None, "image": "a.png", "model": I2V}),
        ("--i2v-mode --i2v-image-path a.png --i2v-dit-weight b.pt --dit-weight c.pt", {"model": "b.pt"}),
        ("--dit-weight c/transformers", {"model": "c"}),
        ("--model-base elsewhere", {"model": "elsewhere"}),
        ("--model HYVideo-T/2-cfgdistill", {"model": T2V}),
        ("--model tiny --infer-steps 3", {"model": "tiny"}),
        ("--model tiny --model-base elsewhere", {"model": "tiny"}),
        ("--num-inference-steps 3", {"model": "tiny", "num_inference_steps": 3}),
        ("--seed 5 --seed-type fixed", {"seed": 5}),
        ("--seed-type random", {"seed": None}),
        ("--vae 884-16c-hy --latent-channels 16 --text-encoder llm-i2v --vae-tiling --reproduce --lora-rank 64", {}),
    ],
)
def test_what_flags_mean(line: str, fields: dict) -> None:
    request, _, _ = read(f"--prompt a {line}")
    assert {name: getattr(request, name) for name in fields} == fields


def test_precision_is_the_number_format() -> None:
    _, options, _ = read("--prompt a --precision bf16 --text-encoder-precision fp16")
    assert (options.dtype, options.text_precision) == ("bfloat16", "float16")


def test_the_environment_names_the_folder(tmp_path: Path) -> None:
    request, _, _ = read("--prompt a --infer-steps 3", MODEL_BASE=str(tmp_path))
    assert request.model == str(tmp_path / "hunyuan-video-t2v-720p")
    (tmp_path / "hunyuan-video-i2v-720p").mkdir()
    request, _, _ = read(f"--prompt a --image b.png --model-base {tmp_path}")
    assert request.model == str(tmp_path / "hunyuan-video-i2v-720p")


@pytest.mark.parametrize(
    "line, message",
    [
        ("--video-size", "--video-size needs a value"),
        ("--video-size 720 1280 3", "must be height and width"),
        ("--video-size a b", "must be height and width"),
        ("--video-size 0 16", "must be height and width"),
        ("--text-len 300", "--text-len 300 is not possible.*only be 256"),
        ("--vae 888-4c", "only be 884-16c-hy"),
        ("--flow-solver heun", "no other solver"),
        ("--apply-final-norm", "trained without it"),
        ("--hidden-state-skip-layer 3", "only be 2"),
        ("--load-key ema", "only be module"),
        ("--no-flow-reverse", "noise"),
        ("--model HYVideo-S/2", "never released"),
        ("--precision fp64", "one of fp32, fp16, bf16"),
        ("--num-videos two", "--num-videos is 'two'"),
        ("--batch-size 0", "--batch-size is '0'"),
        ("--ulysses-degree x", "--ulysses-degree is 'x'"),
        ("--seed-type file", "--prompts"),
        ("--seed-type fixed", "needs a seed"),
        ("--seed-type random --seed 4", "contradict"),
        ("--seed-type odd", "must be auto"),
        ("--i2v-mode", "needs a picture"),
        ("--use-lora", "needs a file"),
        ("--use-lora --lora-path a --lora-scale big", "--lora-scale is 'big'"),
        ("--lr 1e-4", "openhunyuan train"),
        ("--local_rank 0", "openhunyuan train"),
        ("--i2v-mode --i2v-image-path a.png --i2v-resolution 4k", "i2v_resolution is '4k'"),
        ("--i2v-stability", "needs a picture"),
        ("--infer-steps many", "num_inference_steps is 'many'"),
        ("--infer-step 5", "Unknown option --infer-step"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(f"--prompt a {line}")


def test_what_changes_nothing_is_said_once() -> None:
    for flag in OFFICIAL:
        if flag.kind == "nothing" and flag.note:
            _, _, notes = read(f"--prompt a {flag.name}{'' if flag.values == '0' else ' 1'}")
            assert notes == [flag.note]
    _, _, notes = read("--prompt a --video-size 540 960 --lora-path b --linear-schedule-end 3")
    assert [re.split(" is | changes ", note)[0] for note in notes] == [
        "--video-size 540 960", "--linear-schedule-end", "The LoRA b",
    ]  # fmt: skip


def test_our_own_lines_are_left_as_they_are() -> None:
    own = ["--prompt", "a cat", "--seed", "3", "--height=64", "--flow-shift", "-1", "--num-frames", "9"]
    translated = translate(own, {"MODEL_BASE": "x"})
    assert (translated.args, translated.notes, translated.implied_model) == (own, [], None)


def test_names_in_a_file_of_prompts_may_be_official() -> None:
    names = field_names()
    assert (names["video_length"], names["infer_steps"], names["neg_prompt"]) == (
        "num_frames", "num_inference_steps", "negative_prompt",
    )  # fmt: skip
    assert set(names.values()) <= set(Request.model_fields)
