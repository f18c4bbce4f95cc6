"""The rules of motion on made-up tracks, each with a near miss that must be refused."""

from __future__ import annotations

import numpy as np
import pytest

from openhunyuan.evals.motion import Track, name_motion

T = 33
TIME = np.linspace(0, 1, T)
MIDDLE = np.full((T, 2), 32.0)
RADIUS = np.full(T, 10.0)


def line(dx: float, dy: float) -> np.ndarray:
    return MIDDLE + np.stack([dx * (TIME - 0.5), dy * (TIME - 0.5)], axis=-1)


def turn(degrees: float, radius: float = 18.0) -> np.ndarray:
    angle = np.deg2rad(30 + degrees * TIME)
    return MIDDLE + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


@pytest.mark.parametrize(
    ("track", "motion"),
    [
        (Track(line(-24, 0), RADIUS, None, None, 64), "left"),
        (Track(line(24, 0), RADIUS, None, None, 64), "right"),
        (Track(line(0, -24), RADIUS, None, None, 64), "up"),
        (Track(line(0, 24), RADIUS, None, None, 64), "down"),
        (Track(line(18, 18), RADIUS, None, None, 64), None),
        (Track(line(8, 0), RADIUS, None, None, 64), None),
        (Track(MIDDLE, RADIUS, None, None, 64), "still"),
        (Track(MIDDLE, RADIUS, 150 * TIME, None, 64), "spins"),
        (Track(MIDDLE, RADIUS, -150 * TIME, None, 64), None),
        (Track(MIDDLE, RADIUS, 70 * TIME, None, 64), None),
        (Track(MIDDLE, 10 * (0.55 + 0.7 * TIME), None, None, 64), "grows"),
        (Track(MIDDLE, 10 * (1.25 - 0.7 * TIME), None, None, 64), "shrinks"),
        (Track(MIDDLE, 10 * (1 + 0.25 * TIME), None, None, 64), None),
        (Track(turn(270), RADIUS, None, MIDDLE, 64), "orbits"),
        (Track(turn(-270), RADIUS, None, MIDDLE, 64), None),
        (Track(turn(270), RADIUS, None, None, 64), None),
        (Track(turn(100), RADIUS, None, MIDDLE, 64), None),
    ],
)
def test_rules(track: Track, motion: str | None) -> None:
    assert name_motion(track) == motion


def test_a_jump_is_not_a_motion() -> None:
    centre = line(24, 0)
    centre[: T // 2], centre[T // 2 :] = centre[0], centre[-1]
    assert name_motion(Track(centre, RADIUS, None, None, 64)) is None


def test_shuffled_frames_are_not_a_motion() -> None:
    order = np.random.default_rng(0).permutation(T)
    for track in (Track(line(24, 0)[order], RADIUS, None, None, 64), Track(turn(270)[order], RADIUS, None, MIDDLE, 64)):
        assert name_motion(track) is None


def test_wobble_is_forgiven() -> None:
    rng = np.random.default_rng(1)
    centre = line(24, 0) + rng.normal(0, 0.4, (T, 2))
    assert name_motion(Track(centre, RADIUS * (1 + rng.normal(0, 0.02, T)), None, None, 64)) == "right"


def test_four_frames_have_no_motion() -> None:
    assert name_motion(Track(line(24, 0)[:4], RADIUS[:4], None, None, 64)) is None
