"""Bad input through whole commands: one sentence, exit code 2, and nothing expensive before it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import openhunyuan.convert.load
from openhunyuan.cli.main import main
from openhunyuan.models.text.encoder import TextEncoder
from tests.convert.conftest import vae_state, write_comfyui, write_diffusers, write_official
from tools.tiny_files import write_official_vae

SIZE = ["--height", "32", "--width", "32", "--num-frames", "5", "--num-inference-steps", "1", "--device", "cpu"]
PICKLE = "transformers/mp_rank_00_model_states.pt"


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in; what costs seconds or gigabytes there fails the test."""

    def expensive(*args: object, **fields: object) -> None:
        raise AssertionError("weights are read before the input was checked")

    for name in ("build_dit", "build_vae"):
        monkeypatch.setattr(openhunyuan.convert.load, name, expensive)
    monkeypatch.setattr(TextEncoder, "from_folder", expensive)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that a command ends with; it wrote nothing else, and no file."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    out, err = capsys.readouterr()
    assert (out, list(Path.cwd().iterdir())) == ("", [])
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1, err
    return err


def wrong_shape(root: Path) -> Path:
    inner = write_official(root)
    state = torch.load(inner / PICKLE, weights_only=True)["module"]
    torch.save({"module": {**state, "single_blocks.1.linear2.weight": torch.zeros(32, 159)}}, inner / PICKLE)
    return inner


def wrong_shape_of_the_vae(root: Path) -> Path:
    inner = write_official(root)
    write_official_vae(inner / "vae", {**vae_state(), "decoder.conv_in.conv.bias": torch.zeros(31)})
    return inner


def missing_shard(root: Path) -> Path:
    folder = write_diffusers(root)
    sorted((folder / "transformer").glob("*.safetensors"))[1].unlink()
    return folder


def extra_keys(root: Path) -> Path:
    folder = write_diffusers(root, shard="10GB")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "audio_embedder.proj.weight": torch.zeros(2, 2)}, str(file))
    return folder


def malicious(root: Path) -> Path:
    inner = write_official(root)
    torch.save({"module": Hostile(root / "ran")}, inner / PICKLE)
    return inner


def malicious_vae(root: Path) -> Path:
    inner = write_official(root)
    torch.save({"state_dict": vae_state(), "extra": Hostile(root / "ran")}, inner / "vae" / "pytorch_model.pt")
    return inner


def corrupt_header(root: Path) -> Path:
    write_official(root / "other")
    shutil.copytree(root / "other" / "hunyuan-video-t2v-720p" / "vae", root / "vae")
    path = write_comfyui(root / "diffusion_models" / "hunyuan.safetensors")
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    path.write_bytes(content[:8] + content[8 : 8 + length // 2] + b"}" * (length - length // 2) + content[8 + length :])
    return root


def absurd_header(root: Path) -> Path:
    corrupt_header(root)
    path = root / "diffusion_models" / "hunyuan.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    return root


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_shape, "single_blocks.1.linear2.weight has shape [32, 159]"),
        (wrong_shape_of_the_vae, "decoder.conv_in.conv.bias has shape [31]"),
        (missing_shard, "is missing"),
        (extra_keys, "unknown keys: audio_embedder.proj.weight"),
        (malicious, "would run code"),
        (malicious_vae, "would run code"),
        (corrupt_header, "safetensors header"),
        (absurd_header, "hunyuan.safetensors"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@pytest.mark.parametrize("verb", ["generate", "convert"])
def test_damaged_weights(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    micro_text_folders: tuple[Path, Path],
    damage: Callable[[Path], Path],
    message: str,
    verb: str,
) -> None:
    model = damage(place / "model")
    for folder in micro_text_folders:
        shutil.copytree(folder, place / "model" / folder.name, dirs_exist_ok=True)
    if verb == "generate":
        error = refused(capsys, "generate", "--prompt", "a red circle", "--model", model, "--device", "cpu")
    else:
        error = refused(capsys, "convert", model, place / "out", "--to", "comfyui")
        assert not (place / "out").exists()
    assert message in error
    assert not (place / "model" / "ran").exists()


def test_pickled_text_encoders(
    place: Path, capsys: pytest.CaptureFixture[str], micro_text_folders: tuple[Path, Path]
) -> None:
    """They are not read for a video; converting reads their tensors, and runs nothing of them."""
    write_official(place / "model")
    for folder in micro_text_folders:
        shutil.copytree(folder, place / "model" / folder.name)
    clip = place / "model" / "text_encoder_2"
    (clip / "model.safetensors").unlink()
    torch.save({"module": Hostile(place / "ran")}, clip / "pytorch_model.bin")
    error = refused(capsys, "generate", "--prompt", "a", "--model", place / "model", "--device", "cpu")
    assert "pickle files are not read" in error
    assert "would run code" in refused(capsys, "convert", place / "model", place / "out")
    assert not (place / "ran").exists()
    assert not (place / "out").exists()


def lora_of_another_model(place: Path) -> list[object]:
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    file = place / "other.safetensors"
    save_file({f"{key}.lora_down.weight": torch.zeros(4, 64), f"{key}.lora_up.weight": torch.zeros(192, 4)}, str(file))
    return ["--lora", file]


def no_image(place: Path) -> list[object]:
    (place / "text.png").write_text("no picture")
    return ["--image", place / "text.png"]


def half_an_image(place: Path) -> list[object]:
    Image.effect_noise((64, 64), 50).save(place / "whole.png")
    (place / "half.png").write_bytes((place / "whole.png").read_bytes()[:1000])
    return ["--image", place / "half.png"]


def enormous_image(place: Path) -> list[object]:
    Image.new("1", (20_000, 8_000)).save(place / "enormous.png")
    return ["--image", place / "enormous.png"]


def long_prompt(place: Path) -> list[object]:
    return ["--prompt", "word " * 5000]


def dead_endpoint(place: Path) -> list[object]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    options = ["--rewriter-model", "m", "--rewriter-retries", "0", "--rewrite-strict"]
    return ["--rewrite", "normal", "--rewriter", url, *options]


def lora_before_rewriting(place: Path) -> list[object]:
    """The LoRA is looked at first: a wrong one must not cost the rewriting."""
    return [*lora_of_another_model(place), *dead_endpoint(place)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lora_of_another_model, "for another model"),
        (lora_before_rewriting, "for another model"),
        (no_image, "text.png is not an image"),
        (half_an_image, "half.png cannot be read"),
        (enormous_image, "20000x8000 pixels"),
        (long_prompt, "5000 words"),
        (dead_endpoint, "cannot be reached"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_requests(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    micro_model_folder: Path,
    options: Callable[[Path], list[object]],
    message: str,
) -> None:
    command = ["generate", "--prompt", "a red circle", "--model", micro_model_folder, *SIZE, *options(place)]
    assert message in refused(capsys, *command)


def test_a_picture_of_twenty_megapixels_is_no_mistake(tmp_path: Path, micro_model_folder: Path, capsys: Any) -> None:
    """What a camera gives: reduced to the video's size, which is said; the video is made."""
    model = Path(shutil.copytree(micro_model_folder, tmp_path / "model"))
    spec = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(spec | {"image_condition_type": "token_replace"}))
    Image.new("L", (5472, 3648), 90).save(tmp_path / "large.png", compress_level=1)
    command = ["generate", "--prompt", "a red circle", "--model", str(model), *SIZE, "--image"]
    assert main([*command, str(tmp_path / "large.png"), "--output-path", str(tmp_path / "out.mp4")]) == 0
    assert "5472x3648 pixels, is reduced" in capsys.readouterr().err
    assert (tmp_path / "out.mp4").stat().st_size > 500
