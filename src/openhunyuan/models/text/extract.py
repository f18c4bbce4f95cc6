"""The language model out of a LLaVA, as the release prepares its ``text_encoder`` folder (release fact A.1)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.tensorfile import Readable, write_safetensors
from openhunyuan.models.text.folder import build, check_model_folder, load_config, stored_weights
from openhunyuan.models.text.llm import language_key

WHAT = "LLaVA model"
SHARD_BYTES = 5_000_000_000
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class _Cast:
    """A stored tensor that is read in another floating format."""

    stored: Readable
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    def read(self) -> Tensor:
        return self.stored.read().to(self.dtype)


def extract_language_model(
    source: Path | str,
    target: Path | str,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[int], None] | None = None,
) -> None:
    """Write the language model and the tokenizer of a LLaVA folder as a model folder of its own.

    Tensors are read and written one at a time. The result is a ``LlamaForCausalLM`` folder as transformers saves it
    (a ``LlamaModel`` one if the source has no head), in shards of at most ``shard_bytes`` with an index.

    Args:
        source: folder of a ``LlavaForConditionalGeneration``, with keys of transformers 4 or 5.
        target: folder to make; model files in it are replaced.
        dtype: format of the weights; the release uses float16.
        shard_bytes: largest size of one file.
        written: told the bytes of each tensor.

    Raises:
        UserError: not a LLaVA, missing or misshapen tensors, a target that holds the source.
    """
    source, target = check_model_folder(Path(source), WHAT), Path(target)
    if target.resolve() == source.resolve():
        raise UserError(f"{source} cannot be extracted onto itself; give another target folder.")
    config: Any = load_config(source, WHAT)
    if getattr(config, "text_config", None) is None or not hasattr(config, "vision_config"):
        raise UserError(f"The model in {source} is not a LLaVA: there is no language model to take out of it.")
    text_config = config.text_config

    from transformers import AutoModelForCausalLM

    stored = stored_weights(source, WHAT)
    tensors: dict[str, Readable] = {
        f"model.{key}": _Cast(tensor, dtype) for name, tensor in stored.items() if (key := language_key(name))
    }
    head = next((tensor for name, tensor in stored.items() if name.endswith("lm_head.weight")), None)
    if head is not None:
        tensors["lm_head.weight"] = _Cast(head, dtype)
    wanted = dict(build(lambda: AutoModelForCausalLM.from_config(text_config)).named_parameters())
    missing = sorted(name for name in wanted if name not in tensors and name != "lm_head.weight")
    if missing:
        raise UserError(f"The language model in {source} lacks {len(missing)} tensors, the first is {missing[0]}.")
    for name, tensor in tensors.items():
        if name in wanted and tuple(wanted[name].shape) != tensor.shape:
            raise UserError(
                f"In {source} the tensor {name} has shape {list(tensor.shape)}, "
                f"but its config.json says {list(wanted[name].shape)}."
            )
    kind = "LlamaForCausalLM" if head is not None else "LlamaModel"
    if head is None:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    target.mkdir(parents=True, exist_ok=True)
    for old in (*target.glob("*.safetensors"), *target.glob("*.safetensors.index.json")):
        old.unlink()
    text_config.architectures = [kind if text_config.model_type == "llama" else type(text_config).__name__]
    text_config.dtype = dtype
    text_config.save_pretrained(str(target))
    _write_shards(target, tensors, shard_bytes, written)
    _copy_tokenizer(source, target)


def _write_shards(
    target: Path, tensors: Mapping[str, Readable], limit: int, written: Callable[[int], None] | None
) -> None:
    shards: list[dict[str, Readable]] = [{}]
    size = total = 0
    for name, tensor in tensors.items():
        nbytes = prod(tensor.shape) * tensor.dtype.itemsize
        if shards[-1] and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + nbytes, total + nbytes
    if len(shards) == 1:
        write_safetensors(target / "model.safetensors", shards[0], {"format": "pt"}, written)
        return
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(target / file, shard, {"format": "pt"}, written)
        weight_map.update(dict.fromkeys(shard, file))
    index_file = target / "model.safetensors.index.json"
    index_file.write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
        + "\n",
        encoding="utf-8",
    )


def _copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files, from the LLaVA folder or from ``tokenizer`` beside it."""
    folder = source if (source / "tokenizer.json").is_file() else source.parent / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{source} has no tokenizer.json; copy the released tokenizer files into it.")
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
