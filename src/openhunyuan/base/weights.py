"""Safetensors in and out, with every way a weights file can be wrong said in one sentence.

The header is checked in plain Python before torch is imported, so a bad file is refused at once.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhunyuan.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Longer headers than this are refused by the safetensors library too; a random file read as a length usually is longer.
MAX_HEADER_BYTES = 100_000_000
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check a safetensors file and return its header: name -> {dtype, shape, data_offsets}, and ``__metadata__``.

    Raises:
        UserError: missing, not a file, a pickle, not safetensors at all, or truncated.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"The weights file {path} does not exist.")
    if not path.is_file():
        raise UserError(f"{path} is not a file, but a safetensors weights file is expected.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        brace = file.read(1)
        if not (0 < length <= MAX_HEADER_BYTES and brace == b"{"):
            if start[:4] == _ZIP_MAGIC or (start[:1] == _PICKLE_MAGIC and start[1:2] in _PICKLE_PROTOCOLS):
                raise UserError(
                    f"{path} is a pickle (a PyTorch .pt or .bin file), which can run code when it is loaded; "
                    "convert it to safetensors first."
                )
            if len(start) < 8:
                raise UserError(f"{path} is truncated: it has only {size} bytes; copy or download it again.")
            raise UserError(f"{path} is not a safetensors file; give a file that safetensors wrote.")
        raw = brace + file.read(length - 1)
    if len(raw) < length:
        raise UserError(
            f"{path} is truncated: its header says {length} bytes and {len(raw)} are there; copy or download it again."
        )
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
    except (ValueError, AttributeError, KeyError, IndexError, TypeError):
        raise UserError(f"{path} has a broken safetensors header; copy or download it again.") from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise UserError(f"{path} is truncated: {size} of {expected} bytes are there; copy or download it again.")
    return header


def count_parameters(path: str | os.PathLike[str]) -> int:
    """How many numbers a safetensors file holds, from its header alone."""
    return sum(prod(entry["shape"]) for name, entry in read_header(path).items() if name != "__metadata__")


def read_weights_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The free text metadata of a safetensors file (empty when there is none)."""
    return dict(read_header(path).get("__metadata__") or {})


def save_safetensors(
    path: str | os.PathLike[str], state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``state`` atomically: a reader never sees half a file, and a failed write leaves the old one."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Cloned where memory is shared: safetensors refuses aliases, and a tied weight must still be loadable alone.
    seen: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.data_ptr() in seen and tensor.numel():
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        tensors[name] = tensor
    try:
        save_file(tensors, str(temporary), metadata=dict(metadata) if metadata else None)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a safetensors file to CPU tensors. Raises ``UserError`` when it is missing, truncated or a pickle."""
    read_header(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); copy or download it again.") from None


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The same to float32 arrays, without torch."""
    read_header(path)
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (SafetensorError, KeyError, TypeError) as error:  # the last two of number formats that NumPy has not
        raise UserError(f"{path} cannot be read as arrays ({error}); save its tensors as float32.") from None


def refuse_others(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], source: Path | str, what: str
) -> None:
    """Raise UserError where the shapes given by name are not those wanted, all of them and no others."""
    missing = [name for name in wanted if name not in given]
    if missing:
        raise UserError(f"{source} is no {what}: it lacks {len(missing)} tensors, the first is {missing[0]}.")
    strange = [name for name in given if name not in wanted]
    if strange:
        raise UserError(f"{source} is no {what}: it has {len(strange)} tensors too many, the first is {strange[0]}.")
    for name, shape in wanted.items():
        if given[name] != shape:
            raise UserError(
                f"{source} is no {what}: its {name} has shape {list(given[name])}, but it must be {list(shape)}."
            )
