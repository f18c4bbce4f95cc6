"""``openhunyuan convert`` and the commands that read what it makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openhunyuan.cli.main import main
from tests.convert.conftest import dit_state, vae_state, write_comfyui, write_official
from tools.tiny_files import same_tensors


@pytest.fixture
def model(tmp_path: Path, micro_text_folders: tuple[Path, Path]) -> Path:
    write_official(tmp_path / "ckpts")
    for folder in micro_text_folders:
        shutil.copytree(folder, tmp_path / "ckpts" / folder.name)
    return tmp_path / "ckpts"


def test_official_to_ours_and_a_video_of_each(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way of a user: a downloaded folder, no flags but the path."""
    size = ["--height", "32", "--width", "32", "--num-frames", "5", "--num-inference-steps", "1", "--seed", "1"]
    assert main(["convert", str(model), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}\n"
    for source in (model, tmp_path / "ours"):
        out = tmp_path / f"{source.name}.mp4"
        options = ["--model", str(source), "--device", "cpu", "--output-path", str(out)]
        assert main(["generate", "--prompt", "a red circle", *size, *options]) == 0
        assert out.stat().st_size > 500
        assert main(["info", str(source)]) == 0
        assert "transformer" in capsys.readouterr().out


def test_one_file_to_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_comfyui(tmp_path / "hunyuan.safetensors")
    assert main(["convert", str(file), str(tmp_path / "out"), "--to", "official"]) == 0
    state = torch.load(tmp_path / "out" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert same_tensors(state, dit_state())
    assert main(["convert", str(file), str(tmp_path / "out"), "--to", "official"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_parts_that_are_missing_are_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(model / "text_encoder_2")
    assert main(["convert", str(model), str(tmp_path / "out"), "--to", "comfyui"]) == 0
    assert "has no text_encoder_2" in " ".join(capsys.readouterr().err.split())
    assert same_tensors(load_file(tmp_path / "out" / "vae" / "hunyuan_video_vae_fp16.safetensors"), vae_state())
    assert main(["generate", "--prompt", "x", "--model", str(tmp_path / "out")]) == 2
    assert "text_encoder_2 (CLIP) was not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["nothing", "out"], "nothing does not exist"),
        (["tiny", "out", "--to", "diffuser"], "did you mean diffusers"),
        (["tiny", "out", "--image-condition-type", "replace"], "must be one of"),
        (["tiny"], "DST is missing"),
    ],
)
def test_wrong_input(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *args]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["convert", "download"])
def test_help_imports_no_torch(verb: str) -> None:
    code = f"""
import sys
from openhunyuan.cli.main import main
try:
    main([{verb!r}, "--help"])
except SystemExit:
    pass
assert not {{"torch", "transformers", "huggingface_hub"}} & set(sys.modules), "help must be instant"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
