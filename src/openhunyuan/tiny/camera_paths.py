"""Exact camera paths for each state of `curate.camera.primitives`: position, turn and focal length at every frame.

Axes: x to the right, y down, z along the line of sight at rest. Lengths are in any unit; `depth` sets the scale. Focal
lengths are in halves of the picture's longer side. Positive yaw turns the camera right, positive pitch turns it down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openhunyuan.curate.camera.primitives import State

SPEED = (0.025, 0.35)
"""Slowest and fastest move: how much of the picture's longer side passes its centre in a second."""

RATE = (0.04, 0.4)
"""Slowest and fastest zoom or dolly: logarithm of the magnification in a second."""

ROLL = (3.0, 25.0)
"""Degrees a second."""

ARC = (4.0, 18.0)
"""Degrees a second about the subject."""

SHAKE = (0.02, 0.15)
"""Root mean square speed of a handheld camera, in longer sides a second."""

TREMBLE = 0.0015
"""Up to this speed a camera still counts as standing: a tripod on a floor."""

UNSTEADY = 0.25
"""A move may shake by up to this share of its speed, and a shake may drift by as much."""


@dataclass(frozen=True)
class CameraPath:
    """position [T, 3]; rotation [T, 3, 3], world to camera; focal [T], in halves of the longer side."""

    position: np.ndarray
    rotation: np.ndarray
    focal: np.ndarray


def draw_path(
    state: State, rng: np.random.Generator, seconds: np.ndarray, focal: float, depth: float, pivot: float
) -> CameraPath:
    """A path on which exactly the primitives of `state` hold.

    seconds: [T] time of each frame. depth: typical depth of the scene, from which a truck's or dolly's speed follows.
    pivot: depth of the subject of an arc. The path passes its origin, looking ahead, in the middle of the time.
    """
    count = len(seconds)
    position, angles = np.zeros((count, 3)), np.zeros((count, 3))  # angles: yaw, pitch, roll
    focals = np.full(count, float(focal))
    time = _eased(seconds - seconds.mean(), rng)
    speed = _between(SPEED, rng)
    turn, shift = 2 * speed / focal, 2 * speed * depth / focal
    if {"yaw", "pitch"} & _kinds(state) and {"truck", "pedestal", "dolly", "zoom"} & _kinds(state):
        shift *= np.exp(rng.uniform(-0.5, 0.5))  # neither hides the other
    for name in sorted(state):
        kind, _, direction = name.partition(" ")
        sign = 1.0 if direction in ("right", "down", "in") else -1.0
        if kind == "zoom":
            focals *= np.exp(sign * _between(RATE, rng) * time)
        elif kind == "dolly":
            rate = min(_between(RATE, rng), 0.8 / (seconds[-1] - seconds[0] + 1e-9))
            position[:, 2] += sign * rate * depth * time
        elif kind in ("truck", "pedestal"):
            position[:, 0 if kind == "truck" else 1] += sign * shift * time
        elif kind in ("yaw", "pitch"):
            angles[:, 0 if kind == "yaw" else 1] += sign * turn * time
        elif kind == "roll":
            angles[:, 2] += sign * np.deg2rad(_between(ROLL, rng)) * time
        elif kind == "arc":
            arc = sign * np.deg2rad(_between(ARC, rng)) * time
            position[:, 0] += pivot * np.sin(arc)
            position[:, 2] += pivot * (1 - np.cos(arc))
            angles[:, 0] -= arc
            speed = np.ptp(arc) * focal / 2 / (np.ptp(time) + 1e-9)
    shake = _shake_of(state, speed, rng)
    if shake > 0:
        wave = _waves(seconds, rng)
        angles[:, :2] += 2 * shake / focal * wave[:, :2]
        angles[:, 2] += 0.5 * shake * wave[:, 2]
        position[:, :2] += 0.3 * shake * depth / focal * wave[:, 3:5]
        if "shake" in state:
            drift, way = UNSTEADY * shake * rng.uniform(0, 1), rng.uniform(0, 2 * np.pi)
            angles[:, :2] += 2 * drift / focal * time[:, None] * np.array([np.cos(way), np.sin(way)])
    return CameraPath(position, rotations(angles), focals)


def rotations(angles: np.ndarray) -> np.ndarray:
    """World-to-camera rotations [T, 3, 3] of yaw, pitch and roll [T, 3]; positive roll turns the camera clockwise."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(angles).T, np.sin(angles).T
    zero, one = np.zeros_like(cy), np.ones_like(cy)

    def matrix(*values: np.ndarray) -> np.ndarray:
        return np.stack(values, -1).reshape(-1, 3, 3)

    turn = matrix(cy, zero, -sy, zero, one, zero, sy, zero, cy)
    nod = matrix(one, zero, zero, zero, cp, -sp, zero, sp, cp)
    lean = matrix(cr, sr, zero, -sr, cr, zero, zero, zero, one)
    return lean @ nod @ turn


def _kinds(state: State) -> set[str]:
    return {name.split(" ")[0] for name in state}


def _between(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Even in the logarithm."""
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _eased(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The time as the move sees it: even in half of the clips, else with a start, a stop or a swell."""
    kind = rng.random()
    if kind < 0.5 or len(time) < 3:
        return time
    span = time[-1] - time[0]
    x = (time - time[0]) / span
    if kind < 0.75:
        pace = 0.35 + np.minimum(1.0, np.minimum(x, 1 - x) / rng.uniform(0.1, 0.4))
    else:
        pace = 1 + rng.uniform(0.2, 0.5) * np.sin(2 * np.pi * (x * rng.uniform(0.5, 1.5) + rng.random()))
    whole = np.concatenate([[0.0], np.cumsum((pace[1:] + pace[:-1]) / 2)])
    whole *= span / whole[-1]
    return whole - np.interp(0.5, x, whole)


def _shake_of(state: State, speed: float, rng: np.random.Generator) -> float:
    if "shake" in state:
        return _between(SHAKE, rng)
    if "still" in state:
        return TREMBLE * rng.random() if rng.random() < 0.4 else 0.0
    return UNSTEADY * speed * rng.random() if rng.random() < 0.4 else 0.0


def _waves(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[T, 5] unsteady displacements without drift, each with a root mean square speed of about 1 / sqrt(2)."""
    waves = np.zeros((len(seconds), 5))
    strength = rng.uniform(0.5, 1.0, 5)
    for channel in range(5):
        for _ in range(4):
            rate = 2 * np.pi * np.exp(rng.uniform(np.log(0.7), np.log(5.0)))
            waves[:, channel] += np.sin(rate * seconds + rng.uniform(0, 2 * np.pi)) / rate
        if len(seconds) > 2:
            waves[:, channel] -= np.polyval(np.polyfit(seconds, waves[:, channel], 1), seconds)
            speed = np.diff(waves[:, channel]) / np.diff(seconds)
            waves[:, channel] *= strength[channel] / max(float(np.sqrt((speed**2).mean())), 1e-9) / np.sqrt(2)
    return waves
