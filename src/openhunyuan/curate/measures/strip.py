"""A strip of small pictures of a clip, for the eyes of whoever reads the report."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View

PICTURES = 4
HEIGHT = 72


class Strip(Measure):
    """Bytes `jpeg`: PICTURES moments of the clip side by side, HEIGHT pixels high; of an image, the one."""

    name: ClassVar[str] = "strip"
    version: ClassVar[int] = 1
    bulky: ClassVar[tuple[str, ...]] = ("jpeg",)

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(clip)


class _Reader(Reader):
    def __init__(self, clip: ClipSpan) -> None:
        last = (clip.num_frames - 1) // clip.step
        places = np.round(np.linspace(0.08, 0.92, PICTURES) * last).astype(int)
        self.wanted = [int(place) * clip.step for place in places][: 1 if clip.num_frames == 1 else None]
        self.kept: dict[int, np.ndarray] = {}

    def add(self, view: View) -> None:
        if view.index in self.wanted and view.index not in self.kept:
            cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
            height, width = view.rgb.shape[:2]
            size = (max(1, round(width * HEIGHT / height)), HEIGHT)
            self.kept[view.index] = cv2.resize(view.rgb, size, interpolation=cv2.INTER_AREA)

    def finish(self) -> dict[str, Any]:
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        strip = np.hstack([self.kept[index] for index in self.wanted])
        done, jpeg = cv2.imencode(".jpg", strip[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
        assert done
        return {"jpeg": jpeg.tobytes()}
