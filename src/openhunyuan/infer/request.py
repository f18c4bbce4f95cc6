"""The request: everything that decides a video, declared once for the command line, Python and the file's metadata."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from openhunyuan.base.device import MAX_SEED, random_seed
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.base.sizes import VideoSize, check_num_frames, check_side
from openhunyuan.infer.rewrite.record import Rewrite

VIDEO_SUFFIX = ".mp4"
IMAGE_SUFFIX = ".png"
RIFLEX_FRAMES = 192
MAX_PROMPT_WORDS = 1000
MAX_PROMPT_CHARACTERS = 10_000


class Defaults(Protocol):
    """What a model fills in where a request says nothing (``models.zoo.ModelDefaults``)."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def num_inference_steps(self) -> int: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def true_cfg_scale(self) -> float: ...
    @property
    def flow_shift(self) -> float: ...
    @property
    def fps(self) -> float: ...
    @property
    def negative_prompt(self) -> str: ...


class Request(Record):
    """What to make. A field that is left open takes the model's default (see `openhunyuan info MODEL`)."""

    prompt: str = Field(description="What the video shows.")
    negative_prompt: str | None = Field(
        None, description="What it should not show; needs --true-cfg-scale above 1. Default: the model's."
    )
    height: int | None = Field(None, description="Pixels, a multiple of 16.")
    width: int | None = Field(None, description="Pixels, a multiple of 16.")
    num_frames: int | None = Field(None, description="4n + 1 frames: 1 (an image), 5, 9, ..., 33, ..., 129.")
    num_inference_steps: int | None = Field(None, description="Denoising steps, 1 to 1000: more is slower and finer.")
    guidance_scale: float | None = Field(
        None, description="Embedded guidance, for models distilled with a guidance input; 0 or more."
    )
    true_cfg_scale: float | None = Field(
        None, description="Classifier-free guidance, 1 or more: 1 is off, above 1 each step costs twice."
    )
    flow_shift: float | None = Field(
        None, description="Shift of the noise levels, above 0: larger gives layout more steps."
    )
    seed: int | None = Field(
        None, description="Whole number, 0 or more; the same seed, the same video. Default: random."
    )
    fps: float | None = Field(None, description="Frames a second, above 0 and at most 240.")
    num_videos: int = Field(1, description="How many videos, with seeds seed, seed + 1, ...; 1 to 1000.")
    model: str = Field("tiny", description="A model's name or folder.")
    image: str | None = Field(None, description="Picture to start from (image-to-video); the model must read one.")
    last_image: str | None = Field(None, description="Picture to end on, with --image; the model must read two.")
    i2v_resolution: Literal["360p", "540p", "720p"] | None = Field(
        None, description="With --image: how large; the picture's shape then decides height and width."
    )
    i2v_stability: bool = Field(
        False, description="With --image: mix a little of the picture into the noise, for calmer motion."
    )
    numerics: Literal["auto", "official", "ours"] = Field(
        "auto",
        description="Rounding: official is the released program's (noise in half precision, fractions of pixels cut "
        "off), ours is finer; auto is official for released weights.",
    )
    lora: tuple[str, ...] = Field(
        (), description="LoRA to apply, PATH or PATH:SCALE (scale 1 when left out); may be given several times."
    )
    rewrite: Literal["none", "normal", "master"] = Field(
        "none", description="Have a language model rewrite the prompt: normal keeps to it, master adds composition."
    )
    rewritten: Rewrite | None = Field(
        None, description="What rewriting gave; prompt is then the text to use, and is not rewritten again."
    )
    schedule: Literal["shift", "linear-quadratic"] = Field(
        "shift",
        description="How noise levels fall: along flow_shift, or slowly in a line and then in a parabola.",
    )
    linear_schedule_end: int | None = Field(
        None, description="Steps on the line of --schedule linear-quadratic. Default: half of all."
    )
    riflex: Literal["auto", "on", "off"] = Field(
        "auto", description="RIFLEx, against motion that repeats in long videos; auto is on above 192 frames."
    )
    enhance_weight: float | None = Field(
        None, description="Enhance-A-Video: frames attend to each other more, 0 to 10, often 2 to 4. Default: off."
    )
    preview: bool = Field(False, description="After each step, write a small guess of the result beside the file.")
    output_path: str | None = Field(
        None, description="File to write: .mp4, or .png for one frame. Default: a new name in the output folder."
    )
    output_dir: str = Field("outputs", description="Folder for new names, when there is no --output-path.")

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, prompt: str) -> str:
        if not prompt.strip():
            raise UserError("The prompt is empty; say what the video should show.")
        return _not_too_long("prompt", prompt)

    @field_validator("negative_prompt")
    @classmethod
    def _negative_prompt(cls, prompt: str | None) -> str | None:
        return prompt if prompt is None else _not_too_long("negative_prompt", prompt)

    @field_validator("num_frames")
    @classmethod
    def _num_frames(cls, value: int | None) -> int | None:
        if value is not None:
            check_num_frames(value)
        return value

    @field_validator("height", "width")
    @classmethod
    def _side(cls, value: int | None, info: Any) -> int | None:
        if value is not None:
            check_side(info.field_name, value)
        return value

    @field_validator(
        "num_inference_steps",
        "guidance_scale",
        "true_cfg_scale",
        "flow_shift",
        "seed",
        "fps",
        "num_videos",
        "linear_schedule_end",
        "enhance_weight",
    )
    @classmethod
    def _range(cls, value: float | None, info: Any) -> float | None:
        if value is None:
            return None
        low, high, open_below, words = _RANGES[info.field_name]
        if not math.isfinite(value) or value > high or value < low or (open_below and value == low):
            raise UserError(f"{info.field_name} is {value:g}, but it must be {words}.")
        return value

    @field_validator("lora", mode="before")
    @classmethod
    def _lora_list(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value

    @field_validator("lora")
    @classmethod
    def _lora(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            split_lora(entry)
        return value

    @field_validator("output_path", "output_dir", "image", "last_image", mode="before")
    @classmethod
    def _output_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.image is None:
            for name in ("last_image", "i2v_resolution", "i2v_stability"):
                if getattr(self, name):
                    raise UserError(f"{name} needs a picture to start from; give image as well.")
        if self.linear_schedule_end is not None:
            if self.schedule != "linear-quadratic":
                raise UserError(
                    "linear_schedule_end needs schedule 'linear-quadratic'; set it, or leave linear_schedule_end out."
                )
            if self.num_inference_steps is not None and self.linear_schedule_end >= self.num_inference_steps:
                raise UserError(
                    f"linear_schedule_end is {self.linear_schedule_end}, but it must be below num_inference_steps, "
                    f"{self.num_inference_steps}."
                )
        return self

    @model_validator(mode="after")
    def _output_kind(self) -> Self:
        if self.seed is not None and self.seed + self.num_videos - 1 > MAX_SEED:
            raise UserError(f"seed {self.seed} leaves no room for {self.num_videos} seeds; use a smaller one.")
        if self.output_path is None:
            return self
        if any(ord(letter) < 32 for letter in self.output_path):
            raise UserError(f"output_path is {self.output_path!r}, but a name must have no control characters.")
        suffix = Path(self.output_path).suffix.lower()
        if suffix not in (VIDEO_SUFFIX, IMAGE_SUFFIX):
            raise UserError(f"output_path is '{self.output_path}', but it must end in .mp4, or in .png for one frame.")
        if suffix == IMAGE_SUFFIX and self.num_frames not in (None, 1):
            raise UserError(
                f"A .png holds one frame, but num_frames is {self.num_frames}; use one frame or an .mp4 path."
            )
        if suffix == VIDEO_SUFFIX and self.num_frames == 1:
            raise UserError(f"One frame is written as an image; let output_path '{self.output_path}' end in .png.")
        return self

    def resolve(self, defaults: Defaults) -> Request:
        """This request with nothing left open but the output path: defaults filled in, a random seed drawn.

        A ``.png`` output path means one frame. The result resolves to itself, so it can be stored and run again.
        """
        num_frames = self.num_frames
        if num_frames is None and self.output_path and Path(self.output_path).suffix.lower() == IMAGE_SUFFIX:
            num_frames = 1
        filled = {
            name: getattr(defaults, name) if getattr(self, name) is None else getattr(self, name)
            for name in (
                "negative_prompt",
                "height",
                "width",
                "num_frames",
                "num_inference_steps",
                "guidance_scale",
                "true_cfg_scale",
                "flow_shift",
                "fps",
            )
        }
        if num_frames is not None:
            filled["num_frames"] = num_frames
        seed = random_seed() if self.seed is None else self.seed
        return Request(**{**self.model_dump(), **filled, "seed": seed})

    def replace(self, **changes: Any) -> Request:
        """A copy with some fields changed, validated like a new one; None leaves the field open again."""
        return Request(**{**self.model_dump(), **changes})

    @property
    def size(self) -> VideoSize:
        """The video's size. Only a resolved request has one."""
        if self.num_frames is None or self.height is None or self.width is None:
            raise UserError("The request leaves its size open; resolve it with a model's defaults first.")
        return VideoSize(self.num_frames, self.height, self.width)

    @property
    def seeds(self) -> list[int]:
        """One seed a video: seed, seed + 1, ... Only a resolved request has them."""
        if self.seed is None:
            raise UserError("The request leaves its seed open; resolve it with a model's defaults first.")
        return [self.seed + index for index in range(self.num_videos)]

    @property
    def uses_riflex(self) -> bool:
        """Whether RIFLEx slows time down: asked for, or left to the length (the official bound, release fact B.6)."""
        return self.riflex == "on" or (self.riflex == "auto" and (self.num_frames or 0) > RIFLEX_FRAMES)

    def one(self, index: int) -> Request:
        """The request of the ``index``-th video alone, which makes that same video."""
        return self.replace(seed=self.seeds[index], num_videos=1)


def _not_too_long(name: str, text: str) -> str:
    """``text``, or ``UserError`` for one far beyond what any text encoder here reads.

    A text a little too long for a model is not refused here: the model reads its beginning and says what it cut.
    """
    words, characters = len(text.split()), len(text)
    if words > MAX_PROMPT_WORDS or characters > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"The {name} has {words} words and {characters} characters, but at most {MAX_PROMPT_WORDS} words and "
            f"{MAX_PROMPT_CHARACTERS} characters are taken, and a model reads about 200 words; shorten it."
        )
    return text


def split_lora(entry: str) -> tuple[str, float]:
    """``PATH[:SCALE]`` as (path, scale); without a scale 1. A drive letter's colon (``C:/x``) belongs to the path."""
    path, colon, text = entry.rpartition(":")
    try:
        scale = float(text)
    except ValueError:
        path, scale = entry, 1.0
    if not colon:
        path, scale = entry, 1.0
    if not path.strip():
        raise UserError(f"lora is '{entry}', but it must be a file, or a file and a scale: PATH or PATH:SCALE.")
    if not math.isfinite(scale):
        raise UserError(f"The scale of lora '{entry}' must be a finite number.")
    return path, scale


# field -> (lowest, highest, the lowest itself is excluded, the allowed range in words)
_RANGES: dict[str, tuple[float, float, bool, str]] = {
    "num_inference_steps": (1, 1000, False, "a whole number from 1 to 1000"),
    "guidance_scale": (0, 1000, False, "from 0 to 1000"),
    "true_cfg_scale": (1, 1000, False, "from 1 (off) to 1000"),
    "flow_shift": (0, 1000, True, "above 0 and at most 1000"),
    "seed": (0, MAX_SEED, False, f"a whole number from 0 to {MAX_SEED}"),
    "fps": (0, 240, True, "above 0 and at most 240"),
    "num_videos": (1, 1000, False, "a whole number from 1 to 1000"),
    "linear_schedule_end": (0, 999, False, "a whole number from 0 to 999"),
    "enhance_weight": (0, 10, False, "from 0 to 10"),
}
