"""A transformer's weights in any public format → our names, checked whole, nothing read yet.

Formats differ in container (pickle, safetensors, shards), in names (official, diffusers, ComfyUI), and in how
eight-bit weights carry their scales. Each is undone here; what comes out is always the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.record import sentence
from openhunyuan.convert import dit_comfyui, dit_diffusers
from openhunyuan.convert.lazy import Lazy, apply, from_tensor, reshape
from openhunyuan.convert.names import NameMap
from openhunyuan.convert.source import config_beside, open_file, open_folder
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.layout import ImageCondition, named_condition, official_file
from openhunyuan.models.load import check_state
from openhunyuan.models.zoo import CONFIG
from openhunyuan.ops.float8 import FLOAT8, FLOAT8_MAX, SCALE, dequantize, is_quantized

_log = get_logger("convert")

FLOAT8_KINDS = (torch.float8_e4m3fn, torch.float8_e5m2)
_LANGUAGES: dict[str, NameMap | None] = {
    "official": None,
    "diffusers": dit_diffusers.NAMES,
    "comfyui": dit_comfyui.NAMES,
}
# A tensor that every transformer has and that only one language calls so.
_SIGNS = {
    "official": "txt_in.c_embedder.linear_1.weight",
    "diffusers": "context_embedder.proj_in.weight",
    "comfyui": "txt_in.c_embedder.in_layer.weight",
}


@dataclass(frozen=True)
class DiTWeights:
    """A transformer, opened.

    Attributes:
        config: its sizes.
        state: our names -> tensors. An eight-bit weight has its scale beside it as ``weight_scale``, [1] float32.
        image_condition_type: how a picture comes in, as far as config, shapes and the files' names tell.
        language: whose names the file used: official, diffusers or comfyui.
    """

    config: DiTConfig
    state: dict[str, Lazy]
    image_condition_type: ImageCondition | None
    language: str

    @property
    def is_float8(self) -> bool:
        """Whether any weight is stored in eight bits."""
        return any(name.endswith(f".{SCALE}") for name in self.state)


def read_dit(path: Path, float8: bool = False, condition: ImageCondition | None = None) -> DiTWeights:
    """Open a transformer: a weights file, or a component folder of any format.

    Args:
        path: the file or folder.
        float8: of an official folder with both files, take the eight-bit one.
        condition: how a picture comes in, if it is known; None looks at the config and the files' names.

    Raises:
        UserError: not a HunyuanVideo transformer; missing, unknown or wrongly shaped tensors; scales that are missing
            or lead nowhere.
    """
    path, raw = _open(Path(path), float8)
    named, scales = _scales(_without_prefix(raw, path), path)
    language = next((language for language, sign in _SIGNS.items() if sign in named), None)
    if language is None:
        raise UserError(
            f"{path} holds no HunyuanVideo transformer (no {_SIGNS['official']}, nor what diffusers or ComfyUI "
            "call it); is it another network's file?"
        )
    names = _LANGUAGES[language]
    if language == "diffusers":
        # Parts that are one matrix with us may have several scales there, so they cannot stay in eight bits.
        for module, scale in scales.items():
            named[f"{module}.weight"] = full_precision(named[f"{module}.weight"], scale)
        scales = {}
    elif names is not None:
        scales = {names.find_back(module)[1]: scale for module, scale in scales.items()}
    values, found = _read_config(path, language)
    ours = named if names is None else names.to_ours(named)
    config = _config(values, path) if values else infer_config(ours, str(path))
    condition = "latent_concat" if config.in_channels > config.out_channels else condition or found
    with torch.device("meta"):
        wanted = {name: from_tensor(tensor) for name, tensor in DiT(config).state_dict().items()}
    theirs = wanted if names is None else names.to_theirs(wanted, config.hidden_size)
    check_state(theirs, named, str(path), "its config.json says" if values else "a transformer of this size needs")
    return DiTWeights(config, _settle(ours, scales, path), condition, language)


def _open(path: Path, float8: bool) -> tuple[Path, dict[str, Lazy]]:
    if path.is_dir():
        pickled = official_file(path, float8)
        if pickled is None:
            return path, open_folder(path)
        path = pickled
    elif not path.exists():
        raise UserError(f"The weights {path} do not exist.")
    return path, open_file(path)


def _without_prefix(raw: Mapping[str, Lazy], path: Path) -> dict[str, Lazy]:
    for prefix in dit_comfyui.PREFIXES:
        if any(prefix + sign in raw for sign in _SIGNS.values()):
            strange = [name for name in raw if not name.startswith(prefix) and name != "scaled_fp8"]
            if strange:
                raise UserError(
                    f"{path} has tensors beside those of {prefix}*: {', '.join(strange[:3])}"
                    f"{' and more' if len(strange) > 3 else ''}; give a file that holds the transformer alone."
                )
            return {name.removeprefix(prefix): value for name, value in raw.items()}
    return dict(raw)


# What a scale of a weight is called: by us and newer ComfyUI, by older ComfyUI.
_WEIGHT_SCALES = (f".{SCALE}", ".scale_weight")
# For products in eight bits, which we do not do: scales of the activations, and which kernel to take.
_IGNORED = (".scale_input", ".input_scale", ".comfy_quant")


def _scales(named: Mapping[str, Lazy], path: Path) -> tuple[dict[str, Lazy], dict[str, Lazy]]:
    """Split what belongs to eight-bit storage from the network's own tensors: (tensors, module -> scale)."""
    tensors: dict[str, Lazy] = {}
    scales: dict[str, Lazy] = {}
    ignored = 0
    for name, value in named.items():
        ending = next((end for end in _WEIGHT_SCALES if name.endswith(end)), None)
        if ending:
            scales[name.removesuffix(ending)] = value
        elif name.endswith(_IGNORED):
            _check_quantization(name, value, path)
            ignored += 1
        elif name != "scaled_fp8":
            tensors[name] = value
    if ignored:
        _log.info("%s: %d scales of activations are not used; weights alone are eight bits here.", path, ignored)
    if any(value.dtype in FLOAT8_KINDS for value in tensors.values()):
        scales |= _map_file(path)
    lost = sorted(module for module in scales if f"{module}.weight" not in tensors)
    if lost:
        raise UserError(f"The scales of {path} are for modules that it does not have: {', '.join(lost[:3])}.")
    for module, scale in scales.items():
        if tensors[f"{module}.weight"].dtype not in FLOAT8_KINDS:
            raise UserError(f"{path} has a scale for {module}, but its weight is not stored in eight bits.")
        if scale.shape not in ((), (1,)):
            raise UserError(f"{path}: the scale of {module} has shape {list(scale.shape)}, but one number is expected.")
    return tensors, scales


def _check_quantization(name: str, value: Lazy, path: Path) -> None:
    if not name.endswith(".comfy_quant"):
        return
    try:
        kind = json.loads(bytes(value.read().tolist())).get("format")
    except (ValueError, AttributeError, TypeError):
        kind = "an unreadable description"
    if kind != "float8_e4m3fn":
        raise UserError(f"{path}: {name} says {kind}, but of quantized formats only float8_e4m3fn is read.")


def _map_file(path: Path) -> dict[str, Lazy]:
    """The scales of an official eight-bit file, from the ``…_map`` file beside it (release fact A.3)."""
    if path.is_dir():
        return {}
    for suffix in dict.fromkeys((path.suffix, ".pt", ".safetensors")):
        place = path.with_name(f"{path.stem}_map{suffix}")
        if place.is_file():
            return {name.removesuffix(f".{SCALE}"): value for name, value in open_file(place).items()}
    if path.stem.endswith("_fp8"):
        raise UserError(
            f"{path} holds eight-bit weights, but the scales that belong to them are missing; "
            f"put {path.stem}_map{path.suffix} beside it."
        )
    return {}


def _settle(ours: Mapping[str, Lazy], scales: Mapping[str, Lazy], path: Path) -> dict[str, Lazy]:
    """Eight-bit weights where the network keeps them, each with a scale; everything else in its own format."""
    out: dict[str, Lazy] = {}
    checked = False
    for name, value in ours.items():
        if value.dtype not in FLOAT8_KINDS:
            out[name] = value
            continue
        module, _, parameter = name.rpartition(".")
        scale = scales.get(module)
        if scale is None:
            if not checked:
                _refuse_lost_scales(name, value, path)
                checked = True
            scale = from_tensor(torch.ones(1))
        scale = reshape(apply(scale, lambda x: x.float(), torch.float32), (1,))
        if parameter == "weight" and value.dtype == FLOAT8 and is_quantized(module):
            out[name], out[f"{module}.{SCALE}"] = value, scale
        else:
            out[name] = full_precision(value, scale)
    return out


def full_precision(weight: Lazy, scale: Lazy, dtype: torch.dtype = torch.bfloat16) -> Lazy:
    """An eight-bit weight with its scale → the weight it stands for."""
    return apply(weight, lambda x: dequantize(x, scale.read(), dtype), dtype)


def _refuse_lost_scales(name: str, value: Lazy, path: Path) -> None:
    """A weight that was scaled into the whole range of its format is wrong without its scale; a plain cast is not."""
    if value.dtype == FLOAT8 and value.read().float().abs().max() == FLOAT8_MAX:
        raise UserError(
            f"{path} holds eight-bit weights that were scaled to the format's range ({name} reaches "
            f"{FLOAT8_MAX:g}), but no scales; get the file with them, or put {path.stem}_map{path.suffix} beside it."
        )


def _read_config(path: Path, language: str) -> tuple[dict[str, Any] | None, ImageCondition | None]:
    """Fields of ``DiTConfig`` from the config.json where the format has one, and how a picture comes in."""
    values = config_beside(path)
    if values is not None and language == "diffusers":
        return dit_diffusers.read_config(values, str((path if path.is_dir() else path.parent) / CONFIG))
    # An official folder may have a config.json that no program reads (release fact A.1); ours has these keys.
    if values is not None and {"hidden_size", "num_double_blocks"} & set(values):
        return values, named_condition(path)
    return None, named_condition(path)


def _config(values: Mapping[str, Any], path: Path) -> DiTConfig:
    try:
        return DiTConfig(**values)
    except ValidationError as error:
        place = path if path.is_dir() else path.parent
        raise UserError(f"{place / CONFIG}: {sentence(error, DiTConfig)}") from None


def infer_config(state: Mapping[str, Lazy], source: str) -> DiTConfig:
    """The sizes of a transformer from the shapes of its tensors (our names).

    What shapes do not tell is that of the release: the rope base 256, and head channels divided between time, height
    and width as 1/8, 7/16, 7/16. Raises ``UserError`` when a tensor that is needed for this is not there.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f"The weights in {source} lack keys: {name}; the transformer's sizes cannot be told.")
        found = state[name].shape
        if len(found) != ndim:
            raise UserError(
                f"In {source} the tensor {name} has shape {list(found)}, but {ndim} dimensions are expected."
            )
        return found

    def blocks(stem: str) -> int:
        numbers = [int(m.group(1)) for name in state if (m := re.match(re.escape(stem) + r"\.(\d+)\.", name))]
        return max(numbers, default=-1) + 1

    hidden, in_channels, *patch = shape("img_in.proj.weight", 5)
    volume = patch[0] * patch[1] * patch[2]
    double, single = blocks("double_blocks"), blocks("single_blocks")
    head = "double_blocks.0.img_attn_q_norm.weight" if double else "single_blocks.0.q_norm.weight"
    head_dim = shape(head, 1)[0]
    if double:
        mlp_size = shape("double_blocks.0.img_mlp.fc1.weight", 2)[0]
    else:
        mlp_size = shape("single_blocks.0.linear1.weight", 2)[0] - 3 * hidden
    values = {
        "in_channels": in_channels,
        "out_channels": shape("final_layer.linear.weight", 2)[0] // volume,
        "patch_size": tuple(patch),
        "hidden_size": hidden,
        "num_heads": hidden // head_dim,
        "num_double_blocks": double,
        "num_single_blocks": single,
        "num_refiner_blocks": blocks("txt_in.individual_token_refiner.blocks"),
        "mlp_ratio": mlp_size / hidden,
        "rope_axes_dim": rope_axes(head_dim),
        "text_dim": shape("txt_in.input_embedder.weight", 2)[1],
        "pooled_dim": shape("vector_in.in_layer.weight", 2)[1],
        "guidance_embed": any(name.startswith("guidance_in.") for name in state),
    }
    try:
        return DiTConfig(**values)
    except ValidationError as error:
        raise UserError(f"The shapes in {source} make no transformer: {sentence(error, DiTConfig)}") from None


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """How a head's channels are divided in the released sizes: 128 -> (16, 56, 56), 96 -> (12, 42, 42)."""
    time = max(2, head_dim // 8 // 2 * 2)
    while (head_dim - time) % 4:
        time += 2
        if time > head_dim:
            break
    side = max(0, head_dim - time) // 2
    return time, side, side
