"""NIQE with a Gaussian of our own: how far a picture's local statistics are from those of good pictures.

The features are those of Mittal, Soundararajan and Bovik ("Making a completely blind image quality analyzer", 2013):
each pixel less its surroundings' mean, over their spread; over squares of 96 pixels, and of 48 in half the size,
the shapes of the distributions of these and of the products of neighbours. Good pictures' squares make one Gaussian,
a clip's squares another; the score is the distance between the two. Which pictures are good is ours to say: the
package's Gaussian is of scikit-image's photographs (`recipes.niqe`), and `openhunyuan curate fit-niqe` makes
one of the best clips of a data folder. Published scores have another Gaussian, and are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.require import require
from openhunyuan.base.weights import load_arrays
from openhunyuan.curate.measures.measure import ClipSpan, Reader, View
from openhunyuan.curate.measures.packaged import Packaged, looks

BLOCK = 96
"""Side of the squares, in pixels of the picture that measures look at."""

NUM_FEATURES = 36
LOOKS = 3
"""Looks at a clip, spread over it."""

FLAT = 0.5
"""Squares whose mean local spread is smaller, in levels, say nothing: black bars, titles, overexposed sky."""

SHARP = 0.75
"""Share of the sharpest square's spread that a square of a good picture must have to count, as published."""

MIN_BLOCKS = 2 * NUM_FEATURES
"""Squares that a Gaussian of good pictures needs at least."""


class Niqe(Packaged):
    """Columns: `distance`, from 0 for pictures like those of the Gaussian, upwards without a limit. Null for pictures
    with fewer than two squares that show anything; smaller pictures than 96 pixels have none.

    Clips of other sizes have other numbers of squares, and slightly other distances: compare like with like.
    """

    name: ClassVar[str] = "niqe"
    version: ClassVar[int] = 1
    columns: ClassVar = ("distance",)
    proxy: ClassVar[str] = "NIQE with a Gaussian of our own pictures, not the published one"
    network: ClassVar[str] = "niqe"

    def model(self) -> Gaussian:
        return _read(str(self.where), self.weights)

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(self, clip)


class _Reader(Reader):
    def __init__(self, stage: Niqe, clip: ClipSpan) -> None:
        self.stage = stage
        self.step = looks(clip.num_frames, clip.step, LOOKS)
        self.blocks: list[np.ndarray] = []

    def add(self, view: View) -> None:
        if view.index % self.step == 0:
            features, spread = block_features(view.gray)
            self.blocks.append(features[spread >= FLAT])

    def finish(self) -> dict[str, Any]:
        blocks = np.concatenate(self.blocks)
        return {"distance": round(distance(self.stage.model(), blocks), 4) if len(blocks) > 1 else None}


# ------------------------------------------------------------------------------------------------------------ Gaussian


@dataclass(frozen=True)
class Gaussian:
    """mean float64 [36], covariance float64 [36, 36] of the squares of good pictures."""

    mean: np.ndarray
    covariance: np.ndarray


def fit(pictures: Iterable[np.ndarray]) -> tuple[Gaussian, int]:
    """The Gaussian of the sharp squares of good grey pictures, uint8 [H, W]; and how many squares there were.

    Raises UserError when there are fewer than `MIN_BLOCKS`.
    """
    found = []
    for gray in pictures:
        features, spread = block_features(gray)
        if len(spread):
            found.append(features[(spread >= FLAT) & (spread > SHARP * spread.max())])
    blocks = np.concatenate(found) if found else np.zeros((0, NUM_FEATURES))
    if len(blocks) < MIN_BLOCKS:
        raise UserError(
            f"There are only {len(blocks)} sharp squares of {BLOCK} pixels in these pictures, and at least "
            f"{MIN_BLOCKS} are needed: take more clips, more frames of them, or larger ones."
        )
    return Gaussian(blocks.mean(axis=0), np.cov(blocks.T)), len(blocks)


def distance(good: Gaussian, blocks: np.ndarray) -> float:
    """NIQE of squares [N, 36], N ≥ 2, against good pictures (equation 10 of the paper)."""
    apart = blocks.mean(axis=0) - good.mean
    between = np.linalg.pinv((good.covariance + np.cov(blocks.T)) / 2, hermitian=True)
    return float(np.sqrt(max(0.0, apart @ between @ apart)))


@lru_cache(maxsize=8)
def _read(path: str, sha256: str | None) -> Gaussian:
    tensors = {name: value.astype(np.float64) for name, value in load_arrays(path).items()}
    shapes = {name: value.shape for name, value in tensors.items()}
    if shapes != {"mean": (NUM_FEATURES,), "covariance": (NUM_FEATURES, NUM_FEATURES)}:
        raise UserError(
            f"{path} is no Gaussian for NIQE: it must hold mean [{NUM_FEATURES}] and covariance [{NUM_FEATURES}, "
            f"{NUM_FEATURES}]; openhunyuan curate fit-niqe makes one."
        )
    if not all(np.isfinite(value).all() for value in tensors.values()):
        raise UserError(f"{path} is no Gaussian for NIQE: some of its numbers are not finite.")
    return Gaussian(tensors["mean"], tensors["covariance"])


def save(good: Gaussian, path: Path) -> None:
    """Write what `Niqe(file=…)` reads."""
    import torch

    from openhunyuan.base.weights import save_safetensors

    tensors = {"mean": good.mean, "covariance": good.covariance}
    save_safetensors(path, {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()})


# ------------------------------------------------------------------------------------------------------------ features


def block_features(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N, 36], float64 [N]): features of each whole square of a grey picture, uint8 [H, W], row by row from
    the upper left, and its mean local spread in levels. Squares in which a shape cannot be fitted are left out."""
    rows, columns = (side // BLOCK for side in gray.shape)
    if not rows or not columns:
        return np.zeros((0, NUM_FEATURES)), np.zeros(0)
    picture = gray[: rows * BLOCK, : columns * BLOCK].astype(np.float32)
    normal, spread = _normalized(picture)
    fine, coarse = _blocks(normal, BLOCK), _blocks(_normalized(_halved(picture))[0], BLOCK // 2)
    features = np.concatenate([_shapes(fine), _shapes(coarse)], axis=1)
    there = np.isfinite(features).all(axis=1)
    return features[there], _blocks(spread, BLOCK).mean(axis=(1, 2), dtype=np.float64)[there]


def _normalized(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(each pixel less the mean around it over the spread around it, the spread)."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")

    def around(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)

    mean = around(picture)
    spread = np.sqrt(np.abs(around(picture * picture) - mean * mean))
    return (picture - mean) / (spread + 1), spread


def _halved(picture: np.ndarray) -> np.ndarray:
    """Half the size by the cubic filter that MATLAB's imresize has for it."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    x = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    kernel = np.where(x <= 1, near, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
    kernel /= kernel.sum()
    filtered = cv2.sepFilter2D(picture, -1, kernel, kernel, anchor=(3, 3), borderType=cv2.BORDER_REFLECT)
    return np.ascontiguousarray(filtered[::2, ::2])


def _blocks(plane: np.ndarray, side: int) -> np.ndarray:
    """[H, W] → [N, side, side]."""
    rows, columns = (n // side for n in plane.shape)
    return plane.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)


def _shapes(blocks: np.ndarray) -> np.ndarray:
    """[N, side, side] → [N, 18]: shape and width of the pixels; shape, mean and both widths of the products with
    the neighbour to the right, below, and on the two diagonals."""
    alpha, left, right = _asymmetric(blocks)
    found = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = _asymmetric(blocks * np.roll(blocks, shift, axis=(1, 2)))
        found += [alpha, (right - left) * _mean_factor(alpha), left, right]
    return np.stack(found, axis=1)


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shapes from 0.2 to 10, and for each: mean² over mean square, width over root mean square, mean over width."""
    from math import lgamma

    alpha = np.arange(0.2, 10.001, 0.001)
    one, two, three = (np.array([lgamma(k / a) for a in alpha]) for k in (1, 2, 3))
    return alpha, np.exp(2 * two - one - three), np.exp((one - three) / 2), np.exp(two - one)


def _asymmetric(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape, left and right width of the asymmetric generalized Gaussian of each block, by its moments; NaN where
    one side of it is empty."""
    flat = blocks.reshape(len(blocks), -1)
    below = np.minimum(flat, 0)
    squares, left_squares = _squares(flat), _squares(below)
    magnitude = flat.sum(axis=1, dtype=np.float64) - 2 * below.sum(axis=1, dtype=np.float64)
    count = flat.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt(left_squares / (flat < 0).sum(axis=1))
        right = np.sqrt((squares - left_squares) / (flat > 0).sum(axis=1))
        ratio, sides = magnitude**2 / (count * squares), left / right
        ratio *= (sides**3 + 1) * (sides + 1) / (sides**2 + 1) ** 2
        alphas, ratios, widths, _ = _table()
        usable = np.isfinite(ratio) & (left > 0) & (right > 0)
        place = _nearest(ratios, np.where(usable, ratio, ratios[0]))
        lost = np.where(usable, 1.0, np.nan)
        return alphas[place] * lost, left * widths[place] * lost, right * widths[place] * lost


def _squares(flat: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", flat, flat).astype(np.float64)


def _nearest(rising: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places of the nearest of `rising`."""
    after = np.searchsorted(rising, values).clip(1, len(rising) - 1)
    return after - (values - rising[after - 1] < rising[after] - values)


def _mean_factor(alpha: np.ndarray) -> np.ndarray:
    alphas, _, _, factors = _table()
    return np.interp(alpha, alphas, factors)
