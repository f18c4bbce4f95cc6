"""Checkpoints: verified, published atomically, the last few kept, never able to run code when read.

    checkpoints/step_00000100/
        manifest.json           format, step, what it is of, and bytes and SHA-256 of every other file; written last
        state.json              the plain values and where the tensors go
        modules.safetensors     one file for each top-level entry of the state that holds tensors

Of sharded tensors every process writes what it holds, and nothing is gathered:

        modules-00003.safetensors   what process 3 wrote; a block's name is its tensor's with the place where it starts
                                    in the whole tensor ("modules/model/proj.weight@96,0")

A block's place is in the network's own order, and ``state.json`` has the shapes of the whole tensors, so any layout
reads what any other wrote. A folder is filled under another name and renamed by the main process when all have written
and it is whole, so a crash or a full disk leaves the checkpoints before it as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.tensorfile import DTYPE_NAMES, DTYPES, StoredTensor, stored_safetensors, write_safetensors
from openhunyuan.parallel.resharding import Part, Place, Stored
from openhunyuan.parallel.world import World

FORMAT, SHARDED = "openhunyuan-checkpoint-1", "openhunyuan-checkpoint-2"
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
    run_dir: Path,
    steps_done: int,
    state: Mapping[str, Any],
    keep: int,
    about: Mapping[str, Any] | None = None,
    world: World | None = None,
) -> Path:
    """Write a checkpoint and drop the oldest beyond ``keep``. Several processes call it together.

    state: nested dicts, lists and tuples of tensors and plain values, with a ``Part`` where a tensor is sharded. Of
    the others, those of the main process are written. about: what it is of (JSON), kept in the manifest and compared by
    ``check_same``.

    Raises:
        OSError: it cannot be written (disk full, …), in one sentence, in all processes; the checkpoints before it are
            untouched.
    """
    world = world or World()
    folder = run_dir / "checkpoints"
    path = folder / f"step_{steps_done:08d}"
    partial = path.with_name(path.name + _PARTIAL)
    tensors: dict[str, Tensor | Part] = {}
    tree = _pack(state, (), tensors)
    sharded = any(isinstance(tensor, Part) for tensor in tensors.values())
    manifest: dict[str, Any] = {
        "format": SHARDED if sharded else FORMAT,
        "step": steps_done,
        "about": dict(about or {}),
    }
    try:
        world.once(lambda: _begin(folder, partial))
        held = _files(tensors, sharded, world)
        written = world.every(lambda: _write(partial, held, tree if world.is_main else None))
        manifest["files"] = {name: entry for files in written for name, entry in files.items()}
        world.once(lambda: _publish(partial, path, manifest))
    except OSError as error:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        before = checkpoints(run_dir)
        last = f"the last good one is {before[-1][1].name}" if before else "there is none before it"
        raise OSError(
            error.errno,
            f"The checkpoint of step {steps_done} cannot be written to {folder} ({error.strerror or error}); {last}: "
            "make room and start the run again to go on from it",
        ) from error
    world.once(lambda: _keep(run_dir, keep))
    return path


def _begin(folder: Path, partial: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(left)
    partial.mkdir()


def _files(tensors: Mapping[str, Tensor | Part], sharded: bool, world: World) -> dict[str, dict[str, _Copied]]:
    """What this process writes: file name → tensors by name."""
    files: dict[str, dict[str, _Copied]] = {}
    suffix = f"-{world.rank:05d}.safetensors" if sharded else ".safetensors"
    for name, tensor in tensors.items():
        file = name.split("/")[0] + suffix
        if isinstance(tensor, Part):
            for start, block in tensor.blocks.items():
                files.setdefault(file, {})[_block_name(name, start)] = _Copied(block)
        elif world.is_main:
            whole = _block_name(name, (0,) * tensor.ndim) if sharded else name
            files.setdefault(file, {})[whole] = _Copied(tensor)
    return files


def _write(folder: Path, files: Mapping[str, Mapping[str, _Copied]], tree: Any) -> dict[str, dict[str, Any]]:
    """Write files, and the state's plain values where a process is given them. File name → its bytes and SHA-256."""
    for name, held in files.items():
        write_safetensors(folder / name, held)
    if tree is not None:
        (folder / STATE).write_text(json.dumps(tree))
    written = {}
    for path in [folder / name for name in (*files, *([] if tree is None else [STATE]))]:
        _sync(path)
        written[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return written


def _publish(partial: Path, path: Path, manifest: Mapping[str, Any]) -> None:
    """The manifest, and the folder under its name."""
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(partial / MANIFEST)
    _sync(partial)
    if path.exists():
        _remove(path)
    partial.rename(path)
    _sync(path.parent)


def _keep(run_dir: Path, keep: int) -> None:
    for _, old in checkpoints(run_dir)[:-keep]:
        _remove(old)


def damage(path: Path, world: World | None = None) -> str | None:
    """Why a checkpoint cannot be trusted (every file is read and its checksum compared), or None when it is whole.

    Several processes call it together, and each reads some of the files.
    """
    world = world or World()
    return next((reason for reason in world.every(lambda: _damage(path, world)) if reason), None)


def _damage(path: Path, world: World) -> str | None:
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return str(error)
    for name, wanted in list(manifest["files"].items())[world.rank :: world.size]:
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
        if manifest["format"] in (FORMAT, SHARDED) and isinstance(manifest["files"], dict):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path / MANIFEST} is not a manifest of this version")


def newest(run_dir: Path, world: World | None = None) -> Path | None:
    """The newest checkpoint that is whole, or None where there is none at all. Several processes call it together.

    Damaged ones newer than it are reported and renamed, so that they are neither used nor counted again.

    Raises:
        UserError: there are checkpoints and none of them is whole.
    """
    world = world or World()
    held, damaged = world.once(lambda: checkpoints(run_dir)), []
    for _, path in reversed(held):
        reason = damage(path, world)
        if reason is None:
            break
        damaged.append((path, reason))
    else:
        if damaged:
            raise UserError(
                f"No checkpoint in {run_dir / 'checkpoints'} is whole ({damaged[0][0].name}: {damaged[0][1]}); "
                "delete the run's directory to start it again."
            )
        return None
    world.once(lambda: _set_aside(damaged, path))
    return path


def _set_aside(damaged: list[tuple[Path, str]], used: Path) -> None:
    for bad, why in damaged:
        get_logger("train").warning("%s is damaged (%s); going on from %s", bad, why, used.name)
        bad.rename(bad.with_name(bad.name + _DAMAGED))


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


def opened(path: Path) -> dict[str, Any]:
    """A checkpoint's state with a ``Stored`` in the place of each tensor: safetensors and JSON only, and of the tensors
    nothing is read yet. Raises UserError when a file is missing or cannot be read, or blocks of a tensor are."""
    try:
        manifest = read_manifest(path)
        blocks: dict[str, dict[Place, StoredTensor]] = {}
        for name in manifest["files"]:
            if name != STATE:
                for key, tensor in stored_safetensors(path / name).items():
                    whole, start = _parsed(key) if manifest["format"] == SHARDED else (key, (0,) * len(tensor.shape))
                    blocks.setdefault(whole, {})[start] = tensor
        return _unpack(json.loads((path / STATE).read_text()), blocks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({error})") from error


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's state with whole tensors, whatever layout wrote it. Raises UserError as ``opened`` does."""
    return read(opened(path))


def read(state: Any) -> Any:
    """A state, or a part of one, with whole tensors for every ``Stored``."""
    if isinstance(state, Stored):
        return state.read()
    if isinstance(state, Mapping):
        return {key: read(value) for key, value in state.items()}
    return type(state)(read(value) for value in state) if isinstance(state, list | tuple) else state


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


def _pack(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor | Part]) -> Any:
    """JSON in which every container says what it is, and a tensor is named by its place in the state."""
    if isinstance(value, Tensor | Part):
        name = "/".join(place)
        tensors[name] = value
        if isinstance(value, Tensor):
            return {"tensor": name}
        return {"sharded": {"name": name, "shape": list(value.shape), "dtype": DTYPE_NAMES[value.dtype]}}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, (*place, str(key)), tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, (*place, str(i)), tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__} ({'/'.join(place)})")


def _unpack(value: Any, blocks: Mapping[str, Mapping[Place, StoredTensor]]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        ((_, whole),) = blocks[content].items()
        return Stored(whole.shape, whole.dtype, blocks[content])
    if kind == "sharded":
        shape, held = tuple(content["shape"]), blocks.get(content["name"], {})
        if sum(prod(block.shape) for block in held.values()) != prod(shape):
            raise ValueError(f"blocks of {content['name']} are missing")
        return Stored(shape, DTYPES[content["dtype"]], held)
    if kind == "dict":
        return {key: _unpack(item, blocks) for key, item in content}
    items = [_unpack(item, blocks) for item in content]
    return items if kind == "list" else tuple(items)


def _block_name(tensor: str, start: Place) -> str:
    return f"{tensor}@{','.join(map(str, start))}"


def _parsed(block: str) -> tuple[str, Place]:
    name, _, start = block.rpartition("@")
    return name, tuple(int(place) for place in start.split(",") if place)


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
