"""The camera-movement labels: the fourteen classes of report section 3.2, and the words a caption uses for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CAMERA_MOVES: tuple[str, ...] = (
    "zoom in",
    "zoom out",
    "pan up",
    "pan down",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "tilt left",
    "tilt right",
    "around left",
    "around right",
    "static",
    "handheld",
)
"""Class names in the order of the report. *Pan* is a translation of the camera, *tilt* a rotation, *zoom* a change of
focal length, *around* an arc about the subject; the direction is the camera's, so the picture moves the other way."""

_VERBS = {"zoom": "zooms", "pan": "pans", "tilt": "tilts"}


def camera_phrase(move: str) -> str:
    """The clause that names a camera move in a prompt: `"pan left"` → `"the camera pans left"`.

    Raises `KeyError` for a label that is not in `CAMERA_MOVES`.
    """
    if move not in CAMERA_MOVES:
        raise KeyError(move)
    if move == "static":
        return "the camera is static"
    if move == "handheld":
        return "the camera is handheld"
    kind, direction = move.split()
    if kind == "around":
        return f"the camera circles to the {direction}"
    return f"the camera {_VERBS[kind]} {direction}"


CAMERA_OF_PHRASE: dict[str, str] = {camera_phrase(move): move for move in CAMERA_MOVES}
"""The inverse of `camera_phrase`."""

CAMERA_GATE = 0.9
"""Confidence from which a camera label enters a caption: a wrong label teaches worse than a missing one."""


@dataclass(frozen=True)
class CameraLabel:
    """What a classifier says of the frames [first, last) of a clip: a move, and how sure it is (0 to 1)."""

    first: int
    last: int
    move: str
    confidence: float


def camera_labels(row: Mapping[str, Any], offset: int = 0) -> tuple[CameraLabel, ...]:
    """The labels in a row of the table `camera`: its columns `first`, `last`, `move`, `confidence` are lists of equal
    length, one entry a piece of the clip, frames counted from the clip's start. Moves outside `CAMERA_MOVES` ("none")
    are no labels. offset: frames of the clip that its file leaves out at the start.
    """
    columns: list[Sequence[Any]] = [row.get(name) or () for name in ("first", "last", "move", "confidence")]
    return tuple(
        CameraLabel(first - offset, last - offset, move, confidence)
        for first, last, move, confidence in zip(*columns, strict=True)
        if move in CAMERA_MOVES
    )


def gated_camera(labels: Iterable[CameraLabel], first: int, last: int, gate: float = CAMERA_GATE) -> str | None:
    """The move of the frames [first, last): the one whose confidence, averaged over these frames (0 where it is not
    what the classifier says), is largest and reaches the gate; else None."""
    scores: dict[str, float] = {}
    for label in labels:
        overlap = max(0, min(last, label.last) - max(first, label.first))
        scores[label.move] = scores.get(label.move, 0.0) + overlap * label.confidence / max(last - first, 1)
    move = max(scores, key=lambda name: scores[name], default=None)
    return move if move is not None and scores[move] >= gate - 1e-9 else None
