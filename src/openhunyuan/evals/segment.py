"""Separating what moves in front (subject, companion) from the background, from pixels alone.

The background of the tiny world is one muted colour with a tone texture, so its pixels lie near a short line in
RGB; it is read off the border of the frames. Whatever lies far from that line is foreground, and the foreground's
one or two dominant colours are the objects. No palette is used here: a grey or brown object is found just the same,
and refused a name later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openhunyuan.evals.filters import components, dilated, eroded

Array = NDArray[np.float32]

_BORDER = 8
"""Width in pixels (at 64) of the frame border that the background colour line is read from: wide enough to meet every
material's tones."""
_FOREGROUND = 42.0
"""RGB distance from the background line beyond which a pixel is foreground."""
_CLUSTER = 62.0
"""RGB radius of one object colour: holds codec noise, blur and a tint, not a second palette colour."""
_MIN_PIXELS = 14.0
"""Fewest pixels per frame, on average, that make an object (a shrunken small star has about 20)."""


@dataclass(frozen=True)
class ColourLine:
    """The background's colours: a centre and an axis in RGB, with the extent actually seen along it."""

    centre: Array
    axis: Array
    low: float
    high: float

    def tone(self, frames: Array) -> Array:
        """Position along the axis, [..., 3] -> [...] in RGB units around the centre."""
        return np.asarray((frames - self.centre) @ self.axis, np.float32)

    def distance(self, frames: Array) -> Array:
        """Distance of each pixel to the segment, [..., 3] -> [...]."""
        offset = frames - self.centre
        along = np.clip(offset @ self.axis, self.low, self.high)
        squared = (offset * offset).sum(-1) - 2 * along * (offset @ self.axis) + along * along
        return np.asarray(np.sqrt(np.maximum(squared, 0)), np.float32)


@dataclass(frozen=True)
class Object:
    """One foreground object over the clip.

    colour [3] median sRGB of its inside; alpha [T,H,W] soft coverage 0..1; area [T] in pixels; centre [T,2] as (x,
    y) in pixels (NaN where absent); present [T].
    """

    colour: Array
    alpha: Array
    area: Array
    centre: Array
    present: NDArray[np.bool_]
    purity: float
    """Share of the pixels well inside that really have this colour (a subject that changes colour half-way has about
    0.5)."""


@dataclass(frozen=True)
class Segmentation:
    """Background line, background mask [T,H,W] (well away from any object) and objects, the largest first."""

    line: ColourLine
    background: NDArray[np.bool_]
    objects: tuple[Object, ...]


def segment(frames: NDArray[np.uint8]) -> Segmentation:
    """Split a clip uint8 [T,H,W,3] into background and at most two objects."""
    pixels = frames.astype(np.float32)
    line = _background_line(pixels)
    distance = line.distance(pixels)
    foreground = distance > _FOREGROUND
    inside = eroded(foreground)
    if inside.sum() < 4 * len(frames):  # tiny or thin things have no 3x3 inside
        inside = foreground
    colours = _dominant_colours(pixels[inside], len(frames))
    objects = _objects(pixels, distance, inside, colours)
    if len(objects) == 2 and not _apart(*objects):
        # a soft rim or a shadow of the subject, not a thing of its own
        objects = _objects(pixels, distance, inside, colours[:1])
    background = ~dilated(foreground, 2)
    return Segmentation(line, background, objects)


def _background_line(pixels: Array) -> ColourLine:
    b = max(2, round(_BORDER * min(pixels.shape[1:3]) / 64))
    border = np.concatenate(
        [pixels[:, :b].reshape(-1, 3), pixels[:, -b:].reshape(-1, 3)]
        + [pixels[:, b:-b, :b].reshape(-1, 3), pixels[:, b:-b, -b:].reshape(-1, 3)]
    )
    centre = np.median(border, axis=0)
    near = border[np.linalg.norm(border - centre, axis=1) < 100]
    if len(near) < 16:
        near = border
    centre = near.mean(0)
    _, vectors = np.linalg.eigh(np.cov((near - centre).T) + 1e-6 * np.eye(3))
    axis = vectors[:, -1] * np.sign(vectors[:, -1].sum() or 1.0)
    low, high = np.percentile((near - centre) @ axis, [0.5, 99.5])
    return ColourLine(centre.astype(np.float32), axis.astype(np.float32), float(low), float(high))


def _dominant_colours(inside: Array, num_frames: int) -> list[Array]:
    """Modes of the foreground colours by size, at most two; each is a mean-shift fixed point."""
    colours: list[Array] = []
    rest = inside
    for _ in range(2):
        if len(rest) < _MIN_PIXELS * num_frames:
            break
        bins = (rest // 32).astype(np.int64) @ np.array([64, 8, 1])
        mode = np.bincount(bins, minlength=512).argmax()
        colour = rest[bins == mode].mean(0)
        for _ in range(4):
            near = rest[((rest - colour) ** 2).sum(1) < _CLUSTER**2]
            colour = np.median(near, axis=0)
        if (((rest - colour) ** 2).sum(1) < _CLUSTER**2).sum() < _MIN_PIXELS * num_frames:
            break
        colours.append(colour.astype(np.float32))
        rest = rest[((rest - colour) ** 2).sum(1) >= (1.3 * _CLUSTER) ** 2]
    return colours


def _objects(pixels: Array, distance: Array, inside: NDArray[np.bool_], colours: list[Array]) -> tuple[Object, ...]:
    if not colours:
        return ()
    to_colour = np.stack([np.linalg.norm(pixels - c, axis=-1) for c in colours])
    owner = to_colour.argmin(0)
    objects = []
    for index, colour in enumerate(colours):
        alpha = distance / (distance + to_colour[index] + 1e-3)
        alpha = np.where(owner == index, alpha, 0).astype(np.float32)
        objects.append(_track(pixels, alpha, colour, inside & (owner == index)))
    return tuple(o for o in sorted(objects, key=lambda o: -float(o.area.sum())) if o.present.any())


def _apart(first: Object, second: Object) -> bool:
    """Whether two objects lie side by side (disks of their areas do not overlap) and both have some thickness."""
    both = first.present & second.present
    if both.mean() < 0.5:
        return False
    gap = np.linalg.norm(first.centre[both] - second.centre[both], axis=1)
    reach = (np.sqrt(first.area[both]) + np.sqrt(second.area[both])) / np.sqrt(np.pi)
    thick = [eroded(o.alpha > 0.5).sum() / both.sum() for o in (first, second)]
    return bool((gap > 0.8 * reach).mean() > 0.8) and min(thick) > 6


def _track(pixels: Array, alpha: Array, colour: Array, inside: NDArray[np.bool_]) -> Object:
    """Keep the largest connected component of each frame and follow its centre and area."""
    num_frames, height, width = alpha.shape
    labels, count = components(alpha > 0.5)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = np.zeros_like(alpha)
    for t in range(num_frames):
        present = np.unique(labels[t])
        present = present[present > 0]
        if len(present):
            kept[t] = labels[t] == present[sizes[present].argmax()]
    reach = dilated(kept > 0, 2)
    alpha = np.where(reach, alpha, 0)
    alpha = np.where(alpha < 0.12, 0, alpha)  # background texture and noise carry no coverage
    area = alpha.sum((1, 2))
    present = area >= 10
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    total = np.where(present, area, np.nan)
    centre = np.stack([(alpha * xs).sum((1, 2)) / total, (alpha * ys).sum((1, 2)) / total], -1)
    deep = eroded(inside)  # without the soft rim of a decoded picture
    core = pixels[deep if deep.sum() >= 4 * num_frames else inside]
    near = np.linalg.norm(core - colour, axis=1) < _CLUSTER if len(core) else np.zeros(0, bool)
    purity = float(near.mean()) if len(near) else 0.0
    median = np.median(core[near], axis=0) if near.any() else colour
    return Object(median.astype(np.float32), alpha, area, centre, present, purity)
