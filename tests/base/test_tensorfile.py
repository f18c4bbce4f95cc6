"""Tensors inside files: found, read, mapped and written one at a time."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openhunyuan.base.tensorfile import (
    StoredTensor,
    stored_pickle,
    stored_safetensors,
    write_pickle,
    write_safetensors,
)
from openhunyuan.convert.lazy import from_tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int64, torch.bool]


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = {str(dtype): (torch.randn(3, 5, generator=generator) * 9).to(dtype) for dtype in DTYPES}
    return out | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "odd": torch.ones(7, dtype=torch.uint8)}


def bits(tensor: Tensor) -> tuple:
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def test_pickles_are_located_read_and_mapped(tmp_path: Path) -> None:
    tensors = some_tensors()
    base = torch.arange(60.0).reshape(6, 10)
    tensors |= {"column": base[:, 3], "turned": base.T, "part": base[2:4], "whole": base}
    torch.save({"module": tensors, "step": 3, "list": [base]}, tmp_path / "a.pt")
    content = stored_pickle(tmp_path / "a.pt")
    assert content["step"] == 3
    assert torch.equal(content["list"][0].read(), base)
    assert set(content["module"]) == set(tensors)
    for name, stored in content["module"].items():
        assert isinstance(stored, StoredTensor)
        assert bits(stored.read()) == bits(tensors[name]), name
        assert bits(stored.map()) == bits(tensors[name]), name


def test_safetensors_are_located_read_and_mapped(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_file(tensors, str(tmp_path / "a.safetensors"))
    stored = stored_safetensors(tmp_path / "a.safetensors")
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        assert bits(stored[name].read()) == bits(tensor), name
        assert bits(stored[name].map()) == bits(tensor), name


def test_mapped_tensors_do_not_write_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(100)}, str(path))
    before = path.read_bytes()
    mapped = stored_safetensors(path)["x"].map()
    mapped += 1
    assert path.read_bytes() == before
    assert torch.equal(stored_safetensors(path)["x"].read(), torch.zeros(100))


def test_a_replaced_file_is_mapped_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": from_tensor(torch.zeros(100))})
    old = stored_safetensors(path)["x"].map()
    write_safetensors(path, {"x": from_tensor(torch.ones(100))})
    assert torch.equal(stored_safetensors(path)["x"].map(), torch.ones(100))
    assert torch.equal(old, torch.zeros(100))


def test_rows_stay_in_the_file(tmp_path: Path) -> None:
    value = torch.arange(24.0).reshape(6, 4)
    save_file({"x": value}, str(tmp_path / "a.safetensors"))
    part = stored_safetensors(tmp_path / "a.safetensors")["x"].rows(2, 5)
    assert part is not None
    assert part.span == 3 * 4 * 4
    assert torch.equal(part.read(), value[2:5])


def test_written_safetensors_are_the_librarys(tmp_path: Path) -> None:
    tensors = some_tensors()
    told: list[int] = []
    lazy = {name: from_tensor(tensor) for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "a.safetensors", lazy, {"format": "pt"}, told.append)
    read = load_file(tmp_path / "a.safetensors")
    assert {name: bits(value) for name, value in read.items()} == {name: bits(t) for name, t in tensors.items()}
    assert sum(told) == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    save_file(tensors, str(tmp_path / "b.safetensors"), metadata={"format": "pt"})
    assert len((tmp_path / "a.safetensors").read_bytes()) == len((tmp_path / "b.safetensors").read_bytes())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_written_pickles_are_torch_files(tmp_path: Path) -> None:
    tensors = {name: value for name, value in some_tensors().items() if name != "empty"}
    path = tmp_path / "a.pt"
    write_pickle(path, {"module": {name: from_tensor(tensor) for name, tensor in tensors.items()}})
    for options in ({}, {"mmap": True}):
        read = torch.load(path, weights_only=True, **options)
        assert list(read) == ["module"]
        assert {name: bits(value) for name, value in read["module"].items()} == {
            name: bits(tensor) for name, tensor in tensors.items()
        }
    assert zipfile.ZipFile(path).testzip() is None, "other programs check the sums of a zip archive"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    good = from_tensor(torch.ones(4))

    def fails(mapped: bool) -> Tensor:
        raise OSError("the disk is gone")

    bad = type(good)(torch.float32, (4,), fails)
    for write, name in ((write_safetensors, "a.safetensors"), (write_pickle, "a.pt")):
        with pytest.raises(OSError, match="disk is gone"):
            write(tmp_path / name, {"good": good, "bad": bad})
    assert list(tmp_path.iterdir()) == []
