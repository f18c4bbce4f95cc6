"""``openhunyuan caption``: captions for the kept clips of a data folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.base.record import Record
from openhunyuan.caption.camera import CAMERA_GATE
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import step_bar

if TYPE_CHECKING:
    from openhunyuan.caption.captioner import Captioner

KEY = "OPENHUNYUAN_CAPTIONER_KEY"


class CaptionOptions(Record):
    """Caption the kept clips of a data folder; goes on where it stopped, and adds to captions that are there.

    measured says what was measured (colours, light, how much moves) and nothing else. The others show frames to a model
    and keep its structured answer; refusals are kept and counted. endpoint: behind an OpenAI-compatible address.
    transformers: a folder of the Qwen-VL kind, opened here. vllm: a folder or an address of vLLM, held to the form.
    """

    data: str = Field(description="A folder that `openhunyuan curate` made.")
    captioner: Literal["measured", "endpoint", "transformers", "vllm"] = Field(
        "measured", description="What writes the captions."
    )
    endpoint: str | None = Field(None, description="For endpoint and vllm: the address, as http://localhost:8000/v1.")
    caption_model: str | None = Field(
        None,
        description="For transformers and vllm: the model's folder. With --endpoint: its name there; default: the one "
        "that is served.",
    )
    key_env: str = Field(KEY, description="With --endpoint: the environment variable that holds its key.")
    frames: int = Field(8, ge=1, le=64, description="Frames shown of a clip or window.")
    side: int = Field(448, ge=64, description="Longer side of a shown frame, in pixels.")
    window: float | None = Field(
        None, gt=0, description="Caption long clips in windows of about so many seconds; default: each clip as a whole."
    )
    timeout: float = Field(120.0, gt=0, description="Seconds for one answer.")
    retries: int = Field(2, ge=0, le=20, description="With --endpoint: further tries after a failure that may pass.")
    parallel: int = Field(4, ge=1, le=256, description="With --endpoint: clips asked about at the same time.")
    retry: bool = Field(False, description="Ask again where an earlier run was refused or failed.")
    camera_gate: float = Field(
        CAMERA_GATE, ge=0, le=1, description="Confidence from which a measured camera move enters a caption."
    )
    device: str = Field("auto", description="For transformers: auto, cpu, cuda or cuda:N.")
    dtype: str = Field("auto", description="For transformers: auto, float32, bfloat16 or float16.")


def run(args: Sequence[str]) -> int:
    """Caption and print the manifest's path."""
    options = parse(CaptionOptions, args, "openhunyuan caption", positional=("data",))
    _check(options)

    from openhunyuan.base.require import require
    from openhunyuan.caption.captioner import caption_clips
    from openhunyuan.curate.run import MANIFEST, read_clips
    from openhunyuan.curate.tables import alone

    read_clips(options.data)
    require("pyarrow", extra="curate")
    with alone(Path(options.data)):
        pass  # another run is told before a model is loaded
    captioner = _captioner(options)
    with step_bar() as show:
        report = caption_clips(
            options.data,
            captioner,
            options.parallel if options.endpoint else 1,
            options.retry,
            options.camera_gate,
            lambda done, total: show("captions", done, total),
        )
    out = console(stderr=True)
    out.print(f"{report.written} clips captioned, {report.known} before")
    for count, what in ((report.declined, "refused"), (report.failed, "failed")):
        if count:
            out.print(f"{count} {what}")
    for reason, count in report.reasons:
        out.print(f"  {count}x {reason}", markup=False)
    if report.others:
        count, names = sum(count for _, count in report.others), ", ".join(name for name, _ in report.others)
        out.print(f"{count} of {report.kept} clips have their caption by another captioner: {names}", markup=False)
    if report.none:
        out.print(f"{report.none} of {report.kept} clips have no caption")
    print(Path(options.data) / MANIFEST)
    return 0


def _check(options: CaptionOptions) -> None:
    """Refuse options that do not go together."""
    kind = options.captioner
    if kind == "endpoint" and not options.endpoint:
        raise UserError("The captioner endpoint needs --endpoint with its address, as http://localhost:8000/v1.")
    if kind in ("measured", "transformers") and options.endpoint:
        raise UserError("An --endpoint is used with --captioner endpoint or vllm only.")
    if kind == "transformers" and not options.caption_model:
        raise UserError("The captioner transformers needs --caption-model with a model's folder.")
    if kind == "vllm" and not (options.endpoint or options.caption_model):
        raise UserError("The captioner vllm needs --endpoint with its address, or --caption-model with a folder.")
    if kind == "measured" and options.caption_model:
        raise UserError("A --caption-model is used with the captioners endpoint, transformers and vllm only.")
    if kind == "measured" and options.window:
        raise UserError("What was measured is of whole clips; --window needs a captioner that sees frames.")
    if kind in ("transformers", "vllm") and not options.endpoint:
        from openhunyuan.caption.local import check_folder

        check_folder(str(options.caption_model))


def _captioner(options: CaptionOptions) -> Captioner:
    if options.captioner == "measured":
        from openhunyuan.caption.measured import Measured

        return Measured()
    from openhunyuan.caption.vision import Endpoint, Seer, Vision

    seer: Seer
    structured = options.captioner == "vllm"
    if options.endpoint:
        key = os.environ.get(options.key_env)
        seer = address = Endpoint(
            options.endpoint, options.caption_model, key, options.timeout, options.retries, structured=structured
        )
        name = address.model
    else:
        from openhunyuan.caption.local import LocalVision, folder_name

        folder = Path(str(options.caption_model))
        name = folder_name(folder)
        if structured:
            from openhunyuan.caption.vllm import VLLMVision

            seer = VLLMVision.from_folder(folder, options.frames)
        else:
            seer = LocalVision.from_folder(folder, options.device, options.dtype, options.timeout)
    return Vision(
        model=name, frames=options.frames, side=options.side, window=options.window, structured=structured
    ).at(seer)
