"""Tiny random text models in ordinary Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, LlamaConfig, LlamaForCausalLM

from openhunyuan.models.text import tokenizer as tok
from openhunyuan.models.text.templates import PromptTemplate, TemplateSet, write_templates

WORDS = ["a large red circle moves right on a black background", "a small green star stays still, the camera pans left"]
TEMPLATE = "<|start_header_id|>system<|end_header_id|>\n\nSay:<|eot_id|>{}<|eot_id|>"
LAYERS = 5


@pytest.fixture(scope="session")
def llm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "text_encoder"
    tokenizer = tok.train_llm_tokenizer(WORDS * 3, 330)
    tok.save_llm_tokenizer(folder, tokenizer, 512)
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    fast = tokenizer.encode(TEMPLATE.split("{}")[0])
    template = PromptTemplate(text=TEMPLATE, crop_start=len(fast.ids), max_tokens=len(fast.ids) + 40)
    write_templates(folder, TemplateSet.same(template))
    return folder


@pytest.fixture(scope="session")
def clip_dir(llm_dir: Path) -> Path:
    """The text tower alone, as a release ships it."""
    folder = llm_dir.parent / "text_encoder_2"
    CLIPTextModel.from_pretrained(str(_whole_clip(llm_dir.parent / "clip"))).save_pretrained(str(folder))
    tok.save_clip_tokenizer(folder, tok.train_clip_tokenizer(WORDS * 3, 320), 24)
    return folder


@pytest.fixture(scope="session")
def whole_clip_dir(clip_dir: Path) -> Path:
    """Text and vision tower in one folder, as OpenAI ships it."""
    return clip_dir.parent / "clip"


def _whole_clip(folder: Path) -> Path:
    tokenizer = tok.train_clip_tokenizer(WORDS * 3, 320)
    tok.save_clip_tokenizer(folder, tokenizer, 24)
    common = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = common | {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.token_to_id(tok.CLIP_BOS),
        "eos_token_id": tokenizer.token_to_id(tok.CLIP_EOS),
        "pad_token_id": tokenizer.token_to_id(tok.CLIP_PAD),
    }
    vision = common | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(1)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(str(folder))
    return folder
