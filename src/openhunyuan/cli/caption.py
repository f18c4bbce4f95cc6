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
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import step_bar

if TYPE_CHECKING:
    from openhunyuan.caption.captioner import Captioner

KEY = "OPENHUNYUAN_CAPTIONER_KEY"


class CaptionOptions(Record):
    """Caption the kept clips of a data folder; goes on where it stopped, and adds to captions that are there.

    measured says what was measured (colours, light, how much moves) and nothing else. endpoint shows frames to a model
    behind an OpenAI-compatible address, and keeps its structured answer; refusals are kept and counted.
    """

    data: str = Field(description="A folder that `openhunyuan curate` made.")
    captioner: Literal["measured", "endpoint"] = Field("measured", description="What writes the captions.")
    endpoint: str | None = Field(None, description="For endpoint: the address, as http://localhost:8000/v1.")
    captioner_model: str | None = Field(
        None, description="For endpoint: the model's name there; default: the one it serves."
    )
    key_env: str = Field(KEY, description="For endpoint: the environment variable that holds its key.")
    frames: int = Field(8, ge=1, le=64, description="For endpoint: frames shown of a clip.")
    side: int = Field(448, ge=64, description="For endpoint: longer side of a shown frame, in pixels.")
    timeout: float = Field(120.0, gt=0, description="For endpoint: seconds for one answer.")
    retries: int = Field(2, ge=0, le=20, description="For endpoint: further tries after a failure that may pass.")
    parallel: int = Field(4, ge=1, le=256, description="For endpoint: clips asked about at the same time.")
    retry: bool = Field(False, description="Ask again where an earlier run was refused or failed.")


def run(args: Sequence[str]) -> int:
    """Caption and print the manifest's path."""
    options = parse(CaptionOptions, args, "openhunyuan caption", positional=("data",))
    if options.captioner == "endpoint" and not options.endpoint:
        raise UserError("The captioner endpoint needs --endpoint with its address, as http://localhost:8000/v1.")
    if options.captioner == "measured" and options.endpoint:
        raise UserError("An --endpoint is used with --captioner endpoint only.")

    from openhunyuan.base.require import require
    from openhunyuan.caption.captioner import caption_clips
    from openhunyuan.curate.run import MANIFEST, read_clips

    read_clips(options.data)
    require("pyarrow", extra="curate")
    captioner = _captioner(options)
    parallel = options.parallel if options.captioner == "endpoint" else 1
    with step_bar() as show:
        report = caption_clips(
            options.data, captioner, parallel, options.retry, lambda done, total: show("captions", done, total)
        )
    out = console(stderr=True)
    out.print(f"{report.written} captions written, {report.known} there before")
    for count, what in ((report.declined, "refused"), (report.failed, "failed")):
        if count:
            out.print(f"{count} {what}")
    for reason, count in report.reasons:
        out.print(f"  {count}x {reason}", markup=False)
    print(Path(options.data) / MANIFEST)
    return 0


def _captioner(options: CaptionOptions) -> Captioner:
    if options.captioner == "measured":
        from openhunyuan.caption.measured import Measured

        return Measured()
    from openhunyuan.caption.vision import Endpoint, Vision

    address = Endpoint(
        str(options.endpoint),
        options.captioner_model,
        os.environ.get(options.key_env),
        options.timeout,
        options.retries,
    )
    return Vision(model=address.model, frames=options.frames, side=options.side).at(address)
