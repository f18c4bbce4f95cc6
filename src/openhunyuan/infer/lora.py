"""The LoRAs that requests name: read before anything is loaded, and on the transformer while a request wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from torch import nn

from openhunyuan.convert.dit_read import read_dit
from openhunyuan.convert.lora import read_lora
from openhunyuan.convert.lora_keys import lora_file
from openhunyuan.infer.request import split_lora
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import LoadedModel
from openhunyuan.models.lora import Adapters, LoRA
from openhunyuan.models.zoo import file_sha256


@dataclass(frozen=True)
class _File:
    """A LoRA file's content, and when it was what it is."""

    stamp: tuple[int, int]
    lora: LoRA
    sha256: str


class RequestLoRAs:
    """What ``Request.lora`` asks for, on one model. From request to request only the difference is changed."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._files: dict[str, _File] = {}
        self._adapters: Adapters | None = None
        self._on: list[_File] = []  # What is on the transformer as lora_0, lora_1, ...

    def check(self, entries: Sequence[str]) -> None:
        """Read the files of ``PATH[:SCALE]`` entries and compare them with the transformer, whose weights stay unread.

        Raises:
            UserError: a file that is missing or no LoRA, or a LoRA for another model.
        """
        paths = list(dict.fromkeys(split_lora(entry)[0] for entry in entries))
        kept = {path: self._files[path] for path in paths if path in self._files}
        layers: nn.Module | None = None
        for path in paths:
            file = lora_file(path)
            stamp = (file.stat().st_mtime_ns, file.stat().st_size)
            if path in kept and kept[path].stamp == stamp:
                continue
            layers = self._layers() if layers is None else layers
            kept[path] = _File(stamp, read_lora(path, layers), file_sha256(file))
        self._files = {path: kept[path] for path in paths}

    def apply(self, entries: Sequence[str]) -> dict[str, str]:
        """Make the entries' LoRAs the ones on the transformer. Returns path → SHA-256 of the file, for the record."""
        if not entries and self._adapters is None:
            return {}
        # Sampling runs in inference mode, whose tensors could never be trained or changed again.
        with torch.inference_mode(False), torch.no_grad():
            self.check(entries)
            if self._adapters is None or self._adapters.model is not self._model.dit:
                self._adapters, self._on = Adapters(self._model.dit), []
            wanted = list(self._files.values())
            # In the order of the request, whatever was on before: sums round differently in another order, and the
            # same request must give the same bits.
            same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(self._on, wanted, strict=False)))
            for index in range(same, len(self._on)):
                self._adapters.remove(f"lora_{index}")
            for index in range(same, len(wanted)):
                self._adapters.add(f"lora_{index}", wanted[index].lora)
            self._on = wanted
            strengths = dict.fromkeys(self._files, 0.0)
            for entry in entries:
                path, scale = split_lora(entry)
                strengths[path] += scale
            self._adapters.set_strengths({f"lora_{index}": value for index, value in enumerate(strengths.values())})
        return {path: file.sha256 for path, file in self._files.items()}

    def _layers(self) -> nn.Module:
        """The transformer as far as its layers' names and sizes go."""
        if "dit" in self._model.__dict__:
            return self._model.dit
        config = read_dit(self._model.files.dit, self._model.float8).config
        with torch.device("meta"):
            return DiT(config)


def changed_files(recorded: dict[str, str]) -> list[str]:
    """The paths whose LoRA is not the file that a video was made with; ``recorded`` is what ``apply`` gave then."""
    return [path for path, sha256 in recorded.items() if Path(path).exists() and file_sha256(lora_file(path)) != sha256]
