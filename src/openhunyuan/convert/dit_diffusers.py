"""DiT weights: official key names → those of diffusers' HunyuanVideoTransformer3DModel (release fact B.13)."""

import re

import torch
from torch import Tensor

RENAMES: dict[str, str] = {
    r"img_in\.proj": "x_embedder.proj",
    r"time_in\.mlp\.0": "time_text_embed.timestep_embedder.linear_1",
    r"time_in\.mlp\.2": "time_text_embed.timestep_embedder.linear_2",
    r"vector_in\.in_layer": "time_text_embed.text_embedder.linear_1",
    r"vector_in\.out_layer": "time_text_embed.text_embedder.linear_2",
    r"guidance_in\.mlp\.0": "time_text_embed.guidance_embedder.linear_1",
    r"guidance_in\.mlp\.2": "time_text_embed.guidance_embedder.linear_2",
    r"txt_in\.input_embedder": "context_embedder.proj_in",
    r"txt_in\.t_embedder\.mlp\.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    r"txt_in\.t_embedder\.mlp\.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    r"txt_in\.c_embedder\.(linear_[12])": r"context_embedder.time_text_embed.text_embedder.\1",
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.(norm[12])": (
        r"context_embedder.token_refiner.refiner_blocks.\1.\2"
    ),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn_proj": (
        r"context_embedder.token_refiner.refiner_blocks.\1.attn.to_out.0"
    ),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.mlp\.fc1": (
        r"context_embedder.token_refiner.refiner_blocks.\1.ff.net.0.proj"
    ),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.mlp\.fc2": (
        r"context_embedder.token_refiner.refiner_blocks.\1.ff.net.2"
    ),
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.adaLN_modulation\.1": (
        r"context_embedder.token_refiner.refiner_blocks.\1.norm_out.linear"
    ),
    r"double_blocks\.(\d+)\.img_mod\.linear": r"transformer_blocks.\1.norm1.linear",
    r"double_blocks\.(\d+)\.txt_mod\.linear": r"transformer_blocks.\1.norm1_context.linear",
    r"double_blocks\.(\d+)\.img_attn_([qk])_norm": r"transformer_blocks.\1.attn.norm_\2",
    r"double_blocks\.(\d+)\.txt_attn_([qk])_norm": r"transformer_blocks.\1.attn.norm_added_\2",
    r"double_blocks\.(\d+)\.img_attn_proj": r"transformer_blocks.\1.attn.to_out.0",
    r"double_blocks\.(\d+)\.txt_attn_proj": r"transformer_blocks.\1.attn.to_add_out",
    r"double_blocks\.(\d+)\.img_mlp\.fc1": r"transformer_blocks.\1.ff.net.0.proj",
    r"double_blocks\.(\d+)\.img_mlp\.fc2": r"transformer_blocks.\1.ff.net.2",
    r"double_blocks\.(\d+)\.txt_mlp\.fc1": r"transformer_blocks.\1.ff_context.net.0.proj",
    r"double_blocks\.(\d+)\.txt_mlp\.fc2": r"transformer_blocks.\1.ff_context.net.2",
    r"single_blocks\.(\d+)\.modulation\.linear": r"single_transformer_blocks.\1.norm.linear",
    r"single_blocks\.(\d+)\.([qk])_norm": r"single_transformer_blocks.\1.attn.norm_\2",
    r"single_blocks\.(\d+)\.linear2": r"single_transformer_blocks.\1.proj_out",
    r"final_layer\.linear": "proj_out",
}
"""Official module → diffusers module, tensors unchanged."""

SPLITS: dict[str, tuple[str, ...]] = {
    r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn_qkv": tuple(
        rf"context_embedder.token_refiner.refiner_blocks.\1.attn.to_{part}" for part in "qkv"
    ),
    r"double_blocks\.(\d+)\.img_attn_qkv": tuple(rf"transformer_blocks.\1.attn.to_{part}" for part in "qkv"),
    r"double_blocks\.(\d+)\.txt_attn_qkv": tuple(rf"transformer_blocks.\1.attn.add_{part}_proj" for part in "qkv"),
    r"single_blocks\.(\d+)\.linear1": (
        *(rf"single_transformer_blocks.\1.attn.to_{part}" for part in "qkv"),
        r"single_transformer_blocks.\1.proj_mlp",
    ),
}
"""Official module → the diffusers modules that take its rows in order; the first three take hidden_size rows each."""

SWAPS: dict[str, str] = {r"final_layer\.adaLN_modulation\.1": "norm_out.linear"}
"""Official module [shift; scale] → diffusers module [scale; shift]."""


def to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict → diffusers state dict; the result shares memory except where rows are swapped.

    Raises KeyError for a key that is not part of a HunyuanVideo DiT.
    """
    hidden_size = state["time_in.mlp.2.weight"].shape[0]
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        module, parameter = key.rsplit(".", 1)
        for name, tensor in _convert(module, value, hidden_size):
            out[f"{name}.{parameter}"] = tensor
    return out


def _convert(module: str, value: Tensor, hidden_size: int) -> list[tuple[str, Tensor]]:
    for pattern, name in RENAMES.items():
        if match := re.fullmatch(pattern, module):
            return [(match.expand(name), value)]
    for pattern, names in SPLITS.items():
        if match := re.fullmatch(pattern, module):
            rows = [hidden_size] * 3 + [value.shape[0] - 3 * hidden_size] * (len(names) - 3)
            return [(match.expand(n), part) for n, part in zip(names, value.split(rows), strict=True)]
    for pattern, name in SWAPS.items():
        if match := re.fullmatch(pattern, module):
            shift, scale = value.chunk(2)
            return [(match.expand(name), torch.cat((scale, shift)))]
    raise KeyError(f"{module} is not a module of the HunyuanVideo DiT")
