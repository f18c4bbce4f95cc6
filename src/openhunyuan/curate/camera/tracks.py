"""Points of the picture followed over short segments of a clip: what the camera's motion is read from.

Frames are grey, about `RATE` a second, with the longer side `SIDE` pixels. Every `STEPS` steps new points are chosen,
the strongest corner of each cell of a grid, and followed by pyramidal Lucas-Kanade; a point counts as long as following
it back leads to where it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from openhunyuan.base.require import require

RATE = 12.0
"""Frames a second that are looked at."""

SIDE = 256
STEPS = 4
"""Steps from frame to frame in a segment."""

CELL = 14
"""Side of the cells of which each gives one point, in pixels."""

CORNER = 2e-4
"""Least smaller eigenvalue of a corner (OpenCV's scale for pictures of 0..1)."""

BACK = 0.6
"""Pixels by which a point may miss its start when it is followed back."""


@dataclass(frozen=True)
class Tracks:
    """points: float32 [K, STEPS+1, N, 2], x to the right and y down from the picture's centre, in halves of its longer
    side. good: bool [K, STEPS, N], whether the point was followed to the end of that step. seconds: from one frame to
    the next. aspect: width over height. Segment k covers the frames [4k, 4k+4] of those looked at."""

    points: np.ndarray
    good: np.ndarray
    seconds: float
    aspect: float

    def __len__(self) -> int:
        return len(self.points)

    def part(self, first: int, last: int) -> Tracks:
        """The segments [first, last)."""
        return Tracks(self.points[first:last], self.good[first:last], self.seconds, self.aspect)


class Tracker:
    """Follows points through frames given one by one; memory grows by about 20 KB for a second of film."""

    def __init__(self) -> None:
        self.cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        self.before: np.ndarray | None = None
        self.points = np.zeros((0, 2), np.float32)
        self.alive = np.zeros(0, bool)
        self.segments: list[tuple[np.ndarray, np.ndarray]] = []
        self.places: list[np.ndarray] = []
        self.good: list[np.ndarray] = []
        self.size = (1, 1)

    def add(self, gray: np.ndarray) -> None:
        """gray: uint8 [h, w]; it is reduced to a longer side of `SIDE`."""
        scale = SIDE / max(gray.shape)
        if scale < 1:
            size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
            gray = self.cv2.resize(gray, size, interpolation=self.cv2.INTER_AREA)
        if self.before is None:
            self.size = gray.shape[:2]
            self._choose(gray)
        else:
            self._follow(self.before, gray)
            if len(self.good) == STEPS:
                self._close()
                self._choose(gray)
        self.before = gray

    def tracks(self, seconds: float) -> Tracks:
        """All segments; a clip too short for one is filled up with steps that did not succeed."""
        if not self.segments and self.good:
            while len(self.good) < STEPS:
                self.places.append(self.places[-1])
                self.good.append(np.zeros_like(self.alive))
            self._close()
        height, width = self.size
        half = max(height, width) / 2
        centre = np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
        most = max((len(good[0]) for _, good in self.segments), default=0)
        points = np.zeros((len(self.segments), STEPS + 1, most, 2), np.float32)
        kept = np.zeros((len(self.segments), STEPS, most), bool)
        for k, (places, good) in enumerate(self.segments):
            points[k, :, : places.shape[1]] = (places - centre) / half
            kept[k, :, : good.shape[1]] = good
        return Tracks(points, kept, seconds, width / height)

    def _choose(self, gray: np.ndarray) -> None:
        self.points = corners(gray, self.cv2)
        self.alive = np.ones(len(self.points), bool)
        self.places, self.good = [self.points], []

    def _follow(self, before: np.ndarray, now: np.ndarray) -> None:
        if len(self.points):
            options = {"winSize": (15, 15), "maxLevel": 3}
            moved, found, _ = self.cv2.calcOpticalFlowPyrLK(before, now, self.points, None, **options)
            back, again, _ = self.cv2.calcOpticalFlowPyrLK(now, before, moved, None, **options)
            missed = np.linalg.norm(back - self.points, axis=1)
            inside = ((moved >= 0) & (moved <= np.array(now.shape[::-1]) - 1)).all(axis=1)
            self.alive = self.alive & (found.ravel() == 1) & (again.ravel() == 1) & (missed < BACK) & inside
            self.points = np.where(self.alive[:, None], moved, self.points).astype(np.float32)
        self.places.append(self.points)
        self.good.append(self.alive)

    def _close(self) -> None:
        self.segments.append((np.stack(self.places), np.stack(self.good)))


def corners(gray: np.ndarray, cv2: Any) -> np.ndarray:
    """float32 [N, 2]: the strongest corner of each cell that has one."""
    rows, columns = gray.shape[0] // CELL, gray.shape[1] // CELL
    if rows == 0 or columns == 0:
        return np.zeros((0, 2), np.float32)
    strength = cv2.cornerMinEigenVal(gray, 5)
    top, left = (gray.shape[0] - rows * CELL) // 2, (gray.shape[1] - columns * CELL) // 2
    cells = strength[top : top + rows * CELL, left : left + columns * CELL]
    cells = cells.reshape(rows, CELL, columns, CELL).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    best = cells.argmax(axis=1)
    cell = np.flatnonzero(cells[np.arange(len(cells)), best] > CORNER)
    y = cell // columns * CELL + best[cell] // CELL + top
    x = cell % columns * CELL + best[cell] % CELL + left
    return np.stack([x, y], axis=1).astype(np.float32)
