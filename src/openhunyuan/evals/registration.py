"""How the background moves: consecutive frames registered by shift and magnification (Lucas-Kanade, all pairs at once).

Flow model at a pixel p, measured from the frame centre: v(p) = (a, b) + g·p, in pixels per frame. Where the texture
shows only one direction (stripes), only the shift across it is estimated; `BackgroundPath.across` then names that
direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openhunyuan.evals.filters import blurred, eroded, sampled

Array = NDArray[np.float32]

_ONE_DIRECTION = 0.12
"""Ratio of the gradient energies across and along a texture below which it shows one direction only."""
_FLAT = 25.0
"""Variance of the smoothed tone below which there is no texture to see moving."""


@dataclass(frozen=True)
class BackgroundPath:
    """Accumulated background motion, first frame = 0.

    shift [T,2]: how far the content at the frame centre has moved, (x, y) in pixels. scale [T]: content magnification.
    across: unit vector (x, y) across the stripes when only motion along it can be seen, else None. explained: share of
    the change since the first frame that undoing the motion removes; near 1 for a camera, near 0 for flicker.
    """

    shift: Array
    scale: Array
    across: Array | None
    explained: float


def unrest(tone: Array, mask: NDArray[np.bool_]) -> float:
    """Share 0..1 of the background's variance that is change over time: near 0 for a picture that stands, near 1
    for one that sweeps by. Flat backgrounds, where only noise could change, give 0."""
    seen = mask.sum(0)
    soft = blurred(np.where(mask, tone, 0), 1)
    weight = blurred(mask, 1)
    soft = np.where(mask, soft / np.maximum(weight, 1e-3), 0)
    mean = soft.sum(0) / np.maximum(seen, 1)
    often = seen >= max(3, len(tone) // 4)
    valid = mask & often
    if valid.sum() < 0.1 * valid.size:
        return 0.0
    over_time = float((((soft - mean) ** 2) * valid).sum() / valid.sum())
    total = float(soft[valid].var())
    return over_time / total if total > _FLAT else 0.0


def register(tone: Array, mask: NDArray[np.bool_], iterations: int = 3) -> BackgroundPath:
    """Register frames tone [T,H,W] on the pixels of mask [T,H,W] that stay background in both frames of a pair."""
    num_frames, height, width = tone.shape
    smooth = blurred(_fill(tone, mask), 1.2)
    first, second = smooth[:-1], smooth[1:]
    # three pixels: as far as the smoothing reaches across the edge of a masked object
    valid = eroded(mask[:-1] & mask[1:], 3)
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    x, y = xs - (width - 1) / 2, ys - (height - 1) / 2
    gy, gx = np.gradient(smooth, axis=1), np.gradient(smooth, axis=2)
    across = _only_direction(gx[:-1][valid], gy[:-1][valid])
    params = np.zeros((num_frames - 1, 3), np.float32)  # a, b, g
    frame_index = np.broadcast_to(np.arange(num_frames - 1, dtype=np.float32)[:, None, None], first.shape)
    for _ in range(iterations):
        a, b, g = (params[:, i][:, None, None] for i in range(3))
        position = [frame_index, ys + b + g * y, xs + a + g * x]
        warped = sampled(second, position, mode="nearest")
        error = np.where(valid, warped - first, 0)
        noise = 2.0 + 1.5 * np.abs(error).sum((1, 2), keepdims=True) / np.maximum(valid.sum((1, 2), keepdims=True), 1)
        weight = np.where(valid, 1 / (1 + (error / noise) ** 2), 0)
        growth = gx[:-1] * x + gy[:-1] * y
        columns = [gx[:-1], gy[:-1], growth] if across is None else [gx[:-1] * across[0] + gy[:-1] * across[1], growth]
        jacobian = np.stack([c.reshape(num_frames - 1, -1) for c in columns], axis=1)
        weighted = jacobian * weight.reshape(num_frames - 1, 1, -1)
        prior = np.diag([1.0] * (len(columns) - 1) + [100.0]).astype(np.float32)
        normal = weighted @ jacobian.transpose(0, 2, 1) + prior
        step = np.linalg.solve(normal, -(weighted @ error.reshape(num_frames - 1, -1, 1)))[..., 0]
        if across is not None:
            step = np.concatenate([step[:, :1] * across, step[:, 1:]], axis=1)
        params = params + np.clip(step, [-2, -2, -0.05], [2, 2, 0.05]).astype(np.float32)
    shift = np.concatenate([np.zeros((1, 2), np.float32), np.cumsum(params[:, :2], 0)])
    scale = np.concatenate([[1.0], np.exp(np.cumsum(params[:, 2]))]).astype(np.float32)
    explained = _explained(smooth, eroded(mask, 3), shift, scale)
    return BackgroundPath(shift, scale, across, explained)


def _explained(smooth: Array, mask: NDArray[np.bool_], shift: Array, scale: Array) -> float:
    num_frames, height, width = smooth.shape
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    y, x = ys - (height - 1) / 2, xs - (width - 1) / 2
    before = after = 0.0
    for t in {num_frames // 4, num_frames // 2, 3 * num_frames // 4, num_frames - 1}:
        position = [ys + shift[t, 1] + (scale[t] - 1) * y, xs + shift[t, 0] + (scale[t] - 1) * x]
        inside = (position[0] >= 0) & (position[0] <= height - 1) & (position[1] >= 0) & (position[1] <= width - 1)
        seen = sampled(mask[t], position, order=0) > 0.5
        valid = mask[0] & mask[t] & inside & seen
        if not valid.any():
            continue
        warped = sampled(smooth[t], position)
        before += float(((smooth[t] - smooth[0])[valid] ** 2).mean())
        after += float(((warped - smooth[0])[valid] ** 2).mean())
    return 1 - after / before if before > 0 else 0.0


def _only_direction(gx: Array, gy: Array) -> Array | None:
    if not len(gx):
        return None
    tensor = np.array([[np.mean(gx * gx), np.mean(gx * gy)], [np.mean(gx * gy), np.mean(gy * gy)]])
    values, vectors = np.linalg.eigh(tensor)
    return vectors[:, 1].astype(np.float32) if values[0] < _ONE_DIRECTION * values[1] else None


def _fill(tone: Array, mask: NDArray[np.bool_]) -> Array:
    """Replace foreground pixels by a blurred continuation of the background, so that smoothing does not smear
    objects in."""
    weight = blurred(mask, 3, truncate=2.5)
    near = blurred(np.where(mask, tone, 0), 3, truncate=2.5)
    return np.where(mask, tone, near / np.maximum(weight, 1e-3)).astype(np.float32)
