"""The models by name, and what a model folder is. Everything here is cheap: no torch, only headers are read.

A model folder holds::

    model.json                  name, description, licence, defaults, hashes
    dit/                        config.json, model.safetensors
    vae/                        config.json, model.safetensors
    text_encoder/               a decoder-only LLM in the Hugging Face layout, its tokenizer, template.json
    text_encoder_2/             a CLIP text model in the Hugging Face layout, its tokenizer

A model folder inside another one takes from that one what it lacks: a variant is a ``model.json`` and a ``dit``.

Any folder of this layout works wherever a model's name does, and so does a model as others publish it: an official
folder, a diffusers folder, a transformer's file with the other parts around it (see ``models.layout``).
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record, nearest, read_json
from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.weights import count_parameters, read_header
from openhunyuan.models.layout import (
    CONFIG,
    OWN_PARTS,
    PICKLES,
    ImageCondition,
    Layout,
    Parts,
    find_parts,
    official_file,
)

COMPONENTS = OWN_PARTS
WEIGHTS = "model.safetensors"
_STEMS = ("model", "diffusion_pytorch_model")


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
    """A model folder's ``model.json``; for models of other layouts, what is known of them."""

    name: str
    description: str = ""
    licence: str = "Apache-2.0"
    defaults: ModelDefaults
    released: bool = Field(False, description="Weights of the official release, whose rounding their videos expect.")
    image_condition_type: ImageCondition | None = Field(
        None,
        description="How a picture comes in: token_replace (frame 0 is the picture at time 0) or latent_concat "
        "(33 input channels); None takes no picture.",
    )
    image_optional: bool = Field(False, description="Weights that read a picture also make videos from text alone.")
    last_image: bool = Field(False, description="Weights that read a picture to start from also read one to end on.")
    sha256: dict[str, str] = Field(default_factory=dict, description="Weights file (relative) -> SHA-256.")


@dataclass(frozen=True)
class ModelEntry:
    """Where a named model lives."""

    folder: Path
    description: str


_EMBEDDED = Path(__file__).resolve().parents[1] / "tiny" / "weights"
MODELS: dict[str, ModelEntry] = {
    "tiny": ModelEntry(
        folder=_EMBEDDED,
        description="The embedded model: 64x64, trained on the synthetic world by this package's own recipes.",
    ),
    "tiny-fast": ModelEntry(
        folder=_EMBEDDED / "fast",
        description="The embedded model distilled to 8 steps of one pass: a sixth of the transformer's calls.",
    ),
}


LICENCE = "Tencent Hunyuan Community Licence (grants nothing in the European Union, the United Kingdom and South Korea)"


@dataclass(frozen=True)
class ModelFiles:
    """A complete model on disk.

    Attributes:
        layout: whose arrangement it is.
        folder: the model's own folder.
        dit, vae: a component folder or a weights file.
        text_encoder, text_encoder_2: the folders of the language model and of CLIP.
        spec: its ``model.json``, or what is known of a released model.
    """

    layout: Layout
    folder: Path
    dit: Path
    vae: Path
    text_encoder: Path
    text_encoder_2: Path
    spec: ModelSpec


def released_spec(name: str, condition: ImageCondition | None) -> ModelSpec:
    """What is known of the released weights: the official defaults (release facts E.5, G.1 and I.1)."""
    defaults = ModelDefaults(
        height=720,
        width=1280,
        num_frames=129,
        num_inference_steps=50,
        guidance_scale=1.0 if condition == "latent_concat" else 6.0,
        true_cfg_scale=1.0,
        flow_shift=7.0,
        fps=24,
        negative_prompt="",
    )
    what = "image-to-video" if condition else "text-to-video"
    return ModelSpec(
        name=name,
        description=f"HunyuanVideo, {what}.",
        licence=LICENCE,
        defaults=defaults,
        released=True,
        image_condition_type=condition,
        image_optional=False,
        last_image=False,
    )


def find_model(name_or_path: str) -> ModelFiles:
    """The parts of a model, by name or by the path of a folder or a transformer's file, in any layout.

    Raises:
        UserError: an unknown name (names the nearest), no model there, a part missing.
    """
    entry = MODELS.get(name_or_path)
    if entry is not None:
        if not (entry.folder / "model.json").is_file():
            raise UserError(f"The model '{name_or_path}' is not in this installation ({entry.folder}); reinstall it.")
        path = entry.folder
    else:
        path = Path(name_or_path).expanduser()
        if not path.exists():
            near = nearest(name_or_path, MODELS)
            hint = f"did you mean {near}?" if near else f"known models are {', '.join(MODELS)}, or give a model's path."
            raise UserError(f"Unknown model '{name_or_path}'; {hint}")
    parts = find_parts(path)
    if parts is None:
        raise UserError(
            f"{path} is not a model: it has no model.json (ours), no model_index.json (diffusers), no transformers "
            "folder (official) and no diffusion_models folder (ComfyUI)."
        )
    return _complete(parts, path)


def _complete(parts: Parts, path: Path) -> ModelFiles:
    dit, vae, text, clip = parts.dit, parts.vae, parts.text_encoder, parts.text_encoder_2
    if dit is None or vae is None or text is None or clip is None:
        places = {
            "dit": "the transformer",
            "vae": "the folder vae",
            "text_encoder": "the folder text_encoder (the language model)",
            "text_encoder_2": "the folder text_encoder_2 (CLIP)",
        }
        lacking = " and ".join(places[name] for name in parts.missing())
        raise UserError(f"The model {path} is not complete: {lacking} was not found in or above {parts.folder}.")
    if parts.layout == "openhunyuan":
        spec = ModelSpec.read(parts.folder / "model.json")
    else:
        spec = released_spec(parts.folder.resolve().name, parts.image_condition_type)
    return ModelFiles(parts.layout, parts.folder, dit, vae, text, clip, spec)


def model_folder(name_or_path: str) -> Path:
    """The folder of a named model or of a path. Raises ``UserError`` for anything else, naming the nearest name."""
    return find_model(name_or_path).folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component, single or sharded. Raises ``UserError`` when there are none.

    A shard that the index names is listed whether or not it is there.
    """
    single = next((path for stem in _STEMS if (path := folder / f"{stem}.safetensors").exists()), None)
    if single is not None:
        return [single]
    names = indexed_names(folder)
    if names:
        return [folder / name for name in sorted(set(names.values()))]
    if not folder.is_dir():
        raise UserError(f"The model has no folder {folder}.")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if others:
        raise UserError(f"{folder} has several weights files and no index that says which belong together.")
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{pickles[0]} is a pickle, but {WEIGHTS} is expected: pickles can run code when they are loaded; "
            "convert it to safetensors first."
        )
    raise UserError(f"{folder} has no {WEIGHTS}.")


def indexed_names(folder: Path) -> dict[str, str]:
    """Tensor -> shard, of a component folder with an index; empty without one."""
    if any((folder / f"{stem}.safetensors").exists() for stem in _STEMS):
        return {}
    index = next(iter(sorted(folder.glob("*.safetensors.index*.json"))), None)
    if index is None:
        return {}
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} has no weight_map; copy or download it again.")
    shards = {str(key): str(name) for key, name in names.items()}
    foreign = next((name for name in shards.values() if Path(name).name != name), None)
    if foreign is not None:
        raise UserError(f"{index} names the shard {foreign}, which is not in its own folder; download it again.")
    return shards


def check_model(name_or_path: str) -> tuple[Path, ModelSpec]:
    """Find a model and check its files' headers: (folder, spec). Fast, and before torch is imported."""
    files = find_model(name_or_path)
    for component in COMPONENTS:
        place: Path = getattr(files, component)
        if files.layout == "openhunyuan" and not (place / CONFIG).is_file():
            raise UserError(f"The model {files.folder} is not complete: {component}/{CONFIG} is missing.")
        for path in component_files(files, component):
            _check_file(path)
    return files.folder, files.spec


def component_files(files: ModelFiles, component: str) -> list[Path]:
    """The weights files of one part."""
    place: Path = getattr(files, component)
    if place.is_file():
        return [place]
    if files.layout != "openhunyuan" and not any(place.glob("*.safetensors")):
        # Official transformers and VAE come as pickles; only tensors are read from them.
        official = official_file(place) if component == "dit" else None
        pickles = [official] if official else sorted(path for path in place.iterdir() if path.suffix in PICKLES)
        if pickles:
            return pickles
    return weight_files(place)


def _check_file(path: Path) -> None:
    if path.suffix not in PICKLES:
        if not path.exists():
            raise UserError(f"The shard {path} is missing, though an index names it; download it again.")
        read_header(path)
    elif not zipfile.is_zipfile(path):
        raise UserError(f"{path} is truncated or not a PyTorch file; copy or download it again.")


def component_parameters(model: Path | ModelFiles) -> dict[str, int]:
    """Parameters of each component, counted from the weights' headers (which needs torch where they are pickles)."""
    files = model if isinstance(model, ModelFiles) else find_model(str(model))
    return {
        component: sum(_count_parameters(path) for path in component_files(files, component))
        for component in COMPONENTS
    }


def _count_parameters(path: Path) -> int:
    if path.suffix not in PICKLES:
        return count_parameters(path)
    from openhunyuan.base.tensorfile import count_pickled

    return count_pickled(path)


def component_bytes(model: Path | ModelFiles) -> dict[str, int]:
    """Bytes on disk of each component: of a folder all its files."""
    files = model if isinstance(model, ModelFiles) else find_model(str(model))
    places: dict[str, Path] = {component: getattr(files, component) for component in COMPONENTS}
    return {
        component: sum(
            path.stat().st_size for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()
        )
        for component, place in places.items()
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
