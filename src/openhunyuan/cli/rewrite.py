"""``openhunyuan rewrite``: a prompt in the form that the video model was trained on, from a language model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from openhunyuan.base.log import console
from openhunyuan.cli.generate import DEVICE_HELP, DTYPE_HELP, DtypeName
from openhunyuan.cli.parse import parse
from openhunyuan.infer.request import Request
from openhunyuan.infer.rewrite.options import RewriterOptions, open_rewriter
from openhunyuan.infer.rewrite.record import Mode


class RewriteOptions(RewriterOptions):
    """Print a prompt as a language model rewrites it: plain English in one standard form, whatever it was written in.

    The language model is an OpenAI-compatible endpoint or a local folder. A draft is made, compared with the prompt and
    corrected. When no rewrite can be had, nothing is printed and the exit code is 2.
    """

    prompt: str = Field(description="What the video shows, in any language.")
    mode: Mode = Field("normal", description="normal keeps to the prompt; master adds composition, light and camera.")
    json_output: bool = Field(False, alias="json", description="Print JSON: original, draft, text, rewriter.")
    device: str = Field("auto", description=f"For a folder. {DEVICE_HELP}")
    dtype: DtypeName = Field("auto", description=f"For a folder. {DTYPE_HELP}")


def run(args: Sequence[str]) -> int:
    """Rewrite and print."""
    options = parse(RewriteOptions, args, "openhunyuan rewrite", positional=("prompt",))
    request = Request(**options.model_dump(include={"prompt"}), rewrite=options.mode)

    from openhunyuan.infer.rewrite.rewriter import rewrite_request

    with console(stderr=True).status("Rewriting the prompt"):
        chat = open_rewriter(options, options.device, options.dtype)
        result = rewrite_request(request, chat, strict=True).rewritten
    assert result is not None
    if options.json_output:
        print(json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        print(result.text)
    return 0
