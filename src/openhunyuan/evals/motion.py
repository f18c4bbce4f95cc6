"""Naming a motion from the tracked centre, size and angle of the subject: explicit rules, and None when no rule holds.

Coordinates: x to the right, y down, in pixels; angles in degrees, clockwise positive as seen on the screen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

TRAVEL = 0.22
"""A linear motion covers at least this share of the frame width (rendered truth: 0.32)."""
STILL_DRIFT = 0.05
"""A subject in place stays within this share of the width of its mean position."""
GROWTH = 1.35
"""Smallest ratio of final to first radius that is growth (its inverse: shrinking)."""
STILL_GROWTH = 1.16
"""Largest ratio of radii a subject of constant size may show between the ends of the clip."""
TURN = (120.0, 250.0)
"""Accepted total turn of a spin in degrees (rendered truth: 150)."""
STILL_TURN = 32.0
"""Largest turn of a subject that does not spin."""
ORBIT = 105.0
"""Least angle swept around the companion, in degrees (rendered truth: 140)."""


@dataclass(frozen=True)
class Track:
    """What was followed: centre [T,2], radius [T] (of the disk of equal area), angle [T] unwrapped or None (a
    circle, or unclear), companion centre [T,2] or None; width of the frame in pixels. All finite."""

    centre: Array
    radius: Array
    angle: Array | None
    companion: Array | None
    width: int


def name_motion(track: Track) -> str | None:
    """One of the world's motions, or None. Clips shorter than five frames have no motion to name."""
    if len(track.centre) < 5:
        return None
    if track.companion is not None and _orbits(track):
        return "orbits"
    start, end = _ends(track.centre)
    travel = (end - start) / track.width
    first_radius, last_radius = _ends(track.radius)
    ratio = float(last_radius / max(first_radius, 1e-6))
    drift = float(np.linalg.norm(track.centre - track.centre.mean(0), axis=1).max()) / track.width
    in_place = drift < STILL_DRIFT and float(np.abs(travel).max()) < STILL_DRIFT
    wobble = float(np.abs(track.radius / np.median(track.radius) - 1).max())
    constant_size = 1 / STILL_GROWTH < ratio < STILL_GROWTH and wobble < 0.2
    if in_place and track.companion is None:
        if ratio > GROWTH and _monotone(track.radius):
            return "grows"
        if ratio < 1 / GROWTH and _monotone(-track.radius):
            return "shrinks"
        if constant_size:
            return _turning(track.angle)
        return None
    if constant_size:
        return _direction(track)
    return None


def _ends(values: Array) -> tuple[Array, Array]:
    n = max(2, len(values) // 10)
    return values[:n].mean(0), values[-n:].mean(0)


def _monotone(values: Array) -> bool:
    """True when a noisy rise is a rise: falls are rare and small, and no single step makes most of it (a jump is
    not a motion)."""
    steps = np.diff(values)
    total = float(values[-1] - values[0])
    if total <= 0:
        return False
    falls = float(-steps[steps < 0].sum())
    return falls < 0.15 * total and float(np.abs(steps).max()) < max(0.34, 4.0 / len(steps)) * total


def _turning(angle: Array | None) -> str | None:
    if angle is None:
        return "still"
    first, last = _ends(angle)
    turn = float(last - first)
    # the averages at both ends lie inside the clip; extrapolate to the whole of it
    turn *= len(angle) / max(len(angle) - max(2, len(angle) // 10), 1)
    if TURN[0] < turn < TURN[1] and _monotone(angle):
        return "spins"
    if float(np.abs(angle - np.median(angle)).max()) < STILL_TURN:
        return "still"
    return None


def _direction(track: Track) -> str | None:
    start, end = _ends(track.centre)
    travel = end - start
    axis = int(np.abs(travel).argmax())
    along, across = float(travel[axis]), float(travel[1 - axis])
    side = track.centre[:, 1 - axis]
    if abs(along) < TRAVEL * track.width or abs(across) > 0.3 * abs(along):
        return None
    if float(np.abs(side - side.mean()).max()) > 0.2 * abs(along) or not _monotone(
        np.sign(along) * track.centre[:, axis]
    ):
        return None
    if track.angle is not None and float(np.abs(track.angle - np.median(track.angle)).max()) > 2 * STILL_TURN:
        return None
    return (("left", "right"), ("up", "down"))[axis][int(along > 0)]


def _orbits(track: Track) -> bool:
    companion = track.companion
    assert companion is not None
    if float(np.linalg.norm(companion - companion.mean(0), axis=1).max()) > STILL_DRIFT * track.width:
        return False
    arm = track.centre - companion.mean(0)
    distance = np.linalg.norm(arm, axis=1)
    if distance.min() < 0.5 * distance.mean() or distance.max() > 1.5 * distance.mean():
        return False
    turned = np.degrees(np.unwrap(np.arctan2(arm[:, 1], arm[:, 0])))  # y points down, so clockwise is positive
    return float(turned[-1] - turned[0]) > ORBIT and _monotone(turned)
