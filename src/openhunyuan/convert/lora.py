"""LoRA files: every format of the field in, each of ``FORMATS`` out.

Reading needs no flag: keys are matched, whatever their prefix, spelling and ending, against the layers of the model,
and a key that matches none is an error. Writing and reading again gives the same LoRA. Splitting a fused layer is exact
(the parts share ``down``), and joining parts with ``down`` of their own puts them side by side in one pair of higher
rank, which splits into the same parts again.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json, unknown
from openhunyuan.base.weights import load_safetensors, read_weights_metadata, save_safetensors
from openhunyuan.convert.lora_keys import (
    ADAPTER_CONFIG,
    FOLDER_FILES,
    check_lora_file,
    lora_file,
    refuse_other_kinds,
    split_key,
    strip_prefixes,
)
from openhunyuan.convert.lora_names import Naming, Place, joined, layers, spell, table
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.lora import LoRA, LowRank, check_lora, listed

ARCHITECTURE = "modelspec.architecture"
PEFT_METADATA = "lora_adapter_metadata"
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Format:
    """How a writer spells keys.

    Attributes:
        naming: of the layers.
        prefix: before the layer's name.
        underscores: whether they stand for dots in the layer's name.
        ends: of ``down`` and ``up``.
        alpha: "key" writes it always, "unless rank" only where it says something, "config" in PEFT's configuration.
    """

    naming: Naming
    prefix: str
    underscores: bool
    ends: tuple[str, str]
    alpha: Literal["key", "unless rank", "config"]


_DOWN_UP = ("lora_down.weight", "lora_up.weight")
_A_B = ("lora_A.weight", "lora_B.weight")
FORMATS: dict[str, Format] = {
    "kohya": Format("official", "lora_unet_", True, _DOWN_UP, "key"),
    "official": Format("official", "Hunyuan_video_I2V_lora_", True, _DOWN_UP, "key"),
    "comfyui": Format("comfyui", "diffusion_model.", False, _DOWN_UP, "key"),
    "diffusion-pipe": Format("official", "transformer.", False, _A_B, "unless rank"),
    "onetrainer": Format("onetrainer", "transformer.", False, _DOWN_UP, "key"),
    "diffusers": Format("diffusers", "transformer.", False, _A_B, "config"),
    "peft": Format("diffusers", "base_model.model.", False, _A_B, "config"),
}
"""What can be written; everything here, and every mixture of these parts, is read."""


def read_lora(path: str | os.PathLike[str], model: nn.Module) -> LoRA:
    """Read a LoRA of any format for a transformer, whose tensors are not looked at (it may be on the meta device).

    Args:
        path: a safetensors file, or a PEFT or diffusers folder.
        model: says which layers there are.

    Raises:
        UserError: not a safetensors file; not a LoRA; another kind of adapter; a LoRA for another model; a key that
            belongs to no layer (all are listed); half a pair.
    """
    file = lora_file(Path(path))
    check_lora_file(file)
    metadata = read_weights_metadata(file)
    _check_architecture(metadata, path)
    return parse_lora(load_safetensors(file), model, str(path), _peft_config(file, metadata))


def parse_lora(
    state: Mapping[str, Tensor], model: nn.Module, source: str = "the LoRA", peft: Mapping[str, Any] | None = None
) -> LoRA:
    """``read_lora`` of tensors in memory.

    Args:
        state: key → tensor.
        model: says which layers there are.
        source: what errors call it.
        peft: PEFT's LoraConfig as a mapping, where alphas are in it.
    """
    refuse_other_kinds(state, source)
    if peft and peft.get("use_dora"):
        raise UserError(f"{source} holds DoRA weights, but only plain LoRA (low-rank pairs with an alpha) is read.")
    names = table(model)
    found: dict[str, dict[str, Tensor]] = {}
    unmatched: list[str] = []
    for key, tensor in state.items():
        name, role = split_key(key) or ("", "")
        if joined(name) not in names:
            unmatched.append(key)
        else:
            found.setdefault(name, {})[role] = tensor.to(torch.bfloat16) if tensor.dtype in _FP8 else tensor
    if unmatched and not found:
        raise UserError(
            f"{source} is a LoRA for another model: no layer here is called {strip_prefixes(unmatched[0])}; use one "
            "that was trained for HunyuanVideo and for a model of this size."
        )
    if unmatched:
        raise UserError(
            f"{source} has {len(unmatched)} of {len(state)} keys that belong to no layer of this model: "
            f"{listed(unmatched)}; use a LoRA for this model, or remove them from the file."
        )
    places = {name: names[joined(name)] for name in found}
    _refuse_flux(places.values(), model, source)

    pairs: dict[str, list[LowRank]] = {}
    dense: dict[str, Tensor] = {}
    for name, tensors in found.items():
        place = places[name]
        if "down" in tensors or "up" in tensors or "alpha" in tensors:
            pairs.setdefault(place.module, []).append(_pair(name, tensors, place, source, peft))
        for role, parameter in (("diff", "weight"), ("diff_b", "bias")):
            if role in tensors:
                _add_dense(dense, f"{place.module}.{parameter}", tensors[role], place, role, source)
    order = {name: index for index, (name, _) in enumerate(layers(model))}
    ordered = {name: tuple(sorted(pairs[name], key=lambda p: p.start)) for name in sorted(pairs, key=order.__getitem__)}
    for name, parts in ordered.items():
        if any(a.stop > b.start for a, b in pairwise(parts)):
            raise UserError(f"{source} changes the same rows of {name} twice, under two names; remove one of them.")
    lora = LoRA({name: _together(parts) for name, parts in ordered.items()}, dense)
    check_lora(lora, model, source)
    return lora


def write_lora(
    path: str | os.PathLike[str], lora: LoRA, model: nn.Module, format: str = "kohya", dtype: torch.dtype | None = None
) -> None:
    """Write a LoRA in one of ``FORMATS``.

    Args:
        path: a .safetensors file; for "peft" a folder.
        lora: what to write.
        model: the transformer it is for (it may be on the meta device).
        dtype: of the tensors; None keeps theirs.

    Raises:
        UserError: an unknown format, a path of the wrong kind, a LoRA that the model does not take, or one with dense
            differences in a format that has no place for them.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(unknown("LoRA format", format, FORMATS))
    if format != "peft" and path.suffix != ".safetensors":
        raise UserError(f"A LoRA is written as a .safetensors file, but the path is {path}.")
    if format == "peft" and (path.suffix == ".safetensors" or path.is_file()):
        raise UserError(f"A PEFT adapter is a folder, but {path} is a file name; give a folder.")
    state, config = lora_state(lora, model, format)
    if dtype is not None:
        state = {key: tensor if key.endswith(".alpha") else tensor.to(dtype) for key, tensor in state.items()}
    metadata = {"format": "pt", ARCHITECTURE: "hunyuan-video/lora"}
    if format == "kohya":
        kinds = Counter((pair.rank, pair.alpha) for pairs in lora.pairs.values() for pair in pairs)
        for (rank, alpha), _ in kinds.most_common(1):
            metadata |= {"ss_network_module": "networks.lora"}
            metadata |= {"ss_network_dim": f"{rank}", "ss_network_alpha": f"{alpha:g}"}
    elif format == "diffusers":
        metadata[PEFT_METADATA] = json.dumps({f"transformer.{name}": value for name, value in config.items()})
    elif format == "peft":
        path.mkdir(parents=True, exist_ok=True)
        values = {"peft_type": "LORA", "bias": "none", "inference_mode": True, **config}
        (path / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        path = path / FOLDER_FILES[0]
    save_safetensors(path, state, metadata)


def convert_lora(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: str,
    config: DiTConfig | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """A LoRA file in another format.

    Args:
        source: a LoRA of any format.
        target: what ``write_lora`` writes.
        format: one of ``FORMATS``.
        config: the transformer's; default: the released 13B.
        dtype: of the tensors; None keeps theirs.
    """
    with torch.device("meta"):
        model = DiT(config or DiTConfig())
    write_lora(target, read_lora(source, model), model, format, dtype)


def lora_state(lora: LoRA, model: nn.Module, format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a LoRA in one of ``FORMATS``, and PEFT's configuration where the format has it (else empty)."""
    check_lora(lora, model)
    style, shapes = FORMATS[format], dict(layers(model))
    state: dict[str, Tensor] = {}
    written: dict[str, tuple[int, float]] = {}
    for module, pairs in lora.pairs.items():
        spelled = spell(module, shapes[module], style.naming)
        bounds = [(place.start, place.stop) for _, place in spelled]
        for name, place in spelled:
            pieces = [piece for pair in pairs if (piece := _cut(pair, place.start, place.stop, bounds))]
            if not pieces:
                continue
            pair = _join(pieces, place.start, place.stop)
            up = torch.cat(pair.up.chunk(2)[::-1]) if place.swapped else pair.up
            key = style.prefix + (joined(name) if style.underscores else name)
            state[f"{key}.{style.ends[0]}"] = pair.down.reshape(pair.rank, *place.shape[1:])
            state[f"{key}.{style.ends[1]}"] = up.reshape(*up.shape, *[1] * (len(place.shape) - 2))
            if style.alpha == "key" or (style.alpha == "unless rank" and pair.alpha != pair.rank):
                state[f"{key}.alpha"] = torch.tensor(float(pair.alpha))
            written[name] = (pair.rank, pair.alpha)
    for parameter, difference in lora.dense.items():
        module, _, last = parameter.rpartition(".")
        if style.naming not in ("official", "comfyui"):
            raise UserError(
                f"The format {format} has no place for dense differences such as that of {parameter}; "
                "write kohya, official, comfyui or diffusion-pipe."
            )
        ((name, _),) = spell(module, shapes[module], style.naming)
        key = style.prefix + (joined(name) if style.underscores else name)
        state[f"{key}.{'diff_b' if last == 'bias' else 'diff'}"] = difference
    return state, _config(written, model) if style.alpha == "config" else {}


def _pair(
    name: str, tensors: Mapping[str, Tensor], place: Place, source: str, peft: Mapping[str, Any] | None
) -> LowRank:
    if "down" not in tensors or "up" not in tensors:
        lacking = " and ".join(role for role in ("down", "up") if role not in tensors)
        raise UserError(f"{source} is incomplete: the update of {name} lacks its {lacking} matrix; get the file again.")
    down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
    if down.shape[0] != up.shape[1]:
        raise UserError(
            f"In {source} the rank of {name} is {down.shape[0]} in one matrix and {up.shape[1]} in the other."
        )
    if up.shape[0] != place.stop - place.start or down.shape[1] != math.prod(place.shape[1:]):
        raise UserError(
            f"{source} is a LoRA for another model: its update of {name} is for a layer of {up.shape[0]} by "
            f"{down.shape[1]}, but here it is {place.stop - place.start} by {math.prod(place.shape[1:])}; use one that "
            "was trained for this model."
        )
    rank = down.shape[0]
    alpha = float(tensors["alpha"]) if "alpha" in tensors else _peft_alpha(peft, name, rank)
    if not math.isfinite(alpha):
        raise UserError(f"In {source} the alpha of {name} is {alpha}, but it must be a finite number.")
    return LowRank(down, torch.cat(up.chunk(2)[::-1]) if place.swapped else up, alpha, place.start)


def _add_dense(dense: dict[str, Tensor], parameter: str, tensor: Tensor, place: Place, role: str, source: str) -> None:
    rows = place.stop - place.start
    if rows != place.shape[0] or place.swapped:
        raise UserError(f"{source} has a dense difference ({role}) of part of {place.module}, which is not read.")
    if role == "diff_b":
        dense[parameter] = tensor.flatten()
    else:
        dense[parameter] = tensor.reshape(place.shape) if tensor.numel() == math.prod(place.shape) else tensor


def _together(parts: Sequence[LowRank]) -> tuple[LowRank, ...]:
    """Neighbouring parts with the same ``down`` and alpha as one: what was split is whole again."""
    out: list[LowRank] = []
    for part in parts:
        last = out[-1] if out else None
        if last and last.stop == part.start and last.alpha == part.alpha and _equal(last.down, part.down):
            out[-1] = LowRank(last.down, torch.cat((last.up, part.up)), last.alpha, last.start)
        else:
            out.append(part)
    return tuple(out)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)


def _cut(pair: LowRank, start: int, stop: int, bounds: Sequence[tuple[int, int]]) -> LowRank | None:
    """The part of a pair that changes rows [start, stop); None when it changes none of them.

    Where every column of ``up`` belongs to one part alone, the pair was joined of parts, and each gets its own back.
    """
    first, last = max(start, pair.start), min(stop, pair.stop)
    if first >= last:
        return None
    up = pair.up[first - pair.start : last - pair.start]
    if len(bounds) == 1:
        return LowRank(pair.down, up, pair.alpha, first)
    whole = torch.zeros(bounds[-1][1], pair.rank, dtype=torch.bool, device=pair.up.device)
    whole[pair.start : pair.stop] = pair.up != 0
    used = torch.stack([whole[a:b].any(dim=0) for a, b in bounds])
    if (used.sum(dim=0) != 1).any():
        return LowRank(pair.down, up, pair.alpha, first)
    own = used[bounds.index((start, stop))]
    rank = int(own.sum())
    return LowRank(pair.down[own], up[:, own], pair.alpha * rank / pair.rank, first) if rank else None


def _join(pieces: Sequence[LowRank], start: int, stop: int) -> LowRank:
    """One pair for rows [start, stop) that does what the pieces do."""
    first = pieces[0]
    if len(pieces) == 1 and (first.start, first.stop) == (start, stop):
        return first
    shared = all(_equal(piece.down, first.down) for piece in pieces)
    rank = first.rank if shared else sum(piece.rank for piece in pieces)
    same = all(piece.alpha * first.rank == first.alpha * piece.rank for piece in pieces)
    down = first.down if shared else torch.cat([piece.down for piece in pieces])
    up = first.up.new_zeros(stop - start, rank)
    column = 0
    for piece in pieces:
        columns = slice(0, rank) if shared else slice(column, column + piece.rank)
        column += piece.rank
        # Scales that differ cannot share one alpha, so they go into the values.
        values = piece.up if same else (piece.up.float() * piece.scale).to(piece.up.dtype)
        up[piece.start - start : piece.stop - start, columns] += values
    return LowRank(down, up, first.alpha * rank / first.rank if same else float(rank), start)


def _config(written: Mapping[str, tuple[int, float]], model: nn.Module) -> dict[str, Any]:
    """PEFT's LoraConfig for layers of these (rank, alpha)."""
    ranks, alphas = [rank for rank, _ in written.values()], [alpha for _, alpha in written.values()]
    rank = Counter(ranks).most_common(1)[0][0] if ranks else 8
    alpha = Counter(alphas).most_common(1)[0][0] if alphas else 8.0
    # PEFT takes a listed name for the end of longer ones too (proj_out is also single_transformer_blocks.0.proj_out),
    # and would then look for weights that are not there; a pattern is matched against the whole name.
    everything = [name for module, shape in layers(model) for name, _ in spell(module, shape, "diffusers")]
    exact = all(name in written or not any(name.endswith(f".{own}") for own in written) for name in everything)
    return {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {f"^{re.escape(name)}": r for name, (r, _) in written.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(name)}": _whole(a) for name, (_, a) in written.items() if a != alpha},
        "target_modules": sorted(written) if exact else "|".join(re.escape(name) for name in sorted(written)),
    }


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _peft_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """PEFT's LoraConfig of a file: beside it, or in its metadata as diffusers writes it."""
    if file.name == FOLDER_FILES[0] and (file.parent / ADAPTER_CONFIG).is_file():
        config = read_json(file.parent / ADAPTER_CONFIG)
        if config.get("peft_type", "LORA") != "LORA":
            raise UserError(f"{file.parent} is a {config['peft_type']} adapter, but only LoRA is read.")
        return config
    if PEFT_METADATA not in metadata:
        return None
    try:
        values = json.loads(metadata[PEFT_METADATA])
        return {name.removeprefix("transformer."): value for name, value in values.items()}
    except (ValueError, AttributeError):
        raise UserError(f"{file} has broken {PEFT_METADATA} in its header; get the file again.") from None


def _peft_alpha(config: Mapping[str, Any] | None, name: str, rank: int) -> float:
    """The alpha of a layer that has no key of its own: PEFT's, else the rank, which means no scaling."""
    if not config or config.get("lora_alpha") is None:
        return float(rank)
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    own = next((value for end, value in patterns.items() if re.match(rf"(.*\.)?({end})$", name)), config["lora_alpha"])
    # Rank-stabilised LoRA divides by the root of the rank.
    return float(own) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _check_architecture(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    architecture = metadata.get(ARCHITECTURE, "")
    if architecture and not architecture.lower().startswith("hunyuan"):
        raise UserError(
            f"{path} is a LoRA for another model: its header says {architecture}; use one that was trained for "
            "HunyuanVideo."
        )


def _refuse_flux(places: Iterable[Place], model: nn.Module, source: str) -> None:
    """Flux has the same layers of the same sizes, only fewer; a file with exactly its blocks is one of its LoRAs."""
    count = {"double_blocks": 19, "single_blocks": 38}
    changed = {kind: set[int]() for kind in count}
    for place in places:
        kind, _, rest = place.module.partition(".")
        if kind in changed:
            changed[kind].add(int(rest.split(".")[0]))
    larger = all(any(name.startswith(f"{kind}.{n}.") for name, _ in layers(model)) for kind, n in count.items())
    if larger and all(changed[kind] == set(range(n)) for kind, n in count.items()):
        raise UserError(
            f"{source} is a LoRA for another model: it changes 19 double and 38 single blocks, which are Flux's; use "
            "one that was trained for HunyuanVideo."
        )
