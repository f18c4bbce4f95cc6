"""Blur by a small network that was trained on blur of known width (`openhunyuan train blur`).

The network says for each cell of a picture how wide blur is there, how sure it is, and whether it is motion blur. A
picture is as clear as its clear parts: a face in front of an unsharp wall is in focus.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.curate.measures.measure import ClipSpan, Reader, View
from openhunyuan.curate.measures.packaged import Packaged, looks, small_picture

LOOKS = 6
"""Looks at a clip, spread over it."""

FLOOR = 6.0
"""Least standard deviation that a picture is scaled by, in levels: noise on an even wall is not to become texture."""


class Blur(Packaged):
    """Columns: `width`, how wide a sharp edge has become, in per cent of the shorter side (as `clarity.edge_width`:
    the step over its steepest slope), median over the looks; `motion`, the chance that what blur there is comes from
    motion, 0..1. Null where nothing in the clip has an edge.
    """

    name: ClassVar[str] = "blur"
    version: ClassVar[int] = 1
    group: ClassVar[str] = "clarity"
    columns: ClassVar = ("width", "motion")
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


def network_input(rgb: np.ndarray) -> np.ndarray:
    """float32 [3, h, w] for `BlurNet` from uint8 [h, w, 3]: without mean, scaled by the picture's own spread."""
    x = rgb.astype(np.float32)
    x -= x.mean(axis=(0, 1))
    return (x / max(float(x.std()), FLOOR)).transpose(2, 0, 1)


class _Reader(Reader):
    def __init__(self, stage: Blur, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = looks(clip.num_frames, clip.step, LOOKS)
        self.found: list[tuple[float, float]] = []

    def add(self, view: View) -> None:
        if view.index % self.step:
            return
        import torch

        from openhunyuan.curate.models.small import run_alone

        picture = small_picture(view)
        x = torch.from_numpy(network_input(picture))[None]
        cells = run_alone(self.stage.model(), x)[0].numpy()
        found = blur_of(cells, min(picture.shape[:2]), self.stage.clearest, self.stage.unsure)
        if found is not None:
            self.found.append(found)

    def finish(self) -> dict[str, Any]:
        if not self.found:
            return {"width": None, "motion": None}
        width, motion = np.median(np.asarray(self.found), axis=0)
        return {"width": round(float(width), 4), "motion": round(float(motion), 4)}


def blur_of(cells: np.ndarray, side: int, clearest: float, unsure: float) -> tuple[float, float] | None:
    """(width in per cent of the shorter side, chance of motion blur) of a picture; None where no cell is sure.

    cells: [3, rows, columns] of `BlurNet`. side: the picture's shorter side in pixels.
    """
    log_width, log_variance, logit = (plane.ravel().astype(np.float64) for plane in cells)
    sure = log_variance <= 2 * np.log(unsure)
    if not sure.any():
        return None
    log_width, weight, logit = log_width[sure], np.exp(-log_variance[sure]), logit[sure]
    order = np.argsort(log_width, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    width = float(np.exp(log_width[order][int(np.searchsorted(share, clearest))]))
    motion = float((weight / (1 + np.exp(-logit))).sum() / weight.sum())
    return 100.0 * width / side, motion
