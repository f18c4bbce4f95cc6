import pickle
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import (
    count_parameters,
    load_safetensors,
    read_header,
    read_weights_metadata,
    save_safetensors,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, {"k": "v"})
    return path


def test_round_trip(weights: Path) -> None:
    state = load_safetensors(weights)
    assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))
    assert state["b"].dtype == torch.bfloat16
    assert read_weights_metadata(weights) == {"k": "v"}
    assert count_parameters(weights) == 10
    assert [path.name for path in weights.parent.iterdir()] == ["w.safetensors"]


def test_tied_tensors_are_both_stored(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    save_safetensors(tmp_path / "t.safetensors", {"a": shared, "b": shared})
    assert torch.equal(load_safetensors(tmp_path / "t.safetensors")["b"], shared)


@pytest.mark.parametrize("keep", [0, 5, 20, -1])
def test_truncated(weights: Path, keep: int) -> None:
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated"):
        load_safetensors(weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_pickles_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="pickle"):
        load_safetensors(path)


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(list(range(100))))
    with pytest.raises(UserError, match="pickle"):
        read_header(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"hello, this is not weights", "not a safetensors"),
        ((12).to_bytes(8, "little") + b"{not a json}", "broken safetensors header"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_safetensors(tmp_path / "no.safetensors")
    with pytest.raises(UserError, match="not a file"):
        load_safetensors(tmp_path)
