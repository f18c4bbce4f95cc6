"""What is refused: one clear sentence each, and nothing of a foreign file is ever run."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openhunyuan.base.errors import UserError
from openhunyuan.convert.dit_read import read_dit
from openhunyuan.convert.vae import read_vae
from tests.convert.conftest import dit_state, vae_state, write_comfyui, write_diffusers, write_official_fp8
from tools.tiny_files import quantized


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("read", [read_dit, read_vae])
@pytest.mark.parametrize("place", ["top", "module", "beside"])
def test_malicious_pickle_is_not_run(tmp_path: Path, place: str, read) -> None:  # noqa: ANN001
    mark = tmp_path / "ran"
    evil = Hostile(mark)
    content = {"top": evil, "module": {"module": evil}, "beside": {"module": dit_state(), "extra": evil}}[place]
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="opening it would run code from the file, so it was not opened"):
        read(path)
    assert not mark.exists()


def test_malicious_plain_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(UserError, match="old kind"):
        read_dit(path)
    assert not mark.exists()


def test_malicious_scales_are_not_run(tmp_path: Path) -> None:
    path = write_official_fp8(tmp_path)
    mark = tmp_path / "ran"
    torch.save({"module": Hostile(mark)}, tmp_path / "mp_rank_00_model_states_fp8_map.pt")
    with pytest.raises(UserError, match=r"fp8_map\.pt holds more than tensors"):
        read_dit(path)
    assert not mark.exists()


def test_keys_and_shapes_are_named_as_the_file_names_them(tmp_path: Path) -> None:
    path = tmp_path / "states.pt"
    state = dit_state()

    bad = dict(state)
    del bad["double_blocks.1.txt_mlp.fc2.bias"]
    torch.save({"module": bad}, path)
    with pytest.raises(UserError, match=r"lack keys: double_blocks\.1\.txt_mlp\.fc2\.bias"):
        read_dit(path)

    torch.save({"module": {**state, "double_blocks.0.img_gate.weight": torch.zeros(2)}}, path)
    with pytest.raises(UserError, match=r"unknown keys: double_blocks\.0\.img_gate\.weight"):
        read_dit(path)

    torch.save({"module": {**state, "single_blocks.1.linear2.weight": torch.zeros(32, 159)}}, path)
    with pytest.raises(UserError, match=r"single_blocks\.1\.linear2\.weight has shape \[32, 159\].*needs \[32, 160\]"):
        read_dit(path)

    folder = write_diffusers(tmp_path / "published", shard="10GB") / "transformer"
    file = folder / "diffusion_pytorch_model.safetensors"
    theirs = load_file(file)
    lost = "single_transformer_blocks.0.attn.to_k.weight"
    save_file({name: value for name, value in theirs.items() if name != lost}, str(file))
    with pytest.raises(UserError, match=r"lack keys: single_transformer_blocks\.0\.attn\.to_k\.weight"):
        read_dit(folder)
    save_file({**theirs, lost: torch.zeros(31, 32)}, str(file))
    with pytest.raises(UserError, match=r"to_k\.weight has shape \[31, 32\], but its config\.json says \[32, 32\]"):
        read_dit(folder)


def test_missing_shards_and_tensors(tmp_path: Path) -> None:
    folder = write_diffusers(tmp_path) / "transformer"
    shards = sorted(folder.glob("*.safetensors"))
    moved = shards[1].rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"The shard .*{shards[1].name} is missing"):
        read_dit(folder)
    content = load_file(moved)
    name = sorted(content)[0]
    save_file({key: value for key, value in content.items() if key != name}, str(shards[1]))
    with pytest.raises(UserError, match=f"The shard {shards[1].name} lacks the tensor {name}"):
        read_dit(folder)
    save_file({**content, sorted(load_file(shards[0]))[0]: torch.zeros(1)}, str(shards[1]))
    with pytest.raises(UserError, match="is in two of the shards"):
        read_dit(folder)


def test_an_index_may_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = write_diffusers(tmp_path) / "transformer"
    index = next(folder.glob("*.index.json"))
    values = json.loads(index.read_text())
    values["weight_map"]["proj_out.bias"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(values))
    with pytest.raises(UserError, match="not in its own folder"):
        read_dit(folder)


def test_corrupt_safetensors_headers(tmp_path: Path) -> None:
    path = write_comfyui(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])

    def written(name: str, entry: dict) -> None:
        text = json.dumps({**header, name: entry}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    name = "model.model.img_in.proj.bias"
    good = header[name]
    for bad in (
        {**good, "shape": [31]},
        {**good, "dtype": "F99"},
        {**good, "shape": [-32]},
        {**good, "data_offsets": [good["data_offsets"][1], good["data_offsets"][0]]},
    ):
        written(name, bad)
        with pytest.raises(
            UserError, match=r"broken safetensors header \(its entry for model\.model\.img_in\.proj\.bias"
        ):
            read_dit(path)
    path.write_bytes(whole[:8] + b"{" * length + whole[8 + length :])
    with pytest.raises(UserError, match="broken safetensors header"):
        read_dit(path)
    path.write_bytes(whole[: len(whole) - 10])
    with pytest.raises(UserError, match="truncated"):
        read_dit(path)
    path.write_bytes(b"not weights at all, by any means")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_dit(path)


def test_truncated_and_odd_pickles(tmp_path: Path) -> None:
    path = tmp_path / "states.pt"
    torch.save({"module": dit_state()}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        read_dit(path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="not a PyTorch file"):
        read_dit(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="no dictionary of tensors"):
        read_dit(path)
    torch.save({"module": {"step": 3}}, path)
    with pytest.raises(UserError, match="no tensors by name; its keys are step"):
        read_dit(path)
    torch.save(dit_state(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="old kind"):
        read_dit(path)
    with pytest.raises(UserError, match="do not exist"):
        read_dit(tmp_path / "nothing.pt")


def test_scales_must_be_there_and_belong(tmp_path: Path) -> None:
    path = write_official_fp8(tmp_path)
    scales = tmp_path / "mp_rank_00_model_states_fp8_map.pt"
    kept = torch.load(scales, weights_only=True)
    scales.unlink()
    with pytest.raises(UserError, match=r"put mp_rank_00_model_states_fp8_map\.pt beside it"):
        read_dit(path)
    torch.save({**kept, "double_blocks.9.img_mod.linear": torch.ones(1)}, scales)
    with pytest.raises(UserError, match=r"for modules that it does not have: double_blocks\.9"):
        read_dit(path)
    torch.save({**kept, "img_in.proj": torch.ones(1)}, scales)
    with pytest.raises(UserError, match=r"a scale for img_in\.proj, but its weight is not stored in eight bits"):
        read_dit(path)
    torch.save({**kept, "single_blocks.0.linear1": torch.ones(160)}, scales)
    with pytest.raises(UserError, match=r"the scale of single_blocks\.0\.linear1 has shape \[160\]"):
        read_dit(path)


def test_another_networks_files(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(vae_state(), str(path))
    with pytest.raises(UserError, match="holds no HunyuanVideo transformer"):
        read_dit(path)
    save_file(dit_state(), str(path))
    with pytest.raises(UserError, match="holds no HunyuanVideo VAE"):
        read_vae(path)
    folder = write_diffusers(tmp_path / "other") / "transformer"
    config = folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "_class_name": "HunyuanVideo15Transformer3DModel"}))
    with pytest.raises(UserError, match="is the config of a HunyuanVideo15Transformer3DModel"):
        read_dit(folder)
    config.write_text(json.dumps({**values, "cross_attention_dim": 3}))
    with pytest.raises(UserError, match="unknown key cross_attention_dim"):
        read_dit(folder)


def test_tensors_beside_the_transformer_are_named(tmp_path: Path) -> None:
    path = write_comfyui(tmp_path / "all.safetensors")
    save_file({**load_file(path), "first_stage_model.quant_conv.bias": torch.zeros(2)}, str(path))
    with pytest.raises(UserError, match=r"beside those of model\.model\.\*: first_stage_model\.quant_conv\.bias"):
        read_dit(path)


def test_weights_that_are_not_finite_are_not_quantized(tmp_path: Path) -> None:
    state = dit_state()
    state["single_blocks.0.linear1.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        from openhunyuan.ops.float8 import quantize

        quantize(state["single_blocks.0.linear1.weight"])
    assert quantized(dit_state())[1]
