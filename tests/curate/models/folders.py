"""Tiny random models in the folders that `transformers` writes, and frames to show to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    DFineConfig,
    DFineForObjectDetection,
    PPOCRV5MobileDetConfig,
    PPOCRV5MobileDetForObjectDetection,
    RTDetrImageProcessorPil,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    VideoMAEConfig,
    VideoMAEImageProcessorPil,
    VideoMAEModel,
    VideoPrismClipModel,
    VideoPrismConfig,
    VJEPA2Config,
    VJEPA2Model,
)

_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _save(folder: Path, model: Any, processor: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():  # published starts are so small that any picture gives nearly the same
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    if isinstance(processor, dict):
        (folder / "video_preprocessor_config.json").write_text(json.dumps(processor))
    elif processor is not None:
        processor.save_pretrained(folder)
    return folder


def clip(folder: Path, projection: int = 24) -> Path:
    vision = {**_VISION, "image_size": 32, "patch_size": 8, "projection_dim": projection}
    config = CLIPConfig(text_config=_TEXT, vision_config=vision, projection_dim=projection)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return _save(folder, CLIPModel(config), CLIPImageProcessorPil(**size))


def siglip(folder: Path) -> Path:
    config = SiglipConfig(text_config=_TEXT, vision_config={**_VISION, "image_size": 32, "patch_size": 8})
    return _save(folder, SiglipModel(config), SiglipImageProcessorPil(size={"height": 32, "width": 32}))


def siglip2(folder: Path) -> Path:
    config = Siglip2Config(text_config=_TEXT, vision_config={**_VISION, "num_patches": 64, "patch_size": 8})
    return _save(folder, Siglip2Model(config), Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24))


def videomae(folder: Path) -> Path:
    config = VideoMAEConfig(**_VISION, image_size=32, patch_size=8, num_frames=4)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return _save(folder, VideoMAEModel(config), VideoMAEImageProcessorPil(**size))


def vjepa2(folder: Path) -> Path:
    config = VJEPA2Config(
        hidden_size=48, num_attention_heads=4, num_hidden_layers=2, crop_size=32, patch_size=8, frames_per_clip=4,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, pred_num_mask_tokens=2,
    )  # fmt: skip
    return _save(
        folder, VJEPA2Model(config), {**_HALF, "do_center_crop": True, "crop_size": 32, "size": {"shortest_edge": 36}}
    )


def videoprism(folder: Path) -> Path:
    vision = {**_VISION, "image_size": 36, "num_frames": 4, "num_spatial_layers": 1, "num_temporal_layers": 1}
    vision = {**vision, "num_auxiliary_layers": 1}
    vision.pop("num_hidden_layers")
    config = VideoPrismConfig(text_config=_TEXT, vision_config=vision)
    return _save(folder, VideoPrismClipModel(config), {"do_normalize": False, "size": {"height": 36, "width": 36}})


def detector(folder: Path, names: dict[int, str]) -> Path:
    config = DFineConfig(
        d_model=32, encoder_hidden_dim=32, encoder_layers=1, decoder_layers=2, decoder_n_points=[2, 2, 2],
        encoder_in_channels=[32, 48, 64], decoder_in_channels=[32, 32, 32], encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=12, num_denoising=0, id2label=names,
        label2id={name: number for number, name in names.items()}, hidden_expansion=0.5,
        backbone_config={
            "model_type": "hgnet_v2", "hidden_sizes": [16, 32, 48, 64], "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 16, 32, 48],
            "stage_mid_channels": [8, 8, 16, 16], "stage_out_channels": [16, 32, 48, 64], "out_indices": [2, 3, 4],
            "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1],
        },
    )  # fmt: skip
    return _save(folder, DFineForObjectDetection(config), RTDetrImageProcessorPil(size={"height": 64, "width": 64}))


def ppocr(folder: Path) -> Path:
    backbone = {
        "model_type": "pp_lcnet_v3", "scale": 1.0, "stem_channels": 8, "divisor": 8, "conv_symmetric_num": 1,
        "block_configs": [
            [[3, 8, 8, 1, False]], [[3, 8, 8, 2, False]], [[3, 8, 16, 2, False]], [[3, 16, 16, 2, False]],
            [[5, 16, 24, 2, True]],
        ],
        "out_features": ["stage2", "stage3", "stage4", "stage5"], "out_indices": [2, 3, 4, 5],
    }  # fmt: skip
    config = PPOCRV5MobileDetConfig(
        backbone_config=backbone, neck_out_channels=16, layer_list_out_channels=[8, 8, 8, 8], reduction=2
    )
    return _save(folder, PPOCRV5MobileDetForObjectDetection(config), None)


def frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 [count, height, width, 3]: soft blobs of colour that drift."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform(0.03, 0.2, 3), rng.uniform(0.03, 0.2, 3), rng.uniform(0, 6, 3)
    y, x = np.mgrid[0:height, 0:width][..., None].astype(np.float64)
    t = np.arange(count)[:, None, None, None]
    return (127 + 100 * np.sin(a * (x + t) + b * y + c)).astype(np.uint8)
