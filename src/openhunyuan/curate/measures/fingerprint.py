"""What a clip looks like, in numbers that survive re-encoding, small crops, brightness and mirroring.

Two things are kept of `MOMENTS` moments spread over the clip: thumbnails in Lab, which say what the picture is, and
how they differ from the clip's mean thumbnail, which says what happens in it. Duplicates must agree in both
(`curate.duplicates`). A vector of coarse colours and edge directions places the clip among others
(`curate.concepts`); it knows appearance, not meaning, and is no substitute for a learned embedding.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.require import require
from openhunyuan.curate.measures.border import without_bars
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View, reduced

MOMENTS = 8
THUMB = 12
_KEPT_SIDE = 64


class Fingerprint(Measure):
    """Bytes `thumbs`: float16 [MOMENTS, THUMB, THUMB, 3] in Lab, without black bars. List `appearance`: unit vector."""

    name: ClassVar[str] = "fingerprint"
    version: ClassVar[int] = 2
    proxy: ClassVar[str] = "colours and edges, no learned embedding"
    bulky: ClassVar[tuple[str, ...]] = ("thumbs", "appearance")

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(clip)


class _Reader(Reader):
    def __init__(self, clip: ClipSpan) -> None:
        # The sample nearest to the middle of each of MOMENTS equal parts of the clip.
        last = (clip.num_frames - 1) // clip.step
        places = (np.arange(MOMENTS) + 0.5) / MOMENTS * clip.num_frames / clip.step
        self.wanted = [int(min(last, max(0, round(place)))) * clip.step for place in places]
        self.kept: dict[int, np.ndarray] = {}

    def add(self, view: View) -> None:
        if view.index in self.wanted:
            self.kept[view.index] = reduced(view.rgb, _KEPT_SIDE)

    def finish(self) -> dict[str, Any]:
        frames = without_bars(np.stack([self.kept[index] for index in self.wanted]))
        thumbs = lab_thumbs(frames)
        return {
            "thumbs": thumbs.astype(np.float16).tobytes(),
            "appearance": appearance(frames, thumbs).astype(np.float32).tolist(),
        }


def thumbs_of(row: dict[str, Any]) -> np.ndarray:
    """The thumbnails of a row, float32 [MOMENTS, THUMB, THUMB, 3]."""
    return thumbs_from(np.frombuffer(row["thumbs"], np.uint8)).astype(np.float32)


def thumbs_from(content: np.ndarray) -> np.ndarray:
    """Bytes uint8 [..., bytes] of the column `thumbs` → float16 [..., MOMENTS, THUMB, THUMB, 3]."""
    return content.view(np.float16).reshape(*content.shape[:-1], MOMENTS, THUMB, THUMB, 3)


def lab_thumbs(frames: np.ndarray) -> np.ndarray:
    """float32 [T, THUMB, THUMB, 3]: Lab (L 0..100) of the frames' thumbnails."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    small = [cv2.resize(np.ascontiguousarray(f), (THUMB, THUMB), interpolation=cv2.INTER_AREA) for f in frames]
    return np.stack([cv2.cvtColor(s.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB) for s in small])


def appearance(frames: np.ndarray, thumbs: np.ndarray) -> np.ndarray:
    """Unit vector: mean colours on a 4 × 4 grid, and edge directions (9, weighted by slope) on another."""
    colours = thumbs.mean(axis=0).reshape(4, THUMB // 4, 4, THUMB // 4, 3).mean(axis=(1, 3)).ravel() / 100.0
    gray = frames.mean(axis=3).astype(np.float32)
    y, x = np.gradient(gray, axis=(1, 2))
    length, angle = np.hypot(x, y), np.arctan2(y, x) % np.pi
    bins = np.minimum((angle / np.pi * 9).astype(int), 8)
    rows = np.minimum(np.arange(gray.shape[1]) * 4 // gray.shape[1], 3)[None, :, None]
    columns = np.minimum(np.arange(gray.shape[2]) * 4 // gray.shape[2], 3)[None, None, :]
    place = (rows * 4 + columns) * 9 + bins
    edges = np.bincount(place.ravel(), weights=length.ravel(), minlength=144)
    parts = [part / max(float(np.linalg.norm(part)), 1e-6) for part in (colours, edges)]
    return np.concatenate(parts) / np.sqrt(2.0)
