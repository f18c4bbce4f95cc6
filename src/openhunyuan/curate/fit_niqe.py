"""The Gaussian of NIQE, fitted to the best clips of a data folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import SIDE
from openhunyuan.curate.measures.niqe import Gaussian, fit
from openhunyuan.curate.review import members
from openhunyuan.curate.run import read_clips
from openhunyuan.curate.stills import open_footage

Progress = Callable[[str, int, int], None]


def fit_to_clips(
    data: Path | str, name: str, frames: int = 4, on_progress: Progress | None = None
) -> tuple[Gaussian, int]:
    """(the Gaussian, squares it was fitted to) of so many frames of every clip of a set (`review.members`).

    Raises UserError for an unknown or an empty set, a file that is gone, or too few sharp squares.
    """
    data = Path(data)
    clips = members(data, read_clips(data), name)

    def pictures() -> Iterator[np.ndarray]:
        for number, clip in enumerate(clips):
            if on_progress:
                on_progress("looking at clips", number, len(clips))
            if clip.path is None or not (data / clip.path).is_file():
                raise UserError(f"The file of clip {clip.id} is not in {data}; run openhunyuan curate again.")
            yield from some_frames(data / clip.path, clip.file_frames or 1, frames)
        if on_progress:
            on_progress("looking at clips", len(clips), len(clips))

    return fit(pictures())


def some_frames(path: Path, count: int, wanted: int) -> Iterator[np.ndarray]:
    """Grey pictures, uint8 [h, w], of frames spread over a file of `count`, as measures look at them."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    numbers = {int((place + 0.5) * count / wanted) for place in range(wanted)}
    with open_footage(path) as footage:
        for frame in footage.frames():
            if frame.number in numbers:
                yield cv2.cvtColor(frame.rgb(SIDE), cv2.COLOR_RGB2GRAY)
