"""A transformer in our names → the files of any public format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from openhunyuan.convert import dit_comfyui, dit_diffusers
from openhunyuan.convert.dit_read import DiTWeights, full_precision
from openhunyuan.convert.lazy import Lazy, apply, from_tensor, reshape
from openhunyuan.convert.plan import MAX_SHARD_BYTES, File, JsonFile, TensorFile, sharded
from openhunyuan.models.zoo import CONFIG, WEIGHTS
from openhunyuan.ops.float8 import FLOAT8, SCALE, is_quantized, quantize

Format = Literal["openhunyuan", "openhunyuan-fp8", "official", "official-fp8", "diffusers", "comfyui", "comfyui-fp8"]
OFFICIAL = "mp_rank_00_model_states"
"""Stem of the official file (release fact A.1)."""


def plan_dit(
    weights: DiTWeights,
    folder: Path,
    to: Format,
    comfyui_name: str = "hunyuan_video",
    max_shard: int = MAX_SHARD_BYTES,
) -> list[File]:
    """The files of a transformer.

    Args:
        weights: from ``read_dit``.
        folder: where the files go.
        to: the format. One with -fp8 quantizes what is not; "openhunyuan" keeps eight-bit weights as they are, the
            others without -fp8 turn them into full precision, in the format of the module's bias.
        comfyui_name: stem of the ComfyUI file; the number format is added.
        max_shard: most bytes of one diffusers shard.
    """
    if to == "openhunyuan":
        state = weights.state
    else:
        state = _eight_bit(weights.state) if to.endswith("-fp8") else _full(weights.state)
    family = to.removesuffix("-fp8")
    if family == "openhunyuan":
        config = JsonFile(folder / CONFIG, weights.config.model_dump(mode="json"))
        return [config, TensorFile(folder / WEIGHTS, state)]
    if family == "official":
        return _official(state, folder)
    if family == "diffusers":
        tensors = dit_diffusers.NAMES.to_theirs(state, weights.config.hidden_size)
        files = sharded(folder, "diffusion_pytorch_model", tensors, max_shard)
        return [
            JsonFile(folder / CONFIG, dit_diffusers.write_config(weights.config, weights.image_condition_type)),
            *files,
        ]
    return [_comfyui(state, folder, comfyui_name)]


def _full(state: Mapping[str, Lazy]) -> dict[str, Lazy]:
    out: dict[str, Lazy] = {}
    for name, value in state.items():
        module, _, parameter = name.rpartition(".")
        if parameter == SCALE:
            continue
        scale = state.get(f"{module}.{SCALE}") if parameter == "weight" else None
        if scale is not None:
            value = full_precision(value, scale, state[f"{module}.bias"].dtype)
        out[name] = value
    return out


def _eight_bit(state: Mapping[str, Lazy]) -> dict[str, Lazy]:
    out: dict[str, Lazy] = {}
    for name, value in state.items():
        module, _, parameter = name.rpartition(".")
        if parameter == "weight" and is_quantized(module) and value.dtype != FLOAT8:
            out[name] = apply(value, lambda x: quantize(x)[0], FLOAT8)
            out[f"{module}.{SCALE}"] = apply(value, lambda x: quantize(x)[1], torch.float32, (1,))
        else:
            out[name] = value
    return out


def _split_scales(state: Mapping[str, Lazy]) -> tuple[dict[str, Lazy], dict[str, Lazy]]:
    ending = f".{SCALE}"
    return (
        {name: value for name, value in state.items() if not name.endswith(ending)},
        {name.removesuffix(ending): value for name, value in state.items() if name.endswith(ending)},
    )


def _official(state: Mapping[str, Lazy], folder: Path) -> list[File]:
    tensors, scales = _split_scales(state)
    if not scales:
        return [TensorFile(folder / f"{OFFICIAL}.pt", tensors, key="module")]
    return [
        TensorFile(folder / f"{OFFICIAL}_fp8.pt", tensors, key="module"),
        TensorFile(folder / f"{OFFICIAL}_fp8_map.pt", scales),
    ]


def _comfyui(state: Mapping[str, Lazy], folder: Path, name: str) -> TensorFile:
    tensors, scales = _split_scales(state)
    prefix = dit_comfyui.PREFIXES[0]
    named = dit_comfyui.NAMES.to_theirs(tensors)
    for module, scale in scales.items():
        named[f"{dit_comfyui.NAMES.their_names(module)[0]}.scale_weight"] = reshape(scale, ())
    kind = "fp8_scaled"
    if scales:
        # Without this mark older ComfyUI takes the weights for a plain cast and leaves the scales out.
        named["scaled_fp8"] = from_tensor(torch.empty(0, dtype=FLOAT8))
    else:
        kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(tensors["img_in.proj.weight"].dtype, "fp32")
    content = {prefix + key: value for key, value in named.items()}
    return TensorFile(folder / f"{name}_{kind}.safetensors", content, metadata={"format": "pt"})
