"""SciPy's image filters as the measure uses them: on clips [T,H,W], within each frame, with exact types."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Array = NDArray[np.float32]

_WITHIN_FRAME = np.ones((1, 3, 3), dtype=bool)


def eroded(mask: Mask, times: int = 1) -> Mask:
    """A mask [T,H,W] without its outermost pixels, `times` over."""
    return np.asarray(ndimage.binary_erosion(mask, _WITHIN_FRAME, iterations=times), dtype=np.bool_)


def dilated(mask: Mask, times: int = 1) -> Mask:
    """A mask [T,H,W] grown by one pixel, `times` over."""
    return np.asarray(ndimage.binary_dilation(mask, _WITHIN_FRAME, iterations=times), dtype=np.bool_)


def blurred(values: NDArray[np.generic], sigma: float, truncate: float = 4.0) -> Array:
    """Gaussian blur of [T,H,W] within each frame, or of one picture [H,W]; sigma in pixels."""
    sigmas = (0.0,) * (values.ndim - 2) + (sigma, sigma)
    return np.asarray(ndimage.gaussian_filter(np.asarray(values, np.float32), sigmas, truncate=truncate), np.float32)


def sampled(
    values: NDArray[np.generic], where: Sequence[NDArray[np.generic]], order: int = 1, mode: str = "constant"
) -> Array:
    """Values at fractional positions, one array of positions per axis; order 1 is linear, 0 nearest."""
    at = np.stack([np.asarray(w, dtype=np.float64) for w in where])
    return np.asarray(ndimage.map_coordinates(np.asarray(values, np.float32), at, order=order, mode=mode), np.float32)


def shifted(picture: NDArray[np.generic], offset: Sequence[float]) -> Array:
    """A picture [H,W] moved by (down, right) pixels, zero outside."""
    return np.asarray(ndimage.shift(np.asarray(picture, np.float32), tuple(offset), order=1), np.float32)


def box_mean(picture: NDArray[np.generic], side: int) -> Array:
    """Mean over a square window of a picture [H,W]."""
    return np.asarray(ndimage.uniform_filter(np.asarray(picture, np.float32), side), np.float32)


def components(mask: Mask) -> tuple[NDArray[np.int64], int]:
    """Labels [T,H,W] of the connected components within each frame (0 is outside), and how many there are."""
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True
    labels = np.zeros(mask.shape, dtype=np.int64)
    count = ndimage.label(mask, neighbours, output=labels)
    return labels, int(np.asarray(count))
