"""Watermarks and logos by a small network that was trained on pasted marks (`openhunyuan train watermark`).

It sees what stays while a clip goes on: the mean picture, how much each pixel changes, and the edges that last
(`measures.lasting`), between black bars, whose edges last too. Under a camera that stands still everything stays, and
it must go by looks; then other shots of the same source help: what lies at the same place in several of them is no part
of a scene (`across_shots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from openhunyuan.base.require import require
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.measures.border import Border, bars
from openhunyuan.curate.measures.lasting import Slopes, signed_slopes
from openhunyuan.curate.measures.measure import ClipSpan, Reader, View
from openhunyuan.curate.measures.packaged import Packaged, looks, small_picture
from openhunyuan.curate.split import VARIABLE

LOOKS = 12
"""Looks at a clip, spread over it."""

FAINT = 0.03
"""A place is kept for the comparison of shots from this chance on."""

PLACES = 6
"""Places that are kept, the likeliest ones."""

NEAR = 0.035
"""Places of two shots are the same when their centres are so close, in shares of width and height."""

SUBTITLE_FROM, SUBTITLE_WIDTH = 0.6, 0.25
"""Where subtitles begin, as a share of the height, and how wide they are at least, as a share of the width."""

LONG = 5.0
"""Seconds from which clips of the same length, side by side, are taken for pieces of one shot."""

SUPPORT, MOST_SUPPORT = 0.25, 2.0
"""What the log-odds of a place gain from those of the same place in another shot (over `FAINT`), and from all."""


class Watermark(Packaged):
    """Columns: `chance`, the network's for the clip's likeliest mark, 0..1; `area`, the part of the picture that this
    mark takes; after the comparison of shots also `across`, the chance with what the source's other shots show.
    `box`: where it is (left, top, right, bottom, as shares). `places`: centre x, y and chance of the likeliest cells.
    """

    name: ClassVar[str] = "watermark"
    version: ClassVar[int] = 2
    needs_time: ClassVar[bool] = True  # in one frame everything stays
    columns: ClassVar = ("chance", "area", "across")
    proxy: ClassVar[str] = "a small network, trained on pasted marks alone"
    network: ClassVar[str] = "watermark"

    edge: float = Field(default=0.3, gt=0, lt=1, description="Chance from which cells belong to a mark's box.")

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self, clip)


class Standing:
    """What stays through the looks at a clip, in constant memory."""

    def __init__(self) -> None:
        self.count = 0
        self.lasting = Slopes()
        self.sum: Any = 0.0
        self.gray: Any = 0.0
        self.brightest: Any = np.uint8(0)
        self.squares: Any = 0.0

    def add(self, rgb: np.ndarray) -> None:
        """rgb: uint8 [h, w, 3], the same size each time."""
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        self.lasting.add(signed_slopes(gray))
        self.brightest = np.maximum(self.brightest, gray)
        gray = gray.astype(np.float32)
        self.count += 1
        self.sum = self.sum + rgb.astype(np.float32)
        self.gray, self.squares = self.gray + gray, self.squares + gray * gray

    def features(self, left: float = 0.0, top: float = 0.0, right: float = 1.0, bottom: float = 1.0) -> np.ndarray:
        """float32 [8, h, w] for `MarkNet`; the box says which part of the picture it is, in shares."""
        mean = self.sum / (127.5 * self.count) - 1.0
        gray = self.gray / self.count
        spread = np.sqrt(np.maximum(self.squares / self.count - gray * gray, 0.0))
        across, down = self.lasting.across, self.lasting.down
        height, width = gray.shape
        x = left + (right - left) * (np.arange(width, dtype=np.float32) + 0.5) / width
        y = top + (bottom - top) * (np.arange(height, dtype=np.float32) + 0.5) / height
        sides = np.broadcast_to(4 * np.minimum(x, 1 - x) - 1, (height, width))
        ends = np.broadcast_to((4 * np.minimum(y, 1 - y) - 1)[:, None], (height, width))
        planes = [mean[..., 0], mean[..., 1], mean[..., 2], np.log1p(spread) / 2 - 1, _root(across), _root(down)]
        return np.stack([*planes, sides, ends]).astype(np.float32)


def _root(slope: np.ndarray) -> np.ndarray:
    return np.sign(slope) * np.sqrt(np.minimum(np.abs(slope), 100.0) / 64.0)


class _Reader(Reader):
    def __init__(self, stage: Watermark, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = looks(clip.num_frames, clip.step, LOOKS)
        self.standing = Standing()

    def add(self, view: View) -> None:
        if view.index % self.step == 0:
            self.standing.add(small_picture(view))

    def finish(self) -> dict[str, Any]:
        rows, columns, box = between_bars(self.standing.brightest)
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        features = self.standing.features(-left / width, -top / height, (1 - left) / width, (1 - top) / height)
        logits = self.stage.model()(features[:, rows, columns].transpose(1, 2, 0)[None])[0, ..., 0]
        return in_the_whole(mark_row(1 / (1 + np.exp(-logits)), self.stage.edge), box)


def between_bars(brightest: np.ndarray) -> tuple[slice, slice, tuple[float, float, float, float]]:
    """Rows, columns and, as shares, left, top, right and bottom of what lies between black bars, without the pixel
    beside them into which they were blurred when the picture was reduced."""
    height, width = brightest.shape
    left, top, right, bottom = bars(brightest, Border())
    x, y = (round(left * width), round(right * width)), (round(top * height), round(bottom * height))
    x, y = ((start + (start > 0), end - (end < side)) for (start, end), side in ((x, width), (y, height)))
    return slice(*y), slice(*x), (x[0] / width, y[0] / height, x[1] / width, y[1] / height)


def in_the_whole(row: dict[str, Any], inner: tuple[float, float, float, float]) -> dict[str, Any]:
    """The row of `mark_row` for the part `inner` of a picture (left, top, right, bottom), told of the whole one."""
    left, top, right, bottom = inner
    if inner == (0.0, 0.0, 1.0, 1.0):
        return row
    width, height = right - left, bottom - top
    box = [left + width * row["box"][0], top + height * row["box"][1]]
    box += [left + width * row["box"][2], top + height * row["box"][3]]
    places = np.reshape(row["places"], (-1, 3)) * (width, height, 1.0) + (left, top, 0.0)
    return {**row, "area": row["area"] * width * height, "box": box, "places": places.round(4).ravel().tolist()}


def mark_row(chances: np.ndarray, edge: float) -> dict[str, Any]:
    """The row from the chances of all cells, [rows, columns] in 0..1."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    rows, columns = chances.shape
    chances = without_subtitles(chances, edge)
    # A lone cell that is sure of itself counts less than two beside each other.
    smooth = np.maximum(cv2.blur(chances, (2, 1)), cv2.blur(chances, (1, 2)))
    peak = float(smooth.max())
    y, x = divmod(int(smooth.argmax()), columns)
    mask = (chances >= min(edge, peak)).astype(np.uint8)
    mask[y, x] = 1
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    left, top, width, height = (int(v) for v in stats[labels[y, x], :4])
    box = [left / columns, top / rows, (left + width) / columns, (top + height) / rows]
    places: list[float] = []
    rest = smooth.copy()
    for _ in range(PLACES):
        y, x = divmod(int(rest.argmax()), columns)
        if rest[y, x] < FAINT:
            break
        places += [round((x + 0.5) / columns, 4), round((y + 0.5) / rows, 4), round(float(rest[y, x]), 4)]
        rest[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 0
    chance = round(peak, 4)
    return {"chance": chance, "area": (box[2] - box[0]) * (box[3] - box[1]), "box": box, "places": places}


def without_subtitles(chances: np.ndarray, edge: float) -> np.ndarray:
    """The chances with 0 where they form a line as subtitles do: low, in the middle, wide. Those are cropped away, and
    are `text`'s to find."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    rows, columns = chances.shape
    # Words of a line are joined over gaps of up to two cells.
    mask = cv2.dilate((chances >= edge).astype(np.uint8), np.ones((1, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    result = chances.copy()
    for number in range(1, count):
        left, top, width, _ = (int(v) for v in stats[number, :4])
        middle = abs(2 * left + width - columns) <= 0.3 * columns
        if top >= SUBTITLE_FROM * rows and middle and width >= SUBTITLE_WIDTH * columns:
            result[labels == number] = 0.0
    return result


def across_shots(
    clips: Sequence[Clip], rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The rows with `across` in those of `watermark`.

    A place in one clip gains from the same place in clips of other shots of its source. Absence costs nothing: a mark
    may come and go. Pieces of one long shot count once: its background stands still in all of them.
    """
    result = {clip: dict(measures) for clip, measures in rows.items()}
    shots: dict[str, list[list[str]]] = {}
    before: Clip | None = None
    for clip in sorted(clips, key=lambda c: (c.source_sha256, c.start_frame)):
        if clip.kind != "video" or "watermark" not in rows.get(clip.id, {}):
            continue
        found = shots.setdefault(clip.source_sha256, [])
        if found and before is not None and _goes_on(before, clip):
            found[-1].append(clip.id)
        else:
            found.append([clip.id])
        before = clip
    for found in shots.values():
        places = [[_places(rows[clip]["watermark"]) for clip in shot] for shot in found]
        for number, shot in enumerate(found):
            others = [np.concatenate(p) for i, p in enumerate(places) if i != number]
            for clip, mine in zip(shot, places[number], strict=True):
                row = rows[clip]["watermark"]
                result[clip]["watermark"] = {**row, "across": round(_supported(row["chance"], mine, others), 4)}
    return result


def _goes_on(before: Clip, clip: Clip) -> bool:
    """Whether two clips look like pieces of one shot that was too long: side by side, long, of the same length."""
    if before.source_sha256 != clip.source_sha256 or before.end_frame != clip.start_frame:
        return False
    if VARIABLE in clip.tags:  # pieces are equal in time, to a frame, and frames may be long
        seconds = before.end_time - before.start_time, clip.end_time - clip.start_time
        return min(seconds) >= LONG and abs(seconds[0] - seconds[1]) <= 0.1 * max(seconds)
    lengths = before.num_frames, clip.num_frames
    return min(lengths) >= LONG * clip.fps and abs(lengths[0] - lengths[1]) <= 1


def _places(row: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(row["places"], np.float64).reshape(-1, 3)


def _odds(chance: float) -> float:
    chance = min(max(chance, 1e-4), 1 - 1e-4)
    return float(np.log(chance / (1 - chance)))


def _supported(chance: float, mine: np.ndarray, others: Sequence[np.ndarray]) -> float:
    best = chance
    for x, y, own in mine:
        support = 0.0
        for other in others:
            near = other[(np.abs(other[:, 0] - x) <= NEAR) & (np.abs(other[:, 1] - y) <= NEAR), 2]
            if near.size:
                support += SUPPORT * (_odds(float(near.max())) - _odds(FAINT))
        odds = _odds(float(own)) + min(support, MOST_SUPPORT)
        best = max(best, float(1 / (1 + np.exp(-odds))))
    return best
