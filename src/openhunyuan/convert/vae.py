"""The causal VAE in any public format ↔ ours. Official and diffusers names are ours already (release fact C.7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.convert import vae_ldm
from openhunyuan.convert.lazy import Lazy, from_tensor, reshape
from openhunyuan.convert.plan import File, JsonFile, TensorFile
from openhunyuan.convert.source import config_beside, open_file, open_folder
from openhunyuan.models.load import check_state
from openhunyuan.models.vae.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.zoo import CONFIG, WEIGHTS

_log = get_logger("convert")

_PREFIXES = ("vae.", "first_stage_model.", "")
_SIGN = "decoder.conv_in.conv.weight"
_LDM_SIGN = "decoder.mid.attn_1.q.weight"
OFFICIAL = "pytorch_model.pt"
DIFFUSERS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class VAEWeights:
    """A VAE, opened: its sizes, and our names -> tensors."""

    config: VAEConfig
    state: dict[str, Lazy]


def read_vae(path: Path) -> VAEWeights:
    """Open a VAE: a weights file or a component folder of any format; the config.json beside it is read.

    Raises:
        UserError: not a HunyuanVideo VAE; missing, unknown or wrongly shaped tensors.
    """
    path = Path(path)
    if path.is_dir():
        pickled = next((path / name for name in (OFFICIAL, "pytorch_model.bin") if (path / name).is_file()), None)
        raw = open_file(pickled) if pickled and not any(path.glob("*.safetensors")) else open_folder(path)
    elif path.exists():
        raw = open_file(path)
    else:
        raise UserError(f"The weights {path} do not exist.")
    prefix = next((p for p in _PREFIXES if p + _SIGN in raw), None)
    if prefix is None:
        raise UserError(f"{path} holds no HunyuanVideo VAE (no {_SIGN}); is it another network's file?")
    # Beside a prefix, a training checkpoint may hold a loss network; the official program leaves it out as well.
    state = {name.removeprefix(prefix): value for name, value in raw.items() if name.startswith(prefix)}
    if len(state) < len(raw):
        _log.info("%s: %d tensors that do not begin with %s are left out.", path, len(raw) - len(state), prefix)
    theirs = _LDM_SIGN in state
    ours = vae_ldm.NAMES.to_ours(state) if theirs else state
    values = config_beside(path)
    config = _config(values, path) if values is not None else infer_config(ours, str(path))
    with torch.device("meta"):
        wanted = {name: from_tensor(tensor) for name, tensor in CausalVAE(config).state_dict().items()}
    cause = "its config.json says" if values is not None else "a VAE of this size needs"
    if theirs:
        # Matrices are checked as the convolutions that they may be written as, [out, in] or with ones behind.
        given = {name: _as_convolution(name, value) for name, value in state.items()}
        check_state(vae_ldm.NAMES.to_theirs(wanted), given, str(path), cause)
    else:
        check_state(wanted, state, str(path), cause)
    return VAEWeights(config, ours)


def _as_convolution(name: str, value: Lazy) -> Lazy:
    if re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", name) and set(value.shape[2:]) <= {1}:
        return reshape(value, (*value.shape[:2], 1, 1, 1))
    return value


def _config(values: Mapping[str, Any], path: Path) -> VAEConfig:
    place = (path if path.is_dir() else path.parent) / CONFIG
    name = values.get("_class_name", "AutoencoderKLHunyuanVideo")
    if name not in ("AutoencoderKLHunyuanVideo", "AutoencoderKLCausal3D"):
        raise UserError(f"{place} is the config of a {name}, but AutoencoderKLHunyuanVideo is expected.")
    try:
        return VAEConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{place} has a value of the wrong type ({error}).") from None


def infer_config(state: Mapping[str, Lazy], source: str) -> VAEConfig:
    """The sizes of a VAE from its tensors (our names); the group count and the scaling factor are the release's."""

    def rows(name: str) -> int:
        if name not in state:
            raise UserError(f"The weights in {source} lack keys: {name}; the VAE's sizes cannot be told.")
        return state[name].shape[0]

    channels = tuple(rows(f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight") for i in range(4))
    layers = [name for name in state if re.fullmatch(r"encoder\.down_blocks\.0\.resnets\.\d+\.norm1\.weight", name)]
    return VAEConfig(
        in_channels=state["encoder.conv_in.conv.weight"].shape[1] if rows("encoder.conv_in.conv.weight") else 3,
        out_channels=rows("decoder.conv_out.conv.weight"),
        latent_channels=rows("post_quant_conv.weight"),
        block_out_channels=channels,
        layers_per_block=len(layers),
        mid_block_add_attention="encoder.mid_block.attentions.0.to_q.weight" in state,
    )


def plan_vae(weights: VAEWeights, folder: Path, family: str, comfyui_name: str = "hunyuan_video") -> list[File]:
    """The files of a VAE in the format family openhunyuan, official, diffusers or comfyui."""
    config, state = weights.config, weights.state
    if family == "openhunyuan":
        return [JsonFile(folder / CONFIG, config.to_dict()), TensorFile(folder / WEIGHTS, state)]
    if family == "comfyui":
        kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(state["quant_conv.weight"].dtype, "fp32")
        return [TensorFile(folder / f"{comfyui_name}_vae_{kind}.safetensors", state, metadata={"format": "pt"})]
    values = config.to_dict()
    common = {
        key: values[key]
        for key in (
            "in_channels",
            "out_channels",
            "latent_channels",
            "block_out_channels",
            "layers_per_block",
            "norm_num_groups",
            "scaling_factor",
            "mid_block_add_attention",
        )
    }
    if family == "official":
        published = {
            "_class_name": "AutoencoderKLCausal3D",
            "_diffusers_version": "0.4.2",
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlockCausal3D"] * 4,
            "up_block_types": ["UpDecoderBlockCausal3D"] * 4,
            "sample_size": config.sample_size,
            "sample_tsize": config.sample_tsize,
            "time_compression_ratio": TEMPORAL_COMPRESSION,
        }
        return [JsonFile(folder / CONFIG, published | common), TensorFile(folder / OFFICIAL, state)]
    published = {
        "_class_name": "AutoencoderKLHunyuanVideo",
        "act_fn": "silu",
        "down_block_types": ["HunyuanVideoDownBlock3D"] * 4,
        "up_block_types": ["HunyuanVideoUpBlock3D"] * 4,
        "spatial_compression_ratio": SPATIAL_COMPRESSION,
        "temporal_compression_ratio": TEMPORAL_COMPRESSION,
    }
    return [
        JsonFile(folder / CONFIG, published | common),
        TensorFile(folder / DIFFUSERS, state, metadata={"format": "pt"}),
    ]
