"""Blur by a small network that was trained on blur of known width (`openhunyuan train blur`).

The network says for each cell of a picture how wide blur is there and how sure it is. A picture is as clear as its
clear parts: a face in front of an unsharp wall is in focus. Its third answer, whether blur comes from motion, is not
used: it was hardly learned (docs/results/small-networks.md).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.curate.measures.measure import ClipSpan, Reader, View
from openhunyuan.curate.measures.packaged import Packaged, looks, small_picture

LOOKS = 6
"""Looks at a clip, spread over it."""

TILE = 64
"""Side of the squares that the network sees, as in its training."""

FLOOR = 6.0
"""Least standard deviation that a tile is scaled by, in levels: noise on an even wall is not to become texture."""


class Blur(Packaged):
    """Columns: `width`, how wide a sharp edge has become, in per cent of the shorter side (as `clarity.edge_width`:
    the step over its steepest slope), median over the looks. Null where the network is sure of nothing in the clip.
    """

    name: ClassVar[str] = "blur"
    version: ClassVar[int] = 1
    group: ClassVar[str] = "clarity"
    columns: ClassVar = ("width",)
    proxy: ClassVar[str] = "a small network, trained on synthetic blur alone"
    network: ClassVar[str] = "blur"

    clearest: float = Field(
        default=0.25, gt=0, lt=1, description="Part of what is seen surely that decides: the clearest quarter."
    )
    unsure: float = Field(
        default=0.6, gt=0, description="Cells whose width is known less well (standard deviation of its log) are left."
    )

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self, clip)


def tiles(picture: np.ndarray) -> list[np.ndarray]:
    """The picture in squares of `TILE`, which overlap where its sides are no multiples; a smaller one is mirrored on.

    The network is shown what it was trained on: in squares of that size its cells see the border.
    """
    missing = [max(0, TILE - side) for side in picture.shape[:2]]
    if any(missing):
        picture = np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    ys, xs = (np.linspace(0, side - TILE, -(-side // TILE)).round().astype(int) for side in picture.shape[:2])
    return [picture[y : y + TILE, x : x + TILE] for y in ys for x in xs]


def network_input(rgb: np.ndarray) -> np.ndarray:
    """float32 [3, h, w] for `BlurNet` from a tile, uint8 [h, w, 3]: without mean, scaled by the tile's own spread."""
    x = rgb.astype(np.float32)
    x -= x.mean(axis=(0, 1))
    return (x / max(float(x.std()), FLOOR)).transpose(2, 0, 1)


class _Reader(Reader):
    def __init__(self, stage: Blur, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = looks(clip.num_frames, clip.step, LOOKS)
        self.found: list[float] = []

    def add(self, view: View) -> None:
        if view.index % self.step:
            return
        picture = small_picture(view)
        x = np.stack([network_input(tile).transpose(1, 2, 0) for tile in tiles(picture)])
        cells = self.stage.model()(x).transpose(3, 0, 1, 2)
        found = blur_of(cells, min(picture.shape[:2]), self.stage.clearest, self.stage.unsure)
        if found is not None:
            self.found.append(found)

    def finish(self) -> dict[str, Any]:
        return {"width": round(float(np.median(self.found)), 4) if self.found else None}


def blur_of(cells: np.ndarray, side: int, clearest: float, unsure: float) -> float | None:
    """Width of a picture's blur in per cent of its shorter side; None where no cell is sure.

    cells: [3, …] of `BlurNet`. side: the picture's shorter side in pixels.
    """
    log_width, log_variance = (plane.ravel().astype(np.float64) for plane in cells[:2])
    sure = log_variance <= 2 * np.log(unsure)
    if not sure.any():
        return None
    log_width, weight = log_width[sure], np.exp(-log_variance[sure])
    order = np.argsort(log_width, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    return 100.0 * float(np.exp(log_width[order][int(np.searchsorted(share, clearest))])) / side
