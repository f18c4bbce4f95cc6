"""``openhunyuan convert SRC DST``: weights from any public format to any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.base.record import Record
from openhunyuan.cli.parse import parse

if TYPE_CHECKING:
    from openhunyuan.convert.job import Job

ImageConditionName = Literal["token_replace", "latent_concat"]


class ConvertOptions(Record):
    """Convert weights; what SRC is, is found out by looking.

    SRC is a model of any layout (official, diffusers, ComfyUI, ours), its transformer or VAE alone (file or folder),
    the folder of a LLaVA (its language model is taken out), or a LoRA. All names and shapes are checked before
    anything is written; tensors are copied bit by bit, one at a time.
    """

    src: str = Field(description="A file, a folder or a model's name.")
    dst: str = Field(description="A new folder; for a LoRA the file (peft: the folder).")
    to: str = Field(
        "openhunyuan",
        description="openhunyuan, official, diffusers or comfyui; the first two and comfyui also with -fp8. "
        "LoRA: kohya, official, comfyui, diffusion-pipe, onetrainer, diffusers or peft.",
    )
    image_condition_type: ImageConditionName | None = Field(
        None, description="How the transformer takes a picture, where its config and names do not tell."
    )
    dry_run: bool = Field(False, description="Check all names and shapes, list what would be written, write nothing.")


def run(args: Sequence[str]) -> int:
    """Check, then convert with a progress bar; prints the target."""
    options = parse(ConvertOptions, args, "openhunyuan convert", positional=("src", "dst"))

    # From here on torch is needed, and seconds pass.
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from openhunyuan.convert.job import plan

    out = console(stderr=True)
    with out.status(f"Looking at {options.src}"):
        job = plan(options.src, options.dst, options.to, options.image_condition_type, needs_space=not options.dry_run)
    if job.missing:
        out.print(f"{options.src} has no {', '.join(job.missing)}; {options.dst} will be without.", soft_wrap=True)
    if options.dry_run:
        _list(job)
        return 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, redirect_stdout=False) as bar:
        task = bar.add_task(f"Converting the {job.kind}", total=job.nbytes or None)
        job.run(lambda count: bar.advance(task, count))
    print(options.dst)
    return 0


def _list(job: Job) -> None:
    """The files that a conversion would write, one a line on stdout: path, tensors, bytes."""
    from openhunyuan.convert.plan import TensorFile

    if job.run_alone:
        raise UserError(f"--dry-run lists what a model becomes, and {job.source} is a {job.kind}; leave it out.")
    for file in job.files:
        if isinstance(file, TensorFile):
            print(f"{file.path}  {len(file.tensors)} tensors  {file.nbytes / 1e9:.2f} GB")
        else:
            print(file.path)
    for path, target in job.copies:
        print(f"{target}  copied from {path}")
    console(stderr=True).print(f"{job.nbytes / 1e9:.2f} GB in all; nothing was written.", soft_wrap=True)
