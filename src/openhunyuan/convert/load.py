"""Any public model, opened for use: the same as ``models.load`` does for our layout, through the name maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from openhunyuan.convert.dit_read import read_dit
from openhunyuan.convert.vae import read_vae
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import LoadedModel, Readers, build_dit, build_vae, load_model
from openhunyuan.models.text.clip import WHAT as CLIP_MODEL
from openhunyuan.models.text.folder import check_model_folder
from openhunyuan.models.text.llm import WHAT as LANGUAGE_MODEL
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.zoo import released_spec


def open_model(
    name_or_path: str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    float8: bool = False,
) -> LoadedModel:
    """A model by name or path, of any layout and format; its parts are read when first used.

    Args:
        name_or_path: a model's name; a folder of ours, an official one, one of diffusers or ComfyUI; or the
            transformer's file, with the other parts in the folders around it.
        device: None takes the best one here.
        dtype: None takes bfloat16 on a GPU that has it, float32 elsewhere; the stored format does not matter.
        float8: keep the linears of the transformer's blocks in eight bits. Of an official folder with both files the
            eight-bit one is taken; other weights are quantized as they are read.

    Raises:
        UserError: no such model, a part missing, a file that is damaged, unsafe or another network's, a tensor of the
            transformer or the VAE that is missing, unknown or of a wrong shape.
    """
    model = load_model(name_or_path, device, dtype, float8, Readers(open_dit, open_vae))
    files = model.files
    # All names and shapes are compared here: a VAE that does not fit must not show after an hour of sampling.
    check_model_folder(files.text_encoder, LANGUAGE_MODEL)
    check_model_folder(files.text_encoder_2, CLIP_MODEL)
    weights = read_dit(files.dit, float8)
    read_vae(files.vae)
    if files.layout == "openhunyuan":
        model.float8 |= weights.is_float8
        return model
    # Whether a released transformer reads pictures decides the defaults, and only its tensors say it for certain.
    files = replace(files, spec=released_spec(files.spec.name, weights.image_condition_type))
    return LoadedModel(
        files, model.device, model.dtype, Readers(open_dit, open_vae), float8=float8 or weights.is_float8
    )


def open_dit(
    path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, float8: bool = False
) -> DiT:
    """The transformer of any weights file or component folder, in eval mode, without gradients."""
    weights = read_dit(path, float8)
    return build_dit(weights.config, weights.state, str(path), device, dtype, float8)


def open_vae(path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> CausalVAE:
    """The VAE of any weights file or component folder, in eval mode, without gradients."""
    weights = read_vae(path)
    return build_vae(weights.config, weights.state, str(path), device, dtype)
