"""The synthetic world: scenes with exact captions, rendered deterministically by a pinhole camera at any size.

Geometry. One length unit is S, the shorter side of the picture. The rest camera stands at the origin and looks along
+z with focal length 1 (so 53° of view over S), x to the right, y down. The subject lies in the plane z = 1, props in
z = 2, the background in z = 3. A pixel (u, v) sees a plane through

    (X, Y, 1) ~ [[D−cz, 0, cx], [0, D−cz, cy], [0, 0, 1]] · Rᵀ · K⁻¹ · (u, v, 1)

for a camera at c with rotation R (world to camera): exact parallax for translations, none for rotations. Textures are
functions of X/D, so a static picture has the same pattern scale whatever the depth.

Edges are anti-aliased analytically: signed distance in pixels → coverage over a ramp of about one pixel.

Motion and camera span the clip: frame i of T shows time i/(T−1); a single frame shows time 1/2. Travel is 0.32 of the
width (or height); growth is from 0.55 to 1.25 of the size; spinning is 150° clockwise from nearly upright; an orbit is
140° clockwise over the top of a small circle that lies `ORBIT_DROP` below the centre, with the subject at the reduced
`ORBIT_SIZE_RADIUS`. The seed moves the whole motion by up to `JITTER`, the start of a spin by up to `SPIN_JITTER`
degrees, that of an orbit by up to `ORBIT_JITTER`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import write_image, write_video
from openhunyuan.caption.camera import CAMERA_MOVES, CAMERA_OF_PHRASE, camera_phrase
from openhunyuan.caption.schema import Caption
from openhunyuan.tiny.vocabulary import (
    BACKGROUND_COLORS,
    BOUND,
    COLORS,
    MATERIALS,
    MOTIONS,
    ORBIT_SIZE_RADIUS,
    SHAPES,
    SIZE_RADIUS,
    SIZES,
    TONE_GAIN,
    TONE_OFFSET,
    combinations,
    is_heldout,
)

FloatArray = NDArray[np.floating[Any]]
Frames = NDArray[np.uint8]

PHOTOS: dict[str, str] = {
    "astronaut": "an astronaut",
    "chelsea": "a cat",
    "coffee": "a cup of coffee",
    "rocket": "a rocket",
}
"""Photographs bundled with scikit-image's wheel (nothing is downloaded), with the words a prompt uses for them."""

PHOTO_BRIGHTNESS = 0.6
"""Photographs are dimmed so that the subject stays the brightest thing in the picture."""

SUBJECT_DEPTH, PROP_DEPTH, BACKGROUND_DEPTH = 1.0, 2.0, 3.0
MAX_PROPS = 6

TRAVEL = 0.32
GROWTH = (0.55, 1.25)
JITTER = 0.04
SPIN_JITTER = 20.0
SPIN_DEGREES = 150.0
ORBIT_JITTER = 5.0
ORBIT_DEGREES = 140.0
ORBIT_START = 200.0
ORBIT_RADIUS = 0.277
ORBIT_DROP = 0.05
COMPANION_RADIUS = 0.06
EDGE_PIXELS = 1.3
EDGE_MARGIN = 0.02

PAN_DISTANCE = 0.36
TILT_DEGREES = 13.0
ZOOM_RATIO = 1.56
ARC_DEGREES = 30.0
SHAKE_DEGREES = 2.4
SHAKE_DISTANCE = 0.02

STRIPE_PERIOD = 0.22
CHECKER_CELL = 0.17
DOT_PERIOD, DOT_RADIUS = 0.24, 0.068
CLOUD_CELL = 0.25


class SceneTruth(TypedDict):
    """Where everything is. Pixel coordinates have (0, 0) at the outer corner of the first pixel; x right, y down."""

    centre: NDArray[np.float64]
    """[T, 2] subject centre (x, y) in pixels."""
    radius: NDArray[np.float64]
    """[T] nominal subject radius in pixels."""
    angle: NDArray[np.float64]
    """[T] subject rotation in degrees, growing clockwise."""
    companion: NDArray[np.float64] | None
    """[T, 3] centre (x, y) and radius of the circle that is orbited, or None."""
    background: NDArray[np.float64]
    """[T, 2] the background point that the rest camera sees at the picture's centre, in pixels."""
    homography: dict[str, NDArray[np.float64]]
    """plane name ("subject", "props", "background") → [T, 3, 3] from pixels to plane coordinates X, Y."""
    mask: Callable[[int], FloatArray]
    """frame index → [H, W] coverage of the subject in 0..1."""


@dataclass(frozen=True)
class Scene:
    """One scene in words, and a seed for what the words leave open (start position, phases, shake).

    With a `photo` the background colour and material are unused. With a moving camera, a moving subject may leave the
    picture; `sample_scene` therefore combines a moving camera only with a still subject.
    """

    shape: str
    color: str
    size: str
    motion: str
    background_color: str
    material: str
    camera: str = "static"
    seed: int = 0
    photo: str | None = None
    num_props: int = 0

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("shape", self.shape, SHAPES),
            ("color", self.color, tuple(COLORS)),
            ("size", self.size, SIZES),
            ("motion", self.motion, MOTIONS),
            ("background_color", self.background_color, tuple(BACKGROUND_COLORS)),
            ("material", self.material, MATERIALS),
            ("camera", self.camera, CAMERA_MOVES),
            ("photo", self.photo, (None, *PHOTOS)),
        ):
            if value not in allowed:
                raise UserError(
                    f"The scene's {field} is {value!r}; choose one of {', '.join(str(name) for name in allowed)}."
                )
        if self.shape == "circle" and self.motion == "spins":
            raise UserError("A circle cannot be seen to spin; choose another shape or another motion.")
        if not 0 <= self.num_props <= MAX_PROPS:
            raise UserError(f"The scene's num_props is {self.num_props}; choose 0 to {MAX_PROPS}.")
        if self.seed < 0:
            raise UserError(f"The scene's seed is {self.seed}; choose a number from 0 up.")

    @property
    def heldout(self) -> bool:
        """Whether the combination of shape, colour and motion is never rendered for training."""
        return is_heldout(self.shape, self.color, self.motion)

    @property
    def companion_color(self) -> str:
        """Colour of the circle that an orbiting subject goes around."""
        return "yellow" if self.color == "white" else "white"

    @property
    def background(self) -> str:
        """The background in words: `"black"`, `"navy striped"` or `"photograph of a cat"`."""
        if self.photo is not None:
            return f"photograph of {PHOTOS[self.photo]}"
        return self.background_color if self.material == "plain" else f"{self.background_color} {self.material}"

    @property
    def prompt(self) -> str:
        """The canonical plain prompt; `parse_prompt` reads it back."""
        return self._prompt(f"a {self.size} {self.color} {self.shape} {self._motion(_CANONICAL)} on {self._place()}")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Paraphrases of the prompt, all different, the canonical one first."""
        size = {"small": "little", "large": "big"}[self.size]
        doing, moving = self._motion(_LOOSE), self._motion(_GERUND)
        place = self._place()
        if self.photo is not None:
            bare, with_material = self.background, self.background
        else:
            bare = f"{self.background} background"
            with_material = {
                "plain": f"plain {self.background_color} background",
                "striped": f"{self.background_color} background with stripes",
                "checkered": f"{self.background_color} background with a checker pattern",
                "dotted": f"{self.background_color} background with dots",
                "cloudy": f"{self.background_color} background with soft clouds",
            }[self.material]
        return (
            self.prompt,
            self._prompt(f"a {size} {self.color} {self.shape} {moving}, {bare}"),
            self._prompt(f"on {place}, a {self.size} {self.color} {self.shape} {doing}"),
            self._prompt(f"a {self.color} {self.shape}, {self.size}, {moving} in front of {_article(with_material)}"),
            self._prompt(f"a video of a {self.size} {self.color} {self.shape} that {doing} on {place}"),
            self._prompt(f"{size} {self.color} {self.shape}, {moving}, {with_material}"),
        )

    @property
    def caption(self) -> Caption:
        """The structured caption of report section 3.2: seven descriptions, camera label, tags."""
        subject = f"a {self.size} {self.color} {self.shape}"
        if self.photo is not None:
            background = f"a dimmed {self.background} fills the background"
            style, tags = "flat graphics over a photograph", ("synthetic", "photograph")
        else:
            background = f"{_article(self.background)} background fills the frame"
            style, tags = "flat two-dimensional graphics", ("synthetic",)
        props = f", with {self.num_props} dark blocks between subject and background" if self.num_props else ""
        return Caption(
            short=f"{subject} {self._motion(_CANONICAL)}",
            dense=(
                f"{subject} {self._motion(_CANONICAL)} on {self._place()}{props}, "
                f"{camera_phrase(self.camera)}, in one continuous shot"
            ),
            background=background,
            style=style,
            shot_type="close-up" if self.size == "large" else "wide shot",
            lighting="even, shadowless light",
            atmosphere="calm" if self.motion == "still" and self.camera == "static" else "lively",
            camera=self.camera,
            tags=tags,
        )

    def _place(self) -> str:
        return f"a {self.background}" if self.photo is not None else f"{_article(self.background)} background"

    def _motion(self, phrases: dict[str, str]) -> str:
        return phrases[self.motion].format(companion=f"a small {self.companion_color} circle")

    def _prompt(self, text: str) -> str:
        return text if self.camera == "static" else f"{text}, {camera_phrase(self.camera)}"


_CANONICAL = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "still": "stays still",
    "grows": "grows",
    "shrinks": "shrinks",
    "spins": "spins clockwise",
    "orbits": "orbits clockwise around {companion}",
}
_LOOSE = {
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves upward",
    "down": "moves downward",
    "still": "does not move",
    "grows": "gets bigger",
    "shrinks": "gets smaller",
    "spins": "turns clockwise",
    "orbits": "circles clockwise around {companion}",
}
_GERUND = {
    "left": "moving to the left",
    "right": "moving to the right",
    "up": "moving up",
    "down": "moving down",
    "still": "standing still",
    "grows": "growing",
    "shrinks": "shrinking",
    "spins": "spinning clockwise",
    "orbits": "orbiting clockwise around {companion}",
}


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_CANONICAL_MOTIONS = "|".join(text.format(companion="a small (?:white|yellow) circle") for text in _CANONICAL.values())
_PROMPT_PATTERN = re.compile(
    rf"an? (?P<size>{'|'.join(SIZES)}) (?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)}) "
    rf"(?P<motion>{_CANONICAL_MOTIONS}) "
    rf"on (?:a (?:photograph of (?P<photo>{'|'.join(PHOTOS.values())}))|"
    rf"an? (?P<background>{'|'.join(BACKGROUND_COLORS)})(?: (?P<material>{'|'.join(MATERIALS)}))? background)"
    rf"(?:, (?P<camera>{'|'.join(CAMERA_OF_PHRASE)}))?\.?"
)


def parse_prompt(prompt: str) -> Scene | None:
    """The scene a canonical prompt describes (seed 0, no props), or None if it is not one of the world's prompts.

    Case and repeated blanks do not matter.
    """
    match = _PROMPT_PATTERN.fullmatch(" ".join(prompt.lower().split()))
    if match is None:
        return None
    motion = next(
        name for name, text in _CANONICAL.items() if match["motion"].startswith(text.partition(" {companion}")[0])
    )
    if match["shape"] == "circle" and motion == "spins":
        return None
    photo = next((name for name, words in PHOTOS.items() if words == match["photo"]), None)
    scene = Scene(
        shape=match["shape"],
        color=match["color"],
        size=match["size"],
        motion=motion,
        background_color=match["background"] or "black",
        material=match["material"] or "plain",
        camera=CAMERA_OF_PHRASE[match["camera"]] if match["camera"] else "static",
        photo=photo,
    )
    # A companion of the wrong colour is not this world's prompt.
    return scene if motion != "orbits" or f"small {scene.companion_color} circle" in match["motion"] else None


# ---------------------------------------------------------------------------------------------------------- sampling


def _split_combinations(split: str) -> list[tuple[str, str, str]]:
    if split not in ("train", "heldout", "any"):
        raise UserError(f"The split is {split!r}; choose train, heldout or any.")
    return [combo for combo in combinations() if split == "any" or is_heldout(*combo) == (split == "heldout")]


@cache
def _by_motion(split: str) -> dict[str, dict[str, list[str]]]:
    """motion → shape → colours that a split has."""
    grouped: dict[str, dict[str, list[str]]] = {motion: {} for motion in MOTIONS}
    for shape, color, motion in _split_combinations(split):
        grouped[motion].setdefault(shape, []).append(color)
    return grouped


def sample_scene(
    rng: np.random.Generator,
    split: str = "train",
    camera_prob: float = 0.0,
    photo_prob: float = 0.0,
    motions: tuple[str, ...] = MOTIONS,
) -> Scene:
    """A random scene of a split ("train" never holds a held-out combination, "heldout" only those, "any" both).

    Motions are drawn evenly from `motions` (one named twice comes twice as often), then the shapes that have the motion
    in this split, then the colours of both (the hash leaves a spinning square three of eight: drawn by combination, it
    would come least often), sizes, backgrounds and materials. With `camera_prob` the camera moves (evenly among the 13
    moves that are not "static"); the subject is then still and the material is not plain, so that the move can be seen.
    With `photo_prob` the background is a photograph.
    """
    grouped = _by_motion(split)
    camera, motion = "static", motions[int(rng.integers(len(motions)))]
    materials = MATERIALS
    if camera_prob > 0 and rng.random() < camera_prob:
        moves = [move for move in CAMERA_MOVES if move != "static"]
        camera, motion = moves[int(rng.integers(len(moves)))], "still"
        materials = MATERIALS[1:]
    shapes = tuple(grouped[motion])
    shape = shapes[int(rng.integers(len(shapes)))]
    colors = grouped[motion][shape]
    color = colors[int(rng.integers(len(colors)))]
    photo = None
    if photo_prob > 0 and rng.random() < photo_prob:
        photo = tuple(PHOTOS)[int(rng.integers(len(PHOTOS)))]
    return Scene(
        shape=shape,
        color=color,
        size=SIZES[int(rng.integers(len(SIZES)))],
        motion=motion,
        background_color=tuple(BACKGROUND_COLORS)[int(rng.integers(len(BACKGROUND_COLORS)))],
        material=materials[int(rng.integers(len(materials)))],
        camera=camera,
        seed=int(rng.integers(2**31)),
        photo=photo,
    )


def heldout_scenes(num_scenes: int, seed: int) -> list[Scene]:
    """`num_scenes` distinct held-out scenes with a static camera, balanced over the values of every attribute.

    Greedy: each scene takes the combination whose colour, shape and motion were used least so far, then the background
    colour, material and size used least with it. Ties are drawn from `seed`. The balance over shapes, colours and
    motions is as even as the hash, which decides the combinations, lets it be.
    """
    combos = _split_combinations("heldout")
    pairs = [(color, material, size) for color in BACKGROUND_COLORS for material in MATERIALS for size in SIZES]
    if not 0 <= num_scenes <= len(combos) * len(pairs):
        raise UserError(f"{num_scenes} held-out scenes were asked for; choose 0 to {len(combos) * len(pairs)}.")
    rng = np.random.default_rng(seed)
    used: Counter[tuple[str, str]] = Counter()
    combo_used: Counter[tuple[str, str, str]] = Counter()
    taken: set[tuple[str, ...]] = set()
    scenes: list[Scene] = []
    for _ in range(num_scenes):
        combo_tie = rng.random(len(combos))
        order = sorted(
            range(len(combos)),
            key=lambda i: (
                used["shape", combos[i][0]] / len(COLORS)
                + used["color", combos[i][1]] / len(SHAPES)
                + used["motion", combos[i][2]] / len(SHAPES)
                + combo_used[combos[i]],
                combo_tie[i],
            ),
        )
        pair_tie = rng.random(len(pairs))
        for index in order:
            shape, color, motion = combos[index]
            free = [i for i, pair in enumerate(pairs) if (shape, color, motion, *pair) not in taken]
            if free:
                break
        else:  # pragma: no cover - excluded by the check on num_scenes
            raise AssertionError("no held-out scene is left")
        best = min(
            free,
            key=lambda i: (
                used["background", pairs[i][0]] / len(MATERIALS)
                + used["material", pairs[i][1]] / len(BACKGROUND_COLORS)
                + used["size", pairs[i][2]] / 15,
                pair_tie[i],
            ),
        )
        background_color, material, size = pairs[best]
        taken.add((shape, color, motion, background_color, material, size))
        combo_used[combos[index]] += 1
        used.update(
            (
                ("shape", shape),
                ("color", color),
                ("motion", motion),
                ("background", background_color),
                ("material", material),
                ("size", size),
            )
        )
        scenes.append(
            Scene(
                shape=shape,
                color=color,
                size=size,
                motion=motion,
                background_color=background_color,
                material=material,
                seed=int(rng.integers(2**31)),
            )
        )
    return scenes


# ----------------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class _Chance:
    """Everything a scene's seed decides."""

    jitter: tuple[float, float]
    turn: float
    phase: tuple[float, float]
    tilt: float
    lattice: FloatArray
    shake: NDArray[np.float64]
    props: NDArray[np.float64]


@lru_cache(maxsize=256)
def _chance(seed: int) -> _Chance:
    rng = np.random.default_rng([seed, 0x0E57])
    jitter = rng.uniform(-1, 1, 2)
    turn = rng.uniform(-1, 1)
    phase = rng.uniform(0, 1, 2)
    tilt = float(rng.choice([-45.0, 45.0]) + rng.uniform(-8, 8))
    # Six channels (yaw, pitch, roll, x, y, focal), two sinusoids each: (amplitude, cycles per clip, phase).
    shake = np.stack(
        [
            np.stack([rng.uniform(0.7, 1.0, 6), rng.uniform(1.2, 1.8, 6), rng.uniform(0, 2 * np.pi, 6)], -1),
            np.stack([rng.uniform(0.3, 0.6, 6), rng.uniform(2.5, 3.5, 6), rng.uniform(0, 2 * np.pi, 6)], -1),
        ]
    )
    props = np.stack([rng.uniform(0, 360, MAX_PROPS), rng.uniform(0.34, 0.46, MAX_PROPS), rng.random(MAX_PROPS)], -1)
    lattice = rng.uniform(-1, 1, (2, 16, 16)).astype(np.float32)
    return _Chance(tuple(jitter.tolist()), turn, tuple(phase.tolist()), tilt, lattice, shake, props)


def clip_times(num_frames: int) -> NDArray[np.float64]:
    """Times 0..1 of a clip's frames; a single frame is the middle of the clip."""
    return np.full(1, 0.5) if num_frames == 1 else np.arange(num_frames) / (num_frames - 1)


@dataclass(frozen=True)
class _Path:
    """The subject in its plane, per frame: centre [T, 2] and radius [T] in units of S, angle [T] in degrees."""

    centre: NDArray[np.float64]
    radius: NDArray[np.float64]
    angle: NDArray[np.float64]


def _subject_path(scene: Scene, time: NDArray[np.float64], height: int, width: int) -> _Path:
    side = min(height, width)
    extent = np.array([width / side, height / side])
    chance = _chance(scene.seed)
    radius = np.full(time.shape, (ORBIT_SIZE_RADIUS if scene.motion == "orbits" else SIZE_RADIUS)[scene.size])
    angle = np.zeros_like(time)
    centre = np.zeros((time.size, 2))
    if scene.motion == "orbits":
        turn = np.deg2rad(ORBIT_START + ORBIT_JITTER * chance.turn + ORBIT_DEGREES * time)
        around = ORBIT_RADIUS * np.stack([np.cos(turn), np.sin(turn)], -1)
        return _Path(around + [0, ORBIT_DROP], radius, angle)

    reach = np.full(2, BOUND[scene.shape] * radius[0])
    if scene.motion in ("left", "right", "up", "down"):
        axis = 0 if scene.motion in ("left", "right") else 1
        sign = 1.0 if scene.motion in ("right", "down") else -1.0
        travel = TRAVEL * extent[axis]
        centre[:, axis] = sign * travel * (time - 0.5)
        reach[axis] += travel / 2
    elif scene.motion in ("grows", "shrinks"):
        start, end = GROWTH if scene.motion == "grows" else GROWTH[::-1]
        radius = radius * (start + (end - start) * time)
        reach *= max(GROWTH)
    elif scene.motion == "spins":
        angle = SPIN_JITTER * chance.turn + SPIN_DEGREES * time
    # How far the seed may push the whole motion off centre without any part leaving the picture.
    slack = np.clip(extent / 2 - EDGE_MARGIN - reach, 0.0, JITTER if scene.camera == "static" else 0.0)
    return _Path(centre + slack * np.array(chance.jitter), radius, angle)


def _rotation(yaw: NDArray[np.float64], pitch: NDArray[np.float64], roll: NDArray[np.float64]) -> NDArray[np.float64]:
    """World-to-camera rotations [T, 3, 3]. Positive yaw turns the camera right, positive pitch turns it down."""
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)

    def matrix(*rows: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
        return np.stack([np.stack(row, -1) for row in rows], -2)

    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    turn = matrix((cy, zero, -sy), (zero, one, zero), (sy, zero, cy))
    nod = matrix((one, zero, zero), (zero, cp, -sp), (zero, sp, cp))
    lean = matrix((cr, -sr, zero), (sr, cr, zero), (zero, zero, one))
    return lean @ nod @ turn


@dataclass(frozen=True)
class _Camera:
    """Per-frame position [T, 3], rotation world → camera [T, 3, 3] and focal length [T] (1 at rest)."""

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    focal: NDArray[np.float64]


def _camera_path(scene: Scene, time: NDArray[np.float64]) -> _Camera:
    position = np.zeros((time.size, 3))
    yaw, pitch, roll = (np.zeros_like(time) for _ in range(3))
    focal = np.ones_like(time)
    centred = time - 0.5
    kind, _, direction = scene.camera.partition(" ")
    sign = 1.0 if direction in ("right", "down", "in") else -1.0
    if kind == "zoom":
        focal = ZOOM_RATIO ** (sign * centred)
    elif kind == "pan":
        position[:, 0 if direction in ("left", "right") else 1] = sign * PAN_DISTANCE * centred
    elif kind == "tilt":
        turn = sign * np.deg2rad(TILT_DEGREES) * centred
        yaw, pitch = (turn, pitch) if direction in ("left", "right") else (yaw, turn)
    elif kind == "around":
        arc = sign * np.deg2rad(ARC_DEGREES) * centred
        position[:, 0] = SUBJECT_DEPTH * np.sin(arc)
        position[:, 2] = SUBJECT_DEPTH * (1 - np.cos(arc))
        yaw = -arc
    elif kind == "handheld":
        wave = _chance(scene.seed).shake
        channel = (wave[..., 0:1] * np.sin(2 * np.pi * wave[..., 1:2] * time + wave[..., 2:3])).sum(0)
        yaw, pitch, roll = np.deg2rad(SHAKE_DEGREES) * channel[:3] * np.array([[1.0], [1.0], [0.6]])
        position[:, 0], position[:, 1] = SHAKE_DISTANCE * channel[3], SHAKE_DISTANCE * channel[4]
    return _Camera(position, _rotation(yaw, pitch, roll), focal)


def _pixel_to_plane(camera: _Camera, depth: float, height: int, width: int) -> NDArray[np.float64]:
    """Homographies [T, 3, 3] from pixels (u, v, 1) to plane coordinates (X, Y, 1) at `depth`."""
    side = min(height, width)
    count = camera.focal.size
    inverse_lens = np.zeros((count, 3, 3))
    inverse_lens[:, 0, 0] = inverse_lens[:, 1, 1] = 1 / (camera.focal * side)
    inverse_lens[:, 0, 2] = -width / 2 / (camera.focal * side)
    inverse_lens[:, 1, 2] = -height / 2 / (camera.focal * side)
    inverse_lens[:, 2, 2] = 1
    plane = np.zeros((count, 3, 3))
    plane[:, 0, 0] = plane[:, 1, 1] = depth - camera.position[:, 2]
    plane[:, 0, 2], plane[:, 1, 2] = camera.position[:, 0], camera.position[:, 1]
    plane[:, 2, 2] = 1
    return plane @ camera.rotation.transpose(0, 2, 1) @ inverse_lens


def _project(camera: _Camera, points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """World points [T, 3] → [T, 3]: pixel x, pixel y, and pixels per unit at that depth."""
    side = min(height, width)
    seen = np.einsum("tij,tj->ti", camera.rotation, points - camera.position)
    scale = camera.focal * side / seen[:, 2]
    return np.stack([seen[:, 0] * scale + width / 2, seen[:, 1] * scale + height / 2, scale], -1)


# -------------------------------------------------------------------------------------------------------------- paint


def _shape_distance(shape: str, x: FloatArray, y: FloatArray) -> FloatArray:
    """Signed distance to a shape of nominal radius 1 about the origin, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 1.0
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        x, y = np.maximum(x, y), np.minimum(x, y)
        dx, dy = x - 1.1, y - 0.40
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    # The others are polygons with n tips: fold the plane into one half-sector, where the outline is a single segment
    # from a tip (on the axis) to the inner corner (at half the sector's angle).
    tips, inner = {"triangle": (3, 0.5), "square": (4, math.sqrt(0.5)), "star": (5, 0.46)}[shape]
    outer = BOUND[shape]
    first = {"triangle": -math.pi / 2, "square": math.pi / 4, "star": -math.pi / 2}[shape]
    half = math.pi / tips
    rho = np.hypot(x, y)
    folded = np.abs(np.mod(np.arctan2(y, x) - first + half, 2 * half) - half)
    px, py = rho * np.cos(folded), rho * np.sin(folded)
    ex, ey = outer * inner * math.cos(half) - outer, outer * inner * math.sin(half)
    qx = px - outer
    along = np.clip((qx * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    distance = np.hypot(qx - along * ex, py - along * ey)
    return np.where(qx * ey - py * ex > 0, distance, -distance)


def _plane_coordinates(homography: NDArray[np.float64], u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Plane coordinates of pixel positions under one homography [3, 3]."""
    m = homography.astype(np.float32)
    if m[2, 0] == 0 and m[2, 1] == 0:
        return (m[0, 0] * u + m[0, 1] * v + m[0, 2]) / m[2, 2], (m[1, 0] * u + m[1, 1] * v + m[1, 2]) / m[2, 2]
    w = m[2, 0] * u + m[2, 1] * v + m[2, 2]
    return (m[0, 0] * u + m[0, 1] * v + m[0, 2]) / w, (m[1, 0] * u + m[1, 1] * v + m[1, 2]) / w


def _pixel_grid(top: int, bottom: int, left: int, right: int) -> tuple[FloatArray, FloatArray]:
    return (
        np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5),
        np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5),
    )


def _value_noise(lattice: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Smooth periodic noise through the lattice values [N, N], one cell per unit."""
    size = lattice.shape[0]
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    i, j = x0.astype(np.int32) % size, y0.astype(np.int32) % size
    i1, j1 = (i + 1) % size, (j + 1) % size
    upper = lattice[j, i] * (1 - fx) + lattice[j, i1] * fx
    lower = lattice[j1, i] * (1 - fx) + lattice[j1, i1] * fx
    return upper * (1 - fy) + lower * fy


def _material_signal(scene: Scene, x: FloatArray, y: FloatArray) -> FloatArray:
    """The tone −1..1 of the scene's material at texture coordinates (units of S)."""
    chance = _chance(scene.seed)
    px, py = chance.phase
    if scene.material == "striped":
        tilt = math.radians(chance.tilt)
        along = (x * math.cos(tilt) + y * math.sin(tilt)) / STRIPE_PERIOD
        return np.tanh(2 * np.sin((2 * np.pi) * (along + px))) / math.tanh(2)
    if scene.material == "checkered":
        half = np.pi / CHECKER_CELL
        wave_x, wave_y = np.sin(half * x + 2 * np.pi * px), np.sin(half * y + 2 * np.pi * py)
        return np.tanh(3 * wave_x) * np.tanh(3 * wave_y) / math.tanh(3) ** 2
    if scene.material == "dotted":
        dx = (np.mod(x / DOT_PERIOD + px, 1) - 0.5) * DOT_PERIOD
        dy = (np.mod(y / DOT_PERIOD + py, 1) - 0.5) * DOT_PERIOD
        return 1.5 * np.clip((DOT_RADIUS - np.hypot(dx, dy)) / 0.03 + 0.5, 0, 1) - 0.5
    if scene.material == "cloudy":
        broad = _value_noise(chance.lattice[0], x / CLOUD_CELL + 16 * px, y / CLOUD_CELL + 16 * py)
        fine = _value_noise(chance.lattice[1], x / CLOUD_CELL * 2 + 16 * py, y / CLOUD_CELL * 2 + 16 * px)
        return np.clip(1.25 * broad + 0.35 * fine, -1, 1)
    return np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)


def _tone(color: str, signal: FloatArray) -> FloatArray:
    """A background colour at tone −1..1: [...] → [..., 3] float32 levels 0..255."""
    base = np.array(BACKGROUND_COLORS[color], np.float32)
    return np.clip(base + signal[..., None] * (TONE_GAIN * base + TONE_OFFSET), 0, 255)


@lru_cache(maxsize=8)
def _photo(name: str, side: int) -> Frames:
    """A bundled photograph, dimmed, its shorter side scaled to 1.5 × `side` pixels."""
    import cv2
    import skimage.data

    image = np.asarray(getattr(skimage.data, name)())[..., :3]
    scale = 1.5 * side / min(image.shape[:2])
    target = (max(2, round(image.shape[1] * scale)), max(2, round(image.shape[0] * scale)))
    image = cv2.resize(image, target, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return np.clip(image * PHOTO_BRIGHTNESS, 0, 255).astype(np.uint8)


def _paint_photo(scene: Scene, x: FloatArray, y: FloatArray, side: int) -> FloatArray:
    import cv2

    assert scene.photo is not None
    image = _photo(scene.photo, side)
    px, py = _chance(scene.seed).phase
    slack_x, slack_y = max(0, image.shape[1] - 1.4 * side) / 2, max(0, image.shape[0] - 1.4 * side) / 2
    shape = np.broadcast_shapes(x.shape, y.shape)
    u = np.broadcast_to(x * side + image.shape[1] / 2 + (2 * px - 1) * slack_x - 0.5, shape).astype(np.float32)
    v = np.broadcast_to(y * side + image.shape[0] / 2 + (2 * py - 1) * slack_y - 0.5, shape).astype(np.float32)
    return cv2.remap(image, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)


@dataclass(frozen=True)
class _Item:
    """A flat shape to paint: where, how large and how turned in its plane, per frame."""

    shape: str
    color: tuple[float, float, float]
    path: _Path
    depth: float


def _props(scene: Scene, count: int) -> list[_Item]:
    names = list(BACKGROUND_COLORS)
    color = names[(names.index(scene.background_color) + 2) % len(names)]
    items = []
    for index, (bearing, distance, pick) in enumerate(_chance(scene.seed).props[: scene.num_props]):
        bearing = math.radians(bearing / 4 + 360 * index / MAX_PROPS)
        spot = PROP_DEPTH * distance * np.array([math.cos(bearing), math.sin(bearing)])
        path = _Path(np.tile(spot, (count, 1)), np.full(count, PROP_DEPTH * 0.085), np.zeros(count))
        level = _tone(color, np.array(pick - 0.5, np.float32))
        items.append(_Item("square" if index % 2 else "circle", tuple(level.tolist()), path, PROP_DEPTH))
    return items


def _items(scene: Scene, path: _Path) -> list[_Item]:
    """Everything in front of the background, far to near."""
    count = path.radius.size
    items = _props(scene, count)
    if scene.motion == "orbits":
        still = _Path(np.tile([0, ORBIT_DROP], (count, 1)), np.full(count, COMPANION_RADIUS), np.zeros(count))
        items.append(_Item("circle", COLORS[scene.companion_color], still, SUBJECT_DEPTH))
    items.append(_Item(scene.shape, COLORS[scene.color], path, SUBJECT_DEPTH))
    return items


@dataclass(frozen=True)
class _Footprint:
    """Coverage [h, w] of an item in one frame, and the rows and columns of the picture it applies to."""

    rows: slice
    columns: slice
    coverage: FloatArray


def _footprint(
    item: _Item, frame: int, spot: NDArray[np.float64], homography: NDArray[np.float64], height: int, width: int
) -> _Footprint | None:
    x, y, scale = spot.tolist()
    radius = float(item.path.radius[frame])
    centre_x, centre_y = item.path.centre[frame].tolist()
    # 1.15 covers the perspective stretch of the off-axis cameras above.
    reach = 1.15 * radius * BOUND[item.shape] * scale + 2
    top, bottom = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    left, right = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
    if top >= bottom or left >= right:
        return None
    plane_x, plane_y = _plane_coordinates(homography, *_pixel_grid(top, bottom, left, right))
    plane_x, plane_y = (plane_x - centre_x) / radius, (plane_y - centre_y) / radius
    turn = math.radians(float(item.path.angle[frame]))
    if turn:
        cos, sin = math.cos(turn), math.sin(turn)
        plane_x, plane_y = plane_x * cos + plane_y * sin, plane_y * cos - plane_x * sin
    distance = _shape_distance(item.shape, plane_x, plane_y)
    coverage = np.clip(0.5 - distance * (radius * scale / EDGE_PIXELS), 0, 1)
    return _Footprint(slice(top, bottom), slice(left, right), coverage)


class _View:
    """A scene seen at one size: camera, homographies and projected positions of every frame."""

    def __init__(self, scene: Scene, time: NDArray[np.float64], height: int, width: int) -> None:
        if time.size < 1 or height < 8 or width < 8:
            raise UserError(
                f"A scene cannot be rendered as {time.size} frames of {height}x{width}; "
                "choose at least 1 frame and 8 pixels a side."
            )
        self.scene, self.height, self.width = scene, height, width
        self.path = _subject_path(scene, time, height, width)
        self.camera = _camera_path(scene, time)
        self.items = _items(scene, self.path)
        depths = {SUBJECT_DEPTH, BACKGROUND_DEPTH, PROP_DEPTH}
        self.homography = {depth: _pixel_to_plane(self.camera, depth, height, width) for depth in depths}
        self.spots = [self.place(item.path.centre, item.depth) for item in self.items]

    def place(self, centre: NDArray[np.float64], depth: float) -> NDArray[np.float64]:
        """Plane positions [T, 2] → [T, 3] pixel x, pixel y, pixels per unit."""
        points = np.concatenate([centre, np.full((len(centre), 1), depth)], -1)
        return _project(self.camera, points, self.height, self.width)

    def footprint(self, index: int, frame: int) -> _Footprint | None:
        item = self.items[index]
        homography = self.homography[item.depth][frame]
        return _footprint(item, frame, self.spots[index][frame], homography, self.height, self.width)

    def background(self, frame: int) -> FloatArray:
        """[H, W, 3] float32 levels."""
        grid = _pixel_grid(0, self.height, 0, self.width)
        x, y = _plane_coordinates(self.homography[BACKGROUND_DEPTH][frame], *grid)
        x, y = (x / np.float32(BACKGROUND_DEPTH), y / np.float32(BACKGROUND_DEPTH))
        if self.scene.photo is not None:
            return _paint_photo(self.scene, x, y, min(self.height, self.width))
        return _tone(self.scene.background_color, _material_signal(self.scene, x, y))


def render(
    scene: Scene,
    num_frames: int = 33,
    height: int = 64,
    width: int = 64,
    times: NDArray[np.float64] | None = None,
) -> Frames:
    """The scene as uint8 RGB [T, H, W, 3], a pure function of its arguments.

    `times` [T], each 0..1, replaces the even spread of `num_frames` over the clip (a short span is slow motion). The
    background is painted once if the camera is static, else once per frame; shapes only inside their bounding boxes.
    Raises `UserError` for no frames or a side under 8 pixels.
    """
    view = _View(scene, clip_times(max(0, num_frames)) if times is None else times, height, width)
    num_frames = view.path.radius.size
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    background = view.background(0)
    plain = np.rint(background).astype(np.uint8)
    for frame in range(num_frames):
        if frame and scene.camera != "static":
            background = view.background(frame)
            plain = np.rint(background).astype(np.uint8)
        frames[frame] = plain
        for index, item in enumerate(view.items):
            spot = view.footprint(index, frame)
            if spot is None:
                continue
            region = frames[frame, spot.rows, spot.columns].astype(np.float32)
            region += spot.coverage[..., None] * (np.array(item.color, np.float32) - region)
            frames[frame, spot.rows, spot.columns] = np.rint(region).astype(np.uint8)
    return frames


def truth(scene: Scene, num_frames: int = 33, height: int = 64, width: int = 64) -> SceneTruth:
    """Where the subject, its companion and the background are in every frame of `render` with the same arguments."""
    view = _View(scene, clip_times(max(0, num_frames)), height, width)
    subject = len(view.items) - 1
    spots = view.spots[subject]

    def mask(frame: int) -> FloatArray:
        picture = np.zeros((height, width), np.float32)
        spot = view.footprint(subject, frame)
        if spot is not None:
            picture[spot.rows, spot.columns] = spot.coverage
        return picture

    companion = None
    if scene.motion == "orbits":
        companion = view.spots[subject - 1].copy()
        companion[:, 2] *= COMPANION_RADIUS
    return SceneTruth(
        centre=spots[:, :2].copy(),
        radius=view.path.radius * spots[:, 2],
        angle=view.path.angle,
        companion=companion,
        background=view.place(np.zeros((num_frames, 2)), BACKGROUND_DEPTH)[:, :2],
        homography={
            "subject": view.homography[SUBJECT_DEPTH],
            "props": view.homography[PROP_DEPTH],
            "background": view.homography[BACKGROUND_DEPTH],
        },
        mask=mask,
    )


def write_scene(
    path: str | os.PathLike[str],
    scene: Scene,
    num_frames: int = 33,
    height: int = 64,
    width: int = 64,
    fps: float = 24.0,
) -> None:
    """Write a scene as an mp4 (PNG for one frame), and what is known about it as JSON beside it (`<path>.json`).

    The JSON, which the video file also carries as its metadata, holds `scene`, `prompt`, `prompts`, `caption` (seven
    descriptions, camera, tags), `camera`, `fps`, and the subject's `centre`, `radius` and `angle` in every frame.
    """
    place = truth(scene, num_frames, height, width)
    record = {
        "scene": asdict(scene),
        "prompt": scene.prompt,
        "prompts": list(scene.prompts),
        "caption": scene.caption.model_dump(),
        "camera": scene.camera,
        "fps": fps,
        "centre": place["centre"].round(3).tolist(),
        "radius": place["radius"].round(3).tolist(),
        "angle": place["angle"].round(3).tolist(),
    }
    frames = render(scene, num_frames, height, width)
    if num_frames == 1:
        write_image(path, frames, record)
    else:
        write_video(path, frames, fps, record)
    side = Path(f"{os.fspath(path)}.json")
    temporary = side.with_name(f".{side.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(side)
