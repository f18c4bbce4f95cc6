"""The models by name, and what a model folder is. Everything here is cheap: no torch, only headers are read.

A model folder holds::

    model.json                  name, description, licence, defaults, hashes
    dit/                        config.json, model.safetensors
    vae/                        config.json, model.safetensors
    text_encoder/               a decoder-only LLM in the Hugging Face layout, its tokenizer, template.json
    text_encoder_2/             a CLIP text model in the Hugging Face layout, its tokenizer

Any folder of this layout works wherever a model's name does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, nearest, read_json
from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.weights import count_parameters, read_header

COMPONENTS = ("dit", "vae", "text_encoder", "text_encoder_2")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class ModelDefaults(Record):
    """What a request leaves open, this model fills in."""

    height: int = Field(description="Pixels, a multiple of 16.")
    width: int = Field(description="Pixels, a multiple of 16.")
    num_frames: int = Field(description="4n + 1.")
    num_inference_steps: int = Field(ge=1, description="Euler steps.")
    guidance_scale: float = Field(1.0, ge=0, description="Embedded guidance; used by models with a guidance embedder.")
    true_cfg_scale: float = Field(1.0, ge=1, description="Classifier-free guidance; 1 is off.")
    flow_shift: float = Field(1.0, gt=0, description="Shift of the sigma grid.")
    fps: float = Field(gt=0, description="Frames a second.")
    negative_prompt: str = Field("", description="What classifier-free guidance steers away from.")

    @property
    def size(self) -> VideoSize:
        """The default video size."""
        return VideoSize(self.num_frames, self.height, self.width)


class ModelSpec(Record):
    """A model folder's ``model.json``."""

    name: str
    description: str = ""
    licence: str = "Apache-2.0"
    defaults: ModelDefaults
    sha256: dict[str, str] = Field(default_factory=dict, description="Weights file (relative) -> SHA-256.")


@dataclass(frozen=True)
class ModelEntry:
    """Where a named model lives."""

    folder: Path
    description: str


MODELS: dict[str, ModelEntry] = {
    "tiny": ModelEntry(
        folder=Path(__file__).resolve().parents[1] / "tiny" / "weights",
        description="The embedded model: 64x64, trained on the synthetic world by this package's own recipes.",
    ),
}


def model_folder(name_or_path: str) -> Path:
    """The folder of a named model or of a path. Raises ``UserError`` for anything else, naming the nearest name."""
    entry = MODELS.get(name_or_path)
    if entry is not None:
        if not (entry.folder / "model.json").is_file():
            raise UserError(f"The model '{name_or_path}' is not in this installation ({entry.folder}); reinstall it.")
        return entry.folder
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "model.json").is_file():
            raise UserError(f"The folder {path} is not a model: it has no model.json.")
        return path
    if path.is_file():
        read_header(path)  # Says first what is wrong with the file itself: a pickle, truncated, not safetensors.
        raise UserError(f"{path} is one weights file, but a model is a folder with a model.json; give the folder.")
    near = nearest(name_or_path, MODELS)
    hint = f"did you mean {near}?" if near else f"known models are {', '.join(MODELS)}, or give a model folder."
    raise UserError(f"Unknown model '{name_or_path}'; {hint}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component, single or sharded. Raises ``UserError`` when there are none."""
    single = folder / WEIGHTS
    if single.exists():
        return [single]
    index = folder / INDEX
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"{index} has no weight_map; copy or download it again.")
        return [folder / str(name) for name in sorted(set(names.values()))]
    if not folder.is_dir():
        raise UserError(f"The model has no folder {folder}.")
    pickles = sorted(path for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise UserError(
            f"{pickles[0]} is a pickle, but {WEIGHTS} is expected: pickles can run code when they are loaded; "
            "convert it to safetensors first."
        )
    raise UserError(f"{folder} has no {WEIGHTS}.")


def check_model(name_or_path: str) -> tuple[Path, ModelSpec]:
    """Find a model and check its files' headers: (folder, spec). Fast, and before torch is imported."""
    folder = model_folder(name_or_path)
    spec = ModelSpec.read(folder / "model.json")
    for component in COMPONENTS:
        if not (folder / component / "config.json").is_file():
            raise UserError(f"The model {folder} is not complete: {component}/config.json is missing.")
        for path in weight_files(folder / component):
            read_header(path)
    return folder, spec


def component_parameters(folder: Path) -> dict[str, int]:
    """Parameters of each component, counted from the weights' headers."""
    return {
        component: sum(count_parameters(path) for path in weight_files(folder / component)) for component in COMPONENTS
    }


def component_bytes(folder: Path) -> dict[str, int]:
    """Bytes on disk of each component, all its files."""
    return {
        component: sum(path.stat().st_size for path in (folder / component).rglob("*") if path.is_file())
        for component in COMPONENTS
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_hashes(folder: Path, spec: ModelSpec) -> list[str]:
    """The weights files whose content is not what ``model.json`` says (missing ones included)."""
    return [
        name
        for name, expected in sorted(spec.sha256.items())
        if not (folder / name).is_file() or file_sha256(folder / name) != expected
    ]
