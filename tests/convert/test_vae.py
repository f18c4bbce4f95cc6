"""The VAE in each public format, read and written again bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openhunyuan.base.errors import UserError
from openhunyuan.convert import vae_ldm
from openhunyuan.convert.lazy import from_tensor
from openhunyuan.convert.load import open_vae
from openhunyuan.convert.vae import plan_vae, read_vae
from tests.convert.conftest import SMALL_VAE, vae_state, write_diffusers
from tools.tiny_files import OFFICIAL_VAE, same_tensors


def read_state(path: Path) -> dict[str, torch.Tensor]:
    return {name: value.read() for name, value in read_vae(path).state.items()}


@pytest.mark.parametrize("form", ["flat", "prefixed", "state_dict", "with loss"])
def test_official_pickles(tmp_path: Path, form: str) -> None:
    state = vae_state()
    content: dict = {f"vae.{name}": value for name, value in state.items()} if form != "flat" else dict(state)
    if form == "with loss":
        content["loss.discriminator.weight"] = torch.zeros(3)
    torch.save({"state_dict": content} if form == "state_dict" else content, tmp_path / "pytorch_model.pt")
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL_VAE))
    weights = read_vae(tmp_path)
    assert weights.config == SMALL_VAE
    assert same_tensors(read_state(tmp_path), state)


@pytest.mark.parametrize("family", ["openhunyuan", "official", "diffusers", "comfyui"])
def test_round_trips(tmp_path: Path, family: str) -> None:
    published = write_diffusers(tmp_path) / "vae"
    for file in plan_vae(read_vae(published), tmp_path / "new", family):
        file.write()
    new = tmp_path / "new"
    source = new / "hunyuan_video_vae_fp16.safetensors" if family == "comfyui" else new
    assert read_vae(source).config == SMALL_VAE
    assert same_tensors(read_state(source), vae_state())
    for file in plan_vae(read_vae(source), tmp_path / "back", "diffusers"):
        file.write()
    name = "diffusion_pytorch_model.safetensors"
    assert same_tensors(load_file(tmp_path / "back" / name), load_file(published / name))
    if family != "official":
        return  # The bits are the same, so the pictures are.

    from diffusers import AutoencoderKLHunyuanVideo

    model = AutoencoderKLHunyuanVideo.from_pretrained(str(tmp_path / "back"), dtype=torch.float32)
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(open_vae(source).decode(latents), model.decode(latents).sample, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dims", [0, 2, 3])
def test_ldm_names(tmp_path: Path, dims: int) -> None:
    theirs = vae_ldm.NAMES.to_theirs({name: from_tensor(value) for name, value in vae_state().items()})
    tensors = {name: value.read() for name, value in theirs.items()}
    for name, value in tensors.items():
        if ".attn_1." in name and value.ndim == 5:
            tensors[name] = value.reshape(*value.shape[:2], *[1] * dims)
    save_file(tensors, str(tmp_path / "vae.safetensors"))
    assert same_tensors(read_state(tmp_path / "vae.safetensors"), vae_state())


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    state = vae_state()
    save_file({**state, "quant_conv.bias": torch.zeros(31)}, str(path))
    with pytest.raises(UserError, match=r"quant_conv\.bias has shape \[31\], but a VAE of this size needs \[32\]"):
        read_vae(path)
    save_file({name: value for name, value in state.items() if name != "encoder.conv_out.conv.bias"}, str(path))
    with pytest.raises(UserError, match=r"lack keys: encoder\.conv_out\.conv\.bias"):
        read_vae(path)
    save_file({**state, "decoder.extra": torch.zeros(1)}, str(path))
    with pytest.raises(UserError, match=r"unknown keys: decoder\.extra"):
        read_vae(path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    save_file(state, str(path))
    with pytest.raises(UserError, match="config of a AutoencoderKLWan"):
        read_vae(path)
