"""The words of the synthetic world and the numbers behind them: shapes, colours, sizes, motions, backgrounds.

Lengths are fractions of the shorter side of the picture, so that the same scene can be rendered at any size.
"""

from __future__ import annotations

import hashlib

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (232, 24, 32),
    "orange": (255, 138, 0),
    "yellow": (255, 232, 24),
    "green": (24, 188, 48),
    "cyan": (16, 224, 236),
    "blue": (32, 80, 248),
    "purple": (168, 36, 216),
    "white": (250, 250, 250),
}
"""Subject colours, sRGB 0..255: saturated (white apart) and bright, at least 60 levels apart in RGB distance."""

SIZES: tuple[str, ...] = ("small", "large")
SIZE_RADIUS: dict[str, float] = {"small": 0.19, "large": 0.25}
"""Nominal subject radius; `BOUND` says how far the corners of each shape reach beyond it."""

ORBIT_SIZE_RADIUS: dict[str, float] = {"small": 0.16, "large": 0.17}
"""Radius of a subject that orbits: reduced so that the whole orbit stays in the picture and clear of the companion."""

BOUND: dict[str, float] = {"circle": 1.0, "square": 1.2, "triangle": 1.25, "star": 1.25, "cross": 1.17}
"""Circumscribed radius of each shape relative to the nominal radius (areas are then alike to the eye)."""

MOTIONS: tuple[str, ...] = ("left", "right", "up", "down", "still", "grows", "shrinks", "spins", "orbits")

BACKGROUND_COLORS: dict[str, tuple[int, int, int]] = {
    "black": (24, 24, 24),
    "gray": (106, 106, 106),
    "navy": (20, 28, 104),
    "maroon": (104, 18, 34),
    "olive": (92, 88, 20),
    "teal": (12, 92, 92),
}
"""Background colours: darker than every subject colour, and well apart from one another also at the tones below."""

MATERIALS: tuple[str, ...] = ("plain", "striped", "checkered", "dotted", "cloudy")

TONE_GAIN = 0.20
TONE_OFFSET = 12.0
"""A material moves its colour c between c·(1−gain)−offset and c·(1+gain)+offset: same hue, moderate contrast. The
offset is what makes a material visible on black."""

HELDOUT_MODULUS = 5


def combinations(include_spinning_circle: bool = False) -> list[tuple[str, str, str]]:
    """Every (shape, colour, motion) that can be rendered. A circle cannot be seen to spin, so it never does."""
    return [
        (shape, color, motion)
        for shape in SHAPES
        for color in COLORS
        for motion in MOTIONS
        if include_spinning_circle or not (shape == "circle" and motion == "spins")
    ]


def is_heldout(shape: str, color: str, motion: str) -> bool:
    """Whether this combination belongs to the held-out fifth, which is never rendered for training.

    Decided by SHA-256 of `"shape/color/motion"`, so that it depends on nothing but the words.
    """
    digest = hashlib.sha256(f"{shape}/{color}/{motion}".encode()).digest()
    return int.from_bytes(digest, "big") % HELDOUT_MODULUS == 0
