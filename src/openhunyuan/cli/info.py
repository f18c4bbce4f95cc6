"""``openhunyuan info MODEL``: what a model is, from its headers alone (no weights are read)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from openhunyuan.base.log import console
from openhunyuan.base.record import Record, read_json
from openhunyuan.cli.parse import parse
from openhunyuan.models.zoo import CONFIG, MODELS, check_model, component_bytes, component_parameters, find_model

TITLES = {
    "dit": "transformer",
    "vae": "causal 3D VAE",
    "text_encoder": "language model",
    "text_encoder_2": "CLIP text model",
}


class InfoOptions(Record):
    """Say what a model is: its parts, sizes, defaults and licence. Without MODEL, the known models are listed."""

    model: str | None = Field(None, description="A model's name or folder.")
    json_output: bool = Field(False, alias="json", description="Print JSON.")


def run(args: Sequence[str]) -> int:
    """Print the table (or JSON) of a model."""
    options = parse(InfoOptions, args, "openhunyuan info", positional=("model",))
    if options.model is None:
        for name, entry in MODELS.items():
            print(f"{name}  {entry.description}")
        return 0
    folder, spec = check_model(options.model)
    files = find_model(options.model)
    parameters, sizes = component_parameters(files), component_bytes(files)
    if options.json_output:
        print(
            json.dumps(
                {
                    **spec.model_dump(mode="json"),
                    "folder": str(folder),
                    "layout": files.layout,
                    "parameters": parameters,
                    "bytes": sizes,
                    "configs": {
                        name: read_json(path / CONFIG)
                        for name, path in (("dit", files.dit), ("vae", files.vae))
                        if (path / CONFIG).is_file()
                    },
                },
                indent=2,
            )
        )
        return 0

    from rich.table import Table

    out = console()
    out.print(f"[bold]{spec.name}[/bold]  {spec.description}".rstrip())
    out.print(f"licence {spec.licence}, {files.layout} folder {folder}", soft_wrap=True)
    table = Table("part", "what", "parameters", "size on disk")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, title in TITLES.items():
        table.add_row(name, title, f"{parameters[name]:,}", f"{sizes[name] / 1e6:.2f} MB")
    table.add_section()
    table.add_row("all", "", f"{sum(parameters.values()):,}", f"{sum(sizes.values()) / 1e6:.2f} MB")
    out.print(table)
    defaults = Table("default", "value")
    for name, value in spec.defaults:
        defaults.add_row(name, f"{value:g}" if isinstance(value, float) else str(value))
    out.print(defaults)
    size = spec.defaults.size
    out.print(f"Latents {size.latent.frames}x{size.latent.height}x{size.latent.width}, {size.latent.tokens()} tokens.")
    return 0
