"""Parity rows of files: every format in and out, eight bits, and LoRAs.

Sources are written by other means than ours: by diffusers and PEFT themselves, or by hand (``tools.tiny_files``). What
weights mean is compared with diffusers' transformer, what files hold is compared bit by bit. The rows are listed and
asserted together with those of ``tools.parity_rows``.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openhunyuan.convert import dit_comfyui, dit_diffusers
from openhunyuan.convert.dit_read import read_dit
from openhunyuan.convert.dit_write import plan_dit
from openhunyuan.convert.job import plan
from openhunyuan.convert.lazy import from_tensor
from openhunyuan.convert.load import open_dit, open_model
from openhunyuan.convert.lora import FORMATS as LORA_FORMATS
from openhunyuan.convert.lora import convert_lora, read_lora
from openhunyuan.convert.lora_keys import lora_file
from openhunyuan.infer.pipeline import Pipeline
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.layout import ImageCondition
from openhunyuan.models.lora import Adapters
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from tools.parity_rows import GUIDANCE_FIX, NOISE_FIX, STEPS, TILES_FIX, Bench, Row, bench, far, velocities
from tools.tiny_files import (
    comfyui_name,
    dequantized,
    differing,
    quantized,
    stored_tensors,
    write_comfyui_dit,
    write_official_dit,
    write_official_vae,
)
from tools.tiny_release import DIT, diffusers_pipeline, random_dit, randomize


def _working() -> Any:
    return tempfile.TemporaryDirectory(prefix="parity-")


def _state(kind: ImageCondition | None = None, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in random_dit(kind).state_dict().items()}


# -- names and shapes of the 13B --------------------------------------------------------------------------------------

Shapes = Mapping[str, tuple[int, ...]]


def _apart(ours: Shapes, theirs: Shapes, count: int) -> float:
    """Names that only one has or whose shapes differ, and how many names there are too few or too many."""
    return len(set(ours.items()) ^ set(theirs.items())) + abs(len(theirs) - count)


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def released_names(kind: ImageCondition | None, count: int) -> float:
    from diffusers import HunyuanVideoTransformer3DModel

    concat = kind == "latent_concat"
    with torch.device("meta"):
        ours = DiT(DiTConfig(in_channels=33 if concat else 16, guidance_embed=not concat)).state_dict()
        theirs = HunyuanVideoTransformer3DModel(
            in_channels=33 if concat else 16, out_channels=16, guidance_embeds=not concat, image_condition_type=kind
        ).state_dict()
    converted = dit_diffusers.NAMES.to_theirs({name: from_tensor(value) for name, value in ours.items()}, 3072)
    return _apart(_shapes(converted), _shapes(theirs), count)


def comfyui_names(count: int) -> float:
    with torch.device("meta"):
        ours = {name: from_tensor(value) for name, value in DiT(DiTConfig()).state_dict().items()}
    theirs = {comfyui_name(name): shape for name, shape in _shapes(ours).items()}
    return _apart(_shapes(dit_comfyui.NAMES.to_theirs(ours)), theirs, count)


def vae_names(count: int) -> float:
    from diffusers import AutoencoderKLHunyuanVideo

    with torch.device("meta"):
        ours, theirs = CausalVAE(VAEConfig()).state_dict(), AutoencoderKLHunyuanVideo().state_dict()
    return _apart(_shapes(ours), _shapes(theirs), count)


# -- files in and out --------------------------------------------------------------------------------------------------


def _texts(folder: Path, kind: ImageCondition | None, name: str = "text_encoder") -> None:
    """Text encoders with their tokenizers inside, as all layouts but that of diffusers have them."""
    source = bench(kind).folder
    for part, tokenizer, target in (
        ("text_encoder", "tokenizer", name),
        ("text_encoder_2", "tokenizer_2", "text_encoder_2"),
    ):
        shutil.copytree(source / part, folder / target)
        shutil.copytree(source / tokenizer, folder / target, dirs_exist_ok=True)
    if kind:
        shutil.copytree(source / "image_processor", folder / name, dirs_exist_ok=True)


def _vae() -> dict[str, Tensor]:
    vae = randomize(CausalVAE(VAEConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1)), 6, 0.1)
    return {name: value.half() for name, value in vae.state_dict().items()}


def _official(root: Path, kind: ImageCondition | None = None, fp8: bool = False) -> None:
    inner = root / f"hunyuan-video-{'i2v' if kind else 't2v'}-720p"
    write_official_dit(inner / "transformers", _state(kind), fp8)
    write_official_vae(inner / "vae", _vae())
    _texts(root, kind, "text_encoder_i2v" if kind else "text_encoder")


def _comfyui(root: Path, kind: ImageCondition | None = None, fp8: bool = False) -> None:
    name = f"hunyuan_video_{'image_to_video' if kind else 't2v'}.safetensors"
    write_comfyui_dit(root / "diffusion_models" / name, _state(kind), fp8)
    (root / "vae").mkdir()
    save_file(_vae(), str(root / "vae" / "hunyuan_video_vae_fp16.safetensors"))
    _texts(root, kind)


def _diffusers(root: Path, kind: ImageCondition | None) -> None:
    """As the published folders are: the transformer in bfloat16 and in shards, everything else in float16."""
    pipe = bench(kind).theirs
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            small: Any = copy.deepcopy(part).to(torch.bfloat16 if name == "transformer" else torch.float16)
            small.save_pretrained(str(root / name), **({"max_shard_size": "100KB"} if name == "transformer" else {}))
        else:
            part.save_pretrained(str(root / name))
    pipe.save_config(str(root))


@dataclass(frozen=True)
class Published:
    """A whole small model as it is published in one format.

    Attributes:
        title: whose it is, and which.
        layout: whose files these are.
        kind: how it takes a picture.
        fp8: whether the transformer's weights are in eight bits.
    """

    title: str
    layout: Literal["official", "diffusers", "comfyui"]
    kind: ImageCondition | None = None
    fp8: bool = False

    @property
    def to(self) -> str:
        """What ``openhunyuan convert --to`` calls the format."""
        return self.layout + ("-fp8" if self.fp8 else "")

    def write(self, root: Path) -> Path:
        """Write it with its text encoders; returns ``root``."""
        root.mkdir()
        if self.layout == "diffusers":
            _diffusers(root, self.kind)
        else:
            (_official if self.layout == "official" else _comfyui)(root, self.kind, self.fp8)
        return root


PUBLISHED = (
    Published("official", "official"),
    Published("official, image-to-video", "official", "token_replace"),
    Published("official eight-bit", "official", fp8=True),
    Published("diffusers T2V", "diffusers"),
    Published("diffusers I2V, 16 channels", "diffusers", "token_replace"),
    Published("diffusers I2V, 33 channels", "diffusers", "latent_concat"),
    Published("ComfyUI", "comfyui"),
    Published("ComfyUI, image-to-video, 33 channels", "comfyui", "latent_concat"),
    Published("ComfyUI scaled eight-bit", "comfyui", fp8=True),
)


def round_trip(published: Published) -> float:
    """Tensors that differ after the way to our format and back, of transformer, VAE and text encoders together."""
    with _working() as name:
        root = Path(name)
        published.write(root / "source")
        plan(str(root / "source"), str(root / "ours")).run()
        plan(str(root / "ours"), str(root / "back"), published.to).run()
        before, after = stored_tensors(root / "source"), stored_tensors(root / "back")
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            if not any(part in key or (part == "transformer" and "diffusion_models" in key) for key in before):
                raise AssertionError(f"there is no {part} to compare")
        return len(differing(before, after))


def _converted(source: Path, target: Path, to: str) -> Path:
    for file in plan_dit(read_dit(source), target, to):  # pyright: ignore[reportArgumentType]
        file.write()
    return target


def after_conversion(kind: ImageCondition | None, to: str) -> float:
    """diffusers' folder, converted and opened, beside diffusers itself."""
    with _working() as name:
        folder = _converted(bench(kind).folder / "transformer", Path(name) / "converted", to)
        place = folder if (folder / "config.json").is_file() or to == "official" else next(folder.glob("*.safetensors"))
        return velocities(open_dit(place), bench(kind).theirs.transformer, kind)


def loaded_by_diffusers(kind: ImageCondition | None) -> float:
    """An official file, converted to diffusers and loaded by it, beside ours opened from the official file."""
    from diffusers import HunyuanVideoTransformer3DModel

    with _working() as name:
        root = Path(name) / ("i2v" if kind else "t2v")
        source = write_official_dit(root / "hunyuan-video-i2v-720p" if kind else root, _state(kind))
        target = _converted(source, root / "published", "diffusers")
        theirs = HunyuanVideoTransformer3DModel.from_pretrained(str(target), dtype=torch.float32).eval()
        return velocities(open_dit(source), theirs, kind)


# -- eight bits --------------------------------------------------------------------------------------------------------


class EightBits(Bench):
    """Ours keeps the blocks' weights in eight bits; diffusers has the float32 weights that these stand for."""

    def make_theirs(self) -> Any:
        pipe = super().make_theirs()
        meant = dequantized(random_dit(None).state_dict())
        pipe.transformer.load_state_dict(dit_diffusers.to_diffusers(meant), strict=True)
        return pipe

    def make_folder(self) -> Path:
        return bench(None).folder

    def make_ours(self) -> Pipeline:
        return Pipeline(open_model(str(self.folder), "cpu", "float32", float8=True))


@lru_cache(maxsize=1)
def eight_bits() -> EightBits:
    """The bench; that eight bits change the transformer is made sure of."""
    both = EightBits(None)
    if velocities(open_dit(both.folder / "transformer"), both.theirs.transformer, None) < 1e-3:
        raise AssertionError("eight bits change nothing")
    return both


def eight_bit_velocity(write: Callable[[Path, Mapping[str, Tensor]], Path]) -> float:
    """A file with eight-bit weights, opened as it is, beside diffusers."""
    with _working() as name:
        path = write(Path(name) / "fp8", random_dit(None).state_dict())
        if not read_dit(path).is_float8:
            raise AssertionError("the weights are not stored in eight bits")
        return velocities(open_dit(path), eight_bits().theirs.transformer, None)


def quantized_on_loading() -> float:
    both = eight_bits()
    return velocities(open_dit(both.folder / "transformer", float8=True), both.theirs.transformer, None)


def quantization() -> float:
    """Weights and scales that the converter writes, beside those of release fact A.3."""
    with _working() as name:
        root = Path(name)
        source = write_official_dit(root, _state())
        written = stored_tensors(_converted(source, root / "fp8", "official-fp8"))
        tensors, scales = quantized(_state())
        wanted = {f"./{key}": value for key, value in tensors.items()}
        wanted |= {f"./scale of {key}": value for key, value in scales.items()}
        return len(differing(wanted, written))


def eight_bit_pipeline(which: int) -> float:
    both = eight_bits()
    return far(both.run_ours()[which], both.run_theirs()[which])


# -- LoRA --------------------------------------------------------------------------------------------------------------

_TARGETS = [
    *("to_q", "to_k", "to_v", "add_q_proj", "add_v_proj", "to_out.0", "to_add_out"),
    *("proj_mlp", "proj_out", "ff.net.0.proj", "norm_out.linear"),
]
STRENGTHS = (0.8, -0.5)


@lru_cache(maxsize=1)
def _lora_root() -> Any:
    return tempfile.TemporaryDirectory(prefix="parity-lora-")


@lru_cache(maxsize=2)
def trained(index: int) -> Path:
    """A LoRA with random values, made with PEFT on diffusers' transformer and saved by diffusers.

    In the first one some layers have ranks and alphas of their own.
    """
    from diffusers import HunyuanVideoPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    transformer = copy.deepcopy(bench(None).theirs.transformer)
    patterns: dict[str, Any] = {"rank_pattern": {"to_k": 3, "proj_mlp": 2}, "alpha_pattern": {"to_k": 9}}
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=_TARGETS, init_lora_weights=False, **({} if index else patterns)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(index)
        transformer.add_adapter(config)
    folder = Path(_lora_root().name) / f"trained-{index}"
    HunyuanVideoPipeline.save_lora_weights(
        str(folder),
        transformer_lora_layers=dict(get_peft_model_state_dict(transformer)),
        **_collate_lora_metadata({"transformer": transformer}),
    )
    return folder / "pytorch_lora_weights.safetensors"


def written_as(index: int, form: str, folder: Path) -> Path:
    """The LoRA in one of ``LORA_FORMATS``, converted by us."""
    target = folder / (form if form == "peft" else f"{form}-{index}.safetensors")
    convert_lora(trained(index), target, form, DIT)
    return target


def _with_loras(pipe: Any, strengths: tuple[float, ...]) -> Any:
    """diffusers' own loader puts the LoRAs on its pipeline."""
    names = [f"lora_{index}" for index in range(len(strengths))]
    for index, name in enumerate(names):
        file = trained(index)
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipe.set_adapters(names, list(strengths))
    return pipe


@lru_cache(maxsize=4)
def their_transformer(strengths: tuple[float, ...], eight_bit: bool = False) -> Any:
    """diffusers' transformer with LoRAs; that they change it is made sure of."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    plain = (eight_bits() if eight_bit else bench(None)).theirs.transformer
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "vae", "text_encoder_2", "tokenizer_2"))
    pipe = HunyuanVideoPipeline(transformer=copy.deepcopy(plain), scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    changed = _with_loras(pipe, strengths).transformer
    example = open_dit(bench(None).folder / "transformer", float8=eight_bit)
    if velocities(example, changed, None) < 0.01:
        raise AssertionError("the LoRA changes nothing")
    return changed


def _on_ours(files: Mapping[Path, float], merge: bool = False, eight_bit: bool = False) -> DiT:
    dit = open_dit(bench(None).folder / "transformer", float8=eight_bit)
    adapters = Adapters(dit)
    for index, (file, strength) in enumerate(files.items()):
        adapters.add(f"lora_{index}", read_lora(file, dit), strength)
    if merge:
        adapters.merge()
    return dit


def lora_velocity(form: str = "", merge: bool = False, eight_bit: bool = False) -> float:
    """One LoRA in a format; "" reads the file that diffusers wrote."""
    with _working() as name:
        file = written_as(0, form, Path(name)) if form else trained(0)
        ours = _on_ours({file: STRENGTHS[0]}, merge, eight_bit)
        return velocities(ours, their_transformer(STRENGTHS[:1], eight_bit), None)


def two_loras() -> float:
    with _working() as name:
        ours = _on_ours({trained(0): STRENGTHS[0], written_as(1, "kohya", Path(name)): STRENGTHS[1]})
        return velocities(ours, their_transformer(STRENGTHS), None)


def lora_round_trip(form: str) -> float:
    """Tensors that differ from those in diffusers' file after the way to a format and back.

    Of the second LoRA: with a scale for each part of a fused layer, values are rounded on the way (see the guide).
    """
    with _working() as name:
        there = written_as(1, form, Path(name))
        convert_lora(there, Path(name) / "back.safetensors", "diffusers", DIT)
        return len(differing(load_file(trained(1)), load_file(lora_file(Path(name) / "back.safetensors"))))


class WithLoRAs(Bench):
    """``--lora A:0.8 --lora B:-0.5`` beside diffusers' loader; the second file is in kohya's format."""

    def make_theirs(self) -> Any:
        return _with_loras(diffusers_pipeline(self.root / "parts", None), STRENGTHS)

    def make_folder(self) -> Path:
        return bench(None).folder

    def make_ours(self) -> Pipeline:
        second = written_as(1, "kohya", self.root)
        self.fields = {"lora": (f"{trained(0)}:{STRENGTHS[0]}", f"{second}:{STRENGTHS[1]}")}
        return super().make_ours()


@lru_cache(maxsize=1)
def with_loras() -> WithLoRAs:
    return WithLoRAs(None)


def lora_pipeline(which: int) -> float:
    both = with_loras()
    return far(both.run_ours()[which], both.run_theirs()[which])


# -- rows --------------------------------------------------------------------------------------------------------------

_KINDS: tuple[tuple[ImageCondition | None, str], ...] = (
    (None, "T2V"),
    ("token_replace", "I2V, 16 channels"),
    ("latent_concat", "I2V, 33 channels"),
)
_PIPELINE_FIXES = "; ".join((NOISE_FIX, TILES_FIX, GUIDANCE_FIX))
_WHAT = (f"latents after each of {STEPS} steps", "frames in 0..1")


def _exact(part: str, what: str, measure: Callable[[], float]) -> Row:
    return Row(part, what, 0.0, measure, unit="tensors")


FORMAT_ROWS: list[Row] = [
    *(
        _exact(
            "Names, 13B",
            f"{title}: {count} names and shapes beside diffusers",
            lambda kind=kind, count=count: released_names(kind, count),
        )
        for (kind, title), count in zip(_KINDS, (1264, 1264, 1260), strict=True)
    ),
    _exact("Names, 13B", "ComfyUI: 856 names and shapes beside its own replacements", lambda: comfyui_names(856)),
    _exact("Names, 13B", "VAE: 248 names and shapes beside diffusers", lambda: vae_names(248)),
    *(
        _exact(
            "Files",
            f"{published.title}, to ours and back, bit for bit",
            lambda published=published: round_trip(published),
        )
        for published in PUBLISHED
    ),
    *(
        Row(
            "Files",
            f"velocity, {title} of diffusers converted to {to}",
            1e-5,
            lambda kind=kind, to=to: after_conversion(kind, to),
        )
        for kind, title in _KINDS
        for to in ("official", "comfyui", "openhunyuan")
        if kind is None or to == "official"
    ),
    *(
        Row(
            "Files",
            f"velocity, official {title} converted to diffusers and loaded by it",
            1e-5,
            lambda kind=kind: loaded_by_diffusers(kind),
        )
        for kind, title in _KINDS
    ),
    _exact("Eight bits", "weights and scales that we write, beside release fact A.3", quantization),
    Row(
        "Eight bits",
        "velocity, official file with its map",
        1e-5,
        lambda: eight_bit_velocity(lambda folder, state: write_official_dit(folder, state, fp8=True)),
    ),
    Row(
        "Eight bits",
        "velocity, ComfyUI's scaled file",
        1e-5,
        lambda: eight_bit_velocity(lambda folder, state: write_comfyui_dit(folder / "x.safetensors", state, fp8=True)),
    ),
    Row("Eight bits", "velocity, full precision quantized on loading", 1e-5, quantized_on_loading),
    *(
        Row("Eight bits", f"T2V pipeline, {what}", 2e-5, lambda which=which: eight_bit_pipeline(which), _PIPELINE_FIXES)
        for which, what in enumerate(_WHAT)
    ),
    Row("LoRA", "velocity, the file that diffusers wrote", 1e-5, lora_velocity),
    *(
        Row("LoRA", f"velocity, converted to {form}", 1e-5, lambda form=form: lora_velocity(form))
        for form in LORA_FORMATS
    ),
    *(
        _exact("LoRA", f"diffusers to {form} and back, bit for bit", lambda form=form: lora_round_trip(form))
        for form in LORA_FORMATS
        if form != "diffusers"
    ),
    Row("LoRA", "velocity, merged into the weights", 1e-5, lambda: lora_velocity(merge=True)),
    Row("LoRA", "velocity, two of them at 0.8 and -0.5, one in kohya's format", 1e-5, two_loras),
    Row("LoRA", "velocity, on eight-bit weights", 1e-5, lambda: lora_velocity(eight_bit=True)),
    *(
        Row("LoRA", f"T2V pipeline with two, {what}", 2e-5, lambda which=which: lora_pipeline(which), _PIPELINE_FIXES)
        for which, what in enumerate(_WHAT)
    ),
]
