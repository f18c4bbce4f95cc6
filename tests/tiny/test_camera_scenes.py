"""Camera paths, rendered scenes and virtual moves do what their state says."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.camera.primitives import PRIMITIVES, STATES
from openhunyuan.tiny.camera_paths import TREMBLE, draw_path
from openhunyuan.tiny.camera_scenes import PICTURES, render_clip
from openhunyuan.tiny.virtual_moves import SIDE, VIRTUAL_STATES, photographed_clip, virtual_move

TIME = np.arange(25) / 12


def path(*names: str, seed: int = 0):
    return draw_path(frozenset(names), np.random.default_rng(seed), TIME, focal=1.6, depth=8.0, pivot=3.0)


def turned(rotation: np.ndarray) -> np.ndarray:
    """How far right and down each frame's camera looks: tangents."""
    ahead = rotation.transpose(0, 2, 1) @ np.array([0.0, 0.0, 1.0])
    return ahead[:, :2] / ahead[:, 2:]


@pytest.mark.parametrize("seed", range(5))
def test_paths_go_where_their_name_says(seed: int) -> None:
    for name, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        move, turn = ("truck", "yaw") if axis == 0 else ("pedestal", "pitch")
        moved = path(f"{move} {name}", seed=seed)
        assert sign * np.ptp(moved.position[[0, -1], axis]) * np.sign(np.diff(moved.position[[0, -1], axis])[0]) > 0
        looked = turned(path(f"{turn} {name}", seed=seed).rotation)
        assert sign * (looked[-1, axis] - looked[0, axis]) > 0.02
    assert np.diff(path("zoom in", seed=seed).focal[[0, -1]])[0] > 0.05
    assert np.diff(path("dolly out", seed=seed).position[[0, -1], 2])[0] < 0


def test_an_arc_keeps_its_subject_where_it_is() -> None:
    for seed in range(20):
        arc = path("arc right", seed=seed)
        subject = np.einsum("tij,tj->ti", arc.rotation, np.array([0.0, 0.0, 3.0]) - arc.position)
        assert arc.position[-1, 0] > arc.position[0, 0]
        assert np.abs(subject[:, :2] / subject[:, 2:]).max() < 0.08  # unsteadiness alone
        assert np.allclose(np.linalg.norm(subject, axis=1), 3.0, atol=0.3)


def test_a_standing_camera_trembles_at_most() -> None:
    for seed in range(10):
        looked = turned(path("still", seed=seed).rotation)
        assert np.abs(np.diff(looked, axis=0)).max() * 12 * 1.6 / 2 < 6 * TREMBLE
        assert np.ptp(path("still", seed=seed).focal) == 0


def test_rendering_is_a_function_of_its_seed_and_every_state_can_be_rendered() -> None:
    one, other = (render_clip(frozenset({"yaw left"}), np.random.default_rng(5), "heldout") for _ in range(2))
    assert np.array_equal(one.frames, other.frames) and one.frames.dtype == np.uint8
    for number in (*range(len(PRIMITIVES)), len(STATES) - 1):
        clip = render_clip(STATES[number], np.random.default_rng(number), seconds=0.25)
        assert len(clip.frames) == 4 and clip.frames.std() > 1
    assert not set(PICTURES["train"]) & set(PICTURES["heldout"])


def test_virtual_moves_are_those_of_the_camera_not_of_the_picture() -> None:
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.uniform(0, 255, (60, 100)).astype(np.float32), (640, 384)).astype(np.uint8)
    film = np.repeat(picture[None], 25, axis=0)
    for name, way in (("yaw right", (-1, 0)), ("pitch down", (0, -1)), ("yaw left", (1, 0))):
        seen = virtual_move(film, frozenset({name}), np.random.default_rng(2), 12.0).astype(np.float64)
        assert seen.shape[0] == 25 and max(seen.shape[1:]) == SIDE
        shift = np.sum([cv2.phaseCorrelate(a, b)[0] for a, b in pairwise(seen)], axis=0)
        assert shift @ np.array(way) > 5
    still = virtual_move(film, frozenset({"still"}), np.random.default_rng(3), 12.0)
    assert np.abs(still[0].astype(int) - still[-1]).mean() < 3
    assert {frozenset({"zoom in"}), frozenset({"shake"})} <= set(VIRTUAL_STATES)
    with pytest.raises(UserError, match="cannot truck left"):
        virtual_move(film, frozenset({"truck left"}), rng, 12.0)


def test_a_photographed_clip_is_a_function_of_its_seed_and_cannot_translate() -> None:
    one, other = (photographed_clip(frozenset({"zoom in"}), np.random.default_rng(5), seconds=0.5) for _ in range(2))
    assert np.array_equal(one.frames, other.frames) and one.state == {"zoom in"}
    assert one.frames.dtype == np.uint8 and len(one.frames) == 7 and max(one.frames.shape[1:]) == SIDE
    assert one.frames.std() > 1
    with pytest.raises(UserError, match="cannot dolly in"):
        photographed_clip(frozenset({"dolly in"}), np.random.default_rng(5))
