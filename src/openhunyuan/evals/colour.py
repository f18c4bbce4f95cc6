"""Naming a colour from pixels, with the right to refuse: CIE Lab distance to a palette inside a reject radius.

Nearest-palette naming without a reject radius would call every grey "green" or "blue"; a measure must be able to
say no, so `name_colour` answers None when the best entry is too far away or when the runner-up is almost as near.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])


def rgb_to_lab(rgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """sRGB [..., 3] in 0..255 to CIE Lab [..., 3] (D65; L in 0..100, a and b in about -110..110)."""
    value = np.asarray(rgb, dtype=np.float64) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _RGB_TO_XYZ.T / _WHITE_D65
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def lab_distance(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """CIE76 colour difference of two sRGB colours (0..255); about 2.3 is just noticeable."""
    return float(np.linalg.norm(rgb_to_lab(first) - rgb_to_lab(second)))


def name_colour(
    rgb: NDArray[np.generic],
    palette: Mapping[str, tuple[int, int, int]],
    radius: float,
    margin: float = 1.25,
) -> str | None:
    """The palette name of one sRGB colour, or None.

    rgb: [3] in 0..255. radius: largest accepted Lab distance. margin: the second-nearest entry must be at least
    this many times farther than the nearest, so a colour half-way between two names has no name.
    """
    names = list(palette)
    distances = np.linalg.norm(
        rgb_to_lab(np.array([palette[n] for n in names], dtype=np.float64)) - rgb_to_lab(np.asarray(rgb)), axis=-1
    )
    order = np.argsort(distances)
    best, second = float(distances[order[0]]), float(distances[order[1]])
    if best > radius or second < margin * best:
        return None
    return names[int(order[0])]


def lab_to_rgb(lab: NDArray[np.generic]) -> NDArray[np.float64]:
    """The inverse of `rgb_to_lab`; colours outside sRGB are clipped to 0..255."""
    lab = np.asarray(lab, dtype=np.float64)
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _WHITE_D65
    linear = np.clip(xyz @ np.linalg.inv(_RGB_TO_XYZ).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
