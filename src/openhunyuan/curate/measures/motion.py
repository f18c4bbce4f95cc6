"""How fast things move: optical flow, what the camera does, and what is left when that is taken away.

Three scorers, chosen by `method`; the published ones are defined on their own terms and kept comparable, number for
number, with what others publish:

- "dis" (default): DIS flow on pictures reduced to 320 pixels. Speeds are in per cent of the diagonal a second, so that
  they hardly depend on the size of the source or on its frame rate.
- "farneback": mean length of Farneback flow in pixels of the source between frames half a second apart, as
  VideoX-Fun and data-juicer publish it. Depends on the source's size.
- "h264": mean length of the codec's own motion vectors over width + height, as cosmos-curate publishes it; the
  smallest mean of a 256-pixel patch beside it. Needs no flow, and says as much about the encoder as about the scene.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View

GRID = 12
"""Points a side at which flow is read for the camera's part."""


class Motion(Measure):
    """Speed of a clip.

    Columns of "dis": `speed`, the larger of the next two; `camera_speed`, the mean flow of a fitted affine motion;
    `subject_speed`, the 99th percentile over the picture of the flow left without it (all medians over time);
    `moving_share`, the part of the picture whose left-over flow is above half a per cent a second; `speed_p90`, the
    90th percentile of the speed over time. Columns of the others: `speed`; "h264" has `slowest_patch` too.
    """

    name: ClassVar[str] = "motion"
    version: ClassVar[int] = 1
    group: ClassVar[str] = "motion"
    needs_time: ClassVar[bool] = True
    columns: ClassVar = ("speed", "camera_speed", "subject_speed", "moving_share", "speed_p90", "slowest_patch")

    method: Literal["dis", "farneback", "h264"] = Field(default="dis", description="Which flow is measured.")

    @property
    def reads_motion_vectors(self) -> bool:
        return self.method == "h264"

    def begin(self, clip: ClipSpan) -> Reader:
        if self.method == "farneback":
            return _Farneback(clip)
        return _Vectors(clip) if self.method == "h264" else _Dis(clip)


class _Dis(Reader):
    def __init__(self, clip: ClipSpan) -> None:
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        self.flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self.before: np.ndarray | None = None
        self.number = 0
        self.pairs: list[tuple[float, float, float]] = []

    def add(self, view: View) -> None:
        if not view.sample:
            return
        now = view.small
        if min(now.shape) < 16:
            return
        if self.before is not None:
            self.pairs.append(speeds(self.flow.calc(self.before, now, None), view.since(self.number)))
        self.before, self.number = now, view.index

    def finish(self) -> dict[str, Any]:
        return speed_row(self.pairs)


def speeds(field: np.ndarray, seconds: float) -> tuple[float, float, float]:
    """(camera speed, subject speed, moving share) of the flow [h, w, 2] from one sample to the next, so much later."""
    camera = camera_flow(field)
    scale = 100.0 / float(np.hypot(*field.shape[:2])) / seconds
    rest = _lengths(*(np.subtract(field[..., axis], camera[axis]) for axis in (0, 1))) * scale
    moved = float(_lengths(*camera).mean()) * scale
    return moved, float(np.quantile(rest, 0.99)), float(np.count_nonzero(rest > 0.5) / rest.size)


def _lengths(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of vectors whose two components are given apart."""
    return np.sqrt(x * x + y * y)


def speed_row(pairs: list[tuple[float, float, float]]) -> dict[str, Any]:
    """A clip's row from the `speeds` of all its pairs of samples."""
    if not pairs:
        return {"speed": None, "camera_speed": None, "subject_speed": None, "moving_share": None, "speed_p90": None}
    camera, subject, share = np.asarray(pairs).T
    fastest = np.maximum(camera, subject)
    return {
        "speed": float(np.median(fastest)),
        "camera_speed": float(np.median(camera)),
        "subject_speed": float(np.median(subject)),
        "moving_share": float(np.median(share)),
        "speed_p90": float(np.quantile(fastest, 0.9)),
    }


def camera_flow(field: np.ndarray, rounds: int = 8) -> np.ndarray:
    """The affine part of a flow field [h, w, 2] that most of the picture follows: float32 [2, h, w].

    Iteratively reweighted least squares (Cauchy weights) on a grid of points: a subject that covers less than about
    half of the picture hardly counts.
    """
    height, width = field.shape[:2]
    ys = np.linspace(0, height - 1, GRID).round().astype(int)
    xs = np.linspace(0, width - 1, GRID).round().astype(int)
    y, x = np.meshgrid(ys, xs, indexing="ij")
    points = np.stack([np.ones(y.size), x.ravel() / width - 0.5, y.ravel() / height - 0.5], axis=1)
    flow = field[y, x].reshape(-1, 2).astype(np.float64)
    weights = np.ones(len(points))
    # The start is the median: from the mean, a large subject would already have pulled the camera along.
    model = np.zeros((3, 2))
    model[0] = np.median(flow, axis=0)
    half = len(points) // 2  # their number is even
    for _ in range(rounds):
        error = _lengths(*(flow - points @ model).T)
        middle = np.sort(error)[half - 1 : half + 1].mean()
        weights = 1.0 / (1.0 + (error / (1.5 * middle + 0.05)) ** 2)
        scaled = points * weights[:, None]
        model = np.linalg.solve(scaled.T @ points, scaled.T @ flow)
    xs_all, ys_all = np.arange(width) / width - 0.5, np.arange(height) / height - 0.5
    camera = np.empty((2, height, width), np.float32)
    for axis in (0, 1):
        row, column = model[0, axis] + xs_all * model[1, axis], ys_all * model[2, axis]
        np.add(row[None], column[:, None], out=camera[axis], casting="same_kind")
    return camera


class _Farneback(Reader):
    def __init__(self, clip: ClipSpan) -> None:
        # Half a second, rounded down to whole frames, and never beyond the clip's last frame.
        self.step = max(1, min(int(clip.fps / max(1.0, min(2.0, clip.fps))), clip.num_frames - 1))
        self.before: np.ndarray | None = None
        self.means: list[float] = []

    def wants(self, index: int) -> bool:
        return index % self.step == 0

    def add(self, view: View) -> None:
        if not self.wants(view.index):
            return
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        now = view.native_gray
        if self.before is not None:
            field = cv2.calcOpticalFlowFarneback(self.before, now, None, 0.5, 3, 15, 3, 5, 1.2, 0)
            self.means.append(float(np.linalg.norm(field, axis=2).mean()))
        self.before = now

    def finish(self) -> dict[str, Any]:
        return {"speed": float(np.mean(self.means)) if self.means else None}


class _Vectors(Reader):
    PATCH = 256

    def __init__(self, clip: ClipSpan) -> None:
        self.step = max(1, round(clip.fps / 2.0))
        seconds = int(clip.num_frames / clip.fps)  # whole seconds, as the published scores count them
        self.left = max(10, seconds) if seconds else 30
        self.total: np.ndarray | None = None
        self.count = 0

    def wants(self, index: int) -> bool:
        return index % self.step == 0 and self.left > 0

    def add(self, view: View) -> None:
        if not self.wants(view.index) or (vectors := view.frame.vectors()) is None:
            return
        raw = view.frame.raw
        painted = vector_lengths(vectors, raw.height, raw.width) / (raw.height + raw.width)
        self.total = painted if self.total is None else self.total + painted
        self.count += 1
        self.left -= 1

    def finish(self) -> dict[str, Any]:
        if self.total is None:
            return {"speed": None, "slowest_patch": None}
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        mean = self.total / self.count
        scale = 1.0 / self.PATCH
        patches = cv2.resize(mean, None, fx=scale, fy=scale) if min(mean.shape) >= self.PATCH else mean.mean()
        return {"speed": float(mean.mean()), "slowest_patch": float(np.min(patches))}


def vector_lengths(vectors: np.ndarray, height: int, width: int) -> np.ndarray:
    """Length in pixels of the motion vector over each pixel, float32 [height, width]; 0 where a block has none."""
    lengths = np.zeros((height, width), np.float32)
    moved = np.hypot(
        vectors["motion_x"].astype(np.float32) / vectors["motion_scale"],
        vectors["motion_y"].astype(np.float32) / vectors["motion_scale"],
    )
    # Larger blocks are painted over smaller ones, in the order of the published scorer.
    for w, h in ((8, 8), (16, 16), (16, 8), (8, 16)):
        chosen = np.flatnonzero((vectors["w"] == w) & (vectors["h"] == h))
        for x, y, length in zip(vectors["dst_x"][chosen], vectors["dst_y"][chosen], moved[chosen], strict=True):
            left, top = max(0, int(x) - w // 2), max(0, int(y) - h // 2)
            lengths[top : int(y) + h // 2, left : int(x) + w // 2] = length
    return lengths
