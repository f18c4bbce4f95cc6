"""Points of the picture followed over short segments of a clip: what the camera's motion is read from.

Frames are grey, about `RATE` a second, with the longer side `SIDE` pixels. Points are followed by pyramidal
Lucas-Kanade; a point counts as long as following it back leads to where it came from. Every `STEPS` steps a segment
ends: where each point came is then measured twice more, from the segment's first frame straight to its last, by
Lucas-Kanade on a larger patch and by dense inverse search. The middle one of the three counts, and how far they are
apart tells how much of it to believe. Points that are still followed go on into the next segment from there under the
same number, and each cell of a grid that has none gives its strongest corner. The errors of a point that is followed on
mostly cancel from segment to segment, those of new points do not.
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

CELL = 12
"""Side of the cells of which each gives one point, in pixels."""

CROWD = 2
"""Points of one cell that go on into the next segment, those that are followed longest."""

WINDOW = 11
"""Side of the patch that is followed, in pixels."""

STRAIGHT = 17
"""The same from a segment's first frame straight to its last."""

CORNER = 1e-4
"""Least smaller eigenvalue of a corner (OpenCV's scale for pictures of 0..1)."""

GRADIENT = 1e-5
"""The same of a patch that Lucas-Kanade may follow."""

BACK = 0.6
"""Pixels by which a point may miss its start when it is followed back."""


@dataclass(frozen=True)
class Tracks:
    """points: float32 [K, STEPS+1, N, 2], x to the right and y down from the picture's centre, in halves of its longer
    side. good: bool [K, STEPS, N], whether the point was followed to the end of that step. missed: float32
    [K, STEPS, N], by how much following it back in that step missed, in the same unit as the points. doubt: float32
    [K, N], how far the three measurements of where it came are apart (the longest of the three distances, in the same
    unit; 0 where it was not followed to the end). numbers: int [K, N], which point it is, the same from segment to
    segment; -1 where there is none. seconds: from one frame to the next. aspect: width over height. Segment k covers
    the frames [4k, 4k+4] of those looked at."""

    points: np.ndarray
    good: np.ndarray
    missed: np.ndarray
    doubt: np.ndarray
    numbers: np.ndarray
    seconds: float
    aspect: float

    def __len__(self) -> int:
        return len(self.points)

    def part(self, first: int, last: int) -> Tracks:
        """The segments [first, last)."""
        chosen = slice(first, last)
        return Tracks(
            self.points[chosen],
            self.good[chosen],
            self.missed[chosen],
            self.doubt[chosen],
            self.numbers[chosen],
            self.seconds,
            self.aspect,
        )


@dataclass(frozen=True)
class _Segment:
    """places [STEPS+1, N, 2], missed [STEPS, N] and doubt [N] in pixels; good [STEPS, N]; numbers [N]."""

    places: np.ndarray
    good: np.ndarray
    missed: np.ndarray
    doubt: np.ndarray
    numbers: np.ndarray


class Tracker:
    """Follows points through frames given one by one; memory grows by about 60 KB for a second of film."""

    def __init__(self) -> None:
        self.cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        self.dense: Any = self.cv2.DISOpticalFlow_create(self.cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.first: np.ndarray | None = None  # frame of the segment
        self.before: np.ndarray | None = None
        self.points = np.zeros((0, 2), np.float32)
        self.alive = np.zeros(0, bool)
        self.numbers = np.zeros(0, int)
        self.chosen = 0
        self.segments: list[_Segment] = []
        self.places: list[np.ndarray] = []
        self.good: list[np.ndarray] = []
        self.missed: list[np.ndarray] = []
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
                self._close(self._settle(gray))
                self._choose(gray)
        self.before = gray

    def tracks(self, seconds: float) -> Tracks:
        """All segments; a clip too short for one is filled up with steps that did not succeed."""
        if not self.segments and self.good:
            while len(self.good) < STEPS:
                self.places.append(self.places[-1])
                self.good.append(np.zeros_like(self.alive))
                self.missed.append(np.zeros(len(self.alive)))
            self._close(np.zeros(len(self.alive)))
        height, width = self.size
        half = max(height, width) / 2
        centre = np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
        most = max((len(segment.numbers) for segment in self.segments), default=0)
        points = np.zeros((len(self.segments), STEPS + 1, most, 2), np.float32)
        kept = np.zeros((len(self.segments), STEPS, most), bool)
        missed = np.zeros((len(self.segments), STEPS, most), np.float32)
        doubt = np.zeros((len(self.segments), most), np.float32)
        numbers = np.full((len(self.segments), most), -1)
        for k, segment in enumerate(self.segments):
            count = len(segment.numbers)
            points[k, :, :count] = (segment.places - centre) / half
            kept[k, :, :count] = segment.good
            missed[k, :, :count] = segment.missed / half
            doubt[k, :count] = segment.doubt / half
            numbers[k, :count] = segment.numbers
        return Tracks(points, kept, missed, doubt, numbers, seconds, width / height)

    def _choose(self, gray: np.ndarray) -> None:
        grid = _Grid(*gray.shape[:2])
        old = np.flatnonzero(self.alive)
        old = old[grid.uncrowded(self.points[old], self.numbers[old])]
        new = corners(gray, grid, self.cv2)
        new = new[~np.isin(grid.cells(new), grid.cells(self.points[old]))]
        self.points = np.concatenate([self.points[old], new])
        self.numbers = np.concatenate([self.numbers[old], self.chosen + np.arange(len(new))])
        self.chosen += len(new)
        self.alive = np.ones(len(self.points), bool)
        self.places, self.good, self.missed = [self.points], [], []
        self.first = gray

    def _follow(self, before: np.ndarray, now: np.ndarray) -> None:
        missed = np.zeros(len(self.points))
        if len(self.points):
            options = {"winSize": (WINDOW, WINDOW), "maxLevel": 3, "minEigThreshold": GRADIENT}
            moved, found, _ = self.cv2.calcOpticalFlowPyrLK(before, now, self.points, None, **options)
            back, again, _ = self.cv2.calcOpticalFlowPyrLK(now, before, moved, None, **options)
            missed = np.linalg.norm(back - self.points, axis=1)
            inside = ((moved >= 0) & (moved <= np.array(now.shape[::-1]) - 1)).all(axis=1)
            self.alive = self.alive & (found.ravel() == 1) & (again.ravel() == 1) & (missed < BACK) & inside
            self.points = np.where(self.alive[:, None], moved, self.points).astype(np.float32)
        self.places.append(self.points)
        self.good.append(self.alive)
        self.missed.append(missed)

    def _settle(self, last: np.ndarray) -> np.ndarray:
        """Moves the points to the middle one of three measurements, x and y apart, and the places on their way by as
        much of that as the segment had gone. [N]: how far the three are apart."""
        doubt, chosen = np.zeros(len(self.points)), np.flatnonzero(self.alive)
        if self.first is None or not len(chosen):
            return doubt
        start, end = self.places[0][chosen], self.points[chosen]
        flags = self.cv2.OPTFLOW_USE_INITIAL_FLOW
        options = {"winSize": (STRAIGHT, STRAIGHT), "maxLevel": 1, "minEigThreshold": GRADIENT, "flags": flags}
        straight, found, _ = self.cv2.calcOpticalFlowPyrLK(self.first, last, start, end.copy(), **options)
        straight = np.where(found == 1, straight, end)
        flow = self.dense.calc(self.first, last, None)
        flow = self.cv2.remap(flow, start[:, None, 0], start[:, None, 1], self.cv2.INTER_LINEAR)[:, 0]
        ends = np.stack([end, straight, start + flow])
        doubt[chosen] = np.linalg.norm(ends - np.roll(ends, 1, axis=0), axis=2).max(axis=0)
        change = np.zeros_like(self.points)
        change[chosen] = np.median(ends, axis=0) - end
        self.places = [place + change * (i / STEPS) for i, place in enumerate(self.places)]
        self.points = self.places[-1]
        return doubt

    def _close(self, doubt: np.ndarray) -> None:
        self.segments.append(
            _Segment(np.stack(self.places), np.stack(self.good), np.stack(self.missed), doubt, self.numbers)
        )


class _Grid:
    """Cells of `CELL` pixels in the middle of a picture."""

    def __init__(self, height: int, width: int) -> None:
        self.rows, self.columns = height // CELL, width // CELL
        self.top, self.left = (height - self.rows * CELL) // 2, (width - self.columns * CELL) // 2

    def cells(self, points: np.ndarray) -> np.ndarray:
        """int [N]: the cell of each point [N, 2], that nearest to it beyond the border."""
        column = ((points[:, 0] - self.left) // CELL).clip(0, max(0, self.columns - 1))
        row = ((points[:, 1] - self.top) // CELL).clip(0, max(0, self.rows - 1))
        return (row * self.columns + column).astype(int)

    def uncrowded(self, points: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """int: the points that stay when each cell keeps its `CROWD` lowest numbers, in the order of those."""
        order = np.argsort(numbers, kind="stable")
        cell = self.cells(points[order])
        by_cell = np.argsort(cell, kind="stable")
        first = np.searchsorted(cell[by_cell], cell[by_cell])
        rank = np.empty(len(cell), int)
        rank[by_cell] = np.arange(len(cell)) - first
        return order[rank < CROWD]


def corners(gray: np.ndarray, grid: _Grid, cv2: Any) -> np.ndarray:
    """float32 [N, 2]: the strongest corner of each cell that has one."""
    rows, columns = grid.rows, grid.columns
    if rows == 0 or columns == 0:
        return np.zeros((0, 2), np.float32)
    strength = cv2.cornerMinEigenVal(gray, 5)
    cells = strength[grid.top : grid.top + rows * CELL, grid.left : grid.left + columns * CELL]
    cells = cells.reshape(rows, CELL, columns, CELL).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    best = cells.argmax(axis=1)
    cell = np.flatnonzero(cells[np.arange(len(cells)), best] > CORNER)
    y = cell // columns * CELL + best[cell] // CELL + grid.top
    x = cell % columns * CELL + best[cell] % CELL + grid.left
    return np.stack([x, y], axis=1).astype(np.float32)
