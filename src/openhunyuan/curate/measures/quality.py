"""Plain numbers about the picture: light, contrast, colour, noise, blocks, frozen frames. Each is called what it is.

None of them is an aesthetic or technical score in the sense of a trained model such as DOVER, and none is compared with
a threshold that was meant for one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View, reduced

COLOURS = 4
"""Levels a channel that the palette tells apart."""

_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


class Quality(Measure):
    """Columns: `brightness` and `contrast` (from the darkest to the brightest half per cent, in the colour
    channel with the largest such range), 0..255;
    `dark_share`, `bright_share`: pixels at the ends of the range; `colourfulness` (Hasler and Süsstrunk); `noise`
    (standard deviation by Immerkær's filter, levels); `blockiness` (steps at every eighth pixel over steps elsewhere,
    1 = none); `frozen_share`: samples equal to the one before; `flicker`: mean jump of brightness between samples,
    levels. `palette`: the commonest colours as red, green, blue, share, and so on.
    """

    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 2
    columns: ClassVar = (
        "brightness",
        "contrast",
        "dark_share",
        "bright_share",
        "colourfulness",
        "noise",
        "blockiness",
        "frozen_share",
        "flicker",
    )
    proxy: ClassVar[str] = "plain picture statistics, no aesthetic or technical model"

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader()


class _Reader(Reader):
    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.colours = np.zeros(COLOURS**3)
        self.sums = np.zeros((COLOURS**3, 3))
        self.frozen: list[bool] = []
        self.before: np.ndarray | None = None

    def add(self, view: View) -> None:
        if not view.sample:
            return
        gray, rgb = view.gray, reduced(view.rgb, 160)
        levels, ranges = histogram(gray), [quantiles(histogram(rgb, c), (0.005, 0.995)) for c in range(3)]
        self.rows.append(
            (
                float(levels @ np.arange(256)) / gray.size,
                float(max(brightest - darkest for darkest, brightest in ranges)),
                float(levels[:5].sum()) / gray.size,
                float(levels[251:].sum()) / gray.size,
                colourfulness(rgb),
                noise(gray),
                blockiness(gray),
            )
        )
        small = view.small
        if self.before is not None:
            cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
            self.frozen.append(cv2.norm(small, self.before, cv2.NORM_L1) / small.size < 0.05)
        self.before = small
        pixels = rgb.reshape(-1, 3)
        red, green, blue = (pixels // (256 // COLOURS)).T
        bins = (red * COLOURS + green) * COLOURS + blue
        self.colours += np.bincount(bins, minlength=COLOURS**3)
        for channel in range(3):
            self.sums[:, channel] += np.bincount(bins, weights=pixels[:, channel], minlength=COLOURS**3)

    def finish(self) -> dict[str, Any]:
        values = np.asarray(self.rows)
        names = ("brightness", "contrast", "dark_share", "bright_share", "colourfulness", "noise", "blockiness")
        row: dict[str, Any] = dict(zip(names, map(float, np.median(values, axis=0)), strict=True))
        row["frozen_share"] = float(np.mean(self.frozen)) if self.frozen else 0.0
        row["flicker"] = float(np.abs(np.diff(values[:, 0])).mean()) if len(values) > 1 else 0.0
        palette: list[float] = []
        for number in np.argsort(-self.colours, kind="stable")[:4]:
            share = float(self.colours[number] / self.colours.sum())
            if share >= 0.02:
                palette += [*(float(round(c)) for c in self.sums[number] / self.colours[number]), round(share, 4)]
        row["palette"] = palette
        return row


def histogram(picture: np.ndarray, channel: int = 0) -> np.ndarray:
    """int64 [256]: how many pixels of a picture, uint8 [h, w] or [h, w, C], have each level."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    return cv2.calcHist([picture], [channel], None, [256], [0, 256]).ravel().astype(np.int64)


def quantiles(levels: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Quantiles of pixels from their `histogram`, between two levels as `numpy.quantile` has them."""
    reached = np.cumsum(levels)
    place = np.asarray(shares) * (reached[-1] - 1)
    low, high = (np.searchsorted(reached, whole, side="right") for whole in (np.floor(place), np.ceil(place)))
    return low + (high - low) * (place - np.floor(place))


def colourfulness(rgb: np.ndarray) -> float:
    """Hasler and Süsstrunk's measure: 0 for grey, about 100 for very colourful pictures."""
    r, g, b = (rgb[..., i].astype(np.float32) for i in range(3))
    red_green, yellow_blue = r - g, 0.5 * (r + g) - b
    spread = float(np.hypot(red_green.std(), yellow_blue.std()))
    return spread + 0.3 * float(np.hypot(red_green.mean(), yellow_blue.mean()))


def noise(gray: np.ndarray) -> float:
    """Standard deviation of noise in levels (Immerkær 1996): a filter that edges and flat areas hardly pass."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    if min(gray.shape) < 3:
        return 0.0
    passed = cv2.filter2D(gray, cv2.CV_16S, _NOISE)[1:-1, 1:-1]
    return float(np.sqrt(np.pi / 2) / 6.0 * cv2.norm(passed, cv2.NORM_L1) / passed.size)


def blockiness(gray: np.ndarray) -> float:
    """Mean step across every eighth column and row over the mean step across all others; 1 without blocks."""
    if min(gray.shape) < 24:
        return 1.0
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    ratios = []
    for axis, count in enumerate(gray.shape):
        one, other = (gray[:, 1:], gray[:, :-1]) if axis == 0 else (gray[1:], gray[:-1])
        steps = cv2.reduce(cv2.absdiff(one, other), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / count
        at = np.arange(1, len(steps) + 1) % 8 == 0
        ratios.append((float(steps[at].mean()) + 0.1) / (float(steps[~at].mean()) + 0.1))
    return float(np.mean(ratios))
