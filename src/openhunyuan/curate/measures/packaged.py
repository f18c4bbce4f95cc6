"""A measure whose small network is part of the package: its weights' hash is part of its key."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.curate.measures.measure import Measure, View, reduced
from openhunyuan.curate.models.small_forward import Forward, load_small

WEIGHTS = Path(__file__).parents[1] / "weights"
SIDE = 320
"""Longer side of the picture that the small networks see."""


class Packaged(Measure):
    """Base of the measures that run a small network on the CPU; `network` names it.

    `file` gives other weights, as `openhunyuan train` leaves them; where they lie is no part of the key.
    """

    network: ClassVar[str]

    file: str = Field(default="", exclude=True, description="Weights (.safetensors); default: the package's.")

    @property
    def weights(self) -> str | None:
        return _hash(str(self.where), self.where.stat().st_mtime_ns if self.where.is_file() else 0)

    @property
    def where(self) -> Path:
        """The file of the weights."""
        return Path(self.file).absolute() if self.file else WEIGHTS / f"{self.network}.safetensors"

    def check(self) -> None:
        """Open the weights. Raises UserError where they are missing or another network's."""
        self.model()

    def model(self) -> Any:
        """What answers for the network (`small_forward.Forward`), loaded once in a process."""
        return _loaded(self.network, str(self.where), self.weights)


@lru_cache(maxsize=8)
def _hash(path: str, changed: int) -> str:
    if not changed:
        raise UserError(f"There are no weights at {path}; train them, or take the measure without a network.")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@lru_cache(maxsize=8)
def _loaded(name: str, path: str, sha256: str) -> Forward:
    return load_small(name, path)


def small_picture(view: View) -> Any:
    """uint8 [h, w, 3], the longer side at most `SIDE`."""
    return reduced(view.rgb, SIDE)


def looks(num_frames: int, step: int, most: int) -> int:
    """Frames from one look to the next, a multiple of the samples' step, for at most `most` looks."""
    samples = -(-num_frames // step)
    return step * max(1, -(-samples // most))
