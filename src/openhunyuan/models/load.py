"""Model folders in and out of memory. The layout is described in ``models.zoo``.

Networks are built without memory (on the meta device) and the file's tensors, mapped, become their parameters: where
format and device are right nothing is copied, elsewhere each weight once. Every unknown or missing key, and every
tensor of a wrong shape, is named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from openhunyuan.base.device import pick_device, pick_dtype
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import nearest, read_json, sentence
from openhunyuan.base.tensorfile import StoredTensor, stored_safetensors
from openhunyuan.base.weights import load_safetensors, save_safetensors
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.text.templates import TEMPLATE_FILE
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.zoo import (
    CONFIG,
    WEIGHTS,
    ImageCondition,
    ModelDefaults,
    ModelFiles,
    ModelSpec,
    check_model,
    file_sha256,
    find_model,
    weight_files,
)
from openhunyuan.ops.float8 import SCALE, is_quantized, quantize, replace_linear

Net = TypeVar("Net", bound=nn.Module)


class Shaped(Protocol):
    """Anything with a shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Mappable(Shaped, Protocol):
    """A tensor that is not in memory yet."""

    def map(self) -> Tensor: ...


class LoadedModel:
    """A model whose parts are read when they are first used, on one device in one dtype.

    Attributes:
        files: where its parts lie.
        folder: the model's own folder.
        spec: its ``model.json``, or what is known of a released model.
        float8: whether the transformer's linears are kept in eight bits.
        text_precision: one of ``models.text.encoder.PRECISIONS`` for the text encoders; None: float16 for released
            ones on a GPU (release fact D.1), elsewhere ``dtype``. To be set before ``text`` is first used.
        strings: file of released templates and negative prompts, see ``models.text.templates``.
    """

    def __init__(
        self, files: ModelFiles, device: torch.device, dtype: torch.dtype, readers: Readers, float8: bool = False
    ) -> None:
        self.files = files
        self.folder = files.folder
        self.spec = files.spec
        self.device = device
        self.dtype = dtype
        self.float8 = float8
        self.text_precision: str | None = None
        self.strings: Path | str | None = None
        self._readers = readers

    @cached_property
    def dit(self) -> DiT:
        """The transformer, in eval mode, without gradients."""
        return self._readers.dit(self.files.dit, self.device, self.dtype, self.float8)

    @cached_property
    def vae(self) -> CausalVAE:
        """The VAE, in eval mode, without gradients."""
        return self._readers.vae(self.files.vae, self.device, self.dtype)

    @cached_property
    def text(self) -> TextEncoder:
        """Both text encoders."""
        precision = self.text_precision
        if precision is None and self.spec.released and self.device.type == "cuda":
            precision = "float16"
        return TextEncoder.from_folder(
            self.files.text_encoder,
            self.files.text_encoder_2,
            device=self.device,
            dtype=self.dtype,
            precision=precision,
            strings=self.strings,
        )

    def weights_name(self) -> str:
        """Identifies what makes latents and text states (hashes of the VAE's and the text encoders' weights)."""
        places = (self.files.vae, self.files.text_encoder, self.files.text_encoder_2)
        return "-".join([self.spec.name, *(digest for place in places for digest in _hashes(place))])

    def vae_name(self) -> str:
        """Identifies what makes latents: hashes of the VAE's weights."""
        return "-".join(_hashes(self.files.vae))

    def text_name(self) -> str:
        """Identifies what makes text states: hashes of both text encoders' weights and of the folder's template."""
        names = [*_hashes(self.files.text_encoder), *_hashes(self.files.text_encoder_2)]
        template = self.files.text_encoder / TEMPLATE_FILE
        return "-".join([*names, file_sha256(template)[:16]] if template.is_file() else names)

    def with_vae(self, folder: Path) -> LoadedModel:
        """The same model with the VAE of another component folder, nothing of it read yet."""
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not the folder of a VAE: it has no {CONFIG}.")
        files = replace(self.files, vae=folder)
        return LoadedModel(files, self.device, self.dtype, self._readers, self.float8)

    def free_text(self) -> None:
        """Give the text encoders' memory back; they are read again when they are next used."""
        if self.__dict__.pop("text", None) is not None and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def check_fit(self, text_widths: tuple[int, int] | None = None) -> None:
        """Raise ``UserError`` unless the transformer reads what the text encoders and the VAE give.

        ``text_widths`` are those of the states and of the pooled vector, where the text encoders are gone again.
        """
        config = self.dit.config
        states_width, pooled_width = text_widths or (self.text.states_width, self.text.pooled_width)
        for what, given, wanted in (
            ("language model's width", states_width, config.text_dim),
            ("CLIP text model's width", pooled_width, config.pooled_dim),
            ("VAE's latent_channels", self.vae.config.latent_channels, config.out_channels),
        ):
            if given != wanted:
                raise UserError(f"In {self.folder} the {what} is {given}, but the transformer expects {wanted}.")


def _hashes(place: Path) -> list[str]:
    weights = sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]
    return [file_sha256(file)[:16] for file in weights]


@dataclass(frozen=True)
class Readers:
    """How the networks of a model are read: ``dit(path, device, dtype, float8)`` and ``vae(path, device, dtype)``."""

    dit: Callable[[Path, torch.device, torch.dtype, bool], DiT]
    vae: Callable[[Path, torch.device, torch.dtype], CausalVAE]


def load_model(
    name_or_path: str,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    float8: bool = False,
    readers: Readers | None = None,
) -> LoadedModel:
    """Check a model's files and return it, its parts not yet read.

    Args:
        name_or_path: a name of ``models.zoo.MODELS`` or a model's path.
        device: None takes the best one here.
        dtype: None takes bfloat16 on a GPU that has it, float32 elsewhere; the stored format does not matter.
        float8: keep the linears of the transformer's blocks in eight bits; weights that are stored so always are.
        readers: None reads our own layout; ``convert.load.open_model`` gives those of every public layout.

    Raises:
        UserError: unknown model, missing, truncated or pickled files.
    """
    check_model(str(name_or_path))
    files = find_model(str(name_or_path))
    where = device if isinstance(device, torch.device) else pick_device(device)
    return LoadedModel(files, where, pick_dtype(dtype, where), readers or Readers(load_dit, load_vae), float8)


def load_dit(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, float8: bool = False
) -> DiT:
    """The transformer of a component folder of ours (config.json, model.safetensors)."""
    folder = Path(folder)
    values = read_json(folder / CONFIG)
    try:
        config = DiTConfig(**values)
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG}: {sentence(error, DiTConfig)}") from None
    return build_dit(config, _mapped(folder), str(folder), device, dtype, float8)


def load_vae(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> CausalVAE:
    """The VAE of a component folder of ours (config.json, model.safetensors)."""
    folder = Path(folder)
    try:
        config = VAEConfig.from_dict(read_json(folder / CONFIG))
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} has a value of the wrong type ({error}).") from None
    return build_vae(config, _mapped(folder), str(folder), device, dtype)


def build_dit(
    config: DiTConfig,
    state: Mapping[str, Mappable],
    source: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    float8: bool = False,
) -> DiT:
    """A transformer from tensors that are mapped one after another, each once.

    A weight with a ``weight_scale`` beside it stays in eight bits, whatever ``dtype``; ``float8`` quantizes the others
    that the release quantizes. Raises ``UserError`` for keys or shapes that are not those of ``config``.
    """
    with torch.device("meta"):
        net = DiT(config)
    quantized = {name.removesuffix(f".{SCALE}") for name in state if name.endswith(f".{SCALE}")}
    linears = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    for name in sorted(quantized & linears):
        replace_linear(net, name)
    check_state(net.state_dict(), state, source)
    wanted = {name for name in linears - quantized if float8 and is_quantized(name)}

    values: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, parameter = name.rpartition(".")
        if parameter == SCALE or (module in quantized and parameter == "weight"):
            values[name] = tensor.map().to(device)
        elif parameter == "weight" and module in wanted:
            weight, scale = quantize(tensor.map())
            replace_linear(net, module)
            values[name], values[f"{module}.{SCALE}"] = weight.to(device), scale.to(device)
        else:
            values[name] = tensor.map().to(device=device, dtype=dtype)
    return _filled(net, values)


def build_vae(
    config: VAEConfig,
    state: Mapping[str, Mappable],
    source: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CausalVAE:
    """A VAE from tensors that are mapped one after another, each once."""
    with torch.device("meta"):
        net = CausalVAE(config)
    check_state(net.state_dict(), state, source)
    return _filled(net, {name: tensor.map().to(device=device, dtype=dtype) for name, tensor in state.items()})


def _mapped(folder: Path) -> dict[str, StoredTensor]:
    state: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        state |= stored_safetensors(path)
    return state


def _filled(net: Net, state: Mapping[str, Tensor]) -> Net:
    net.load_state_dict(state, assign=True)
    left = [name for name, buffer in net.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(f"{type(net).__name__} has buffers that no file can fill: {', '.join(left)}")
    return net.eval().requires_grad_(False)


def check_state(
    wanted: Mapping[str, Shaped], given: Mapping[str, Shaped], source: str, cause: str = "its config.json says"
) -> None:
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
        if tuple(given[name].shape) != tuple(tensor.shape):
            raise UserError(
                f"In {source} the tensor {name} has shape {list(given[name].shape)}, but {cause} {list(tensor.shape)}."
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
    image_condition_type: ImageCondition | None = None,
    image_optional: bool = False,
    last_image: bool = False,
) -> ModelSpec:
    """Write a complete model folder and return its spec.

    Args:
        dst: the folder; made if needed, files of the same names are replaced.
        dit, vae: the networks.
        llm_dir, clip_dir: Hugging Face folders with their tokenizers; copied, their weights stored in ``dtype``.
        defaults: what a request leaves open.
        name: the model's name.
        dtype: stored format of all floating weights; None keeps each as it is. Loading casts to the compute format.
        image_condition_type, image_optional, last_image: what the weights were trained to do with pictures.
    """
    dst = Path(dst)
    if not isinstance(defaults, ModelDefaults):
        defaults = ModelDefaults(**defaults)
    save_dit(dst / "dit", dit, dtype)
    save_vae(dst / "vae", vae, dtype)
    for source, component in ((Path(llm_dir), "text_encoder"), (Path(clip_dir), "text_encoder_2")):
        _copy_text_model(source, dst / component, dtype)
    hashes = {path.relative_to(dst).as_posix(): file_sha256(path) for path in sorted(dst.rglob("*.safetensors"))}
    spec = ModelSpec(
        name=name,
        description=description,
        licence=licence,
        defaults=defaults,
        released=False,
        image_condition_type=image_condition_type,
        image_optional=image_optional,
        last_image=last_image,
        sha256=hashes,
    )
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
