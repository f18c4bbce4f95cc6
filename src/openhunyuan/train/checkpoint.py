"""Checkpoints: verified, published atomically, the last few kept, never able to run code when read.

    checkpoints/step_00000100/
        manifest.json           format, step, what it is of, and bytes and SHA-256 of every other file; written last
        state.json              the plain values and where the tensors go
        modules.safetensors     one file for each top-level entry of the state that holds tensors

A folder is filled under another name and renamed when it is whole, so a crash or a full disk leaves the checkpoints
before it as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.tensorfile import write_safetensors
from openhunyuan.base.weights import load_safetensors

FORMAT = "openhunyuan-checkpoint-1"
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8})$")
_PARTIAL, _DAMAGED = ".partial", ".damaged"


def checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(steps done, folder) of every published checkpoint, oldest first. Whether it is whole, ``damage`` tells."""
    found = (run_dir / "checkpoints").glob(f"step_*/{MANIFEST}")
    return sorted((int(m.group(1)), path.parent) for path in found if (m := _NAME.match(path.parent.name)))


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """What identifies a module's architecture: class, number of parameters, hash of all names, shapes and formats."""
    layout = [[name, list(value.shape), str(value.dtype)] for name, value in module.state_dict().items()]
    parameters = sum(p.numel() for p in module.parameters())
    digest = hashlib.sha256(json.dumps(layout).encode()).hexdigest()
    return {"type": type(module).__name__, "parameters": parameters, "layout": digest}


def save(
    run_dir: Path, steps_done: int, state: Mapping[str, Any], keep: int, about: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint and drop the oldest beyond ``keep``.

    state: nested dicts, lists and tuples of tensors and plain values. about: what it is of (JSON), kept in the manifest
    and compared by ``check_same``.

    Raises:
        OSError: it cannot be written (disk full, …), in one sentence; the checkpoints before it are untouched.
    """
    folder = run_dir / "checkpoints"
    path = folder / f"step_{steps_done:08d}"
    partial = path.with_name(path.name + _PARTIAL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(left)
        partial.mkdir()
        _write(partial, steps_done, state, about or {})
        if path.exists():
            _remove(path)
        partial.rename(path)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = checkpoints(run_dir)
        last = f"the last good one is {before[-1][1].name}" if before else "there is none before it"
        raise OSError(
            error.errno,
            f"The checkpoint of step {steps_done} cannot be written to {folder} ({error.strerror or error}); {last}: "
            "make room and start the run again to go on from it",
        ) from error
    for _, old in checkpoints(run_dir)[:-keep]:
        _remove(old)
    return path


def _write(folder: Path, steps_done: int, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, (), tensors)
    parts: dict[str, dict[str, _Copied]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.split("/")[0], {})[name] = _Copied(tensor)
    for part, held in parts.items():
        write_safetensors(folder / f"{part}.safetensors", held)
    (folder / STATE).write_text(json.dumps(tree))
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = {"format": FORMAT, "step": steps_done, "about": dict(about), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(folder / MANIFEST)
    _sync(folder)


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted (every file is read and its checksum compared), or None when it is whole."""
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return str(error)
    for name, wanted in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != wanted["bytes"]:
            return f"{name} has {file.stat().st_size} of {wanted['bytes']} bytes"
        if _sha256(file) != wanted["sha256"]:
            return f"the checksum of {name} is not that of its manifest"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest; UserError when it cannot be read or is of another format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] == FORMAT and isinstance(manifest["files"], dict):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path / MANIFEST} is not a manifest of this version")


def newest(run_dir: Path) -> Path | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Damaged ones newer than it are reported and renamed, so that they are neither used nor counted again.

    Raises:
        UserError: there are checkpoints and none of them is whole.
    """
    held, damaged = checkpoints(run_dir), []
    for _, path in reversed(held):
        reason = damage(path)
        if reason is None:
            for bad, why in damaged:
                get_logger("train").warning("%s is damaged (%s); going on from %s", bad, why, path.name)
                bad.rename(bad.with_name(bad.name + _DAMAGED))
            return path
        damaged.append((path, reason))
    if damaged:
        raise UserError(
            f"No checkpoint in {run_dir / 'checkpoints'} is whole ({damaged[0][0].name}: {damaged[0][1]}); "
            "delete the run's directory to start it again."
        )
    return None


def check_same(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or another run.

    Raises:
        UserError: the manifest's ``about`` is not the given one; says which module differs.
    """
    held, wanted = read_manifest(path)["about"], dict(about)
    modules, ours = held.get("modules", {}), wanted.get("modules", {})
    for name in sorted(modules.keys() | ours.keys()):
        if modules.get(name) != ours.get(name):
            raise UserError(
                f"{path} is a checkpoint of another model: its {name} is {_described(modules.get(name))}, this run's "
                f"{_described(ours.get(name))}; choose another output directory or take the checkpoint away."
            )
    if held != wanted:
        raise UserError(
            f"{path} is a checkpoint of another run of the same model (its config differs); choose another output "
            "directory or take the checkpoint away."
        )


def _described(module: Mapping[str, Any] | None) -> str:
    return "nothing" if module is None else f"a {module['type']} of {module['parameters']:,} parameters"


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint: safetensors and JSON only. Raises UserError when a file is missing or cannot be read."""
    try:
        tensors: dict[str, Tensor] = {}
        for name in read_manifest(path)["files"]:
            if name != STATE:
                tensors |= load_safetensors(path / name)
        return _unpack(json.loads((path / STATE).read_text()), tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({error})") from error


# -- a state as tensors and JSON -------------------------------------------------------------------------------------


class _Copied:
    """A tensor as ``write_safetensors`` takes it: on the CPU when it is written, one at a time."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> Tensor:
        return self.tensor.detach().cpu()


def _pack(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """JSON in which every container says what it is, and a tensor is named by its place in the state."""
    if isinstance(value, Tensor):
        name = "/".join(place)
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, (*place, str(key)), tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, (*place, str(i)), tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} ({'/'.join(place)})")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Without its manifest first: a half-deleted folder must not look like a checkpoint."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
