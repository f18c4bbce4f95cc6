"""``openhunyuan replay``: the same frames again, from the request inside a generated file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.record import Record
from openhunyuan.cli.generate import (
    DEVICE_HELP,
    DTYPE_HELP,
    QUANT_HELP,
    STRINGS_HELP,
    TEXT_PRECISION_HELP,
    DtypeName,
    QuantName,
    TextPrecisionName,
    open_pipeline,
)
from openhunyuan.cli.parse import parse
from openhunyuan.cli.progress import make_files
from openhunyuan.infer.output import (
    MADE_BY,
    check_output,
    load_latents,
    metadata_of,
    output_paths,
    read_request,
    unused_path,
    write_output,
)
from openhunyuan.infer.request import IMAGE_SUFFIX, VIDEO_SUFFIX
from openhunyuan.models.zoo import check_model

_log = get_logger("replay")


class ReplayOptions(Record):
    """Make the frames of a generated file again, from the request inside it.

    On the same machine with the same weights they are equal bit for bit. Given latents that `generate` left behind
    (NAME.latents.safetensors), only the decoding is done.
    """

    file: str = Field(description="A generated .mp4 or .png, or saved latents.")
    output_path: str | None = Field(None, description="File to write. Default: a new name beside FILE.")
    model: str | None = Field(None, description="Another model's name or folder. Default: the one in the request.")
    device: str | None = Field(None, description=f"{DEVICE_HELP} Default: as the file was made.")
    dtype: DtypeName | None = Field(None, description=f"{DTYPE_HELP} Default: as the file was made.")
    quant: QuantName | None = Field(None, description=f"{QUANT_HELP} Default: as the file was made.")
    text_precision: TextPrecisionName | None = Field(
        None, description=f"{TEXT_PRECISION_HELP} Default: as the file was made."
    )
    released_strings: str | None = Field(None, description=STRINGS_HELP)


def run(args: Sequence[str]) -> int:
    """Read the request, check it, and make the file."""
    options = parse(ReplayOptions, args, "openhunyuan replay", positional=("file",))
    source = Path(options.file)
    stored, made_by = read_request(source)
    from_latents = source.name.endswith(".safetensors")

    suffix = IMAGE_SUFFIX if stored.num_frames == 1 else VIDEO_SUFFIX
    if options.output_path is not None:
        output = options.output_path
    elif from_latents:
        output = str(unused_path(source.with_name(source.name.removesuffix(".latents.safetensors") + suffix)))
    else:
        output = str(unused_path(source.with_name(f"{source.stem}-replay{suffix}")))
    request = stored.replace(output_path=output, num_videos=1, model=options.model or stored.model)
    _, spec = check_model(request.model)
    request = request.resolve(spec.defaults)
    (path,) = output_paths(request)
    check_output(path, request.preview and not from_latents)
    if made_by.get("weights", spec.sha256) != spec.sha256:
        _log.warning("The weights of %s are not those that made %s: the frames will differ.", request.model, source)
    if request.lora:
        from openhunyuan.infer.lora import changed_files

        for name in changed_files(made_by.get("lora", {})):
            _log.warning("The LoRA %s is not the file that made %s: the frames will differ.", name, source)

    from openhunyuan.base.device import pick_device

    device = options.device or str(made_by.get("device", "auto"))
    how = (
        options.dtype or made_by.get("dtype"),
        options.quant or str(made_by.get("quant", "none")),
        options.text_precision or str(made_by.get("text_precision", "auto")),
        options.released_strings,
    )
    try:
        pick_device(device)
    except UserError:
        if options.device:
            raise
        _log.warning("The file was made on %s, which is not here: the frames may differ in rounding.", device)
        device = "auto"
    pipe = open_pipeline(request.model, device, *how)
    if from_latents:
        frames = pipe.decode(load_latents(source), request)[0]
        metadata = metadata_of(request, pipe.model)
        # What was noted while sampling holds for these frames too.
        metadata[MADE_BY] = {**made_by, **metadata[MADE_BY]}
        write_output(path, frames, request, metadata)
        print(path)
        return 0
    make_files(pipe, request, [path])
    return 0
