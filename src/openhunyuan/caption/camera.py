"""The camera-movement labels: the fourteen classes of report section 3.2, and the words a caption uses for them."""

from __future__ import annotations

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
