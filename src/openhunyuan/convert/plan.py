"""What a conversion will write: files of lazy tensors, known in names, shapes and bytes before anything is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from openhunyuan.base.tensorfile import write_pickle, write_safetensors
from openhunyuan.convert.lazy import Lazy

MAX_SHARD_BYTES = 5_000_000_000
"""Of a diffusers folder, as published."""


@dataclass(frozen=True)
class TensorFile:
    """A weights file to be written.

    Attributes:
        path: where; the suffix decides the container, .pt a pickle and .safetensors what it says.
        tensors: its content.
        key: of a pickle, the key that the tensors lie under; None puts them at the top.
        metadata: of a safetensors file, its text metadata.
    """

    path: Path
    tensors: Mapping[str, Lazy]
    key: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return size_of(self.tensors)

    def write(self, written: Callable[[int], None] | None = None) -> None:
        """Read each tensor and write it; ``written`` is told the bytes of each."""
        if self.path.suffix == ".safetensors":
            write_safetensors(self.path, self.tensors, self.metadata, written)
        else:
            write_pickle(self.path, {self.key: self.tensors} if self.key else self.tensors, written)


@dataclass(frozen=True)
class JsonFile:
    """A small file to be written beside weights."""

    path: Path
    values: Mapping[str, Any]

    def write(self, written: Callable[[int], None] | None = None) -> None:
        """Write it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")


File = TensorFile | JsonFile


def size_of(tensors: Mapping[str, Lazy]) -> int:
    """Bytes of all tensors."""
    return sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())


def total_bytes(files: Iterable[File]) -> int:
    """Bytes of all weights of a plan."""
    return sum(file.nbytes for file in files if isinstance(file, TensorFile))


def sharded(folder: Path, stem: str, tensors: Mapping[str, Lazy], limit: int = MAX_SHARD_BYTES) -> list[File]:
    """Safetensors files of at most ``limit`` bytes (or one tensor) each, with an index when there are several."""
    shards: list[dict[str, Lazy]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        nbytes = prod(tensor.shape) * tensor.dtype.itemsize
        if shards[-1] and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += nbytes
    metadata = {"format": "pt"}
    if len(shards) == 1:
        return [TensorFile(folder / f"{stem}.safetensors", shards[0], metadata=metadata)]
    names = [f"{stem}-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    index = {
        "metadata": {"total_size": size_of(tensors)},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    files: list[File] = [
        TensorFile(folder / name, shard, metadata=metadata) for name, shard in zip(names, shards, strict=True)
    ]
    return [*files, JsonFile(folder / f"{stem}.safetensors.index.json", index)]
