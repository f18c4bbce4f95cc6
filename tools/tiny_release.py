"""Small random models in the released formats: what the tests and the parity table compare with diffusers.

Everything has the released structure (LLaVA with a CLIP vision tower, CLIP text tower, guidance-distilled transformer,
causal VAE) at a size that runs in a second, with weights that all matter. The tokenizer knows the words of the
released templates, and a picture is 24x24 patches, so that every count of tokens is that of the release: 95, 36 and 103
before the prompt, 576 a picture.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openhunyuan.convert.dit_diffusers import to_diffusers
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.text.templates import PromptTemplate, TemplateSet, released_template
from openhunyuan.models.text.tokenizer import (
    save_clip_tokenizer,
    save_llm_tokenizer,
    train_clip_tokenizer,
    train_llm_tokenizer,
)

IMAGE_TOKEN = "<image>"
PROMPT = "a large red circle moves right on a black background"
NEGATIVE = "a small green star"
WORDS = (PROMPT, NEGATIVE, "the camera pans left", "a cat walks on the grass, realistic style")
WIDTH, LAYERS = 32, 5
IMAGE_SIZE, IMAGE_PATCH = 48, 2
IMAGE_TOKENS = (IMAGE_SIZE // IMAGE_PATCH) ** 2
CLIP_TOKENS = 77

DIT = DiTConfig(
    hidden_size=48,
    num_heads=2,
    num_double_blocks=2,
    num_single_blocks=2,
    rope_axes_dim=(4, 10, 10),
    text_dim=WIDTH,
    pooled_dim=WIDTH,
)
VAE = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 16,
    "scaling_factor": 0.476986,
}


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def randomize(model: torch.nn.Module, seed: int, std: float = 0.15) -> torch.nn.Module:
    """Give every parameter a value that matters: matrices N(0, std²), gains about 1, biases about 0."""
    rng = seeded(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, std, generator=rng)
            else:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=rng)
    return model.eval()


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth random RGB picture."""
    small = torch.rand(1, 3, 5, 7, generator=seeded(seed))
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)[0]
    return Image.fromarray((large.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8))


# -- text ------------------------------------------------------------------------------------------------------------


def short_templates(budget: int) -> TemplateSet:
    """The released templates with room for ``budget`` tokens of prompt and ending only."""

    def short(name: str) -> PromptTemplate:
        template = released_template(name)
        return replace(template, max_tokens=template.crop_start + budget)

    return TemplateSet(
        video=short("dit-llm-encode-video"),
        image=short("dit-llm-encode"),
        image_to_video=short("dit-llm-encode-video-i2v"),
    )


def save_tokenizer(folder: Path) -> Any:
    """Train and save the language model's tokenizer; returns it as transformers loads it."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    parts = [
        part
        for name in ("dit-llm-encode-video", "dit-llm-encode", "dit-llm-encode-video-i2v")
        for part in re.split(r"<[^>]+>", released_template(name).text)
        if part
    ]
    tokenizer = train_llm_tokenizer([*parts, "system", "user", "assistant", "\n\n", *WORDS] * 5, 900)
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    save_llm_tokenizer(folder, tokenizer, 4096)
    return AutoTokenizer.from_pretrained(str(folder))


def llama_config(vocab_size: int) -> Any:
    """A five-layer Llama with grouped queries."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
    )


def llava(tokenizer: Any) -> Any:
    """A LLaVA with a three-layer vision tower, of which LLaVA reads two."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    pad = tokenizer.pad_token_id
    text = llama_config(len(tokenizer))
    text.pad_token_id = pad
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_PATCH,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
    )
    config.pad_token_id = pad  # diffusers asks the whole model for it
    return randomize(LlavaForConditionalGeneration(config), 3)


def image_processor() -> Any:
    """CLIP's preparation of pictures at the small size (the PIL form, which needs no torchvision)."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def clip_text(folder: Path) -> tuple[Any, Any]:
    """A two-layer CLIP text tower, and its tokenizer saved in ``folder``."""
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    tokenizer = train_clip_tokenizer([*WORDS] * 3, 400)
    save_clip_tokenizer(folder, tokenizer, CLIP_TOKENS)
    fast = AutoTokenizer.from_pretrained(str(folder))
    config = CLIPTextConfig(
        vocab_size=len(fast),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    return randomize(CLIPTextModel(config), 4), fast


# -- transformer and VAE ---------------------------------------------------------------------------------------------


def diffusers_dit(dit: DiT, image_condition_type: str | None) -> Any:
    """The same transformer as diffusers builds it."""
    from diffusers import HunyuanVideoTransformer3DModel

    config = dit.config
    other = HunyuanVideoTransformer3DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_double_blocks,
        num_single_layers=config.num_single_blocks,
        num_refiner_layers=config.num_refiner_blocks,
        mlp_ratio=config.mlp_ratio,
        text_embed_dim=config.text_dim,
        pooled_projection_dim=config.pooled_dim,
        rope_theta=config.rope_theta,
        rope_axes_dim=config.rope_axes_dim,  # pyright: ignore[reportArgumentType]
        guidance_embeds=config.guidance_embed,
        image_condition_type=image_condition_type,
    )
    other.load_state_dict(to_diffusers(dit.state_dict()), strict=True)
    return other.eval()


def random_dit(image_condition_type: str | None, seed: int = 0) -> DiT:
    """A small transformer of one of the three released kinds."""
    concat = image_condition_type == "latent_concat"
    config = DIT.model_copy(update={"in_channels": 33, "guidance_embed": False}) if concat else DIT
    return randomize(DiT(config), seed, 0.08)  # pyright: ignore[reportReturnType]


def diffusers_vae() -> Any:
    """A small causal VAE whose tiles in time are the official ones (release fact J.44)."""
    from diffusers import AutoencoderKLHunyuanVideo

    vae: Any = randomize(AutoencoderKLHunyuanVideo(**VAE), 5, 0.12)  # pyright: ignore[reportArgumentType]
    return official_tiles(vae)


def official_tiles(vae: Any) -> Any:
    """Set the official tile lengths in time: diffusers cuts 16 frames, the release 64 (release fact C.5)."""
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = 64, 48
    return vae


# -- pipelines -------------------------------------------------------------------------------------------------------


def diffusers_pipeline(folder: Path, image_condition_type: str | None = None) -> Any:
    """A whole random pipeline of diffusers: text-to-video, or image-to-video of one of both kinds."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline

    tokenizer = save_tokenizer(folder / "tokenizer")
    clip, clip_tokenizer = clip_text(folder / "tokenizer_2")
    seer = llava(tokenizer)
    parts: dict[str, Any] = {
        "text_encoder": seer if image_condition_type else seer.model.language_model,
        "tokenizer": tokenizer,
        "transformer": diffusers_dit(random_dit(image_condition_type), image_condition_type),
        "vae": diffusers_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": clip,
        "tokenizer_2": clip_tokenizer,
    }
    if image_condition_type:
        pipe: Any = HunyuanVideoImageToVideoPipeline(**parts, image_processor=image_processor())
    else:
        pipe = HunyuanVideoPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_llava(folder: Path) -> Any:
    """A LLaVA folder as its release has it: model, tokenizer, picture preparation; returns the model."""
    tokenizer = save_tokenizer(folder)
    model = llava(tokenizer)
    model.save_pretrained(str(folder))
    preparation = image_processor().to_dict()
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation, indent=2) + "\n", encoding="utf-8")
    return model
