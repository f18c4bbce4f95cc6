"""Transformers written in each public format by others' means: read, converted to every format, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.convert.dit_read import read_dit, rope_axes
from openhunyuan.convert.dit_write import plan_dit
from openhunyuan.convert.load import open_dit
from openhunyuan.models.dit.model import DiT
from openhunyuan.ops.float8 import Float8Linear
from tests.convert.conftest import (
    CONCAT,
    SMALL,
    dit_state,
    write_comfyui,
    write_diffusers,
    write_official,
    write_official_fp8,
)
from tools.tiny_files import comfyui_name, quantized, same_bits, same_tensors


def convert(source: Path, target: Path, to: str, **options: int) -> Path:
    for file in plan_dit(read_dit(source), target, to, **options):  # pyright: ignore[reportArgumentType]
        file.write()
    return target


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def inputs(channels: int = 16, guidance: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    batch = {
        "latents": torch.randn(1, channels, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([700.0]),
        "text_states": torch.randn(1, 6, 32, generator=generator),
        "text_mask": torch.ones(1, 6, dtype=torch.bool),
        "pooled": torch.randn(1, 32, generator=generator),
    }
    return batch | ({"guidance": torch.tensor([6016.0])} if guidance else {})


def read_state(path: Path) -> dict[str, Tensor]:
    return {name: value.read() for name, value in read_dit(path).state.items()}


@pytest.mark.parametrize("wrapper", ["module", "ema", None])
def test_official_pickles_are_read_bit_for_bit(tmp_path: Path, wrapper: str | None) -> None:
    state = dit_state()
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    weights = read_dit(path)
    assert weights.config == SMALL
    assert (weights.language, weights.is_float8, weights.image_condition_type) == ("official", False, None)
    assert same_tensors(read_state(path), state)


def test_official_folder_round_trip(official: Path, tmp_path: Path) -> None:
    ours = convert(official / "transformers", tmp_path / "ours", "openhunyuan")
    assert json.loads((ours / "config.json").read_text())["hidden_size"] == 32
    back = convert(ours, tmp_path / "back", "official")
    content = torch.load(back / "mp_rank_00_model_states.pt", weights_only=True, mmap=True)
    assert list(content) == ["module"]
    assert same_tensors(content["module"], dit_state())


@pytest.mark.parametrize("condition", [None, "token_replace", "latent_concat"])
def test_diffusers_folder_round_trip(tmp_path: Path, condition: str | None) -> None:
    folder = write_diffusers(tmp_path / "published", condition) / "transformer"
    assert len(list(folder.glob("*.safetensors"))) > 2, "the shards would not be tested"
    weights = read_dit(folder)
    assert weights.config == (CONCAT if condition == "latent_concat" else SMALL)
    assert weights.image_condition_type == condition
    convert(folder, tmp_path / "official", "official")
    named = tmp_path / ("i2v" if condition == "token_replace" else "t2v")
    (tmp_path / "official").rename(named)
    if condition == "token_replace":  # Official files of this kind are told apart by name alone.
        (named / "mp_rank_00_model_states.pt").rename(named / "hunyuan_i2v_model_states.pt")
    back = convert(named, tmp_path / "back", "diffusers", max_shard=40_000)
    assert same_tensors(folder_tensors(back), folder_tensors(folder))
    index = json.loads((back / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(folder_tensors(folder))
    assert max(path.stat().st_size for path in back.glob("*.safetensors")) < 60_000

    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel.from_pretrained(str(back), dtype=torch.float32)
    assert model.config.image_condition_type == condition
    batch = inputs(33 if condition == "latent_concat" else 16, condition != "latent_concat")
    if condition == "token_replace":
        return  # Its forward pass is another test's; the tensors are the same.
    with torch.no_grad():
        theirs = model(
            hidden_states=batch["latents"],
            timestep=batch["timestep"],
            encoder_hidden_states=batch["text_states"],
            encoder_attention_mask=batch["text_mask"].long(),
            pooled_projections=batch["pooled"],
            guidance=batch.get("guidance"),
            return_dict=False,
        )[0]
        ours = open_dit(named)(**batch)
    assert theirs.abs().mean() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_comfyui_file_round_trip(tmp_path: Path) -> None:
    path = write_comfyui(tmp_path / "diffusion_models" / "hunyuan_video_t2v_720p_bf16.safetensors")
    weights = read_dit(path)
    assert (weights.language, weights.config) == ("comfyui", SMALL)
    assert same_tensors(read_state(path), dit_state())
    back = convert(convert(path, tmp_path / "ours", "openhunyuan"), tmp_path / "back", "comfyui")
    assert path.read_bytes() != b""
    assert same_tensors(load_file(back / "hunyuan_video_bf16.safetensors"), load_file(path))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_single_files_with_official_names(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "hunyuan_video_720_cfgdistill_bf16.safetensors"
    save_file({prefix + name: value for name, value in dit_state().items()}, str(path))
    assert read_dit(path).language == "official"
    assert same_tensors(read_state(path), dit_state())


def test_image_to_video_is_told_by_channels_or_name(tmp_path: Path) -> None:
    concat = write_comfyui(tmp_path / "a.safetensors", CONCAT)
    replace = write_comfyui(tmp_path / "hunyuan_video_v2_replace_image_to_video_720p_bf16.safetensors")
    inner = write_official(tmp_path / "ckpts", kind="i2v")
    assert read_dit(concat).image_condition_type == "latent_concat"
    assert read_dit(replace).image_condition_type == "token_replace"
    assert read_dit(inner / "transformers").image_condition_type == "token_replace"
    plain = write_comfyui(tmp_path / "b.safetensors")
    assert read_dit(plain).image_condition_type is None
    assert read_dit(plain, condition="token_replace").image_condition_type == "token_replace"


def fp8_official(root: Path) -> Path:
    return write_official_fp8(root / "transformers")


def fp8_comfyui(root: Path) -> Path:
    return write_comfyui(root / "hunyuan_video_t2v_720p_fp8_scaled.safetensors", scaled=True)


@pytest.mark.parametrize("write", [fp8_official, fp8_comfyui])
def test_eight_bit_weights_stay_so_and_mean_weight_times_scale(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    tensors, scales = quantized(dit_state())
    assert len(scales) == 2 * 10 + 2 * 3
    state = read_state(path)
    for name, value in tensors.items():
        assert same_bits(state[name], value), name
    assert {name for name in state if name not in tensors} == {f"{module}.weight_scale" for module in scales}

    model = open_dit(path)
    assert sum(isinstance(module, Float8Linear) for module in model.modules()) == len(scales)
    reference = DiT(SMALL)
    meant = {
        name: value.float() * scales[name.removesuffix(".weight")] if value.itemsize == 1 else value.float()
        for name, value in tensors.items()
    }
    reference.load_state_dict(meant)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs()), reference.eval()(**inputs()), atol=1e-6, rtol=1e-5)
        full = DiT(SMALL)
        full.load_state_dict({name: value.float() for name, value in dit_state().items()})
        gap = (model(**inputs()) - full.eval()(**inputs())).abs().mean() / full(**inputs()).abs().mean()
    assert 0 < gap < 0.1, "eight bits are near the weights, and not the weights"


def test_eight_bit_formats_round_trip(tmp_path: Path) -> None:
    source = fp8_official(tmp_path / "published")
    ours = convert(source, tmp_path / "ours", "openhunyuan")
    comfyui = convert(ours, tmp_path / "comfyui", "comfyui-fp8") / "hunyuan_video_fp8_scaled.safetensors"
    back = convert(comfyui, tmp_path / "back", "official-fp8")
    for name in ("mp_rank_00_model_states_fp8.pt", "mp_rank_00_model_states_fp8_map.pt"):
        one = torch.load(source.with_name(name), weights_only=True)
        two = torch.load(back / name, weights_only=True)
        assert same_tensors(one.get("module", one), two.get("module", two)), name
    assert same_tensors(load_file(comfyui), load_file(fp8_comfyui(tmp_path)))


def test_full_precision_is_quantized_when_asked_for(official: Path, tmp_path: Path) -> None:
    """The converter's result is the one that release fact A.3 describes, and loading with fp8 gives the same."""
    out = convert(official / "transformers", tmp_path / "fp8", "official-fp8")
    expected, scales = quantized(dit_state())
    assert same_tensors(torch.load(out / "mp_rank_00_model_states_fp8.pt", weights_only=True)["module"], expected)
    assert same_tensors(torch.load(out / "mp_rank_00_model_states_fp8_map.pt", weights_only=True), scales)
    loaded = open_dit(official / "transformers", dtype=torch.bfloat16, float8=True).state_dict()
    stored = open_dit(out, dtype=torch.bfloat16).state_dict()
    assert same_tensors(loaded, stored)


def test_a_folder_with_both_files_gives_the_one_that_was_asked_for(official: Path) -> None:
    write_official_fp8(official / "transformers")
    assert not read_dit(official / "transformers").is_float8
    assert read_dit(official / "transformers", float8=True).is_float8


def test_leaving_eight_bits_gives_what_they_mean(tmp_path: Path) -> None:
    source = fp8_official(tmp_path / "published")
    tensors, scales = quantized(dit_state())
    out = convert(source, tmp_path / "full", "diffusers")
    back = read_state(out)
    for name, value in tensors.items():
        wanted = value
        if value.itemsize == 1:
            wanted = value.to(torch.bfloat16) * scales[name.removesuffix(".weight")].to(torch.bfloat16)
        assert same_bits(back[name], wanted), name


def test_a_plain_cast_needs_no_scales_but_lost_scales_are_noticed(tmp_path: Path) -> None:
    state = dit_state()
    blocks = [name for name in state if name.endswith(".weight") and name.split(".")[0].endswith("_blocks")]
    cast = {name: value.to(torch.float8_e4m3fn) if name in blocks else value for name, value in state.items()}
    path = tmp_path / "cast.safetensors"
    save_file(cast, str(path))
    model = open_dit(path)
    assert torch.equal(model.single_blocks[0].linear1.weight.float(), cast["single_blocks.0.linear1.weight"].float())
    assert torch.equal(model.single_blocks[0].q_norm.weight, cast["single_blocks.0.q_norm.weight"].float())

    save_file(quantized(state)[0], str(path))
    with pytest.raises(UserError, match=r"scaled to the format's range .* but no scales"):
        read_dit(path)
    save_file(quantized(state)[1], str(tmp_path / "cast_map.safetensors"))
    assert read_dit(path).is_float8


def test_newer_comfyui_quantization_is_read(tmp_path: Path) -> None:
    tensors, scales = quantized(dit_state())
    out = {f"model.diffusion_model.{comfyui_name(name)}": value for name, value in tensors.items()}
    for module, scale in scales.items():
        name = "model.diffusion_model." + comfyui_name(f"{module}.weight").removesuffix(".weight")
        out[f"{name}.weight_scale"] = scale.reshape(())
        out[f"{name}.input_scale"] = torch.tensor(0.5)
        out[f"{name}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    path = tmp_path / "new.safetensors"
    save_file(out, str(path))
    assert same_tensors(read_state(path), read_state(fp8_official(tmp_path)))
    out[f"{name}.comfy_quant"] = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file(out, str(path))
    with pytest.raises(UserError, match="says nvfp4, but of quantized formats only float8_e4m3fn is read"):
        read_dit(path)


@pytest.mark.parametrize(
    ("head", "axes"), [(128, (16, 56, 56)), (96, (12, 42, 42)), (16, (4, 6, 6)), (32, (4, 14, 14))]
)
def test_axes_of_heads(head: int, axes: tuple[int, int, int]) -> None:
    assert rope_axes(head) == axes
