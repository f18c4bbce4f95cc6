"""Blur by a small network that was trained on blur of known width (`openhunyuan train blur`).

The network says for each cell of a picture how wide blur is there in each of four directions, and how sure it is.
A picture is as clear as its clear parts: a face in front of an unsharp wall is in focus. But it must be clear in every
direction: motion leaves the edges along it as sharp as they were, and across it nothing is clear. So the clear parts
are looked for in each direction alone, and the widest direction counts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Reader, View
from openhunyuan.curate.measures.packaged import Packaged, looks, small_picture
from openhunyuan.curate.models.small_forward import CELL, DIRECTIONS

LOOKS = 6
"""Looks at a clip, spread over it."""

TILE = 8
"""Side of the squares that the network sees, in cells, as in its training."""

LEAST = 0.1
"""A direction counts in which this much is seen surely, against the one in which most is: not a few odd cells."""

LAGS = ((1, 1), (3, 2), (4, 3), (6, 4), (8, 6), (11, 8), (16, 11), (24, 17))
"""Distances at which levels are compared, in pixels: along an axis, and steps along a diagonal that go about as far."""

TOWARDS = ((1, 0), (1, 1), (0, 1), (-1, 1))
"""One step in each direction, (x, y)."""

FLOOR = 1.0
"""Added to squared differences, in levels: below it they are noise."""


class Blur(Packaged):
    """Columns, medians over the looks:

    `width`: how wide a sharp edge has become in the direction where it is widest, in per cent of the shorter side (as
    `clarity.edge_width`: the step over its steepest slope). Null where the network is sure of nothing in the clip.

    `motion`: how many times wider that is than in the narrowest direction; about 1 where blur is the same in all
    directions, and where there is none. Null where fewer than two directions are known.
    """

    name: ClassVar[str] = "blur"
    version: ClassVar[int] = 2
    group: ClassVar[str] = "clarity"
    columns: ClassVar = ("width", "motion")
    proxy: ClassVar[str] = "a small network, trained on synthetic blur alone"
    network: ClassVar[str] = "blur"

    clearest: float = Field(
        default=0.25, gt=0, lt=1, description="Part of what is seen surely in a direction that decides its width."
    )
    unsure: float = Field(
        default=0.6, gt=0, description="Cells whose width is known less well (standard deviation of its log) are left."
    )

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self, clip)


def tiles(seen: np.ndarray) -> list[np.ndarray]:
    """[c, h, w] in squares of `TILE` cells, which overlap where its sides are no multiples; a small one is mirrored on.

    The network is shown what it was trained on: in squares of that size its cells see the border.
    """
    missing = [max(0, TILE - side) for side in seen.shape[1:]]
    if any(missing):
        seen = np.pad(seen, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")
    ys, xs = (np.linspace(0, side - TILE, -(-side // TILE)).round().astype(int) for side in seen.shape[1:])
    return [seen[:, y : y + TILE, x : x + TILE] for y in ys for x in xs]


def network_input(rgb: np.ndarray) -> np.ndarray:
    """float32 [SEEN, ⌈h/8⌉, ⌈w/8⌉] for `BlurNet` from a picture, uint8 [h, w, 3]: how different its levels are in each
    direction at each distance, as logs of the root of the mean square over a cell, and of the most.

    Blur takes the small distances away, in its own directions. Levels are those along the colours' principal axis: red
    on an equally bright grey has edges too.
    """
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    height, width = rgb.shape[:2]
    planes = rgb.astype(np.float32)
    every = cv2.COVAR_NORMAL | cv2.COVAR_ROWS
    covariance, _ = cv2.calcCovarMatrix(planes.reshape(-1, 3), None, every, ctype=cv2.CV_64F)
    levels = cv2.transform(planes, np.linalg.eigh(covariance)[1][None, :, -1])
    most = LAGS[-1][0] // 2 + 1
    down, right = -height % CELL, -width % CELL
    levels = cv2.copyMakeBorder(levels, most, most + down, most, most + right, cv2.BORDER_REFLECT)
    height, width = height + down, width + right

    def moved(x: int, y: int) -> np.ndarray:
        return levels[most + y : most + y + height, most + x : most + x + width]

    seen, cell = [], np.ones((CELL, CELL), np.uint8)
    for direction, (x, y) in enumerate(TOWARDS):
        for lag in LAGS:
            back, ahead = lag[direction % 2] // 2, -(-lag[direction % 2] // 2)
            step = moved(-back * x, -back * y) - moved(ahead * x, ahead * y)
            squares = step * step
            seen.append(cv2.resize(squares, (width // CELL, height // CELL), interpolation=cv2.INTER_AREA))
            seen.append(cv2.dilate(squares, cell, anchor=(0, 0))[::CELL, ::CELL])
    return 0.5 * np.log(np.stack(seen) + FLOOR)


class _Reader(Reader):
    def __init__(self, stage: Blur, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = looks(clip.num_frames, clip.step, LOOKS)
        self.found: list[np.ndarray] = []

    def add(self, view: View) -> None:
        if view.index % self.step:
            return
        picture = small_picture(view)
        x = np.stack(tiles(network_input(picture)))
        cells = self.stage.model()(x.transpose(0, 2, 3, 1)).transpose(3, 0, 1, 2)
        widths = widths_of(cells, self.stage.clearest, self.stage.unsure) * 100.0 / min(picture.shape[:2])
        self.found.append(widths[~np.isnan(widths)])

    def finish(self) -> dict[str, Any]:
        wide = [found.max() for found in self.found if len(found)]
        ratios = [found.max() / found.min() for found in self.found if len(found) > 1]
        return {name: round(float(np.median(v)), 4) if v else None for name, v in (("width", wide), ("motion", ratios))}


def widths_of(cells: np.ndarray, clearest: float, unsure: float) -> np.ndarray:
    """[DIRECTIONS]: width of a picture's blur in each direction, in pixels; NaN where too little is seen surely.

    cells: [2 · DIRECTIONS, …] of `BlurNet`.
    """
    log_widths, log_variances = cells.reshape(2, DIRECTIONS, -1).astype(np.float64)
    weights = np.exp(-log_variances) * (log_variances <= 2 * np.log(unsure))
    told = weights.sum(axis=1)
    widths = np.full(DIRECTIONS, np.nan)
    for direction in np.flatnonzero(told > LEAST * told.max()):
        order = np.argsort(log_widths[direction], kind="stable")
        share = np.cumsum(weights[direction, order]) / told[direction]
        widths[direction] = np.exp(log_widths[direction, order[int(np.searchsorted(share, clearest))]])
    return widths
