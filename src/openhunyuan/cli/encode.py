"""``openhunyuan encode``: the captioned clips of a data folder as latents, which training reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from openhunyuan.base.device import pick_device
from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.base.record import Record
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import step_bar

if TYPE_CHECKING:
    from openhunyuan.base.sizes import VideoSize
    from openhunyuan.models.load import LoadedModel


class EncodeOptions(Record):
    """Encode captioned clips with a model's VAE and text encoders; goes on where it stopped.

    Size and rate are the model's own unless given. Clips that are too short or have no caption are left out; the
    index names the short ones.
    """

    data: str = Field(description="A folder that `openhunyuan curate` and `openhunyuan caption` made.")
    model: str = Field("tiny", description="Model by name or folder: the one that will be trained.")
    set: str | None = Field(
        None, description="Encode one set only: 256p, 360p, …, sft (what people let pass); default: every kept clip."
    )
    output: str | None = Field(
        None, description="Folder of the latents; default: DATA/latents, or DATA/latents-SET for one set."
    )
    num_frames: int | None = Field(None, description="Frames of a sample, 4n+1; default: the model's.")
    height: int | None = Field(None, description="Height of a sample, a multiple of 16; default: the model's.")
    width: int | None = Field(None, description="Width of a sample, a multiple of 16; default: the model's.")
    fps: float | None = Field(None, description="Frames a second that a clip is read at; default: the model's.")
    captioner: str | None = Field(None, description="Use this captioner's captions; default: the newest of each clip.")
    samples_per_shard: int = Field(256, ge=1, description="Samples in one file.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one.")


def run(args: Sequence[str]) -> int:
    """Encode and print the folder."""
    options = parse(EncodeOptions, args, "openhunyuan encode", positional=("data",))

    from openhunyuan.curate.review import KEPT, members
    from openhunyuan.curate.run import read_clips
    from openhunyuan.infer.output import check_folder

    kept = members(options.data, read_clips(options.data), options.set or KEPT)
    if all(clip.kind == "image" for clip in kept) and options.num_frames is None:
        options = options.model_copy(update={"num_frames": 1})
    name = f"latents-{options.set}" if options.set else "latents"
    output = Path(options.output) if options.output else Path(options.data) / name
    captioned = [c for c in kept if any(options.captioner in (None, caption.captioner) for caption in c.captions)]
    if not captioned:
        raise UserError(f"No clip of {options.data} has a caption; make them with: openhunyuan caption {options.data}.")
    check_folder(output)

    from openhunyuan.curate.clip import Clip
    from openhunyuan.latents.encode import caption_text, encode_clips
    from openhunyuan.models.load import load_model
    from openhunyuan.models.zoo import check_model

    check_model(options.model)
    device = pick_device(options.device)
    model = load_model(options.model, device=device)
    size, fps = _size(options, model)

    def prompt(clip: Clip) -> str:
        chosen = [caption for caption in clip.captions if options.captioner in (None, caption.captioner)]
        return caption_text(clip.model_copy(update={"captions": tuple(chosen)}))

    with step_bar() as show:
        report = encode_clips(
            captioned,
            options.data,
            output,
            model.vae,
            model.text,
            size,
            model_name=model.weights_name(),
            fps=fps,
            samples_per_shard=options.samples_per_shard,
            prompt_of=prompt,
            device=device,
            on_sample=lambda done, total: show("latents", done, total),
        )
    out = console(stderr=True)
    left_out = len(report.left_out) + len(kept) - len(captioned)
    out.print(f"{report.samples} samples in {report.written + report.skipped} shards, {report.written} written now")
    if left_out:
        out.print(f"{left_out} of {len(kept)} clips left out: too short, or without a caption")
    print(output)
    return 0


def _size(options: EncodeOptions, model: LoadedModel) -> tuple[VideoSize, float]:
    """Size and rate of a sample: as asked for, else the model's own."""
    from openhunyuan.base.sizes import VideoSize

    own = model.spec.defaults
    asked = VideoSize(options.num_frames or own.num_frames, options.height or own.height, options.width or own.width)
    if asked.num_frames % 4 != 1 or asked.height % 16 or asked.width % 16 or min(asked.height, asked.width) < 16:
        raise UserError(
            f"Samples cannot be {asked.num_frames}x{asked.height}x{asked.width}; "
            "take 4n+1 frames, and a height and width that are multiples of 16."
        )
    return asked, options.fps or own.fps
