"""The DiT in diffusers: names of HunyuanVideoTransformer3DModel and its config.json (release facts A.5 and B.13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.convert.lazy import from_tensor
from openhunyuan.convert.names import NameMap, Rule, same
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.layout import ImageCondition

_REFINER = "txt_in.individual_token_refiner.blocks.{i}"
_THEIR_REFINER = "context_embedder.token_refiner.refiner_blocks.{i}"
_DOUBLE, _THEIR_DOUBLE = "double_blocks.{i}", "transformer_blocks.{i}"
_SINGLE, _THEIR_SINGLE = "single_blocks.{i}", "single_transformer_blocks.{i}"

NAMES = NameMap(
    (
        same("img_in.proj", "x_embedder.proj"),
        same("time_in.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
        same("time_in.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
        same("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
        same("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
        same("guidance_in.mlp.0", "time_text_embed.guidance_embedder.linear_1"),
        same("guidance_in.mlp.2", "time_text_embed.guidance_embedder.linear_2"),
        same("txt_in.input_embedder", "context_embedder.proj_in"),
        same("txt_in.t_embedder.mlp.0", "context_embedder.time_text_embed.timestep_embedder.linear_1"),
        same("txt_in.t_embedder.mlp.2", "context_embedder.time_text_embed.timestep_embedder.linear_2"),
        same("txt_in.c_embedder.linear_1", "context_embedder.time_text_embed.text_embedder.linear_1"),
        same("txt_in.c_embedder.linear_2", "context_embedder.time_text_embed.text_embedder.linear_2"),
        same(f"{_REFINER}.norm1", f"{_THEIR_REFINER}.norm1"),
        same(f"{_REFINER}.norm2", f"{_THEIR_REFINER}.norm2"),
        Rule(f"{_REFINER}.self_attn_qkv", tuple(f"{_THEIR_REFINER}.attn.to_{part}" for part in "qkv"), "split"),
        same(f"{_REFINER}.self_attn_proj", f"{_THEIR_REFINER}.attn.to_out.0"),
        same(f"{_REFINER}.mlp.fc1", f"{_THEIR_REFINER}.ff.net.0.proj"),
        same(f"{_REFINER}.mlp.fc2", f"{_THEIR_REFINER}.ff.net.2"),
        same(f"{_REFINER}.adaLN_modulation.1", f"{_THEIR_REFINER}.norm_out.linear"),
        same(f"{_DOUBLE}.img_mod.linear", f"{_THEIR_DOUBLE}.norm1.linear"),
        same(f"{_DOUBLE}.txt_mod.linear", f"{_THEIR_DOUBLE}.norm1_context.linear"),
        Rule(f"{_DOUBLE}.img_attn_qkv", tuple(f"{_THEIR_DOUBLE}.attn.to_{part}" for part in "qkv"), "split"),
        Rule(f"{_DOUBLE}.txt_attn_qkv", tuple(f"{_THEIR_DOUBLE}.attn.add_{part}_proj" for part in "qkv"), "split"),
        same(f"{_DOUBLE}.img_attn_q_norm", f"{_THEIR_DOUBLE}.attn.norm_q"),
        same(f"{_DOUBLE}.img_attn_k_norm", f"{_THEIR_DOUBLE}.attn.norm_k"),
        same(f"{_DOUBLE}.txt_attn_q_norm", f"{_THEIR_DOUBLE}.attn.norm_added_q"),
        same(f"{_DOUBLE}.txt_attn_k_norm", f"{_THEIR_DOUBLE}.attn.norm_added_k"),
        same(f"{_DOUBLE}.img_attn_proj", f"{_THEIR_DOUBLE}.attn.to_out.0"),
        same(f"{_DOUBLE}.txt_attn_proj", f"{_THEIR_DOUBLE}.attn.to_add_out"),
        same(f"{_DOUBLE}.img_mlp.fc1", f"{_THEIR_DOUBLE}.ff.net.0.proj"),
        same(f"{_DOUBLE}.img_mlp.fc2", f"{_THEIR_DOUBLE}.ff.net.2"),
        same(f"{_DOUBLE}.txt_mlp.fc1", f"{_THEIR_DOUBLE}.ff_context.net.0.proj"),
        same(f"{_DOUBLE}.txt_mlp.fc2", f"{_THEIR_DOUBLE}.ff_context.net.2"),
        same(f"{_SINGLE}.modulation.linear", f"{_THEIR_SINGLE}.norm.linear"),
        same(f"{_SINGLE}.q_norm", f"{_THEIR_SINGLE}.attn.norm_q"),
        same(f"{_SINGLE}.k_norm", f"{_THEIR_SINGLE}.attn.norm_k"),
        Rule(
            f"{_SINGLE}.linear1",
            (*(f"{_THEIR_SINGLE}.attn.to_{part}" for part in "qkv"), f"{_THEIR_SINGLE}.proj_mlp"),
            "split",
        ),
        same(f"{_SINGLE}.linear2", f"{_THEIR_SINGLE}.proj_out"),
        same("final_layer.linear", "proj_out"),
        # Official rows are [shift; scale], theirs [scale; shift].
        Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), "swap"),
    )
)

CLASS = "HunyuanVideoTransformer3DModel"

# theirs -> ours, where a value carries over as it is.
_FIELDS = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "num_attention_heads": "num_heads",
    "num_layers": "num_double_blocks",
    "num_single_layers": "num_single_blocks",
    "num_refiner_layers": "num_refiner_blocks",
    "mlp_ratio": "mlp_ratio",
    "rope_axes_dim": "rope_axes_dim",
    "rope_theta": "rope_theta",
    "text_embed_dim": "text_dim",
    "pooled_projection_dim": "pooled_dim",
    "guidance_embeds": "guidance_embed",
}


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict → diffusers state dict; the result shares memory except where rows are swapped.

    Raises KeyError for a key that is not part of a HunyuanVideo DiT.
    """
    hidden_size = state["time_in.mlp.2.weight"].shape[0]
    lazy = NAMES.to_theirs({name: from_tensor(tensor) for name, tensor in state.items()}, hidden_size)
    return {name: value.map() for name, value in lazy.items()}


def from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers state dict → official state dict. Names that are not part of a HunyuanVideo DiT are left out."""
    lazy = NAMES.to_ours({name: from_tensor(tensor) for name, tensor in state.items()})
    return {name: value.map() for name, value in lazy.items()}


def read_config(values: Mapping[str, Any], source: str) -> tuple[dict[str, Any], ImageCondition | None]:
    """A transformer's config.json → the fields of ``DiTConfig``, and how a picture comes in.

    Raises:
        UserError: another network's config, or a value that this network does not have.
    """
    name = values.get("_class_name", CLASS)
    if name != CLASS:
        raise UserError(f"{source} is the config of a {name}, but a {CLASS} is expected.")
    if values.get("qk_norm", "rms_norm") != "rms_norm":
        raise UserError(f"{source}: qk_norm={values['qk_norm']!r} is not supported; expected 'rms_norm'.")
    condition = values.get("image_condition_type")
    if condition not in (None, *get_args(ImageCondition)):
        raise UserError(f"{source}: image_condition_type={condition!r} is not supported.")
    known = {*_FIELDS, "attention_head_dim", "patch_size", "patch_size_t", "qk_norm", "image_condition_type"}
    strange = [key for key in values if key not in known and not key.startswith("_")]
    if strange:
        raise UserError(f"{source} has the unknown key {strange[0]}; this network has {', '.join(sorted(known))}.")
    defaults = {  # of the published class, for keys that an older file lacks
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "patch_size": 2,
        "patch_size_t": 1,
    }
    merged = {**defaults, **values}
    config = {ours: merged[theirs] for theirs, ours in _FIELDS.items() if theirs in merged}
    config["hidden_size"] = merged["num_attention_heads"] * merged["attention_head_dim"]
    config["patch_size"] = (merged["patch_size_t"], merged["patch_size"], merged["patch_size"])
    return config, condition


def write_config(config: DiTConfig, condition: ImageCondition | None) -> dict[str, Any]:
    """The config.json of a transformer folder."""
    frames, height, width = config.patch_size
    if height != width:
        raise UserError(f"The diffusers class knows square patches only, but patch_size is {config.patch_size}.")
    values = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    return {
        "_class_name": CLASS,
        **values,
        "rope_axes_dim": list(config.rope_axes_dim),
        "attention_head_dim": config.head_dim,
        "patch_size": height,
        "patch_size_t": frames,
        "qk_norm": "rms_norm",
        "image_condition_type": condition,
    }
