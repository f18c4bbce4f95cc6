"""Small random weights, written in each public format by hand: by torch.save, safetensors or diffusers itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE

# Heads of 16 channels are divided as (4, 6, 6) where nothing says so: the rule of the released sizes.
SMALL = DiTConfig(
    hidden_size=32,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=2,
    num_refiner_blocks=1,
    rope_axes_dim=(4, 6, 6),
    text_dim=32,
    pooled_dim=32,
)
CONCAT = SMALL.model_copy(update={"in_channels": 33, "guidance_embed": False})
SMALL_VAE = VAEConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1)


def random_state(model: torch.nn.Module, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    """Every parameter different from every other and from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(value.shape, generator=generator) * 0.1 + (1 if value.ndim == 1 else 0)).to(dtype)
        for name, value in model.state_dict().items()
    }


def dit_state(config: DiTConfig = SMALL, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = DiT(config)
    return random_state(model, dtype, seed)


def vae_state(dtype: torch.dtype = torch.float16, seed: int = 1) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = CausalVAE(SMALL_VAE)
    return random_state(model, dtype, seed)


def same_tensors(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Same names, shapes, formats and bits."""
    return set(one) == set(two) and all(same_bits(one[name], two[name]) for name in one)


def same_bits(one: Tensor, two: Tensor) -> bool:
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(*raw)


def quantized(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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


def write_official(root: Path, config: DiTConfig = SMALL, kind: str = "t2v") -> Path:
    """``ckpts/`` without text encoders: transformer (bf16 and fp8) and VAE. Returns the inner folder."""
    inner = root / f"hunyuan-video-{kind}-720p"
    (inner / "transformers").mkdir(parents=True)
    (inner / "vae").mkdir()
    state = dit_state(config)
    torch.save({"module": state}, inner / "transformers" / "mp_rank_00_model_states.pt")
    torch.save({f"vae.{name}": value for name, value in vae_state().items()}, inner / "vae" / "pytorch_model.pt")
    (inner / "vae" / "config.json").write_text(json.dumps(OFFICIAL_VAE))
    return inner


def write_official_fp8(folder: Path, config: DiTConfig = SMALL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors, scales = quantized(dit_state(config))
    torch.save({"module": tensors}, folder / "mp_rank_00_model_states_fp8.pt")
    torch.save(scales, folder / "mp_rank_00_model_states_fp8_map.pt")
    return folder / "mp_rank_00_model_states_fp8.pt"


def write_comfyui(path: Path, config: DiTConfig = SMALL, scaled: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = dit_state(config)
    scales: dict[str, Tensor] = {}
    if scaled:
        state, scales = quantized(state)
    out = {f"model.model.{comfyui_name(name)}": value for name, value in state.items()}
    for module, scale in scales.items():
        out[f"model.model.{comfyui_name(module + '.weight').removesuffix('.weight')}.scale_weight"] = scale.reshape(())
    if scaled:
        out["model.model.scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    save_file(out, str(path), metadata={"format": "pt"})
    return path


def write_diffusers(folder: Path, condition: str | None = None, shard: str = "40KB") -> Path:
    """Transformer and VAE folders as diffusers itself saves them, in shards."""
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

    concat = condition == "latent_concat"
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=33 if concat else 16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=not concat,
        image_condition_type=condition,
    ).to(torch.bfloat16)
    transformer.load_state_dict(random_state(transformer))
    transformer.save_pretrained(str(folder / "transformer"), max_shard_size=shard)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 32, 32), layers_per_block=1).to(torch.float16)
    vae.load_state_dict(vae_state())
    vae.save_pretrained(str(folder / "vae"))
    pipeline = "HunyuanVideoImageToVideoPipeline" if condition else "HunyuanVideoPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_official(tmp_path / "ckpts")
