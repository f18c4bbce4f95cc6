"""Weights of other people's models: where they lie, their hash, and how they are opened without running any of them.

A stage with weights is a `ModelStage`: the hash of its files is part of its key, so that other weights are another
stage, and a moved file is the same one. Path, device and batch size change no result and are not part of it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from openhunyuan.base.device import pick_device
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import unknown
from openhunyuan.base.tensorfile import StoredTensor, stored_pickle
from openhunyuan.base.weights import load_safetensors, refuse_others
from openhunyuan.curate.clip import file_sha256
from openhunyuan.curate.stage import Resources, Stage

_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class ModelStage(Stage):
    """Base of the stages that run a network. Made, it has looked for its files and hashed them; `check` opens them.

    Each worker process keeps one copy of the network, on `device`.
    """

    path: str = Field(exclude=True, description="File or folder of the weights.")
    device: str = Field(default="auto", exclude=True, description="cpu, cuda, cuda:N, mps, or auto.")
    batch: int = Field(default=8, ge=1, exclude=True, description="Pictures that go through the network at once.")
    sha256: str = Field(default="", exclude=True, description="Hash of the weights; found out when it is not given.")

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("sha256"):
            return values
        pick_device(values.get("device"))
        # Absolute, because a worker may have another working directory.
        paths = {name: Path(values[name]).absolute() for name in cls.path_fields() if values.get(name)}
        return {**values, **{n: str(p) for n, p in paths.items()}, "sha256": weights_hash(list(paths.values()))}

    @classmethod
    def path_fields(cls) -> tuple[str, ...]:
        """Names of the fields that say where weights lie."""
        return ("path",)

    @property
    def weights(self) -> str | None:
        return self.sha256

    @property
    def resources(self) -> Resources:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Resources(gpus=int(self.place.type == "cuda"))

    def check(self) -> None:
        """Open the weights once, so that what is wrong with them is said before any footage is read."""
        self.load()

    def load(self) -> Any:
        """The network with its weights, in eval mode, on the CPU. Raises UserError when they are not its own."""
        raise NotImplementedError

    @property
    def model(self) -> Any:
        """The network on its device: loaded once in a process."""
        return _loaded(self)  # pyright: ignore[reportArgumentType]

    @property
    def place(self) -> torch.device:
        """The device that `model` is on."""
        return pick_device(self.device)


@lru_cache(maxsize=16)
def _loaded(stage: ModelStage) -> Any:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # workers are many
    return stage.load().to(stage.place)


def weights_hash(paths: Collection[Path]) -> str:
    """One SHA-256 of these files; of a folder, its `.json` and `.safetensors` files with their names."""
    files: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors"))
            files += [(p.name, p) for p in found]
        elif path.is_file():
            files.append(("", path))
        else:
            raise UserError(f"There are no weights at {path}; give the file or folder that holds them.")
    listed = "".join(f"{name}:{_file_hash(str(p), p.stat().st_size, p.stat().st_mtime_ns)}\n" for name, p in files)
    return hashlib.sha256(listed.encode()).hexdigest()


@lru_cache
def _file_hash(path: str, size: int, changed: int) -> str:
    return file_sha256(Path(path))


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The float32 tensors of a weights file by name: safetensors, or what `torch.save` wrote (nothing in it is run).

    A state that lies inside a training checkpoint (`state_dict`, `model`, `module`) is taken out of it, and the prefix
    that DataParallel writes is taken off. Raises UserError.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        found: Mapping[str, Any] = load_safetensors(path)
    elif _starts(path) == b"\x80":
        found = _old_pickle(path)
    else:
        found = stored_pickle(path)
        for inside in ("state_dict", "model", "module", "params"):
            if isinstance(found, Mapping) and isinstance(found.get(inside), Mapping):
                found = found[inside]
    tensors = {}
    for name, tensor in found.items() if isinstance(found, Mapping) else ():
        if isinstance(tensor, StoredTensor):
            tensor = tensor.read()
        if isinstance(tensor, Tensor):
            tensors[str(name).removeprefix("module.")] = tensor.float() if tensor.is_floating_point() else tensor
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; give a file with the model's state.")
    return tensors


def _starts(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _old_pickle(path: Path) -> Any:
    """What `torch.save` wrote before version 1.6; no code in it is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle fails in many ways
        raise UserError(
            f"{path} cannot be read as a file of tensors alone ({_first_line(error)}); take the published file anew."
        ) from None


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: Path | str, what: str) -> nn.Module:
    """Give a network these weights, all of them and no others; eval mode, no gradients. Raises UserError."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wanted = {name: shape for name, shape in wanted.items() if not name.endswith("num_batches_tracked")}
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    refuse_others(wanted, {name: tuple(tensor.shape) for name, tensor in given.items()}, source, what)
    network.load_state_dict(given, strict=False)
    return network.eval().requires_grad_(False)


def folder_type(folder: Path | str, known: Collection[str], what: str) -> tuple[Any, str]:
    """(the `transformers` config of a folder, its model type), one of `known`. Raises UserError."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; the {what} must be a Hugging Face model folder.")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), **_SAFE)
    except Exception as error:  # whatever a strange config makes of it
        raise UserError(f"The config.json of {folder} cannot be used: {_first_line(error)}") from None
    if config.model_type not in known:
        raise UserError(f"{folder} is no {what}: {unknown('model type', config.model_type, known)}")
    return config, config.model_type


def open_folder(class_name: str, folder: Path | str, config: Any, what: str) -> nn.Module:
    """A `transformers` network from a local folder with safetensors; eval mode, float32. Raises UserError."""
    import transformers

    if not any(Path(folder).glob("*.safetensors")):
        raise UserError(f"{folder} has no .safetensors weights; pickle files are not read, convert them.")
    try:
        with _quiet():
            model, report = getattr(transformers, class_name).from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **_SAFE,
            )
    except Exception as error:  # a broken folder fails in many ways
        raise UserError(f"The weights of the {what} in {folder} cannot be read: {_first_line(error)}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{folder} is no {what}: it lacks {len(missing)} tensors, the first is {missing[0]}.")
    return model.eval().requires_grad_(False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and the table of layers that are left out on purpose."""
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


def batches(items: Any, size: int) -> Iterator[Any]:
    """Slices of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
