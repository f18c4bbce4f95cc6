"""Model folders in and out of memory. The layout is described in ``models.zoo``.

Networks are built without memory (on the meta device) and the file's tensors become their parameters, so that loading
needs each weight once. Every unknown or missing key, and every tensor of a wrong shape, is named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from openhunyuan.base.device import pick_device, pick_dtype
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import nearest, read_json, sentence
from openhunyuan.base.weights import load_safetensors, save_safetensors
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.zoo import WEIGHTS, ModelDefaults, ModelSpec, check_model, file_sha256, weight_files

CONFIG = "config.json"
Net = TypeVar("Net", bound=nn.Module)


class LoadedModel:
    """A model whose parts are read when they are first used, on one device in one dtype.

    Attributes:
        folder: where it was read from.
        spec: its ``model.json``.
    """

    def __init__(self, folder: Path, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = folder
        self.spec = spec
        self.device = device
        self.dtype = dtype

    @cached_property
    def dit(self) -> DiT:
        """The transformer, in eval mode, without gradients."""
        return load_dit(self.folder / "dit", self.device, self.dtype)

    @cached_property
    def vae(self) -> CausalVAE:
        """The VAE, in eval mode, without gradients."""
        return load_vae(self.folder / "vae", self.device, self.dtype)

    @cached_property
    def text(self) -> TextEncoder:
        """Both text encoders."""
        return TextEncoder.from_folder(
            self.folder / "text_encoder", self.folder / "text_encoder_2", device=self.device, dtype=self.dtype
        )

    def check_fit(self) -> None:
        """Raise ``UserError`` unless the transformer reads what the text encoders and the VAE give."""
        config = self.dit.config
        for what, given, wanted in (
            ("language model's width", self.text.states_width, config.text_dim),
            ("CLIP text model's width", self.text.pooled_width, config.pooled_dim),
            ("VAE's latent_channels", self.vae.config.latent_channels, config.in_channels),
        ):
            if given != wanted:
                raise UserError(f"In {self.folder} the {what} is {given}, but the transformer expects {wanted}.")


def load_model(
    name_or_path: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> LoadedModel:
    """Check a model's files and return it, its parts not yet read.

    Args:
        name_or_path: a name of ``models.zoo.MODELS`` or a model folder.
        device: None takes the best one here.
        dtype: None takes bfloat16 on a GPU that has it, float32 elsewhere; the stored format does not matter.

    Raises:
        UserError: unknown model, missing, truncated or pickled files.
    """
    folder, spec = check_model(str(name_or_path))
    where = device if isinstance(device, torch.device) else pick_device(device)
    return LoadedModel(folder, spec, where, pick_dtype(dtype, where))


def load_dit(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> DiT:
    """The transformer of a component folder (config.json, model.safetensors)."""
    folder = Path(folder)
    values = read_json(folder / CONFIG)
    try:
        config = DiTConfig(**values)
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG}: {sentence(error, DiTConfig)}") from None
    return _load(lambda: DiT(config), folder, device, dtype)


def load_vae(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> CausalVAE:
    """The VAE of a component folder (config.json, model.safetensors)."""
    folder = Path(folder)
    try:
        config = VAEConfig.from_dict(read_json(folder / CONFIG))
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} has a value of the wrong type ({error}).") from None
    return _load(lambda: CausalVAE(config), folder, device, dtype)


def _load(build: Callable[[], Net], folder: Path, device: str | torch.device, dtype: torch.dtype) -> Net:
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in load_safetensors(path).items():
            state[name] = tensor.to(device=device, dtype=dtype) if tensor.is_floating_point() else tensor.to(device)
    with torch.device("meta"):
        net = build()
    check_state(net.state_dict(), state, str(folder))
    net.load_state_dict(state, assign=True)
    left = [name for name, buffer in net.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(f"{type(net).__name__} has buffers that no file can fill: {', '.join(left)}")
    return net.eval().requires_grad_(False)


def check_state(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Raise ``UserError`` unless ``given`` has exactly the keys and shapes of ``wanted``; says which are wrong."""
    unknown_keys = [name for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    if unknown_keys:
        near = nearest(unknown_keys[0], missing)
        hint = f" (is {unknown_keys[0]} meant to be {near}?)" if near else ""
        raise UserError(f"The weights in {source} have unknown keys: {_some(unknown_keys)}{hint}.")
    if missing:
        raise UserError(f"The weights in {source} lack keys: {_some(missing)}.")
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise UserError(
                f"In {source} the tensor {name} has shape {list(given[name].shape)}, "
                f"but its config.json says {list(tensor.shape)}."
            )


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _stored(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to(dtype) if dtype is not None and tensor.is_floating_point() else tensor.detach()
        for name, tensor in state.items()
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_dit(folder: Path | str, dit: DiT, dtype: torch.dtype | None = None) -> None:
    """Write a transformer as a component folder; ``dtype`` is the stored format (None: as it is)."""
    _write_json(Path(folder) / CONFIG, dit.config.model_dump(mode="json"))
    save_safetensors(Path(folder) / WEIGHTS, _stored(dit.state_dict(), dtype))


def save_vae(folder: Path | str, vae: CausalVAE, dtype: torch.dtype | None = None) -> None:
    """Write a VAE as a component folder; ``dtype`` is the stored format (None: as it is)."""
    _write_json(Path(folder) / CONFIG, vae.config.to_dict())
    save_safetensors(Path(folder) / WEIGHTS, _stored(vae.state_dict(), dtype))


def save_model_folder(
    dst: Path | str,
    dit: DiT,
    vae: CausalVAE,
    llm_dir: Path | str,
    clip_dir: Path | str,
    defaults: ModelDefaults | Mapping[str, Any],
    name: str,
    dtype: torch.dtype | None = torch.float16,
    description: str = "",
    licence: str = "Apache-2.0",
) -> ModelSpec:
    """Write a complete model folder and return its spec.

    Args:
        dst: the folder; made if needed, files of the same names are replaced.
        dit, vae: the networks.
        llm_dir, clip_dir: Hugging Face folders with their tokenizers; copied, their weights stored in ``dtype``.
        defaults: what a request leaves open.
        name: the model's name.
        dtype: stored format of all floating weights; None keeps each as it is. Loading casts to the compute format.
    """
    dst = Path(dst)
    if not isinstance(defaults, ModelDefaults):
        defaults = ModelDefaults(**defaults)
    save_dit(dst / "dit", dit, dtype)
    save_vae(dst / "vae", vae, dtype)
    for source, component in ((Path(llm_dir), "text_encoder"), (Path(clip_dir), "text_encoder_2")):
        _copy_text_model(source, dst / component, dtype)
    hashes = {path.relative_to(dst).as_posix(): file_sha256(path) for path in sorted(dst.rglob("*.safetensors"))}
    spec = ModelSpec(name=name, description=description, licence=licence, defaults=defaults, sha256=hashes)
    _write_json(dst / "model.json", spec.model_dump(mode="json"))
    return spec


def _copy_text_model(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    if not (source / CONFIG).is_file():
        raise UserError(f"{source} is not a Hugging Face model folder: it has no {CONFIG}.")
    if source.resolve() == target.resolve():
        raise UserError(f"{source} cannot be copied onto itself; give another target folder.")
    target.mkdir(parents=True, exist_ok=True)
    weight_files(source)  # Says now, not at the first use, that the weights are missing or pickled.
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            save_safetensors(target / path.name, _stored(load_safetensors(path), dtype), {"format": "pt"})
        elif path.suffix in (".json", ".txt", ".model", ".jinja"):
            shutil.copyfile(path, target / path.name)
