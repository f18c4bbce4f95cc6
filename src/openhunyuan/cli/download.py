"""``openhunyuan download MODEL DST``: released weights from the hub, after their licence has been read and accepted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.base.record import Record
from openhunyuan.cli.parse import parse
from openhunyuan.convert.hub import RELEASED, TERRITORY, Download, released


class DownloadOptions(Record):
    """Fetch a released model from the hub; an interrupted download goes on where it stopped.

    The licence is fetched and printed first. Without MODEL, the names are listed. HF_ENDPOINT names another hub.
    """

    model: str | None = Field(None, description="A released model's name.")
    dst: str | None = Field(None, description="Folder to fill. Default: models/MODEL.")
    accept_licence: bool = Field(False, description="I have read the licence, and it allows me to use the weights.")
    revision: str | None = Field(None, description="Branch, tag or commit of the main repository.")


def run(args: Sequence[str]) -> int:
    """Print the licence, ask, fetch; prints the folder."""
    options = parse(DownloadOptions, args, "openhunyuan download", positional=("model", "dst"))
    if options.model is None:
        for name, entry in RELEASED.items():
            print(f"{name}  {entry.description}")
        return 0
    entry = released(options.model)
    target = Path(options.dst).expanduser() if options.dst else Path("models") / options.model
    if target.is_file():
        raise UserError(f"{target} is a file; give a folder to download to.")

    out = console(stderr=True)
    download = Download(entry, target, options.revision)
    with out.status("Fetching the licence"):
        licence = download.licence()
    out.print(licence, markup=False, highlight=False, soft_wrap=True)
    out.print(TERRITORY, style="bold", soft_wrap=True)
    _ask(options.accept_licence)
    with out.status("Looking at what there is"):
        size = download.check()
    out.print(f"{size / 1e9:.1f} GB to fetch to {target}", soft_wrap=True)
    download.run()
    print(target)
    return 0


def _ask(accepted: bool) -> None:
    if accepted:
        return
    if not sys.stdin.isatty():
        raise UserError("Nothing was downloaded: read the licence above, then add --accept-licence.")
    print("Does the licence allow you to use these weights, and do you accept it? [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was downloaded: the licence was not accepted.")
