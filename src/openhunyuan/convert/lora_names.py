"""What the layers of the transformer are called in LoRA files, and which of their rows a name means.

Ours are the official names. ComfyUI renames layers; diffusers and OneTrainer also split the fused ones. Writers with
underscores for dots need no table of their own: with underscores, no two names of the four namings are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from openhunyuan.convert import dit_comfyui, dit_diffusers
from openhunyuan.models.lora import features

Naming = Literal["official", "comfyui", "diffusers", "onetrainer"]
NAMINGS: tuple[Naming, ...] = ("official", "comfyui", "diffusers", "onetrainer")

ONETRAINER = {
    r"(.+mlp)\.fc1": r"\1.fc0",
    r"txt_in\.t_embedder\.mlp\.0": "txt_in.t_embedder.linear_1",
    r"txt_in\.t_embedder\.mlp\.2": "txt_in.t_embedder.linear_2",
}
"""Official layer → OneTrainer's; the others keep their names, and the parts of fused ones are .0, .1, .2 (and .3)."""


@dataclass(frozen=True)
class Place:
    """What a name means.

    Attributes:
        module: our layer.
        start, stop: the rows of its output that the name means.
        swapped: whether the writer has the two halves of these rows in the other order.
        shape: of the layer's whole weight.
    """

    module: str
    start: int
    stop: int
    swapped: bool
    shape: tuple[int, ...]


def joined(name: str) -> str:
    """A name as the key of ``table``: dots are underscores, as kohya's writers have them."""
    return name.replace(".", "_")


def spell(module: str, shape: tuple[int, ...], naming: Naming) -> list[tuple[str, Place]]:
    """The names of one of our layers in a naming, with the rows each means: one, or a few where it splits."""
    try:
        rule, split = dit_diffusers.NAMES.find(module)
    except KeyError:  # A layer that only we have is called by our name everywhere.
        return [(module, Place(module, 0, shape[0], False, shape))]
    names, swapped = [module], False
    if naming == "comfyui":
        # A norm's rule names its parameter too, so all are asked for by their weight.
        names = [name.rpartition(".")[0] for name in dit_comfyui.NAMES.their_names(f"{module}.weight")]
    elif naming == "diffusers":
        names, swapped = list(split), rule.kind == "swap"
    elif naming == "onetrainer":
        pattern = next((pattern for pattern in ONETRAINER if re.fullmatch(pattern, module)), None)
        renamed = re.sub(pattern, ONETRAINER[pattern], module) if pattern else module
        names = [f"{renamed}.{part}" for part in range(len(split))] if rule.kind == "split" else [renamed]
    # Of a fused layer queries, keys and values are as wide as its input, and the last part is what is left.
    ends = [shape[1] * part for part in range(1, len(names))] + [shape[0]]
    bounds = zip([0, *ends], ends, strict=False)
    return [(name, Place(module, *rows, swapped, shape)) for name, rows in zip(names, bounds, strict=True)]


def layers(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, weight's shape) of everything in the model that a LoRA file may change; quantized layers count too."""
    for name, module in model.named_modules():
        if size := features(module):
            yield name, size
        elif isinstance(weight := getattr(module, "weight", None), Tensor):
            yield name, tuple(weight.shape)


def table(model: nn.Module) -> dict[str, Place]:
    """Every name of every naming, joined → what it means in this model."""
    return {
        joined(spelled): place
        for name, shape in layers(model)
        for naming in NAMINGS
        for spelled, place in spell(name, shape, naming)
    }
