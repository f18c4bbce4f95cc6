"""Naming a camera move from two motions: the background's and that of the subject, which stands still in the world.

Nearer things move more under a translation (pan), everything moves together under a rotation (tilt), everything
grows under a zoom, and on an arc around the subject the subject keeps its place while the background sweeps by. The
names are the camera's directions: when the camera pans left, the picture goes right; when it circles to the left,
the background goes left with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openhunyuan.evals.registration import BackgroundPath

Array = NDArray[np.floating]

UNREST = 0.035
"""Share of the background's variance that is change over time above which the background moves
(`registration.unrest`)."""
STATIC_REACH = 0.035
STATIC_ZOOM = 1.08
EXPLAINED = 0.4
"""A background that changes without moving farther than this share of the width or growing more, or whose change the
best motion does not explain to this share, flickers: its camera is static."""
ZOOM = 1.22
"""Least magnification between the ends of a zoom (rendered truth: 1.56)."""
SWEEP = 0.07
"""Least background travel of a pan, tilt or arc as a share of the width (rendered truth: 0.12 or more)."""


@dataclass(frozen=True)
class CameraEvidence:
    """Background path, and the subject's centre [T,2] and radius [T] (None if it was not followed); frame width in
    pixels."""

    background: BackgroundPath
    centre: Array | None
    radius: Array | None
    width: int


def name_camera(evidence: CameraEvidence) -> str | None:
    """The label of a move of at least five frames whose background is seen to change, or None."""
    path, width = evidence.background, evidence.width
    reach = float(np.linalg.norm(path.shift - np.median(path.shift, axis=0), axis=1).max())
    if path.explained < EXPLAINED:
        return "static"
    if reach < STATIC_REACH * width and float(np.abs(np.log(path.scale)).max()) < np.log(STATIC_ZOOM):
        return "static"
    if evidence.centre is None or evidence.radius is None:
        return None
    n = max(2, len(evidence.centre) // 10)
    # averages over the ends see a little less than the whole travel
    whole = (len(evidence.centre) - 1) / (len(evidence.centre) - n)
    subject = (evidence.centre[-n:].mean(0) - evidence.centre[:n].mean(0)) * whole / width
    growth = float(evidence.radius[-n:].mean() / evidence.radius[:n].mean())
    zoom = float(path.scale[-1])
    if max(zoom, 1 / zoom) > ZOOM and float(np.abs(subject).max()) < 0.1:
        together = (growth > 1.12) if zoom > 1 else (growth < 1 / 1.12)
        if not together or not _steady(np.log(path.scale) * np.sign(np.log(zoom))):
            return None
        return "zoom in" if zoom > 1 else "zoom out"
    axis, along, aside = _sweeping(path, subject, width)
    travel = float(along[-1])
    if abs(travel) > SWEEP and aside < 0.5 * abs(travel) and _steady(np.sign(travel) * along):
        return _sweep(float(subject[axis]) / travel, float(np.abs(subject[1 - axis])), axis, travel)
    return "handheld" if _shakes(path, width) and float(np.abs(subject).max()) < 0.2 else None


def _sweeping(path: BackgroundPath, subject: Array, width: int) -> tuple[int, Array, float]:
    """(axis, shift [T] along it, final shift aside from it), as shares of the width.

    Behind stripes only the shift across them is seen; the subject's own travel then tells the axis, a subject that
    keeps its place the horizontal (arcs are horizontal).
    """
    shift = path.shift / width
    if path.across is None:
        axis = int(np.abs(shift[-1]).argmax())
        return axis, shift[:, axis], float(abs(shift[-1, 1 - axis]))
    axis = int(np.abs(subject).argmax()) if float(np.abs(subject).max()) > 0.08 else 0
    return axis, (shift @ path.across) / path.across[axis], 0.0


def _sweep(ratio: float, subject_aside: float, axis: int, travel: float) -> str | None:
    """Pan, tilt or around, by how far the subject went relative to the background."""
    if subject_aside > 0.08:
        return None
    picture = (("left", "right"), ("up", "down"))[axis]
    with_picture, against_picture = picture[int(travel > 0)], picture[int(travel < 0)]
    if 1.7 < ratio < 5:
        return f"pan {against_picture}"
    if 0.65 < ratio < 1.45:
        return f"tilt {against_picture}"
    if -0.4 < ratio < 0.35 and axis == 0:
        return f"around {with_picture}"
    return None


def _steady(values: Array) -> bool:
    steps = np.diff(values)
    total = float(values[-1] - values[0])
    return (
        total > 0
        and float(-steps[steps < 0].sum()) < 0.15 * total
        and float(steps.max()) < max(0.3, 3.0 / len(steps)) * total
    )


def _shakes(path: BackgroundPath, width: int) -> bool:
    """Small smooth motion to and fro: it returns on itself, its reach is small and its steps follow one another."""
    steps = np.diff(path.shift, axis=0)
    sizes = np.linalg.norm(steps, axis=1)
    length = float(sizes.sum())
    reach = float(np.linalg.norm(path.shift - path.shift.mean(0), axis=1).max())
    net = float(np.linalg.norm(path.shift[-1] - path.shift[0]))
    smooth = float((steps[1:] * steps[:-1]).sum() / max((steps**2).sum(), 1e-6))
    return (
        length > (0.09 if path.across is None else 0.05) * width
        and net < 0.65 * length
        and reach < 0.16 * width
        and smooth > 0.2
        and max(float(path.scale.max()), float(1 / path.scale.min())) < 1.25
    )
