"""Opening a Hugging Face model folder: safetensors only, no remote code, no network, one sentence when it is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.base.tensorfile import StoredTensor, stored_safetensors
from openhunyuan.models.text.int8 import fill_int8, replace_linear

# Read these, never the network; code that comes with a checkpoint is never run.
SAFE_OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_model_folder(folder: Path, what: str) -> Path:
    """The folder itself, after checking that it holds a config.json and safetensors weights."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"The {what} folder {folder} does not exist.")
    if not (folder / "config.json").is_file():
        raise UserError(f"The {what} folder {folder} has no config.json; it must be a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"The {what} folder {folder} has no .safetensors weights; pickle files are not read, convert them."
        )
    return folder


def load_config(folder: Path, what: str) -> Any:
    """The ``transformers`` config of a folder."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), **SAFE_OPTIONS)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The config.json of the {what} folder {folder} cannot be used: {error}") from error


def load_tokenizer(folder: Path, sibling: str, what: str) -> Any:
    """The fast tokenizer of a model folder.

    It lies in the folder itself (official layout) or in the folder ``sibling`` beside it (diffusers layout).
    """
    from transformers import AutoTokenizer

    places = (Path(folder), Path(folder).parent / sibling)
    for place in places:
        if (place / "tokenizer.json").is_file() or (place / "tokenizer_config.json").is_file():
            try:
                with quiet_transformers():
                    tokenizer = AutoTokenizer.from_pretrained(str(place), **SAFE_OPTIONS)
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"The tokenizer of the {what} in {place} cannot be loaded: {error}") from error
            if not tokenizer.is_fast:
                raise UserError(
                    f"The tokenizer of the {what} in {place} has no tokenizer.json; save a fast tokenizer there."
                )
            return tokenizer
    raise UserError(f"No tokenizer of the {what} found in {places[0]} or {places[1]}.")


def stored_weights(folder: Path, what: str) -> dict[str, StoredTensor]:
    """Where every tensor of a folder lies, single or sharded; reads headers only.

    Raises ``UserError`` for a shard that its index names and that is not there, and for broken files.
    """
    paths = sorted(folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = sorted({str(name) for name in dict(read_json(index).get("weight_map") or {}).values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"The {what} in {folder} lacks {len(missing)} of {len(names)} shards, the first is {missing[0]}; "
                "copy or download it again."
            )
        paths = [folder / name for name in names]
    out: dict[str, StoredTensor] = {}
    for path in paths:
        out.update(stored_safetensors(path))
    return out


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory for its weights (on the meta device), to be given to ``fill``."""
    with quiet_transformers(), torch.device("meta"):
        return make()


def fill(
    model: nn.Module,
    tensors: Mapping[str, StoredTensor],
    source: str,
    device: torch.device | str,
    dtype: torch.dtype,
    int8: bool = False,
) -> nn.Module:
    """Make the tensors of a file the weights of a network from ``build``, one at a time; eval mode, no gradients.

    Args:
        model: its parameters are on the meta device.
        tensors: by the network's names; more than it has are left in the file.
        source: what to call the file in an error.
        device, dtype: where and as what the weights are kept. On the CPU in the file's own format they stay in the
            file, mapped.
        int8: keep the weights of linears in eight bits.

    Raises:
        UserError: missing tensors or wrong shapes.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"The weights of {source} lack {len(missing)} tensors, the first is {missing[0]}.")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"In {source} the tensor {name} has shape {list(tensors[name].shape)}, "
                f"but its config.json says {list(shape)}."
            )
    if int8:
        for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
            fill_int8(replace_linear(model, name), tensors[f"{name}.weight"].map().to(device))
    state = {
        name: tensors[name].map().to(device=device, dtype=dtype)
        for name, parameter in model.named_parameters()
        if parameter.is_meta
    }
    model.load_state_dict(state, assign=True, strict=False)
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            # Tables that no file holds (positions, rotation rates) are made again, as when the module was built.
            for name, buffer in type(module)(module.config).named_buffers(recurse=False):  # pyright: ignore[reportCallIssue]
                setattr(module, name, buffer.to(device))
    return model.eval().requires_grad_(False)


def load_weights(model_class: Any, folder: Path, config: Any, dtype: Any, what: str) -> Any:
    """A ``transformers`` model in eval mode, without gradients.

    Tensors of layers that ``config`` leaves out are not loaded; a tensor that it asks for must be there.
    """
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                attn_implementation="sdpa",
                **SAFE_OPTIONS,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The weights of the {what} in {folder} cannot be read: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The weights of the {what} in {folder} lack {len(missing)} tensors, the first is {missing[0]}."
        )
    return model.eval().requires_grad_(False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and the table of left-out layers: leaving layers out is what we want."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
