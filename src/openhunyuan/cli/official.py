"""The official flags: what a ``sample_video.py`` or ``sample_image2video.py`` line means here (release facts G.1, G.3).

``OFFICIAL`` says of every official flag what became of it, and is the table in ``docs/guides/official-flags.md``;
``translate`` turns such a line into our own options. Flags are read with dashes or underscores and may be mixed with
our options. What changes nothing is said once on stderr; what would change the video against the user's wish is an
error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import SIZE_MULTIPLE

MODEL_BASE = "MODEL_BASE"
"""Environment variable that names the official checkpoint folder."""

_BASE = "ckpts"
_ARCHITECTURES = ("HYVideo-T/2", "HYVideo-T/2-cfgdistill")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Kind = Literal["same", "renamed", "special", "fixed", "nothing", "training"]


@dataclass(frozen=True)
class Flag:
    """An official flag.

    Attributes:
        name: as it is written, with dashes.
        values: how many values it takes: "0", "1" or "+" (one or more).
        kind: same: our option of that name. renamed: our option ``to``. special: see ``_Line``. fixed: accepted with
            the values in ``accepted``, an error with others, for the reason ``note``. nothing: accepted, changes
            nothing; ``note`` is said. training: of the training script only, an error.
        became: what became of it, for the table.
        to: our option's name.
        accepted: the values that are accepted.
        note: the sentence to say when it is used, or the reason of an error.
    """

    name: str
    values: Literal["0", "1", "+"]
    kind: Kind
    became: str
    to: str = ""
    accepted: tuple[str, ...] = ()
    note: str = ""


def _same(name: str) -> Flag:
    return Flag(name, "1", "same", "the same option")


def _renamed(name: str, to: str) -> Flag:
    return Flag(name, "1", "renamed", f"`{to}`", to=to)


def _special(name: str, values: Literal["0", "1", "+"], became: str) -> Flag:
    return Flag(name, values, "special", became)


def _fixed(name: str, *accepted: str, why: str = "the weights were trained with it") -> Flag:
    shown = " or ".join(f"`{value}`" for value in accepted)
    return Flag(name, "1", "fixed", f"accepted as {shown}, an error otherwise: {why}", accepted=accepted, note=why)


def _nothing(name: str, values: Literal["0", "1"], became: str, note: str = "") -> Flag:
    return Flag(name, values, "nothing", became, note=note)


def _training(*names: str) -> list[Flag]:
    became = "of the training script only, an error here; see `openhunyuan train`"
    return [Flag(name, "0", "training", became) for name in names]


_WITHOUT = "the weights were trained without it"
_PARALLEL = "one device makes the whole video, which is the same one"
_ONE_DTYPE = "the VAE computes in the transformer's number format, see --dtype"

OFFICIAL: tuple[Flag, ...] = (
    # What to make.
    _same("--prompt"),
    _special("--video-size", "+", "`--height`, `--width`; one value is a square; rounded up to multiples of 16"),
    _renamed("--video-length", "--num-frames"),
    _renamed("--infer-steps", "--num-inference-steps"),
    _same("--seed"),
    _special(
        "--seed-type",
        "1",
        "`auto` changes nothing, `random` leaves the seed open, `fixed` needs `--seed`; "
        "`file` is an error: `--prompts` reads seeds from a file",
    ),
    _special("--neg-prompt", "1", "`--negative-prompt`; an empty text is the model's default"),
    _renamed("--cfg-scale", "--true-cfg-scale"),
    _renamed("--embedded-cfg-scale", "--guidance-scale"),
    _same("--flow-shift"),
    _nothing("--flow-reverse", "0", "always on; `--no-flow-reverse` is an error, for its result is noise"),
    _special("--use-linear-quadratic-schedule", "0", "`--schedule linear-quadratic`; officially it has no effect"),
    _special("--linear-schedule-end", "1", "the same option, for the schedule above"),
    _fixed("--flow-solver", "euler", why="there is no other solver"),
    _fixed("--denoise-type", "flow", why="there is no other kind"),
    _special("--num-videos", "1", "the same option, times `--batch-size`"),
    _special("--batch-size", "1", "multiplies `--num-videos`; the videos are made one after another"),
    _nothing("--reproduce", "0", "always on: the same request gives the same frames"),
    # Where it goes.
    _special("--save-path", "1", "`--output-dir`"),
    _special("--save-path-suffix", "1", "appended to the folder with `_`"),
    _nothing(
        "--name-suffix", "1", "nothing, as before", "--name-suffix changes nothing; name the file with --output-path."
    ),
    # From what.
    _special(
        "--model",
        "1",
        "the architectures `HYVideo-T/2` and `HYVideo-T/2-cfgdistill` follow from the weights; "
        "`HYVideo-S/2` is an error: it was never released; anything else is our `--model`",
    ),
    _special(
        "--model-base",
        "1",
        "`--model`: its folder `hunyuan-video-t2v-720p` (`-i2v-` with `--i2v-mode`); "
        "default: the environment's `MODEL_BASE`, then `ckpts`",
    ),
    _special("--dit-weight", "1", "`--model`: the file, and around it the other parts"),
    _special("--i2v-dit-weight", "1", "`--model`, with `--i2v-mode`"),
    _fixed("--load-key", "module", why="of a file with both `module` and `ema` the first is read, else what is there"),
    _special("--use-fp8", "0", "`--quant fp8`"),
    _nothing(
        "--model-resolution",
        "1",
        "nothing, as before",
        "--model-resolution changes nothing; the size is --height and --width.",
    ),
    _fixed("--latent-channels", "16"),
    _fixed("--rope-theta", "256"),
    _special("--precision", "1", "`--dtype`: fp32, fp16 and bf16 are float32, float16 and bfloat16"),
    _nothing("--vae-precision", "1", _ONE_DTYPE, f"--vae-precision changes nothing: {_ONE_DTYPE}."),
    _special("--text-encoder-precision", "1", "`--text-precision`, in the names of `--dtype`"),
    _nothing(
        "--text-encoder-precision-2",
        "1",
        "as the other text encoder, see `--text-precision`",
        "--text-encoder-precision-2 changes nothing: both text encoders are kept alike, see --text-precision.",
    ),
    _nothing(
        "--disable-autocast",
        "0",
        "nothing: there is no autocast",
        "--disable-autocast changes nothing: there is no autocast here, see --dtype.",
    ),
    _fixed("--vae", "884-16c-hy"),
    _nothing("--vae-tiling", "0", "always on, where a picture is larger than a tile"),
    _fixed("--text-encoder", "llm", "llm-i2v"),
    _fixed("--text-encoder-2", "clipL"),
    _fixed("--tokenizer", "llm", "llm-i2v"),
    _fixed("--tokenizer-2", "clipL"),
    _fixed("--text-states-dim", "4096"),
    _fixed("--text-states-dim-2", "768"),
    _fixed("--text-len", "256"),
    _fixed("--text-len-2", "77"),
    _fixed("--prompt-template", "dit-llm-encode", "dit-llm-encode-i2v"),
    _fixed("--prompt-template-video", "dit-llm-encode-video", "dit-llm-encode-video-i2v"),
    _fixed("--hidden-state-skip-layer", "2"),
    Flag("--apply-final-norm", "0", "fixed", "an error: the weights were trained without it", note=_WITHOUT),
    # On what.
    _nothing(
        "--use-cpu-offload",
        "0",
        "accepted; offloading is not there yet, so parts stay where they are computed",
        "--use-cpu-offload changes nothing yet: every part of the model stays on its device; the video is the same.",
    ),
    _special("--ulysses-degree", "1", f"accepted; {_PARALLEL}, and of several processes only the first works"),
    _special("--ring-degree", "1", f"accepted; {_PARALLEL}, and of several processes only the first works"),
    # From a picture.
    _special("--i2v-mode", "0", "follows from `--image`; with it, a picture must be named"),
    _special("--i2v-image-path", "1", "`--image`"),
    _special("--i2v-resolution", "1", "the same option; with `--i2v-mode` 720p when left out"),
    Flag("--i2v-stability", "0", "same", "the same option"),
    _nothing(
        "--i2v-condition-type",
        "1",
        "follows from the weights",
        "--i2v-condition-type changes nothing: how a picture is read follows from the weights.",
    ),
    # LoRA.
    _special("--use-lora", "0", "follows from `--lora`; with it, `--lora-path` must be given"),
    _special("--lora-path", "1", "`--lora PATH`, together with `--use-lora`"),
    _special("--lora-scale", "1", "`--lora PATH:SCALE`"),
    _nothing("--lora-rank", "1", "follows from the file"),
    _nothing("--gradient-checkpoint", "0", "of training only; nothing here"),
    _nothing("--gradient-checkpoint-layers", "1", "of training only; nothing here"),
    Flag("--output-dir", "1", "same", "our own option of that name: the folder for new names"),
    *_training(
        "--task-flag", "--sample-dir", "--micro-batch-size", "--video-micro-batch-size",
        "--global-batch-size", "--gradient-accumulation-steps", "--global-seed", "--resume", "--init-from",
        "--training-parts", "--init-save", "--final-save", "--no-final-save", "--epochs", "--max-training-steps",
        "--ckpt-every", "--rope-theta-rescale-factor", "--rope-interpolation-factor", "--log-every", "--tensorboard",
        "--profile", "--lr", "--warmup-min-lr", "--warmup-num-steps", "--adam-beta1", "--adam-beta2", "--adam-eps",
        "--weight-decay", "--local-rank", "--zero-stage", "--data-type", "--data-jsons-path", "--sample-n-frames",
        "--sample-stride", "--num-workers", "--prefetch-factor", "--same-data-batch", "--uncond-p",
        "--sematic-cond-drop-p", "--flow-path-type", "--flow-predict-type", "--flow-loss-weight", "--flow-train-eps",
        "--flow-sample-eps", "--flow-snr-type",
    ),
)  # fmt: skip

_BY_NAME = {flag.name: flag for flag in OFFICIAL}
_SHARED = ("--model", "--num-videos", "--i2v-resolution", "--linear-schedule-end")
"""Names among the special ones that are ours too: they alone do not make a line an official one."""


def table() -> str:
    """Every official flag and what became of it, as a Markdown table."""
    return "\n".join(
        ["| official flag | here |", "| --- | --- |", *(f"| `{flag.name}` | {flag.became} |" for flag in OFFICIAL)]
    )


def field_names() -> dict[str, str]:
    """Official names, with underscores, that are another name of one field of the request -> the field."""
    renamed = {flag.name: flag.to for flag in OFFICIAL if flag.kind == "renamed"}
    renamed |= {"--neg-prompt": "--negative-prompt", "--save-path": "--output-dir", "--i2v-image-path": "--image"}
    return {old.strip("-").replace("-", "_"): new.strip("-").replace("-", "_") for old, new in renamed.items()}


@dataclass
class Translation:
    """A command line in our own options.

    Attributes:
        args: the options.
        notes: what the user should know, one sentence each.
        implied_model: the folder of released weights that an official line means without naming it; it is in
            ``args`` as the model. None if the line names a model, or is none of the official scripts'.
    """

    args: list[str]
    notes: list[str] = field(default_factory=list)
    implied_model: str | None = None


def translate(args: Sequence[str], environ: Mapping[str, str] | None = None) -> Translation:
    """Read official flags among ``args`` and return the line in our own options.

    Args:
        args: what follows the verb.
        environ: where ``MODEL_BASE`` is looked up; None: this process's environment.

    Raises:
        UserError: a value that does not fit, or a flag whose effect cannot be had here.
    """
    given: dict[str, list[str]] = {}
    ours: list[str] = []
    rest = list(args)
    while rest:
        token = rest.pop(0)
        written, has_value, value = token.partition("=")
        name = written.replace("_", "-")
        flag = _BY_NAME.get(name)
        if name == "--no-flow-reverse":
            raise UserError(
                "--no-flow-reverse is not possible: the weights know one direction, and it would give noise."
            )
        if flag is None or flag.kind == "same":
            ours.append(token)
            # The value of an option is never a flag, even if it looks like one with a single dash.
            if not has_value and token.startswith("--") and rest and not rest[0].startswith("--"):
                ours.append(rest.pop(0))
            continue
        values = [value] if has_value else []
        while flag.values != "0" and not has_value and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
            if flag.values == "1":
                break
        if flag.values != "0" and not values:
            raise UserError(f"The option {written} needs a value.")
        given[name] = values
    line = _Line(given, ours, os.environ if environ is None else environ)
    return line.translation()


class _Line:
    """One line's official flags with their values, read in the order of the table's sections."""

    def __init__(self, given: dict[str, list[str]], ours: list[str], environ: Mapping[str, str]) -> None:
        self.given = given
        self.environ = environ
        self.out = Translation(list(ours))
        self.mine = {token.partition("=")[0].replace("_", "-") for token in ours if token.startswith("--")}

    def translation(self) -> Translation:
        """The line in our own options."""
        for name, values in self.given.items():
            self._plain(_BY_NAME[name], values)
        self._size()
        self._amount()
        self._guidance_and_schedule()
        self._picture()
        self._lora()
        self._place()
        self._model()
        self._devices()
        return self.out

    def _plain(self, flag: Flag, values: list[str]) -> None:
        if flag.kind == "training":
            raise UserError(f"{flag.name} belongs to the training script; see openhunyuan train --help.")
        if flag.kind == "fixed" and (not values or values[0] not in flag.accepted):
            allowed = (
                f"it can only be {' or '.join(flag.accepted)}, or be left out" if flag.accepted else "leave it out"
            )
            raise UserError(f"{' '.join([flag.name, *values])} is not possible: {flag.note}; {allowed}.")
        if flag.kind == "nothing" and flag.note:
            self.out.notes.append(flag.note)
        if flag.kind == "renamed":
            self._add(flag.to, values[0])

    def _add(self, option: str, value: str) -> None:
        # Joined with "=", so that a value that begins with a dash stays a value.
        self.out.args.append(f"{option}={value}")

    def _one(self, name: str) -> str | None:
        values = self.given.get(name)
        return values[0] if values else None

    def _whole(self, name: str, default: int, least: int = 1) -> int:
        text = self._one(name)
        if text is None:
            return default
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise UserError(f"{name} is '{text}', but it must be a whole number, {least} or more.")
        return number

    def _size(self) -> None:
        sides = self.given.get("--video-size")
        if sides is None:
            return
        if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
            raise UserError(
                f"--video-size is '{' '.join(sides)}', but it must be height and width in pixels, as in 720 1280."
            )
        if "--i2v-mode" in self.given:
            self.out.notes.append("--video-size is not used with --i2v-mode: the picture's shape decides.")
            return
        height, width = int(sides[0]), int(sides[-1])
        rounded = tuple(-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in (height, width))
        if rounded != (height, width):
            sizes = f"{height} {width} is rounded up to {rounded[0]} {rounded[1]}"
            self.out.notes.append(f"--video-size {sizes}, multiples of {SIZE_MULTIPLE}.")
        self._add("--height", str(rounded[0]))
        self._add("--width", str(rounded[1]))

    def _amount(self) -> None:
        if "--num-videos" in self.given or "--batch-size" in self.given:
            self._add("--num-videos", str(self._whole("--num-videos", 1) * self._whole("--batch-size", 1)))
        kind = self._one("--seed-type")
        if kind not in (None, "auto", "random", "fixed", "file"):
            raise UserError(f"--seed-type is '{kind}', but it must be auto, random, fixed or file.")
        if kind == "file":
            raise UserError("--seed-type file is not possible here; give --prompts a CSV file with a column seed.")
        if kind == "fixed" and "--seed" not in self.mine:
            raise UserError("--seed-type fixed needs a seed; give it with --seed.")
        if kind == "random" and "--seed" in self.mine:
            raise UserError("--seed-type random and --seed contradict each other; leave one of them out.")

    def _guidance_and_schedule(self) -> None:
        negative = self._one("--neg-prompt")
        if negative:
            self._add("--negative-prompt", negative)
        end, used = self._one("--linear-schedule-end"), "--use-linear-quadratic-schedule" in self.given
        if used:
            self._add("--schedule", "linear-quadratic")
        if end is not None and (used or "--schedule" in self.mine):
            self._add("--linear-schedule-end", end)
        elif end is not None:
            self.out.notes.append("--linear-schedule-end changes nothing without --use-linear-quadratic-schedule.")

    def _picture(self) -> None:
        path, resolution = self._one("--i2v-image-path"), self._one("--i2v-resolution")
        if path is not None:
            self._add("--image", path)
        has_picture = path is not None or "--image" in self.mine
        if "--i2v-mode" in self.given and not has_picture:
            raise UserError("--i2v-mode needs a picture; give it with --i2v-image-path.")
        if resolution is not None or "--i2v-mode" in self.given:
            self._add("--i2v-resolution", resolution or "720p")

    def _lora(self) -> None:
        path, scale = self._one("--lora-path"), self._one("--lora-scale")
        if "--use-lora" not in self.given:
            if path:
                self.out.notes.append(f"The LoRA {path} is not used: --lora-path needs --use-lora.")
            return
        if not path:
            raise UserError("--use-lora needs a file; give it with --lora-path.")
        try:
            number = float(scale or 1)
        except ValueError:
            raise UserError(f"--lora-scale is '{scale}', but it must be a number.") from None
        self._add("--lora", f"{path}:{number:g}")

    def _place(self) -> None:
        folder, suffix = self._one("--save-path"), self._one("--save-path-suffix")
        if folder is not None or suffix:
            folder = folder or "results"
            self._add("--output-dir", f"{folder}_{suffix}" if suffix else folder)

    def _model(self) -> None:
        for name, option in (("--precision", "--dtype"), ("--text-encoder-precision", "--text-precision")):
            precision = self._one(name)
            if precision is None:
                continue
            if precision not in _DTYPES:
                raise UserError(f"{name} is '{precision}', but it must be one of {', '.join(_DTYPES)}.")
            self._add(option, _DTYPES[precision])
        if "--use-fp8" in self.given:
            self._add("--quant", "fp8")
        named = self._one("--model")
        if named == "HYVideo-S/2":
            raise UserError("--model HYVideo-S/2 has no weights: it was never released; use HYVideo-T/2-cfgdistill.")
        if named is not None and named not in _ARCHITECTURES:
            self._add("--model", named)
            return
        weight, base = (
            self._one("--i2v-dit-weight" if self._from_picture else "--dit-weight"),
            self._one("--model-base"),
        )
        if weight is not None:
            # The folder of a file named transformers is a part; the model is around it.
            self._add("--model", str(Path(weight).parent) if Path(weight).name == "transformers" else weight)
        elif base is not None or named is not None or any(name not in _SHARED for name in self.given):
            root = Path(base or self.environ.get(MODEL_BASE) or _BASE)
            inner = root / f"hunyuan-video-{'i2v' if self._from_picture else 't2v'}-720p"
            if base is None:
                self.out.implied_model = str(inner)
            self._add("--model", str(inner if inner.is_dir() or base is None else root))

    @property
    def _from_picture(self) -> bool:
        return "--i2v-mode" in self.given or "--i2v-image-path" in self.given or "--image" in self.mine

    def _devices(self) -> None:
        degree = self._whole("--ulysses-degree", 1) * self._whole("--ring-degree", 1)
        if degree > 1:
            self.out.notes.append(f"The video is not spread over {degree} devices yet: {_PARALLEL}.")
