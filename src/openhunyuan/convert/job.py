"""A whole conversion: what the source is, what will be written, and the writing.

The source may be a model in any layout, one component of it, a LLaVA or a LoRA. Everything is checked before the first
byte is written, and one tensor at a time is in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import unknown
from openhunyuan.base.weights import read_header
from openhunyuan.convert.dit_read import read_dit
from openhunyuan.convert.dit_write import Format, plan_dit
from openhunyuan.convert.lora import FORMATS as LORA_FORMATS
from openhunyuan.convert.lora import convert_lora
from openhunyuan.convert.lora_keys import split_key
from openhunyuan.convert.plan import File, JsonFile, TensorFile, total_bytes
from openhunyuan.convert.source import open_file
from openhunyuan.convert.vae import plan_vae, read_vae
from openhunyuan.models.layout import (
    DIT_SIGNS,
    PICKLES,
    VAE_SIGNS,
    ImageCondition,
    Parts,
    find_parts,
    has_tensor,
)
from openhunyuan.models.text.extract import extract_language_model
from openhunyuan.models.text.llava import PREPARATION_FILE, is_llava
from openhunyuan.models.zoo import MODELS, ModelSpec, file_sha256, released_spec

FORMATS: tuple[str, ...] = get_args(Format)
Kind = Literal["model", "transformer", "VAE", "LLaVA", "LoRA"]
Written = Callable[[int], None]

_TEXT_FILES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_SPARE_BYTES = 100_000_000


@dataclass(frozen=True)
class Job:
    """A conversion that has been checked and can be run.

    Attributes:
        kind: what the source is.
        source, target: from where to where.
        files: weights and configs to write.
        copies: files that are copied as they are.
        missing: parts that the source lacks; the target will lack them too.
        spec: for our layout, the model.json to write when all is there.
        run_alone: for a LoRA or LLaVA, the whole work; the plan is its own.
    """

    kind: Kind
    source: Path
    target: Path
    files: list[File] = field(default_factory=list)
    copies: list[tuple[Path, Path]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    spec: ModelSpec | None = None
    run_alone: Callable[[Written], None] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of weights that will be written."""
        return total_bytes(self.files) + sum(path.stat().st_size for path, _ in self.copies)

    def run(self, written: Written | None = None) -> None:
        """Write everything; ``written`` is told the bytes as they go. A failure leaves no half weights file."""
        tell = written or (lambda count: None)
        if self.run_alone:
            self.run_alone(tell)
            return
        for source, target in self.copies:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            tell(source.stat().st_size)
        for file in self.files:
            file.write(tell)
        if self.spec is not None:
            hashes = {
                path.relative_to(self.target).as_posix(): file_sha256(path)
                for path in sorted(self.target.rglob("*.safetensors"))
            }
            spec = self.spec.model_copy(update={"sha256": hashes})
            JsonFile(self.target / "model.json", spec.model_dump(mode="json")).write()


def plan(
    source: str,
    target: str,
    to: str = "openhunyuan",
    image_condition_type: ImageCondition | None = None,
    needs_space: bool = True,
) -> Job:
    """Look at the source, check all of it, and say what would be written.

    Args:
        source: a model's name or path (any layout), a transformer or VAE (file or folder), a LLaVA folder, a LoRA.
        target: a folder that is not there or empty; for a LoRA the file.
        to: one of ``FORMATS``; for a LoRA one of ``convert.lora.FORMATS``.
        image_condition_type: how the transformer takes a picture, where names and shapes do not tell.
        needs_space: whether too little space is an error; of no use where nothing will be written.

    Raises:
        UserError: nothing to convert there, tensors that are missing, unknown or of a wrong shape, a target in use,
            too little space.
    """
    here = MODELS[source].folder if source in MODELS else Path(source).expanduser()
    there = Path(target).expanduser()
    if not here.exists():
        raise UserError(f"{source} does not exist; give a file or a folder of weights, or one of {', '.join(MODELS)}.")
    _check_target(here, there)
    if _is_lora(here):
        if to not in LORA_FORMATS:
            raise UserError(unknown("LoRA format", to, LORA_FORMATS))
        return Job("LoRA", here, there, run_alone=lambda tell: convert_lora(here, there, to))
    if to not in FORMATS:
        raise UserError(unknown("format", to, FORMATS))
    if is_llava(here):
        return Job("LLaVA", here, there, run_alone=lambda tell: extract_language_model(here, there, written=tell))
    job = _plan(here, there, to, image_condition_type)  # pyright: ignore[reportArgumentType]  (checked above)
    if needs_space:
        _check_space(job)
    return job


def _plan(source: Path, target: Path, to: Format, condition: ImageCondition | None) -> Job:
    parts = find_parts(source) if source.is_dir() else None
    if parts is not None:
        return _whole(parts, source, target, to, condition)
    if _is_vae(source):
        return Job("VAE", source, target, plan_vae(read_vae(source), target, to.removesuffix("-fp8")))
    weights = read_dit(source, condition=condition)
    return Job("transformer", source, target, plan_dit(weights, target, to))


def _whole(parts: Parts, source: Path, target: Path, to: Format, condition: ImageCondition | None) -> Job:
    """Every part of a model, in the folders of the target's layout."""
    if parts.dit is None:
        raise UserError(f"{source} has no transformer; give one of its component folders to convert that alone.")
    family = to.removesuffix("-fp8")
    spec = ModelSpec.read(source / "model.json") if parts.layout == "openhunyuan" else None
    known = condition or (spec.image_condition_type if spec else None) or parts.image_condition_type
    weights = read_dit(parts.dit, condition=known)
    condition = weights.image_condition_type
    kind = "i2v" if condition else "t2v"
    root = target / f"hunyuan-video-{kind}-720p" if family == "official" else target
    places = {
        "openhunyuan": (target / "dit", target / "vae"),
        "official": (root / "transformers", root / "vae"),
        "diffusers": (target / "transformer", target / "vae"),
        "comfyui": (target / "diffusion_models", target / "vae"),
    }
    dit_place, vae_place = places[family]
    name = f"hunyuan_video_{kind}"
    files = plan_dit(weights, dit_place, to, comfyui_name=name)
    if parts.vae is not None:
        files += plan_vae(read_vae(parts.vae), vae_place, family)
    copies: list[tuple[Path, Path]] = []
    for component in ("text_encoder", "text_encoder_2"):
        folder: Path | None = getattr(parts, component)
        if folder is not None:
            place = target / component
            if family == "official" and component == "text_encoder" and condition:
                place = target / "text_encoder_i2v"
            new, kept = _text(folder, place, component, family)
            files += new
            copies += kept
    if family == "diffusers":
        files += _diffusers_files(target, condition, is_llava(parts.text_encoder) if parts.text_encoder else False)
    if family == "openhunyuan":
        base = spec or released_spec(source.resolve().name, condition)
        spec = base.model_copy(update={"image_condition_type": condition})
    else:
        spec = None
    return Job("model", source, target, files, copies, parts.missing(), spec)


def _text(folder: Path, place: Path, component: str, family: str) -> tuple[list[File], list[tuple[Path, Path]]]:
    """A text model's folder: copied, but a pickle becomes safetensors; what diffusers keeps beside it comes along."""
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in _TEXT_FILES and path.is_file()]
    beside: list[tuple[Path, tuple[str, ...]]] = [(folder.parent / _TOKENIZERS[component], _TOKENIZER_FILES)]
    if component == "text_encoder":
        beside.append((folder.parent / "image_processor", (PREPARATION_FILE,)))
    for other, names in beside:
        have = {path.name for path in kept}
        kept += [other / name for name in sorted(names) if name not in have and (other / name).is_file()]
    copies = [(path, place / path.name) for path in kept]
    if family == "diffusers":
        own = dict.fromkeys(_TOKENIZER_FILES, _TOKENIZERS[component]) | {PREPARATION_FILE: "image_processor"}
        copies = [(path, (place.parent / own[path.name] if path.name in own else place) / path.name) for path in kept]
    if any(path.suffix == ".safetensors" for path in kept):
        return [], copies
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if len(pickles) != 1:
        raise UserError(f"{folder} has no .safetensors weights and not one pickle to make them of; download it again.")
    return [TensorFile(place / "model.safetensors", open_file(pickles[0]), metadata={"format": "pt"})], copies


def _diffusers_files(target: Path, condition: ImageCondition | None, llava: bool) -> list[File]:
    """The index and the scheduler's config, as the published folders have them (release fact A.5)."""
    parts = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "LlavaForConditionalGeneration" if llava else "LlamaModel"],
        "text_encoder_2": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "LlamaTokenizerFast"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
    }
    if condition:
        parts["image_processor"] = ["transformers", "CLIPImageProcessor"]
    pipeline = "HunyuanVideoImageToVideoPipeline" if condition else "HunyuanVideoPipeline"
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 7.0}
    return [
        JsonFile(target / "model_index.json", {"_class_name": pipeline, **parts}),
        JsonFile(target / "scheduler" / "scheduler_config.json", scheduler),
    ]


def _is_lora(path: Path) -> bool:
    if path.is_dir():
        return (path / "adapter_config.json").is_file() or (path / "pytorch_lora_weights.safetensors").is_file()
    if path.suffix != ".safetensors":
        return False
    return any(split_key(name) for name in read_header(path) if name != "__metadata__")


def _is_vae(path: Path) -> bool:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        return any(map(_is_vae, files)) if files else (path / "pytorch_model.pt").is_file()
    if path.suffix in PICKLES:
        return any(name.endswith(VAE_SIGNS) for name in open_file(path))
    return has_tensor(path, VAE_SIGNS) and not has_tensor(path, DIT_SIGNS)


def _check_target(source: Path, target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"The folder {target} is not empty; give a new one, or empty it first.")
    if target.is_file():
        raise UserError(f"{target} is there already; give a new name, or remove it first.")
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} lies inside {source}, which is to be converted; give a place outside.")


def _check_space(job: Job) -> None:
    folder = job.target
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, job.nbytes + _SPARE_BYTES
    if free < needed:
        raise UserError(f"{job.target} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there.")
