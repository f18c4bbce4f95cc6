"""Damaged renders with a known fault, to test that the alignment measure can say no.

Each kind harms one attribute (or several) of a rendered clip the way a bad model would: colours drift to a
neighbour or lose an axis, shapes melt, motion runs backwards, stops or is shuffled, the subject is not there. The
measure must not find the scene's own value in a harmed attribute; finding another value or none are both a no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from openhunyuan.evals.colour import lab_distance, lab_to_rgb, rgb_to_lab
from openhunyuan.evals.filters import blurred, shifted
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, COLORS, MATERIALS, SHAPES
from openhunyuan.tiny.world import Scene, render, truth

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]

VISIBLE = 18.0
"""Lab distance below which a global colour fault hardly touches a colour (white has no chroma to lose; blue lies
near the neutral of Cr): such a colour is exempt from that fault."""

NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "red": ("orange", "purple"),
    "orange": ("red", "yellow"),
    "yellow": ("orange", "green"),
    "green": ("yellow", "cyan"),
    "cyan": ("green", "blue", "white"),
    "blue": ("cyan", "purple"),
    "purple": ("blue", "red"),
    "white": ("yellow", "cyan"),
}
"""The colours next to each on the hue circle (white: its nearest in Lab and its warm neighbour)."""


@dataclass(frozen=True)
class Damaged:
    """A clip uint8 [T,H,W,3], the kind of fault, and the attributes in which the scene's own value must not be
    found."""

    kind: str
    frames: Frames
    attributes: tuple[str, ...]


def damaged_clips(scene: Scene, frames: Frames, rng: np.random.Generator) -> Iterator[Damaged]:
    """Every kind of damage that applies to a rendered scene with a static camera and a plain or textured
    background."""
    for kind, make in _KINDS.items():
        damaged = make(scene, frames, rng)
        if damaged is not None:
            clip, attributes = damaged
            yield Damaged(kind, clip, attributes)


def damaged_moves(scene: Scene, frames: Frames, rng: np.random.Generator) -> Iterator[Damaged]:
    """Faults of time in a clip with a moving camera: the camera's value must not be found."""
    if scene.camera != "handheld":  # shaken backwards is still shaken
        yield Damaged("motion reversed", np.ascontiguousarray(frames[::-1]), ("camera",))
    yield Damaged("frozen", _freeze(frames), ("camera",))
    yield Damaged("frames shuffled", _shuffle(frames, rng), ("camera",))


def empty_background(scene: Scene, size: tuple[int, int, int]) -> Floats:
    """The background of a scene with a static camera without anything in front, [H,W,3] in 0..255.

    Two frames of a small circle crossing the same background, far enough apart that one of them shows each pixel.
    """
    probe = replace(scene, shape="circle", size="small", motion="left", photo=scene.photo, num_props=0)
    picture = render(probe, 2, *size[1:]).astype(np.float64)
    covered = np.asarray(truth(probe, 2, *size[1:])["mask"](0)) > 0
    return np.where(covered[..., None], picture[1], picture[0])


_Damage = Callable[[Scene, Frames, np.random.Generator], tuple[Frames, tuple[str, ...]] | None]


def _hue_shifted(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]]:
    neighbour = NEIGHBOURS[scene.color][int(rng.integers(len(NEIGHBOURS[scene.color])))]
    shift = np.array(COLORS[neighbour], np.float64) - np.array(COLORS[scene.color], np.float64)
    return _clip(frames + _masks(scene, frames)[..., None] * shift), ("color",)


def _desaturated(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]] | None:
    def grey(rgb: Floats) -> Floats:
        return np.repeat((rgb @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=-1)

    concerned = _concerned(scene, grey)
    return (_clip(grey(frames.astype(np.float64))), concerned) if concerned else None


def _axis_removed(transform: Callable[[Floats], Floats]) -> _Damage:
    def make(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]] | None:
        concerned = tuple(a for a in _concerned(scene, transform) if a == "color")
        return (_clip(transform(frames.astype(np.float64))), concerned) if concerned else None

    return make


def _without_cb(rgb: Floats) -> Floats:
    return _ycbcr(rgb, keep_cb=0.0, keep_cr=1.0)


def _without_cr(rgb: Floats) -> Floats:
    return _ycbcr(rgb, keep_cb=1.0, keep_cr=0.0)


def _ycbcr(rgb: Floats, keep_cb: float, keep_cr: float) -> Floats:
    """BT.601 luma and colour differences, scaled and put together again."""
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    blue, red = keep_cb * (rgb[..., 2] - luma), keep_cr * (rgb[..., 0] - luma)
    green = -(0.114 * blue + 0.299 * red) / 0.587
    return luma[..., None] + np.stack([red, green, blue], axis=-1)


def without_green_magenta(rgb: Floats) -> Floats:
    return lab_to_rgb(rgb_to_lab(rgb) * np.array([1.0, 0.0, 1.0]))


def _without_blue_yellow(rgb: Floats) -> Floats:
    return lab_to_rgb(rgb_to_lab(rgb) * np.array([1.0, 1.0, 0.0]))


def _shape_swapped(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]]:
    others = [s for s in SHAPES if s != scene.shape and not (s == "circle" and scene.motion == "spins")]
    return render(replace(scene, shape=others[int(rng.integers(len(others)))]), *frames.shape[:3]), ("shape",)


def _shape_smeared(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]]:
    radius = truth(scene, *frames.shape[:3])["radius"]
    masks = _masks(scene, frames)
    soft = np.stack([blurred(m, 0.5 * float(r)) for m, r in zip(masks, radius, strict=True)])
    return _painted(scene, frames, soft.astype(np.float64)), ("shape",)


def _shape_streaked(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]]:
    radius = truth(scene, *frames.shape[:3])["radius"]
    masks = _masks(scene, frames)
    bearing = rng.uniform(0, np.pi)
    streaked = np.zeros_like(masks)
    steps = np.linspace(-1, 1, 13)
    for t, mask in enumerate(masks):
        for step in steps:
            offset = step * float(radius[t])
            streaked[t] += shifted(mask, (offset * np.sin(bearing), offset * np.cos(bearing))) / len(steps)
    return _painted(scene, frames, streaked), ("shape",)


def _motion_reversed(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]] | None:
    return None if scene.motion == "still" else (np.ascontiguousarray(frames[::-1]), ("motion",))


def _frozen(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]] | None:
    return None if scene.motion == "still" else (_freeze(frames), ("motion",))


def _shuffled(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]] | None:
    return None if scene.motion == "still" else (_shuffle(frames, rng), ("motion",))


def _set_moving(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]] | None:
    if scene.motion != "still":
        return None
    motions = ["left", "right", "up", "down", "grows", "shrinks", "orbits"] + (
        ["spins"] if scene.shape != "circle" else []
    )
    return render(replace(scene, motion=motions[int(rng.integers(len(motions)))]), *frames.shape[:3]), ("motion",)


def _subject_missing(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]]:
    return _painted(scene, frames, np.zeros(frames.shape[:3])), ("color", "shape", "motion")


def _background_recoloured(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]]:
    others = [c for c in BACKGROUND_COLORS if c != scene.background_color]
    other = others[int(rng.integers(len(others)))]
    return render(replace(scene, background_color=other), *frames.shape[:3]), ("background",)


def _material_swapped(scene: Scene, frames: Frames, rng: np.random.Generator) -> tuple[Frames, tuple[str, ...]]:
    others = [m for m in MATERIALS if m != scene.material]
    return render(replace(scene, material=others[int(rng.integers(len(others)))]), *frames.shape[:3]), ("background",)


_KINDS: dict[str, _Damage] = {
    "hue shifted to a neighbour": _hue_shifted,
    "desaturated to grey": _desaturated,
    "Cb axis removed": _axis_removed(_without_cb),
    "Cr axis removed": _axis_removed(_without_cr),
    "green-magenta axis removed": _axis_removed(without_green_magenta),
    "blue-yellow axis removed": _axis_removed(_without_blue_yellow),
    "shape swapped": _shape_swapped,
    "shape smeared": _shape_smeared,
    "shape streaked": _shape_streaked,
    "motion reversed": _motion_reversed,
    "frozen": _frozen,
    "frames shuffled": _shuffled,
    "still set moving": _set_moving,
    "subject missing": _subject_missing,
    "background recoloured": _background_recoloured,
    "material swapped": _material_swapped,
}
KINDS: tuple[str, ...] = tuple(_KINDS)


def _masks(scene: Scene, frames: Frames) -> Floats:
    mask = truth(scene, *frames.shape[:3])["mask"]
    return np.stack([np.asarray(mask(t), dtype=np.float64) for t in range(len(frames))])


def _painted(scene: Scene, frames: Frames, coverage: Floats) -> Frames:
    """The scene with its subject painted by another coverage [T,H,W] (zeros: gone); a companion stays."""
    masks = _masks(scene, frames)
    behind = np.where(masks[..., None] > 0, empty_background(scene, frames.shape[:3]), frames)
    return _clip(behind + coverage[..., None] * (np.array(COLORS[scene.color], np.float64) - behind))


def _concerned(scene: Scene, transform: Callable[[Floats], Floats]) -> tuple[str, ...]:
    """Which of the scene's two colours a global colour transform visibly changes."""
    result = []
    for name, rgb in (("color", COLORS[scene.color]), ("background", BACKGROUND_COLORS[scene.background_color])):
        before = np.array(rgb, dtype=np.float64)
        if lab_distance(before, np.clip(transform(before), 0, 255)) >= VISIBLE:
            result.append(name)
    return tuple(result)


def _freeze(frames: Frames) -> Frames:
    return np.repeat(frames[len(frames) // 2][None], len(frames), axis=0)


def _shuffle(frames: Frames, rng: np.random.Generator) -> Frames:
    return frames[rng.permutation(len(frames))]


def _clip(frames: Floats) -> Frames:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def soften(
    frames: Frames, rng: np.random.Generator, blur: float = 0.7, noise: float = 4.0, shift: float = 10.0
) -> Frames:
    """A clip as a good decoder returns it, still right: blurred by `blur` pixels, noise of ±`noise` and a colour
    shift of up to ±`shift` of 255 per channel. The measure must accept it."""
    soft = np.stack([blurred(frames[..., c], blur) for c in range(3)], axis=-1).astype(np.float64)
    return _clip(soft + rng.uniform(-noise, noise, frames.shape) + rng.uniform(-shift, shift, 3))
