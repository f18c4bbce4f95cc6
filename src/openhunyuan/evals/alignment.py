"""The alignment measure: what a clip of the tiny world shows, told from pixels alone, with the right to say no.

`measure` knows the world's vocabulary but not the prompt; `Measurement.correct` compares with a scene afterwards.
Every attribute can be None, "not clear enough to name": nearest-neighbour naming would find a colour in any grey
and a shape in any blob.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openhunyuan.base.errors import UserError
from openhunyuan.evals.background import BackgroundMatch, match_background
from openhunyuan.evals.camera import UNREST, CameraEvidence, name_camera
from openhunyuan.evals.colour import name_colour
from openhunyuan.evals.motion import Track, name_motion
from openhunyuan.evals.registration import register, unrest
from openhunyuan.evals.segment import Object, Segmentation, segment
from openhunyuan.evals.shapes import ShapeMatch, match_shape
from openhunyuan.tiny.vocabulary import COLORS
from openhunyuan.tiny.world import Scene

SUBJECT_RADIUS = 16.5
"""Largest accepted Lab distance of the subject's colour to a palette colour; a uniform shift of 10/255 moves it by
up to 12, a lost chroma axis by 19 or more."""
PRESENT = 0.9
"""Least share of the frames in which the subject must be visible."""
MIN_RADIUS = 0.075
"""Least radius (of the disk of equal area, share of the width) of a lone object that is a subject; an orbit's
companion, alone in the picture, has 0.06."""
PURITY = 0.8
"""Least share of the subject's inside that must have its colour."""


@dataclass(frozen=True)
class Measurement:
    """What is seen; None = absent, unclear or outside the vocabulary. motion is None for single images.

    background is the colour and material ("black striped", "navy plain"), None unless both are clear.
    """

    color: str | None
    shape: str | None
    motion: str | None
    background_color: str | None
    material: str | None
    camera: str | None

    @property
    def background(self) -> str | None:
        """Colour and material, None unless both are clear."""
        return f"{self.background_color} {self.material}" if self.background_color and self.material else None

    def seen(self) -> dict[str, str | None]:
        """Every attribute by name."""
        return {
            "color": self.color,
            "shape": self.shape,
            "motion": self.motion,
            "background": self.background,
            "background_color": self.background_color,
            "material": self.material,
            "camera": self.camera,
        }

    @staticmethod
    def asked(scene: Scene) -> dict[str, str]:
        """The same attributes as a scene asks for them."""
        return {
            "color": scene.color,
            "shape": scene.shape,
            "motion": scene.motion,
            "background": f"{scene.background_color} {scene.material}",
            "background_color": scene.background_color,
            "material": scene.material,
            "camera": scene.camera,
        }

    def correct(self, scene: Scene) -> dict[str, bool]:
        """Whether color, shape, motion and background, and the camera if the scene moves it, are as asked.

        A scene with a moving camera is not judged by its subject's motion on the screen, which is the camera's.
        """
        seen, asked = self.seen(), self.asked(scene)
        names = ["color", "shape", "background"] + (["motion"] if scene.camera == "static" else ["camera"])
        return {name: seen[name] == asked[name] for name in names}


def measure(frames: NDArray[np.uint8]) -> Measurement:
    """Name subject colour, shape, motion, background and camera of a clip.

    frames: uint8 RGB [T,H,W,3], at least 32 pixels a side; T = 1 is an image (no motion, no camera). Raises
    UserError otherwise.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or min(frames.shape[1:3]) < 32:
        raise UserError(
            f"A clip must be uint8 [T,H,W,3] of at least 32x32 pixels, not {frames.dtype} {list(frames.shape)}."
        )
    seen = segment(frames)
    subject, companion = _roles(seen)
    width = frames.shape[2]
    present = subject is not None and float(subject.present.mean()) >= PRESENT
    if subject is not None and companion is None and float(np.median(subject.area)) < np.pi * (MIN_RADIUS * width) ** 2:
        present = False
    centre = _filled(subject.centre) if subject is not None and present else None
    radius = _filled(np.sqrt(np.maximum(subject.area, 1) / np.pi)) if subject is not None and present else None
    tone = seen.line.tone(frames.astype(np.float32))
    moving = len(frames) >= 5 and unrest(tone, seen.background) > UNREST
    background = match_background(frames, seen, moving)
    camera = "static" if len(frames) >= 5 else None
    if moving:
        camera = name_camera(CameraEvidence(register(tone, seen.background), centre, radius, width))
        moving = camera != "static"
    if subject is None or centre is None or radius is None:
        return _measurement(None, None, None, background, camera if camera == "static" else None)
    shape = match_shape(subject)
    motion = None
    if not moving:
        motion = name_motion(_track(subject, companion, shape, centre, radius, width))
    elif camera is not None:
        motion = "still"  # what moves on the screen is explained by the camera
    return _measurement(_colour(subject), shape.shape, motion, background, camera)


def _measurement(
    color: str | None, shape: str | None, motion: str | None, background: BackgroundMatch, camera: str | None
) -> Measurement:
    return Measurement(color, shape, motion, background.color, background.material, camera)


def _colour(subject: Object) -> str | None:
    return name_colour(subject.colour, COLORS, SUBJECT_RADIUS) if subject.purity >= PURITY else None


def _roles(seen: Segmentation) -> tuple[Object | None, Object | None]:
    """Subject and companion: of two objects the companion is the smaller that stays; one that moves cannot be it."""
    objects = [o for o in seen.objects if o.present.mean() >= 0.5]
    if not objects:
        return None, None
    if len(objects) == 1:
        return objects[0], None
    spread = [float(np.nanstd(o.centre, axis=0).sum()) for o in objects[:2]]
    companion = int(np.argmin(spread)) if max(spread) > 3 * min(spread) + 1 else 1
    return objects[1 - companion], objects[companion]


def _track(
    subject: Object,
    companion: Object | None,
    shape: ShapeMatch,
    centre: NDArray[np.floating],
    radius: NDArray[np.floating],
    width: int,
) -> Track:
    angle = None if shape.angle is None or shape.score < 0.72 else _filled(shape.angle)
    beside = None if companion is None else _filled(companion.centre)
    return Track(centre, radius, angle, beside, width)


def _filled(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Frames without a value take it linearly from their neighbours in time, [T] or [T,n]."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    times = np.arange(len(flat))
    for column in flat.T:
        known = np.isfinite(column)
        column[~known] = np.interp(times[~known], times[known], column[known])
    return flat.reshape(values.shape)
