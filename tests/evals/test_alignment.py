"""The measure accepts rendered truth, also softened, and refuses damage (at large: `python -m benchmarks.measure`)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.caption.camera import CAMERA_MOVES
from openhunyuan.evals.alignment import Measurement, measure
from openhunyuan.evals.damage import KINDS, VISIBLE, damaged_clips, damaged_moves, soften
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, COLORS, MATERIALS, MOTIONS, SHAPES, SIZES
from openhunyuan.tiny.world import Scene, render

NUM_SCENES = 45
CLIPS = 17
"""Frames of the damaged clips: half as many as the default, so that the suite stays quick."""


@cache
def scenes() -> tuple[Scene, ...]:
    """Scenes that meet every colour, shape, motion, size, background colour and material several times."""
    result = []
    for i in range(NUM_SCENES):
        motion, shape = MOTIONS[i % 9], SHAPES[i % 5]
        if motion == "spins" and shape == "circle":
            shape = "star"
        result.append(
            Scene(
                shape=shape,
                color=list(COLORS)[(3 * i + i // 8) % 8],
                size=SIZES[(i // 3) % 2],
                motion=motion,
                background_color=list(BACKGROUND_COLORS)[(i + i // 6) % 6],
                material=MATERIALS[(i + i // 5) % 5],
                seed=100 + i,
            )
        )
    return tuple(result)


@cache
def moving_scenes() -> tuple[Scene, ...]:
    """One still scene for every camera move that is not static, on textures that show motion."""
    moves = [m for m in CAMERA_MOVES if m != "static"]
    return tuple(
        replace(s, motion="still", camera=m, material=MATERIALS[1 + i % 4])
        for i, (s, m) in enumerate(zip(scenes(), moves, strict=False))
    )


@cache
def seen_rendered() -> tuple[Measurement, ...]:
    return tuple(measure(render(s)) for s in scenes())


def wrong(pairs: list[tuple[Scene, Measurement]], attributes: tuple[str, ...]) -> list[str]:
    return [
        f"{s.prompt}: {a} seen as {m.seen()[a]}" for s, m in pairs for a in attributes if m.seen()[a] != m.asked(s)[a]
    ]


@pytest.mark.parametrize("attribute", ["color", "shape", "motion", "background", "camera"])
def test_rendered_truth_is_accepted_for_every_value(attribute: str) -> None:
    pairs = list(zip(scenes(), seen_rendered(), strict=True))
    assert not wrong(pairs, (attribute,))


def test_every_value_is_among_the_scenes() -> None:
    for name, values in (
        ("color", COLORS),
        ("shape", SHAPES),
        ("motion", MOTIONS),
        ("background_color", BACKGROUND_COLORS),
        ("material", MATERIALS),
        ("size", SIZES),
    ):
        assert {getattr(s, name) for s in scenes()} == set(values)
    assert {s.camera for s in moving_scenes()} | {"static"} == set(CAMERA_MOVES)


def test_softened_truth_is_accepted() -> None:
    rng = np.random.default_rng(0)
    pairs = [(s, measure(soften(render(s), rng))) for s in scenes()[::2]]
    errors = wrong(pairs, ("color", "shape", "motion", "background"))
    assert len(errors) <= 0.01 * 4 * len(pairs), errors


def test_seventeen_frames_are_enough() -> None:
    pairs = [(s, measure(render(s, CLIPS))) for s in scenes()[1::3]]
    assert not wrong(pairs, ("color", "shape", "motion", "background", "camera"))


def test_camera_moves_are_named_and_the_subject_still_seen() -> None:
    pairs = [(s, measure(render(s))) for s in moving_scenes()]
    assert not wrong(pairs, ("camera", "color", "shape", "background"))


@cache
def damage_verdicts() -> dict[str, list[tuple[str, bool]]]:
    """kind -> (what, rejected) for all damaged clips of a third of the scenes, plus one still scene a shape."""
    rng = np.random.default_rng(1)
    verdicts: dict[str, list[tuple[str, bool]]] = {}
    chosen = [*scenes()[::4], *(replace(s, motion="still") for s in scenes()[2:5])]
    for scene in chosen:
        for damaged in damaged_clips(scene, render(scene, CLIPS), rng):
            seen = measure(damaged.frames)
            for attribute in damaged.attributes:
                refused = seen.seen()[attribute] != seen.asked(scene)[attribute]
                verdicts.setdefault(damaged.kind, []).append((f"{scene.prompt}: {attribute}", refused))
    return verdicts


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused(kind: str) -> None:
    verdicts = damage_verdicts()[kind]
    assert len(verdicts) >= 3
    assert not [what for what, refused in verdicts if not refused]


def test_camera_faults_of_time_are_refused() -> None:
    rng = np.random.default_rng(2)
    accepted = []
    for scene in moving_scenes()[::2]:
        for damaged in damaged_moves(scene, render(scene), rng):
            if measure(damaged.frames).camera == scene.camera:
                accepted.append(f"{scene.prompt}: {damaged.kind}")
    assert not accepted


def test_one_chroma_axis_harms_every_colour_but_those_stated() -> None:
    rng = np.random.default_rng(3)
    harmed: dict[str, set[str]] = {}
    for color in COLORS:
        scene = replace(scenes()[0], color=color, motion="still")
        for damaged in damaged_clips(scene, render(scene, 1), rng):
            if "axis removed" in damaged.kind and "color" in damaged.attributes:
                harmed.setdefault(damaged.kind, set()).add(color)
    assert VISIBLE < 20
    assert harmed["Cb axis removed"] == set(COLORS) - {"white"}
    assert harmed["Cr axis removed"] == set(COLORS) - {"white"}


def test_an_image_has_no_motion_and_no_camera() -> None:
    scene = replace(scenes()[0], motion="still")
    seen = measure(render(scene, 1))
    assert (seen.color, seen.shape, seen.background) == (
        scene.color,
        scene.shape,
        f"{scene.background_color} {scene.material}",
    )
    assert seen.motion is None
    assert seen.camera is None


def test_nothing_is_seen_in_noise() -> None:
    noise = np.random.default_rng(4).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    seen = measure(noise)
    assert (seen.color, seen.shape, seen.motion, seen.background) == (None, None, None, None)


def test_a_flat_grey_clip_shows_only_its_background() -> None:
    seen = measure(np.full((9, 64, 64, 3), 106, np.uint8))
    assert (seen.color, seen.shape, seen.motion) == (None, None, None)
    assert seen.background == "gray plain"


def test_wrong_arrays_are_refused_with_a_sentence() -> None:
    with pytest.raises(UserError, match="uint8"):
        measure(np.zeros((3, 64, 64, 3), np.float32))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="32x32"):
        measure(np.zeros((3, 16, 16, 3), np.uint8))
