"""Shared fixtures: a complete model folder with micro random weights, so that tests need no trained ones."""

from __future__ import annotations

from pathlib import Path

import pytest

MICRO_DEFAULTS = {
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "true_cfg_scale": 2.0,
    "flow_shift": 3.0,
    "fps": 8.0,
}
_TEXTS = [
    f"a {size} {color} {shape} moves {way} on a {ground} background"
    for size in ("large", "small")
    for color in ("red", "green", "blue")
    for shape in ("circle", "square", "star")
    for way in ("left", "right", "up", "down")
    for ground in ("black", "gray")
]


@pytest.fixture(scope="session")
def micro_text_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random four-layer Llama and a random CLIP text tower (both 32 wide) with tokenizers: (llm_dir, clip_dir)."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    from openhunyuan.models.text.templates import PromptTemplate, TemplateSet, write_templates
    from openhunyuan.models.text.tokenizer import (
        save_clip_tokenizer,
        save_llm_tokenizer,
        train_clip_tokenizer,
        train_llm_tokenizer,
    )

    root = tmp_path_factory.mktemp("micro-text")
    llm_dir, clip_dir = root / "text_encoder", root / "text_encoder_2"
    llm_dir.mkdir()
    clip_dir.mkdir()
    llm_tokenizer, clip_tokenizer = train_llm_tokenizer(_TEXTS, 400), train_clip_tokenizer(_TEXTS, 400)
    text = "<|start_header_id|>system<|end_header_id|>\n\nDescribe.<|eot_id|>{}<|eot_id|>"
    crop_start = len(llm_tokenizer.encode(text.split("{}")[0]).ids)
    template = PromptTemplate(text=text, crop_start=crop_start, max_tokens=crop_start + 48)
    write_templates(llm_dir, TemplateSet.same(template))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaModel(
            LlamaConfig(
                vocab_size=llm_tokenizer.get_vocab_size(),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=2,
            )
        ).save_pretrained(llm_dir)
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=clip_tokenizer.get_vocab_size(),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=48,
                bos_token_id=clip_tokenizer.token_to_id("<|startoftext|>"),
                eos_token_id=clip_tokenizer.token_to_id("<|endoftext|>"),
                pad_token_id=clip_tokenizer.token_to_id("<|pad|>"),
            )
        ).save_pretrained(clip_dir)
    save_llm_tokenizer(llm_dir, llm_tokenizer, crop_start + 48)
    save_clip_tokenizer(clip_dir, clip_tokenizer, 48)
    return llm_dir, clip_dir


@pytest.fixture(scope="session")
def micro_model_folder(tmp_path_factory: pytest.TempPathFactory, micro_text_folders: tuple[Path, Path]) -> Path:
    """A model folder (see ``models.zoo``) with a random DiT 32 wide and a random VAE; the same weights every time.

    Defaults: 5 frames of 32x32, three steps, true guidance 2. Session-scoped: copy it before changing it.
    """
    import torch

    from openhunyuan.models.dit.config import DiTConfig
    from openhunyuan.models.dit.model import DiT
    from openhunyuan.models.load import save_model_folder
    from openhunyuan.models.vae.config import VAEConfig
    from openhunyuan.models.vae.model import CausalVAE

    folder = tmp_path_factory.mktemp("models") / "micro"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = DiT(
            DiTConfig(
                hidden_size=32,
                num_heads=2,
                num_double_blocks=1,
                num_single_blocks=2,
                num_refiner_blocks=1,
                rope_axes_dim=(4, 6, 6),
                text_dim=32,
                pooled_dim=32,
                guidance_embed=False,
            )
        )
        vae = CausalVAE(VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4))
    save_model_folder(folder, dit, vae, *micro_text_folders, defaults=MICRO_DEFAULTS, name="micro", dtype=None)
    return folder
