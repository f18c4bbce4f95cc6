import os
import subprocess
import sys
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.infer.request import Request, split_lora
from openhunyuan.models.zoo import ModelDefaults

DEFAULTS = ModelDefaults(
    height=64,
    width=48,
    num_frames=33,
    num_inference_steps=20,
    guidance_scale=6,
    true_cfg_scale=3,
    flow_shift=5,
    fps=12,
    negative_prompt="blur",
)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"num_frames": 16}, "num_frames is 16"),
        ({"height": 50}, "height is 50"),
        ({"width": 0}, "width is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "x"}, "seed is 'x', but it must be a whole number"),
        ({"seed": 2**63 - 1, "num_videos": 2}, "no room"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"true_cfg_scale": 0.5}, "true_cfg_scale is 0.5"),
        ({"flow_shift": 0}, "flow_shift is 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"num_videos": 0}, "num_videos is 0"),
        ({"output_path": "a.gif"}, "must end in .mp4"),
        ({"output_path": "a\0.mp4"}, "no control characters"),
        ({"output_path": "a\nb.mp4"}, "no control characters"),
        ({"output_path": "a.png", "num_frames": 5}, "one frame"),
        ({"output_path": "a.mp4", "num_frames": 1}, "end in .png"),
        ({"num_frame": 5}, "did you mean num_frames"),
        ({"prompt": "word " * 5000}, "5000 words"),
        ({"negative_prompt": "word " * 5000}, "negative_prompt has 5000 words"),
        ({"prompt": "字" * 20_000}, "20000 characters"),
        ({"i2v_stability": True}, "i2v_stability needs a picture"),
        ({"last_image": "b.png"}, "last_image needs a picture"),
        ({"i2v_resolution": "720p"}, "i2v_resolution needs a picture"),
        ({"i2v_resolution": "8k", "image": "a.png"}, "i2v_resolution is '8k'"),
        ({"lora": (":0.5",)}, "must be a file"),
        ({"lora": ("a.safetensors:nan",)}, "finite"),
        ({"rewrite": "Master"}, "rewrite is 'Master'"),
        ({"schedule": "quadratic"}, "schedule is 'quadratic'"),
        ({"linear_schedule_end": 5}, "needs schedule"),
        (
            {"schedule": "linear-quadratic", "linear_schedule_end": 9, "num_inference_steps": 9},
            "below num_inference_steps",
        ),
        ({"enhance_weight": -1}, "enhance_weight is -1"),
        ({"riflex": "yes"}, "riflex is 'yes'"),
    ],
)
def test_bad_values(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Request(**{"prompt": "a", **fields})


def test_resolving_fills_in_defaults_and_keeps_what_is_said() -> None:
    request = Request(prompt="a", height=32, seed=0, true_cfg_scale=1).resolve(DEFAULTS)
    assert (request.height, request.width, request.num_frames) == (32, 48, 33)
    assert (request.seed, request.true_cfg_scale, request.guidance_scale) == (0, 1, 6)
    assert request.negative_prompt == "blur"
    assert request.resolve(DEFAULTS) == request
    assert Request(**request.model_dump(mode="json")) == request


def test_an_open_seed_is_drawn_once() -> None:
    seeds = {Request(prompt="a").resolve(DEFAULTS).seed for _ in range(4)}
    assert len(seeds) == 4


def test_a_png_path_asks_for_one_frame() -> None:
    assert Request(prompt="a", output_path="x.png").resolve(DEFAULTS).num_frames == 1


def test_one_of_several() -> None:
    request = Request(prompt="a", seed=5, num_videos=3).resolve(DEFAULTS)
    assert request.seeds == [5, 6, 7]
    assert (request.one(2).seed, request.one(2).num_videos) == (7, 1)


@pytest.mark.parametrize(
    "entry, path, scale",
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a:b.safetensors:-1", "a:b.safetensors", -1.0),
        ("C:/loras/a.safetensors", "C:/loras/a.safetensors", 1.0),
        ("C:/loras/a.safetensors:2", "C:/loras/a.safetensors", 2.0),
    ],
)
def test_lora_entries(entry: str, path: str, scale: float) -> None:
    assert split_lora(entry) == (path, scale)
    assert Request(prompt="a", lora=entry).lora == (entry,)  # type: ignore[arg-type]
    assert Request(prompt="a", lora=[entry, entry]).lora == (entry, entry)  # type: ignore[arg-type]


def test_riflex_is_for_long_videos_unless_said() -> None:
    """The official bound is 192 frames (release fact B.6)."""
    asked = Request(prompt="a")
    used = [asked.replace(num_frames=frames).uses_riflex for frames in (129, 189, 193, 257)]
    assert used == [False, False, True, True]
    assert asked.replace(num_frames=129, riflex="on").uses_riflex
    assert not asked.replace(num_frames=257, riflex="off").uses_riflex


def test_a_step_bound_of_the_model_is_checked_when_resolved() -> None:
    with pytest.raises(UserError, match="linear_schedule_end is 30"):
        Request(prompt="a", schedule="linear-quadratic", linear_schedule_end=30).resolve(DEFAULTS)


def test_paths_are_stored_as_text() -> None:
    assert Request(prompt="a", output_path=Path("x") / "a.mp4").output_path == str(Path("x") / "a.mp4")  # type: ignore[arg-type]


def test_importing_the_request_does_not_import_torch() -> None:
    modules = "openhunyuan.infer.request, openhunyuan.infer.output, openhunyuan.models.zoo"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"
