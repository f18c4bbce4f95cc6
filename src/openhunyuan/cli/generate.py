"""``openhunyuan generate``: a prompt in, an mp4 (or PNG) out; or many prompts from a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console, get_logger
from openhunyuan.cli.official import Translation, field_names, translate
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import make_files
from openhunyuan.convert.lora_keys import check_lora_file
from openhunyuan.infer.batch import Job, plan, read_rows, run_jobs
from openhunyuan.infer.output import check_output, output_paths
from openhunyuan.infer.request import Request, split_lora
from openhunyuan.infer.resolutions import advice
from openhunyuan.infer.rewrite.options import RewriterOptions, open_rewriter
from openhunyuan.infer.rewrite.record import RewriteError
from openhunyuan.models.zoo import check_model

if TYPE_CHECKING:
    from openhunyuan.infer.pipeline import Pipeline

PROG = "openhunyuan generate"
DEVICE_HELP = "Where to compute: auto, cpu, cuda, cuda:N or mps."
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPE_HELP = "Number format; auto is bfloat16 on a GPU that has it and float32 elsewhere."
QuantName = Literal["none", "fp8"]
QUANT_HELP = "fp8: keep the transformer's weights in eight bits. Half the memory, not faster."
TextPrecisionName = Literal["auto", "float32", "bfloat16", "float16", "int8"]
TEXT_PRECISION_HELP = "How the text encoders are kept; auto is float16 for released ones on a GPU, else as dtype."
STRINGS_HELP = (
    "File with the released prompt templates and negative prompts that diffusers lacks (the official constants.py). "
    "Default: $OPENHUNYUAN_RELEASED_STRINGS."
)

_EMBEDDED = "tiny"
_LARGEST_EMBEDDED = 256 * 256
"""Pixels up to which the embedded model stands in for released weights that are not there."""

_LARGE_PICTURE = 8_000_000
"""Pixels above which it is said that a picture is reduced."""

_log = get_logger("generate")


class GenerateOptions(RewriterOptions, Request):
    """Make a video (.mp4) or an image (.png) from a prompt, or one from each row of a file of prompts.

    Every option that is left out takes the model's default. The file carries its request: `openhunyuan replay FILE`
    makes the same frames again. An existing file is replaced only if openhunyuan made it. The flags of the official
    scripts (--video-size, --infer-steps, --save-path, ...) are understood as well.
    """

    prompt: str | None = Field(None, description="What the video shows.")  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    prompts: str | None = Field(
        None,
        description="File with a prompt a row, in place of --prompt: .txt, or .csv or .jsonl with fields of their own. "
        "The same command goes on after an interruption.",
    )
    rewrite_strict: bool = Field(
        False, description="End with an error when rewriting fails, rather than use the prompt as it is."
    )
    device: str = Field("auto", description=DEVICE_HELP)
    dtype: DtypeName = Field("auto", description=DTYPE_HELP)
    quant: QuantName = Field("none", description=QUANT_HELP)
    text_precision: TextPrecisionName = Field("auto", description=TEXT_PRECISION_HELP)
    released_strings: str | None = Field(None, description=STRINGS_HELP)

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, prompt: str | None) -> str | None:
        return prompt  # Checked when the request is made, once it is known where prompts come from.

    def shared(self) -> dict[str, Any]:
        """The request's fields but for the prompt."""
        return self.model_dump(include=set(Request.model_fields) - {"prompt"})


def run(args: Sequence[str]) -> int:
    """Check everything that is cheap to check, then load the model and make the files."""
    line = translate(args)
    options = _with_model(parse(GenerateOptions, line.args, PROG), line)
    if options.prompt is not None and options.prompts is not None:
        raise UserError(f"--prompt and --prompts exclude each other; see {PROG} --help.")
    if options.prompt is None and options.prompts is None:
        raise UserError(f"The option --prompt is missing; see {PROG} --help.")
    if os.environ.get("RANK", "0") != "0":
        return 0  # Started several times by torchrun: the first makes the video, and says so.
    if options.prompts is not None:
        return _run_file(options, Path(options.prompts), line.notes)

    asked = Request(**{**options.shared(), "prompt": options.prompt})
    _, spec = check_model(asked.model)
    request = asked.resolve(spec.defaults)
    paths = output_paths(request)
    for path in paths:
        check_output(path, request.preview)
    for entry in request.lora:
        check_lora_file(split_lora(entry)[0])
    _say([*line.notes, None if request.image else advice(request.size, spec.defaults.size)])

    # From here on torch is needed, and seconds pass.
    _check_pictures(request)
    pipe = _pipeline(options)
    if asked.rewrite != "none":
        from openhunyuan.infer.rewrite.rewriter import rewrite_request

        pipe.check(asked)  # What cannot be made must not cost its rewriting.
        with console(stderr=True).status("Rewriting the prompt"):
            chat = open_rewriter(options, options.device, options.dtype)
            asked = rewrite_request(asked, chat, options.rewrite_strict)
        del chat  # A local language model must not take the video model's memory, which is used from here on.
    make_files(pipe, pipe.resolve(asked.replace(seed=request.seed)), paths)
    return 0


def _pipeline(options: GenerateOptions) -> Pipeline:
    return open_pipeline(
        options.model,
        options.device,
        options.dtype,
        options.quant,
        options.text_precision,
        options.released_strings,
    )


def open_pipeline(
    model: str, device: str | None, dtype: str | None, quant: str, text_precision: str, strings: str | None
) -> Pipeline:
    """The pipeline of a model of any layout, with a word on stderr while it loads; see the options of ``generate``."""
    from openhunyuan.convert.load import open_model
    from openhunyuan.infer.pipeline import Pipeline

    with console(stderr=True).status(f"Loading {model}"):
        opened = open_model(model, device, dtype, float8=quant == "fp8")
    opened.text_precision, opened.strings = None if text_precision == "auto" else text_precision, strings
    return Pipeline(opened)


def _with_model(options: GenerateOptions, line: Translation) -> GenerateOptions:
    """The options, with the embedded model where an official line means released weights that are not there."""
    wanted = line.implied_model
    if wanted is None or Path(wanted).exists():
        return options
    if options.height is not None and options.width is not None and options.height * options.width > _LARGEST_EMBEDDED:
        raise UserError(
            f"The released weights are not in {wanted}; name their place with --model-base or --dit-weight, "
            f"or ask the embedded model (--model {_EMBEDDED}) for a smaller video."
        )
    line.notes.append(f"{wanted} is not there, so the embedded model makes this; name another with --model.")
    return options.model_copy(update={"model": _EMBEDDED})


def _check_pictures(request: Request) -> None:
    """Read the pictures once before the model: a wrong one must not cost the loading of it."""
    paths = [path for path in (request.image, request.last_image) if path is not None]
    if not paths:
        return
    from openhunyuan.infer.conditions import load_image

    for path in paths:
        picture = load_image(path)
        if picture.width * picture.height > _LARGE_PICTURE:
            _say([f"The picture {path}, {picture.width}x{picture.height} pixels, is reduced to the size of the video."])


def _say(notes: Sequence[str | None]) -> None:
    for note in notes:
        if note:
            _log.info(note)


def _run_file(options: GenerateOptions, path: Path, notes: Sequence[str]) -> int:
    """Make every row of a file that is not made yet; 0 if all are there in the end, else 1."""
    if options.output_path is not None:
        raise UserError("--output-path names one file; with --prompts give a folder with --output-dir, or a column.")
    rows = read_rows(path, options.shared(), field_names())
    _, spec = check_model(options.model)
    jobs = plan(rows, spec)
    _say(notes)
    sizes = dict.fromkeys(job.request.size for job in jobs if job.request and not job.request.image)
    _say([advice(size, spec.defaults.size) for size in sizes])
    outcomes: list[Job] = []
    try:
        if any(job.status == "open" for job in jobs):
            jobs = _rewritten(jobs, options)
            pipe = _pipeline(options)

            def make(request: Request) -> None:
                make_files(pipe, pipe.resolve(request), output_paths(request))

            run_jobs(jobs, make, outcomes.append)
        else:
            outcomes.extend(jobs)
    finally:
        _summary(outcomes, len(jobs))
    return 1 if any(job.status == "failed" for job in outcomes) else 0


def _rewritten(jobs: list[Job], options: GenerateOptions) -> list[Job]:
    """The jobs with their prompts rewritten, before the model is loaded: a local rewriter needs the memory too."""
    wanted = [job for job in jobs if job.status == "open" and job.request and job.request.rewrite != "none"]
    if not wanted:
        return jobs
    from openhunyuan.infer.rewrite.rewriter import rewrite_request

    chat = open_rewriter(options, options.device, options.dtype)
    out: list[Job] = []
    with console(stderr=True).status("Rewriting the prompts"):
        for job in jobs:
            if job in wanted and job.request is not None:
                try:
                    job = job.with_request(rewrite_request(job.request, chat, options.rewrite_strict))
                except RewriteError as error:
                    job = job.failed(str(error))
            out.append(job)
    return out


def _summary(outcomes: Sequence[Job], total: int) -> None:
    """A table of what became of every row, on stderr."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("line", "outcome", "seconds", "file, or what is wrong", box=None, pad_edge=False)
    for job in outcomes:
        seconds = f"{job.seconds:.1f}" if job.status == "made" else ""
        table.add_row(str(job.line), job.status, seconds, escape(job.error or str(job.path)))
    out = console(stderr=True)
    out.print(table)
    counts = [f"{sum(job.status == status for job in outcomes)} {status}" for status in ("made", "skipped", "failed")]
    left = f", {total - len(outcomes)} not reached; the same command goes on" if len(outcomes) < total else ""
    out.print(f"{', '.join(counts)}{left}.")
