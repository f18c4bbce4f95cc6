"""Small random weights in each public format, written by hand (``tools.tiny_files``) or by diffusers itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from tools.tiny_files import write_comfyui_dit, write_official_dit, write_official_vae

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


def write_official(root: Path, config: DiTConfig = SMALL, kind: str = "t2v") -> Path:
    """``ckpts/`` without text encoders: transformer and VAE. Returns the inner folder."""
    inner = root / f"hunyuan-video-{kind}-720p"
    write_official_dit(inner / "transformers", dit_state(config))
    write_official_vae(inner / "vae", vae_state())
    return inner


def write_official_fp8(folder: Path, config: DiTConfig = SMALL) -> Path:
    return write_official_dit(folder, dit_state(config), fp8=True)


def write_comfyui(path: Path, config: DiTConfig = SMALL, scaled: bool = False) -> Path:
    return write_comfyui_dit(path, dit_state(config), scaled)


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
