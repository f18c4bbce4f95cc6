"""Opening weights wherever they lie: one file or a folder, pickle or safetensors, one shard or many.

The result is a flat dictionary of names and lazy tensors. Nothing is read but headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.base.tensorfile import StoredTensor, stored_pickle, stored_safetensors
from openhunyuan.convert.lazy import Lazy, from_file
from openhunyuan.models.zoo import PICKLES, indexed_names, weight_files

_WRAPPERS = ("module", "ema", "state_dict")
"""Keys under which official files keep the weights, in the order of preference (release facts A.2 and A.4)."""


def open_file(path: Path) -> dict[str, Lazy]:
    """The tensors of one weights file. Raises ``UserError`` for anything that is not one."""
    if path.suffix in PICKLES:
        content = stored_pickle(path)
        if isinstance(content, Mapping):
            for key in _WRAPPERS:
                if isinstance(content.get(key), Mapping):
                    content = content[key]
                    break
        return _tensors(content, path)
    return {name: from_file(stored) for name, stored in stored_safetensors(path).items()}


def open_folder(folder: Path) -> dict[str, Lazy]:
    """The safetensors of a component folder; every tensor that its index promises must be there."""
    out: dict[str, Lazy] = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise UserError(f"The shard {path} is missing, though the index in {folder} names it; download it again.")
        tensors = open_file(path)
        twice = next((name for name in tensors if name in out), None)
        if twice:
            raise UserError(f"The tensor {twice} is in two of the shards in {folder}; keep one set of weights there.")
        out.update(tensors)
    for name, shard in indexed_names(folder).items():
        if name not in out:
            raise UserError(f"The shard {shard} lacks the tensor {name} that the index names; download it again.")
    return out


def config_beside(path: Path) -> dict[str, Any] | None:
    """The config.json of a component folder, or of the folder that a file is in; None if there is none."""
    place = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(place) if place.is_file() else None


def _tensors(content: Any, path: Path) -> dict[str, Lazy]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no dictionary of tensors; give a file of weights.")
    out = {str(name): from_file(value) for name, value in content.items() if isinstance(value, StoredTensor)}
    if not out:
        raise UserError(f"{path} holds no tensors by name; its keys are {', '.join(map(str, list(content)[:5]))}.")
    return out
