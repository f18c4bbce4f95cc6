"""Where the parts of a model lie: our folders, the official ones, those of diffusers, and ComfyUI's. No torch here.

Given any path that a user may have, a folder of a whole model or the transformer's file, the parts are found by the
names that each program uses (release facts A.1 and A.5); files are told apart by their headers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.base.weights import read_header

Layout = Literal["openhunyuan", "official", "diffusers", "comfyui"]
ImageCondition = Literal["token_replace", "latent_concat"]
OWN_PARTS = ("dit", "vae", "text_encoder", "text_encoder_2")
CONFIG = "config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHT_SUFFIXES = (*PICKLES, ".safetensors")

_PIPELINES = ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline")
# Endings of a name that only this transformer has, as the official program, diffusers and ComfyUI call it.
DIT_SIGNS = (
    "txt_in.c_embedder.linear_1.weight",
    "context_embedder.proj_in.weight",
    "txt_in.c_embedder.in_layer.weight",
)
VAE_SIGNS = ("decoder.conv_in.conv.weight",)
_COMFYUI_DITS = ("diffusion_models", "unet")
# How far above the transformer's file the other parts are looked for.
_LEVELS = 3


@dataclass(frozen=True)
class Parts:
    """The parts of a model; None where nothing was found.

    Attributes:
        layout: whose arrangement it is.
        folder: the model's own folder.
        dit, vae: a component folder or a weights file.
        text_encoder, text_encoder_2: the folders of the language model and of CLIP.
        image_condition_type: what the transformer does with a picture, as far as names and headers tell.
    """

    layout: Layout
    folder: Path
    dit: Path | None
    vae: Path | None
    text_encoder: Path | None
    text_encoder_2: Path | None
    image_condition_type: ImageCondition | None = None

    def missing(self) -> list[str]:
        """Names of the parts that were not found."""
        return [name for name in OWN_PARTS if getattr(self, name) is None]


def find_parts(path: Path) -> Parts | None:
    """The parts of the model that ``path`` is or belongs to; None when it is no model.

    Raises:
        UserError: another network's pipeline, several transformers with nothing to choose between them.
    """
    if path.is_file():
        return _around(path) if path.suffix in WEIGHT_SUFFIXES else None
    if not path.is_dir():
        return None
    if (path / "model.json").is_file():
        dit, vae, text, clip = (_own_or_above(path, part) for part in OWN_PARTS)
        return Parts("openhunyuan", path, dit, vae, text, clip)
    if (path / "model_index.json").is_file():
        return _diffusers(path)
    return _official(path) or _comfyui(path)


def _own_or_above(path: Path, part: str) -> Path:
    """A part of a model folder of ours. One that lies in another model's folder takes what it lacks from that one."""
    above = path.resolve().parent
    lacks = not (path / part).exists() and (above / "model.json").is_file()
    return above / part if lacks and (above / part).is_dir() else path / part


def _diffusers(path: Path) -> Parts:
    name = read_json(path / "model_index.json").get("_class_name")
    if name not in _PIPELINES:
        raise UserError(f"{path} is a {name} of diffusers, but {' or '.join(_PIPELINES)} is expected.")
    parts = [path / part for part in ("transformer", "vae", "text_encoder", "text_encoder_2")]
    dit, vae, text, clip = (part if part.is_dir() else None for part in parts)
    condition = None
    if (path / "transformer" / CONFIG).is_file():
        found = read_json(path / "transformer" / CONFIG).get("image_condition_type")
        condition = found if found in ("token_replace", "latent_concat") else None
    return Parts("diffusers", path, dit, vae, text, clip, condition)


def _official(path: Path) -> Parts | None:
    if (path / "transformers").is_dir():
        inner = [path]
    else:
        inner = sorted(place.parent for place in path.glob("hunyuan-video-*/transformers"))
    if not inner:
        return None
    if len(inner) > 1:
        raise UserError(f"{path} holds several models; give one of {', '.join(map(str, inner))}.")
    return _parts("official", inner[0], inner[0] / "transformers", named_condition(inner[0] / "transformers"))


def _comfyui(path: Path) -> Parts | None:
    files = [file for name in _COMFYUI_DITS for file in sorted((path / name).glob("*.safetensors"))]
    dits = [file for file in files if has_tensor(file, DIT_SIGNS)]
    if not dits:
        return None
    if len(dits) > 1:
        raise UserError(f"{path} holds several transformers; give one of {', '.join(map(str, dits))}.")
    return _around(dits[0])


def _around(file: Path) -> Parts:
    """The parts that belong to a transformer's file."""
    layout: Layout = "comfyui" if file.suffix == ".safetensors" else "official"
    condition = named_condition(file)
    if file.suffix == ".safetensors":
        if not has_tensor(file, DIT_SIGNS):
            raise UserError(
                f"{file} holds no HunyuanVideo transformer; give the transformer's file or its model's folder."
            )
        for name, entry in read_header(file).items():
            if name.endswith(("img_in.proj.weight", "x_embedder.proj.weight")) and entry["shape"][1:2] == [33]:
                condition = "latent_concat"
    return _parts(layout, file.parent, file, condition)


def _parts(layout: Layout, folder: Path, dit: Path, condition: ImageCondition | None) -> Parts:
    texts = ("text_encoder_i2v", "text_encoder") if condition else ("text_encoder",)
    places = list(_upwards(folder))
    return Parts(
        layout,
        folder,
        dit,
        next((vae for place in places if (vae := _vae_in(place / "vae"))), None),
        next((place / name for place in places for name in texts if _is_model(place / name)), None),
        next((place / "text_encoder_2" for place in places if _is_model(place / "text_encoder_2")), None),
        condition,
    )


def _upwards(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    for place in (folder, *folder.parents[:_LEVELS]):
        yield place
        yield from sorted(place.glob("hunyuan-video-*"))


def _vae_in(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    if (folder / CONFIG).is_file() or (folder / "pytorch_model.pt").is_file():
        return folder
    files = [file for file in sorted(folder.glob("*.safetensors")) if has_tensor(file, VAE_SIGNS)]
    if len(files) > 1:
        named = [file for file in files if "hunyuan" in file.name.lower()]
        if len(named) != 1:
            raise UserError(f"{folder} holds several VAEs that may belong here: {', '.join(f.name for f in files)}.")
        files = named
    return files[0] if files else None


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def named_condition(path: Path) -> ImageCondition | None:
    """What the names of a transformer's file and of the official folders around it say of pictures.

    Image-to-video weights with 16 channels have the tensors of the others (release fact I.1): nothing else tells.
    """
    around = [place.name for place in path.absolute().parents[:2]]
    names = [path.name, *(name for name in around if name.startswith("hunyuan-video-"))]
    i2v = any("i2v" in name.lower() or "image_to_video" in name.lower() for name in names)
    return "token_replace" if i2v else None


def official_file(folder: Path, float8: bool = False) -> Path | None:
    """The official pickle in a folder, by the names that the official program looks for (release fact A.2)."""
    plain = sorted([*folder.glob("pytorch_model_*.pt"), *folder.glob("*_model_states.pt")])
    eight = sorted(folder.glob("*_fp8.pt"))
    both = (eight + plain) if float8 else (plain + eight)
    return both[0] if both else None


def has_tensor(file: Path, endings: tuple[str, ...]) -> bool:
    """Whether a safetensors file has a tensor whose name ends so; reads the header alone."""
    return any(name.endswith(endings) for name in read_header(file))
