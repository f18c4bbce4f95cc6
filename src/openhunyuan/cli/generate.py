"""``openhunyuan generate``: a prompt in, an mp4 (or PNG) out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from openhunyuan.base.log import console
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import make_files
from openhunyuan.infer.output import check_output, output_paths
from openhunyuan.infer.request import Request
from openhunyuan.infer.rewrite.options import RewriterOptions, open_rewriter
from openhunyuan.models.zoo import check_model

DEVICE_HELP = "Where to compute: auto, cpu, cuda, cuda:N or mps."
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPE_HELP = "Number format; auto is bfloat16 on a GPU that has it and float32 elsewhere."


class GenerateOptions(RewriterOptions, Request):
    """Make a video (.mp4) or an image (.png) from a prompt.

    Every option that is left out takes the model's default. The file carries its request: `openhunyuan replay FILE`
    makes the same frames again. An existing file is replaced only if openhunyuan made it.
    """

    rewrite_strict: bool = Field(
        False, description="End with an error when rewriting fails, rather than use the prompt as it is."
    )
    device: str = Field("auto", description=DEVICE_HELP)
    dtype: DtypeName = Field("auto", description=DTYPE_HELP)


def run(args: Sequence[str]) -> int:
    """Check everything that is cheap to check, then load the model and make the files."""
    options = parse(GenerateOptions, args, "openhunyuan generate")
    asked = Request(**options.model_dump(include=set(Request.model_fields)))
    _, spec = check_model(asked.model)
    request = asked.resolve(spec.defaults)
    paths = output_paths(request)
    for path in paths:
        check_output(path)

    # From here on torch is needed, and seconds pass.
    out = console(stderr=True)
    if asked.rewrite != "none":
        from openhunyuan.infer.rewrite.rewriter import rewrite_request

        with out.status("Rewriting the prompt"):
            chat = open_rewriter(options, options.device, options.dtype)
            asked = rewrite_request(asked, chat, options.rewrite_strict)
        del chat  # A local language model must not take the video model's memory.
    from openhunyuan.infer.pipeline import Pipeline

    with out.status(f"Loading {request.model}"):
        pipe = Pipeline.from_pretrained(request.model, options.device, options.dtype)
        request = pipe.resolve(asked.replace(seed=request.seed))
    make_files(pipe, request, paths)
    return 0
