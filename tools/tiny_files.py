"""Weights as other programs write them: by ``torch.save`` and safetensors, with names spelled out by hand.

The tests and the parity table read these files with the package and compare what comes back. So nothing here may use
the package's own writers or name maps. (Folders of diffusers are written by diffusers itself.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = Mapping[str, Tensor]

OFFICIAL_STEM = "mp_rank_00_model_states"
OFFICIAL_VAE = {
    "_class_name": "AutoencoderKLCausal3D",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [32, 32, 32, 32],
    "down_block_types": ["DownEncoderBlockCausal3D"] * 4,
    "in_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "sample_tsize": 64,
    "scaling_factor": 0.476986,
    "time_compression_ratio": 4,
    "up_block_types": ["UpDecoderBlockCausal3D"] * 4,
    "mid_block_add_attention": True,
}
"""The config.json of the released VAE at a small size (release fact A.4)."""


# -- writing -----------------------------------------------------------------------------------------------------------


def quantized(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The official eight-bit form, written out from release fact A.3: (tensors, map)."""
    names = ("mod.linear", "attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2", "linear1", "linear2", "modulation.linear")
    tensors, scales = dict(state), {}
    for key, value in state.items():
        module = key.removesuffix(".weight")
        if key.endswith(".weight") and "_blocks." in key and module.endswith(names) and value.ndim == 2:
            scale = value.float().abs().max() / 448
            tensors[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            scales[module] = scale.reshape(1)
    return tensors, scales


def dequantized(state: State) -> dict[str, Tensor]:
    """The float32 weights that the eight-bit form of ``state`` stands for: W = float(weight) · scale."""
    tensors, scales = quantized(state)
    out = {name: value.float() for name, value in tensors.items()}
    for module, scale in scales.items():
        out[f"{module}.weight"] = out[f"{module}.weight"] * scale
    return out


def comfyui_name(name: str) -> str:
    """ComfyUI's name for an official one, by its own chain of replacements of text."""
    chain = (
        ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
        ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
        ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
        ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
        ("_mod.linear.", "_mod.lin."),
        ("_attn_qkv.", "_attn.qkv."),
        ("mlp.fc1.", "mlp.0."),
        ("mlp.fc2.", "mlp.2."),
        ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"),
        ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"),
        (".q_norm.weight", ".norm.query_norm.scale"),
        (".k_norm.weight", ".norm.key_norm.scale"),
        ("_attn_proj.", "_attn.proj."),
        (".modulation.linear.", ".modulation.lin."),
        ("_in.mlp.2.", "_in.out_layer."),
        ("_in.mlp.0.", "_in.in_layer."),
    )
    for old, new in chain:
        name = name.replace(old, new)
    return name


def write_official_dit(folder: Path, state: State, fp8: bool = False) -> Path:
    """The transformer's file, in eight bits with its map beside it. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if not fp8:
        torch.save({"module": dict(state)}, folder / f"{OFFICIAL_STEM}.pt")
        return folder / f"{OFFICIAL_STEM}.pt"
    tensors, scales = quantized(state)
    torch.save({"module": tensors}, folder / f"{OFFICIAL_STEM}_fp8.pt")
    torch.save(scales, folder / f"{OFFICIAL_STEM}_fp8_map.pt")
    return folder / f"{OFFICIAL_STEM}_fp8.pt"


def write_official_vae(folder: Path, state: State) -> Path:
    """The VAE's folder, with the prefix that some files have."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({f"vae.{name}": value for name, value in state.items()}, folder / "pytorch_model.pt")
    (folder / "config.json").write_text(json.dumps(OFFICIAL_VAE))
    return folder


def write_comfyui_dit(path: Path, state: State, fp8: bool = False) -> Path:
    """The transformer's single file, plain or with scaled eight-bit weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors, scales = quantized(state) if fp8 else (dict(state), {})
    out = {f"model.model.{comfyui_name(name)}": value for name, value in tensors.items()}
    for module, scale in scales.items():
        out[f"model.model.{comfyui_name(module + '.weight').removesuffix('.weight')}.scale_weight"] = scale.reshape(())
    if fp8:
        out["model.model.scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    save_file(out, str(path), metadata={"format": "pt"})
    return path


# -- comparing ---------------------------------------------------------------------------------------------------------


def stored_tensors(root: Path) -> dict[str, Tensor]:
    """Every tensor below a folder, or of one file, by its folder and name.

    Names of files do not count: shards may be cut elsewhere, and ComfyUI's files may be called anything. Neither does
    the prefix ``vae.``, which an official VAE may have.
    """
    out: dict[str, Tensor] = {}
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    for path in files:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif path.suffix == ".pt":
            content = torch.load(path, weights_only=True)
            tensors = content.get("module", content)
        else:
            continue
        place = path.parent.relative_to(root).as_posix() if root.is_dir() else "."
        mark = "scale of " if path.stem.endswith("_map") else ""
        for name, tensor in tensors.items():
            key = f"{place}/{mark}{name.removeprefix('vae.')}"
            if key in out:
                raise AssertionError(f"{key} is stored twice below {root}")
            out[key] = tensor
    return out


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Same shape, format and bits."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)]
    return torch.equal(*raw)


def same_tensors(one: State, two: State) -> bool:
    """Same names, shapes, formats and bits."""
    return not differing(one, two)


def differing(one: State, two: State) -> list[str]:
    """The names that only one of them has, or whose shapes, formats or bits differ."""
    return sorted(
        name for name in {*one, *two} if name not in one or name not in two or not same_bits(one[name], two[name])
    )
