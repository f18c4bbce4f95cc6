"""LoRA files and the keys in them, without torch: which file is meant, and which part of which layer a key holds.

A key is a prefix, a layer's name and an ending. Writers differ in all three, so each is a table here; the layers' names
are in ``convert.lora_names``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import read_header

PREFIXES = (
    "base_model.model.",  # PEFT
    "model.diffusion_model.",
    "diffusion_model.",  # ComfyUI, musubi's other format
    "transformer.",  # diffusers, diffusion-pipe, OneTrainer
    "lora_unet_",  # kohya, musubi
    "lora_transformer_",  # OneTrainer before its format had dots
    "lycoris_",  # SimpleTuner
    "Hunyuan_video_I2V_lora_",  # the official image-to-video training
)
"""What writers put before a layer's name; several may follow each other."""

ENDINGS = {
    r"\.lora_(?:down|A)(?:\.[\w-]+)?\.weight": "down",
    r"\.lora_(?:up|B)(?:\.[\w-]+)?\.weight": "up",
    r"[._]lora(?:_linear_layer)?\.down\.weight": "down",
    r"[._]lora(?:_linear_layer)?\.up\.weight": "up",
    r"\.alpha": "alpha",
    r"\.diff": "diff",
    r"\.diff_b": "diff_b",
}
"""Ending of a key → what it holds: a pair's matrices, its alpha, or a dense difference of a weight or a bias."""

OTHER_KINDS = {
    r"lokr_": "LoKr",
    r"hada_": "LoHa",
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"lora_mid": "Tucker-decomposed",
    r"oft_|boft": "OFT",
}
"""Part of a key → the kind of adapter it belongs to, which this package does not read."""

ADAPTER_CONFIG = "adapter_config.json"
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Weights in a PEFT folder and in a diffusers folder."""


def split_key(key: str) -> tuple[str, str] | None:
    """A key → (layer's name without prefixes, what it holds); None when its ending is not a LoRA's."""
    for ending, role in ENDINGS.items():
        if match := re.fullmatch(rf"(.+?){ending}", key):
            return strip_prefixes(match[1]), role
    return None


def strip_prefixes(name: str) -> str:
    """A layer's name without what writers put before it."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def other_kind(keys: Iterable[str]) -> str | None:
    """The kind of adapter these keys belong to when it is a known one that is not LoRA."""
    return next((kind for key in keys for part, kind in OTHER_KINDS.items() if re.search(part, key)), None)


def lora_file(path: str | Path) -> Path:
    """The weights file that ``path`` means: itself, or the one in a PEFT or diffusers folder.

    Raises:
        UserError: nothing is there, or a folder without LoRA weights.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"The LoRA {path} does not exist.")
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    found = f"{len(files)} .safetensors files" if files else "no .safetensors file"
    raise UserError(f"The folder {path} has {found}; give the path of the LoRA file itself.")


def check_lora_file(path: str | Path) -> None:
    """Raise ``UserError`` unless ``path`` is a readable safetensors file with LoRA weights; reads only its header."""
    keys = [key for key in read_header(lora_file(path)) if key != "__metadata__"]
    refuse_other_kinds(keys, path)
    if not any(split_key(key) for key in keys):
        shown = f" (its first key is {keys[0]})" if keys else " (it is empty)"
        raise UserError(f"{path} is not a LoRA: none of its keys ends like lora_down.weight or lora_A.weight{shown}.")


def refuse_other_kinds(keys: Iterable[str], path: str | Path) -> None:
    """Raise ``UserError`` when the keys are those of another kind of adapter."""
    if kind := other_kind(keys):
        raise UserError(f"{path} holds {kind} weights, but only plain LoRA (low-rank pairs with an alpha) is read.")
