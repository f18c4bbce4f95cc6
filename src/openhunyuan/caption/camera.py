"""The camera-movement labels: the fourteen classes of report section 3.2, the words a caption uses for them, and the
one gate through which measured labels come into captions: of a clip, of a window, of the frames that are encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from openhunyuan.curate.clip import CameraLabel, ClipCaption

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

GATE_VERSION = 1
"""Raised when the same evidence would give another label than before."""

UNMEASURED_SHARE = 0.9
"""Share of a caption's frames that a sample has to show to keep a label that nothing was measured for."""


def camera_labels(row: Mapping[str, Any], offset: int = 0, scale: float = 1.0) -> tuple[CameraLabel, ...]:
    """The labels in a row of the table `camera`: its list `seconds`, or in rows without one its columns `first`,
    `last`, `move`, `confidence`, lists of equal length, one entry a piece of the clip; frames count from the clip's
    start. Moves outside `CAMERA_MOVES` ("none") are no labels. offset: frames of the clip's file that it
    leaves out at the start. scale: frames of the file for each of those that were measured.
    """
    names = ("first", "last", "move", "confidence")
    found = [tuple(second[name] for name in names) for second in row.get("seconds") or ()]
    found = found or [*zip(*(row.get(name) or () for name in names), strict=True)]
    placed = [(*(round(n * scale) - offset for n in (first, last)), move, sure) for first, last, move, sure in found]
    return tuple(
        CameraLabel(first=first, last=last, move=move, confidence=round(confidence, 4))
        for first, last, move, confidence in placed
        if move in CAMERA_MOVES and last > 0
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


def gate_of(caption: ClipCaption) -> str | None:
    """The gate of a caption's camera label in words, with all versions that it depends on; None where it has none."""
    evidence = caption.camera
    return evidence and f"{evidence.measure} at {evidence.gate:g}, version {GATE_VERSION}"


def caption_of_frames(caption: ClipCaption, num_frames: int, first: int, last: int) -> ClipCaption:
    """The caption of a clip of so many frames as one of its frames [first, last): with the camera's move that these
    frames have by its own evidence and gate.

    A single frame of a video shows no move. A label without evidence (a captioner's own, or one from before evidence
    was kept) stays where the frames are nearly all that the caption is about (`UNMEASURED_SHARE`), and goes elsewhere.
    """
    begin, end = caption.window or (0, num_frames)
    said = caption.fields.get("camera")
    if caption.camera is not None:
        camera = gated_camera(caption.camera.labels, first, last, caption.camera.gate) if last - first > 1 else None
    else:
        camera = said if last - first >= UNMEASURED_SHARE * (end - begin) else None
    if not caption.fields or camera == said:
        return caption
    return caption.model_copy(update={"fields": {**caption.fields, "camera": camera}})
