"""Tensors inside files: where each one lies, read or mapped one at a time, and written one at a time.

Both containers of the field are seen alike, as names with (file, offset, format, shape): safetensors, and the zip
pickles that ``torch.save`` writes. A pickle is opened with ``weights_only``, so nothing in it can run, and without
its data, so opening 26 GB costs nothing.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import read_header

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Readable(Protocol):
    """Something that becomes a tensor when it is asked to."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file.

    Attributes:
        path: the file.
        offset: its first byte there.
        dtype, shape: what it is.
        stride: in elements; None means dense in the usual order.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Bytes from its first to its last element."""
        if prod(self.shape) == 0:
            return 0
        if self.stride is None:
            return prod(self.shape) * self.dtype.itemsize
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.dtype.itemsize

    def read(self) -> Tensor:
        """A copy in memory of its own."""
        raw = torch.empty(self.span, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            done = file.readinto(raw.numpy().data)
        if done != self.span:
            raise UserError(f"{self.path} is truncated: a tensor ends beyond it; copy or download it again.")
        return self._shaped(raw)

    def map(self) -> Tensor:
        """The bytes of the file itself, mapped: memory is used only for what is touched, and may be given back.

        Writing to the tensor changes a private copy of its page, never the file.
        """
        if self.span == 0 or self.offset % self.dtype.itemsize:
            return self.read()  # The formats allow unaligned tensors, processors would rather not.
        start = self.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            # One mapping a tensor: a private mapping of a whole file larger than the memory may be refused.
            length = self.offset + self.span - start
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
        return self._shaped(torch.frombuffer(pages, dtype=torch.uint8, count=self.span, offset=self.offset - start))

    def rows(self, start: int, stop: int) -> StoredTensor | None:
        """Rows start..stop of a dense tensor, still in the file; None if it is not dense."""
        if self.stride is not None:
            return None
        step = prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, offset=self.offset + start * step, shape=(stop - start, *self.shape[1:]))

    def _shaped(self, raw: Tensor) -> Tensor:
        flat = raw.view(self.dtype)
        return flat.view(self.shape) if self.stride is None else flat.as_strided(self.shape, self.stride)


def stored_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name. Raises ``UserError`` when its header is not right."""
    header = read_header(path)
    with path.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
    out: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            good = 0 <= begin <= end and all(isinstance(size, int) and size >= 0 for size in shape)
            good = good and end - begin == prod(shape) * dtype.itemsize
        except (KeyError, TypeError, ValueError):
            good, dtype, shape, begin = False, torch.uint8, (), 0
        if not good:
            raise UserError(
                f"{path} has a broken safetensors header (its entry for {name} is impossible); "
                "copy or download it again."
            )
        out[name] = StoredTensor(path, start + begin, dtype, shape)
    return out


def stored_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, with a ``StoredTensor`` in the place of each tensor; nothing in the file is run.

    Raises:
        UserError: missing, not such a file, truncated, or holding anything else than tensors and plain values.
    """
    _check_zip(path)
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        # Tensors without data remember where theirs lies.
        with FakeTensorMode():
            content = torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors: opening it would run code from the file, so it was not opened; "
            "take a safetensors file, or one from a source that you trust and save its tensors alone."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a PyTorch file ({_first_line(error)}); copy or download it again."
        ) from None
    return _located(content, path, path.stat().st_size)


def count_pickled(path: Path) -> int:
    """How many numbers the tensors of a pickle hold together."""
    return sum(prod(leaf.shape) for _, leaf in _leaves(stored_pickle(path)) if isinstance(leaf, StoredTensor))


def _check_zip(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"The weights file {path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist())
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK":
            raise UserError(
                f"{path} is truncated: the end of the file is not there; copy or download it again."
            ) from None
        if start[:1] == b"\x80":
            raise UserError(
                f"{path} is a pickle of an old kind that cannot be read in part; open it with torch.load "
                "(weights_only=True) and save it again with torch.save or as safetensors."
            ) from None
        raise UserError(f"{path} is not a PyTorch file; give one that torch.save wrote, or safetensors.") from None
    if packed:
        raise UserError(f"{path} is a compressed archive, which torch.save does not write; unpack and save it again.")


def _located(value: Any, path: Path, size: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _located(item, path, size) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_located(item, path, size) for item in value]
    if not isinstance(value, Tensor):
        return value
    start: Any = value.untyped_storage()._checkpoint_offset  # pyright: ignore[reportAttributeAccessIssue]
    offset = int(start + value.storage_offset() * value.dtype.itemsize)
    stride = None if value.is_contiguous() else tuple(value.stride())
    stored = StoredTensor(path, offset, value.dtype, tuple(value.shape), stride)
    if stored.offset + stored.span > size:
        raise UserError(f"{path} is truncated: a tensor ends beyond it; copy or download it again.")
    return stored


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Readable],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], None] | None = None,
) -> None:
    """Write tensors one after another, holding one at a time; the file appears when it is complete.

    ``written`` is told the bytes of each tensor. Widest formats come first, so that every tensor is aligned; the same
    tensors always give the same bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            raw = _bytes(tensors[name], name)
            file.write(raw)
            if written:
                written(len(raw))
            del raw


def write_pickle(path: Path, content: Mapping[str, Any], written: Callable[[int], None] | None = None) -> None:
    """Write a file for ``torch.load``: a dictionary (of dictionaries) of tensors, holding one tensor at a time."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        shells = _shells(content)
    with _replacing(path) as temporary:
        # First the whole file with holes for the data, then the data.
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(shells, temporary)
        with FakeTensorMode():
            places = dict(_leaves(torch.load(temporary, weights_only=True)))
        sums: dict[int, int] = {}
        with temporary.open("r+b") as file:
            for name, tensor in _leaves(content):
                offset = places[name].untyped_storage()._checkpoint_offset
                raw = _bytes(tensor, ".".join(name))
                file.seek(offset)
                file.write(raw)
                sums[offset] = zlib.crc32(raw)
                if written:
                    written(len(raw))
                del raw
        _set_checksums(temporary, sums)


def _shells(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _shells(item) for key, item in content.items()}
    return torch.empty(content.shape, dtype=content.dtype)


def _leaves(content: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(content, Mapping):
        for key, item in content.items():
            yield from _leaves(item, (*name, key))
    else:
        yield name, content


def _bytes(tensor: Readable, name: str) -> memoryview:
    value = tensor.read()
    if value.dtype != tensor.dtype or tuple(value.shape) != tuple(tensor.shape):
        raise RuntimeError(f"{name} was announced as {tensor.dtype} {tensor.shape} and is {value.dtype} {value.shape}")
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _set_checksums(path: Path, sums: Mapping[int, int]) -> None:
    """Write the data's checksums into a zip archive's records, which were made before their data was there."""
    with zipfile.ZipFile(path) as archive:
        entries, directory = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        place = directory
        for entry in entries:
            file.seek(entry.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            crc = sums.get(entry.header_offset + 30 + name_length + extra_length)
            file.seek(place + 28)
            lengths = struct.unpack("<HHH", file.read(6))
            if crc is not None and entry.file_size:
                for at in (entry.header_offset + 14, place + 16):
                    file.seek(at)
                    file.write(struct.pack("<I", crc))
            place += 46 + sum(lengths)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` if all goes well, and is gone if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
