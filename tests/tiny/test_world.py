from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_metadata, read_video
from openhunyuan.caption.camera import CAMERA_MOVES
from openhunyuan.tiny.vocabulary import (
    BACKGROUND_COLORS,
    BOUND,
    COLORS,
    MATERIALS,
    MOTIONS,
    SHAPES,
    SIZES,
    combinations,
    is_heldout,
)
from openhunyuan.tiny.world import (
    ORBIT_DEGREES,
    ORBIT_DROP,
    ORBIT_RADIUS,
    PHOTOS,
    SPIN_DEGREES,
    TRAVEL,
    ZOOM_RATIO,
    Scene,
    heldout_scenes,
    parse_prompt,
    render,
    sample_scene,
    truth,
    write_scene,
)

BASE = Scene("circle", "red", "large", "right", "black", "plain")


def measured_centre(scene: Scene, frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Centre of mass of what is nearer to the subject's colour than 60 levels: from pixels alone."""
    near = np.linalg.norm(frame.astype(float) - np.array(COLORS[scene.color]), axis=-1) < 60
    assert near.any()
    y, x = np.nonzero(near)
    return np.array([x.mean() + 0.5, y.mean() + 0.5])


def scenes(count: int, seed: int = 0, **options: float) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, "any", **options) for _ in range(count)]  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------------------------------------------- rendering


def test_rendering_is_deterministic_and_depends_on_the_seed() -> None:
    scene = Scene("star", "green", "small", "still", "olive", "cloudy", camera="handheld", seed=5)
    first = render(scene, 5)
    assert first.shape == (5, 64, 64, 3) and first.dtype == np.uint8
    assert hashlib.sha256(first.tobytes()).digest() == hashlib.sha256(render(scene, 5).tobytes()).digest()
    assert not np.array_equal(first, render(replace(scene, seed=6), 5))


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80), (256, 256), (90, 50)])
def test_subject_stays_inside_at_every_size(size: tuple[int, int]) -> None:
    height, width = size
    for scene in scenes(60, seed=1) + scenes(20, seed=2, camera_prob=1.0):
        place = truth(scene, 9, height, width)
        # The camera at an angle stretches a shape by a few per cent.
        reach = place["radius"] * BOUND[scene.shape]
        low = (place["centre"] - reach[:, None]).min()
        high = (place["centre"] + reach[:, None] - [width, height]).max()
        assert low > -0.5 and high < 0.5, scene
        assert render(scene, 2, height, width).shape == (2, height, width, 3)


def test_edges_are_antialiased_and_the_area_is_exact() -> None:
    scene = Scene("circle", "white", "large", "still", "black", "plain", seed=3)
    for side in (32, 64, 128):
        place = truth(scene, 1, side, side)
        mask = place["mask"](0)
        assert mask.sum() == pytest.approx(np.pi * place["radius"][0] ** 2, rel=0.01)
        soft = ((mask > 0.02) & (mask < 0.98)).sum()
        assert 0.5 < soft / (2 * np.pi * place["radius"][0]) < 2.5


def test_single_frame_shows_the_middle_of_the_clip() -> None:
    for scene in scenes(20, seed=3, camera_prob=0.5):
        assert np.array_equal(render(scene, 1)[0], render(scene, 33)[16])


def test_motion_spans_the_clip_whatever_its_length() -> None:
    for scene in scenes(10, seed=4):
        long, short = render(scene, 33), render(scene, 9)
        assert np.array_equal(long[::4], short)


def test_times_select_moments() -> None:
    scene = scenes(1, seed=5)[0]
    assert np.array_equal(render(scene, times=np.array([0.0, 0.5])), render(scene, 33)[[0, 16]])


def test_shapes_materials_and_colours_all_look_different() -> None:
    def picture(**changes: str) -> NDArray[np.float64]:
        scene = replace(Scene("star", "red", "large", "still", "gray", "plain", seed=2), **changes)
        return render(scene, 1)[0].astype(float)

    for field, values in (
        ("shape", SHAPES),
        ("color", tuple(COLORS)),
        ("size", SIZES),
        ("background_color", tuple(BACKGROUND_COLORS)),
        ("material", MATERIALS),
    ):
        pictures = [picture(**{field: value}) for value in values]
        for i, one in enumerate(pictures):
            for other in pictures[i + 1 :]:
                assert np.abs(one - other).mean() > 2, field


def test_materials_are_smooth() -> None:
    # A small autoencoder keeps what varies slowly: no step of a material exceeds a third of its range per pixel.
    for material in MATERIALS[1:]:
        scene = Scene("circle", "red", "small", "still", "gray", material, seed=4)
        place = truth(scene, 1)
        frame = render(scene, 1)[0, ..., 0].astype(float)
        away = place["mask"](0) == 0
        span = np.ptp(frame[away])
        steps = np.abs(np.diff(frame, axis=1))[away[:, 1:] & away[:, :-1]]
        assert 30 < span < 110 and steps.max() < 0.6 * span, material


# ------------------------------------------------------------------------------------------------------------- motion


def test_truth_agrees_with_pixels() -> None:
    for scene in scenes(40, seed=6) + scenes(20, seed=7, camera_prob=1.0):
        frames, place = render(scene, 5), truth(scene, 5)
        for i, frame in enumerate(frames):
            # A shape's centre of mass is its centre; only perspective moves it, by far less than a pixel here.
            assert np.linalg.norm(measured_centre(scene, frame) - place["centre"][i]) < 1.2, scene


@pytest.mark.parametrize(
    ("motion", "direction"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_linear_motion(motion: str, direction: tuple[int, int]) -> None:
    frames = render(replace(BASE, motion=motion, seed=8))
    track = np.array([measured_centre(BASE, frame) for frame in frames])
    moved = track[-1] - track[0]
    assert moved @ direction == pytest.approx(TRAVEL * 64, abs=1)
    assert abs(moved @ direction[::-1]) < 0.5
    assert ((np.diff(track, axis=0) @ direction) > 0).all()


def test_still_grow_shrink() -> None:
    assert np.ptp(render(replace(BASE, motion="still")), axis=0).max() == 0
    grown = [truth(replace(BASE, motion="grows"), 9)["mask"](i).sum() for i in range(9)]
    shrunk = [truth(replace(BASE, motion="shrinks"), 9)["mask"](i).sum() for i in range(9)]
    assert (np.diff(grown) > 0).all() and grown[-1] > 4 * grown[0]
    assert np.allclose(grown, shrunk[::-1], rtol=0.02)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "circle"])
def test_spin_turns_clockwise_on_the_screen(shape: str) -> None:
    scene = replace(BASE, shape=shape, motion="spins", seed=9)
    tips = {"square": 4, "triangle": 3, "star": 5, "cross": 4}[shape]
    place = truth(scene)
    angles = []
    for i in range(33):
        # The phase of the n-fold moment of the mask, in image coordinates (y down): it grows when turning clockwise.
        mask = place["mask"](i)
        y, x = np.mgrid[:64, :64] + 0.5
        z = (x - place["centre"][i, 0]) + 1j * (y - place["centre"][i, 1])
        angles.append(np.angle((mask * z**tips).sum()) / tips)
    turned = np.rad2deg(np.unwrap(np.array(angles), period=2 * np.pi / tips))
    assert turned[-1] - turned[0] == pytest.approx(SPIN_DEGREES, abs=5)
    assert (np.diff(turned) > 0).all()


def test_orbit_is_clockwise_around_the_companion() -> None:
    for color in ("blue", "white"):
        scene = replace(BASE, motion="orbits", color=color, seed=10)
        frames, place = render(scene), truth(scene)
        middle = np.array([32, 32 + ORBIT_DROP * 64])
        assert place["companion"] is not None and np.allclose(place["companion"][:, :2], middle)
        colour = frames[:, 35, 32].astype(int)
        assert (np.abs(colour - COLORS[scene.companion_color]) <= 1).all()
        assert scene.companion_color == ("yellow" if color == "white" else "white")
        arm = place["centre"] - middle
        bearing = np.unwrap(np.arctan2(arm[:, 1], arm[:, 0]))
        assert np.rad2deg(bearing[-1] - bearing[0]) == pytest.approx(ORBIT_DEGREES)
        assert np.allclose(np.linalg.norm(arm, axis=1), ORBIT_RADIUS * 64)


# ------------------------------------------------------------------------------------------------------------- camera


def camera_scene(move: str, **changes: object) -> Scene:
    values = {"shape": "circle", "color": "yellow", "size": "small", "motion": "still", "background_color": "gray"}
    return Scene(**(values | {"material": "cloudy", "camera": move, "seed": 11} | changes))  # pyright: ignore


def background_shift(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How far the background moves from first to last frame, by matching pixels in the middle of the clip's parts.

    Summed over neighbouring pairs: for each the translation, in quarter pixels, with the least difference outside the
    subject.
    """
    import cv2

    total = np.zeros(2)
    for one, other in pairwise(frames):
        first, second = (frame.astype(np.float32)[..., 2] for frame in (one, other))
        subject = np.maximum(*(frame.astype(np.float32)[..., 0] for frame in (one, other))) > 150
        keep = cv2.erode((~subject).astype(np.uint8), np.ones((7, 7), np.uint8))[8:-8, 8:-8] > 0
        best = (np.inf, np.zeros(2))
        for dx in np.arange(-1.75, 1.76, 0.25):
            for dy in np.arange(-1.75, 1.76, 0.25):
                if abs(dx) > 0.75 and abs(dy) > 0.75:
                    continue
                moved = cv2.warpAffine(first, np.array([[1, 0, dx], [0, 1, dy]]), (64, 64), flags=cv2.INTER_LINEAR)
                error = float(np.abs(moved - second)[8:-8, 8:-8][keep].mean())
                if error < best[0]:
                    best = (error, np.array([dx, dy]))
        total += best[1]
    return total


@pytest.mark.parametrize("direction", ["left", "right", "up", "down"])
def test_pan_has_parallax_and_tilt_has_none_in_pixels(direction: str) -> None:
    axis = 0 if direction in ("left", "right") else 1
    sign = -1 if direction in ("right", "down") else 1  # the picture moves against the camera
    moved = {}
    for kind in ("pan", "tilt"):
        scene = camera_scene(f"{kind} {direction}")
        frames = render(scene, 13)
        subject = measured_centre(scene, frames[-1]) - measured_centre(scene, frames[0])
        background = background_shift(frames)
        assert abs(subject[1 - axis]) < 1 and abs(background[1 - axis]) < 1.5
        assert sign * background[axis] >= 7, (kind, background)
        moved[kind] = subject[axis] / background[axis]
    assert moved["pan"] == pytest.approx(3, abs=0.5)  # three times as near, three times as far
    assert moved["tilt"] == pytest.approx(1, abs=0.15)


def test_translation_moves_layers_by_inverse_depth_and_rotation_alike() -> None:
    def shifts(move: str) -> list[NDArray[np.float64]]:
        homography = truth(camera_scene(move), 3)["homography"]
        corners = np.array([[20.0, 20, 1], [32, 32, 1], [50, 25, 1]]).T
        result = []
        for plane in ("subject", "props", "background"):
            back = np.linalg.inv(homography[plane][2]) @ homography[plane][0] @ corners
            result.append(back[:2] / back[2] - corners[:2])
        return result

    near, middle, far = shifts("pan right")
    assert np.allclose(near, 2 * middle) and np.allclose(near, 3 * far)
    near, middle, far = shifts("tilt up")
    assert np.allclose(near, far) and np.allclose(near, middle) and np.abs(far).max() > 8


def test_zoom_changes_all_layers_by_one_ratio() -> None:
    for move, ratio in (("zoom in", ZOOM_RATIO), ("zoom out", 1 / ZOOM_RATIO)):
        place = truth(camera_scene(move))
        assert place["radius"][-1] / place["radius"][0] == pytest.approx(ratio)
        for homography in place["homography"].values():
            assert homography[0][0, 0] / homography[-1][0, 0] == pytest.approx(ratio)
        masks = place["mask"](32).sum() / place["mask"](0).sum()
        assert masks == pytest.approx(ratio**2, rel=0.03)


def test_around_keeps_the_subject_and_swings_the_background() -> None:
    for move, sign in (("around left", -1), ("around right", 1)):
        place = truth(camera_scene(move))
        assert np.ptp(place["centre"], axis=0).max() < 1
        swing = place["background"][-1] - place["background"][0]
        assert sign * swing[0] > 16 and abs(swing[1]) < 1e-6
        # Far things follow the camera round; a plane seen at an angle is not a mere translation.
        assert abs(place["homography"]["background"][0][2, 0]) > 1e-4


def test_static_and_handheld() -> None:
    assert np.ptp(render(camera_scene("static")), axis=0).max() == 0
    track = truth(camera_scene("handheld"))["background"]
    steps = np.linalg.norm(np.diff(track, axis=0), axis=1)
    assert steps.sum() > 8 and steps.max() < 2 and np.linalg.norm(track - 32, axis=1).max() < 12
    # It goes back and forth.
    assert min((np.diff(np.sign(np.diff(track[:, axis]))) != 0).sum() for axis in (0, 1)) >= 2


def test_every_camera_is_distinct_and_its_middle_is_at_rest() -> None:
    clips = {move: render(camera_scene(move), 5) for move in CAMERA_MOVES}
    for move, clip in clips.items():
        for other, others in clips.items():
            assert move == other or np.abs(clip.astype(int) - others).mean() > 2, (move, other)
        if move not in ("handheld", "static"):  # a static camera leaves the seed more room to place the subject
            assert np.abs(clip[2].astype(int) - clips["zoom in"][2]).max() <= 1


def test_props_move_between_the_layers() -> None:
    plain, crowded = camera_scene("pan left"), camera_scene("pan left", num_props=4)
    difference = (render(plain, 2) != render(crowded, 2)).any(-1)
    assert 50 < difference[0].sum() < 64 * 64 / 3
    assert not difference[0][truth(plain, 2)["mask"](0) == 1].any()


# --------------------------------------------------------------------------------------------------- words and splits


def test_canonical_prompts() -> None:
    assert BASE.prompt == "a large red circle moves right on a black background"
    assert Scene("star", "green", "small", "still", "navy", "striped").prompt == (
        "a small green star stays still on a navy striped background"
    )
    assert Scene("square", "blue", "large", "orbits", "gray", "dotted").prompt == (
        "a large blue square orbits clockwise around a small white circle on a gray dotted background"
    )
    assert Scene("cross", "cyan", "small", "still", "olive", "cloudy", camera="pan left").prompt == (
        "a small cyan cross stays still on an olive cloudy background, the camera pans left"
    )
    assert replace(BASE, photo="chelsea").prompt == "a large red circle moves right on a photograph of a cat"


def test_every_prompt_parses_back() -> None:
    count = 0
    for shape, color, motion in combinations():
        for camera in CAMERA_MOVES:
            background = tuple(BACKGROUND_COLORS)[count % 6]
            scene = Scene(shape, color, SIZES[count % 2], motion, background, MATERIALS[count % 5], camera=camera)
            assert parse_prompt(scene.prompt) == scene
            count += 1
    for photo in PHOTOS:
        assert parse_prompt(replace(BASE, photo=photo).prompt) == replace(BASE, photo=photo)
    assert parse_prompt("  A large RED circle moves right on a black background. ") == BASE


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a large red circle moves right on a pink background",
        "a large red circle spins clockwise on a black background",
        "a large white circle orbits clockwise around a small white circle on a black background",
        "a large red circle moves right on a black background, the camera flies",
    ],
)
def test_other_prompts_do_not_parse(prompt: str) -> None:
    assert parse_prompt(prompt) is None


def test_paraphrases_say_the_same() -> None:
    for scene in scenes(50, seed=12, camera_prob=0.3, photo_prob=0.2):
        assert 4 <= len(set(scene.prompts)) == len(scene.prompts) and scene.prompts[0] == scene.prompt
        for text in scene.prompts:
            assert scene.color in text and scene.shape in text
            assert scene.photo or scene.background_color in text
            assert ("camera" in text) == (scene.camera != "static")
    # No two different scenes share a wording.
    said: dict[str, tuple[object, ...]] = {}
    for scene in scenes(1500, seed=13, camera_prob=0.3):
        key = (scene.shape, scene.color, scene.size, scene.motion, scene.background, scene.camera)
        for text in scene.prompts:
            assert said.setdefault(text, key) == key


def test_caption_has_all_seven_fields_and_the_camera() -> None:
    caption = camera_scene("tilt up").caption
    assert caption.camera == "tilt up" and "the camera tilts up" in caption.dense
    assert all(value for value in caption.model_dump().values())
    assert BASE.caption.short == "a large red circle moves right" and BASE.caption.camera == "static"


def test_training_never_samples_a_heldout_combination() -> None:
    rng = np.random.default_rng(14)
    train = [sample_scene(rng, "train", camera_prob=0.3) for _ in range(4000)]
    assert not any(scene.heldout for scene in train)
    assert {(s.shape, s.color, s.motion) for s in train} == {c for c in combinations() if not is_heldout(*c)}
    motions = Counter(scene.motion for scene in train if scene.camera == "static")
    assert max(motions.values()) < 1.4 * min(motions.values())
    assert all(sample_scene(rng, "heldout").heldout for _ in range(300))
    assert 0.1 < np.mean([sample_scene(rng, "any").heldout for _ in range(2000)]) < 0.3
    for scene in train:
        if scene.camera != "static":
            assert scene.motion == "still" and scene.material != "plain"
    assert {scene.camera for scene in train} == set(CAMERA_MOVES)


def test_heldout_scenes_are_distinct_and_balanced() -> None:
    chosen = heldout_scenes(200, seed=0)
    assert chosen == heldout_scenes(200, seed=0) != heldout_scenes(200, seed=1)
    assert all(scene.heldout for scene in chosen)
    assert len({scene.prompt for scene in chosen}) == 200
    # The hash leaves some values with few combinations; none may be rare for that.
    for field, values in (("shape", SHAPES), ("color", COLORS), ("motion", MOTIONS)):
        counts = Counter(getattr(scene, field) for scene in chosen)
        assert set(counts) == set(values) and min(counts.values()) >= 0.5 * 200 / len(values), (field, counts)
    for field, values in (("background_color", BACKGROUND_COLORS), ("material", MATERIALS), ("size", SIZES)):
        counts = Counter(getattr(scene, field) for scene in chosen)
        assert max(counts.values()) - min(counts.values()) <= 0.15 * 200 / len(values), (field, counts)


@pytest.mark.parametrize(
    "changes",
    [{"shape": "hexagon"}, {"camera": "dolly"}, {"motion": "spins"}, {"num_props": 99}, {"seed": -1}, {"photo": "cat"}],
)
def test_impossible_scenes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError):
        replace(BASE, **changes)  # pyright: ignore[reportArgumentType]


def test_impossible_renders_are_refused() -> None:
    for arguments in ((0, 64, 64), (1, 4, 64)):
        with pytest.raises(UserError):
            render(BASE, *arguments)
    with pytest.raises(UserError):
        sample_scene(np.random.default_rng(0), "test")


@pytest.mark.parametrize("photo", tuple(PHOTOS))
def test_photographs_are_bundled_and_dim(photo: str) -> None:
    scene = Scene("square", "cyan", "small", "still", "black", "plain", camera="pan left", photo=photo, seed=1)
    frames = render(scene, 3)
    outside = truth(scene, 3)["mask"](0) == 0
    assert frames[0][outside].std() > 10 and frames[0][outside].max() <= 0.6 * 255 + 1
    assert not np.array_equal(frames[0], frames[2])


def test_scene_files(tmp_path: Path) -> None:
    scene = replace(BASE, seed=15)
    write_scene(tmp_path / "a.mp4", scene, 9, 64, 96, fps=12)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.shape == (9, 64, 96, 3) and fps == 12
    record = json.loads((tmp_path / "a.mp4.json").read_text())
    assert record == read_metadata(tmp_path / "a.mp4")
    assert record["prompt"] == scene.prompt and record["camera"] == "static"
    assert record["caption"]["dense"] == scene.caption.dense
    assert Scene(**record["scene"]) == scene
    measured = measured_centre(scene, frames[4])
    assert np.linalg.norm(measured - record["centre"][4]) < 1.5
    write_scene(tmp_path / "b.png", scene, 1)
    assert read_metadata(tmp_path / "b.png")["prompt"] == scene.prompt
