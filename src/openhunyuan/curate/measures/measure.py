"""The contract of a measure: a stage that looks at the frames of one clip and gives one row of numbers.

All measures of a clip share one decode. The runner (`curate.analyse`) decodes the clip's source once and shows every
measure the same `View` of each frame that is looked at, so that a picture is reduced or made grey once for all.

Which frames are looked at is the same for all: about `SAMPLE_FPS` a second over the whole clip (`view.sample`), and
every frame of the clip's beginning (`view.head`), where a clear start is looked for.

Where frames come at uneven times, a clip is looked at as it is on screen, at its average rate: a frame that stays
counts again and again, and one that is hardly there may not count at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.require import require
from openhunyuan.curate.footage import READING, Frame
from openhunyuan.curate.measures.lasting import signed_slopes
from openhunyuan.curate.stage import Stage

SAMPLE_FPS = 6.0
"""Frames a second that measures look at."""

SIDE = 640
"""Longer side of the reduced picture that measures look at; smaller pictures are looked at as they are."""

FLOW_SIDE = 320
CLOCK, ON_SCREEN = "clock", "screen"
"""Column of the rows of clips whose frames come at uneven times, and what stands there: they were looked at as they are
on screen. Rows with another word, or without one, were not."""

HEAD_SHARE, HEAD_FRAMES = 0.1, 24
"""The beginning of a clip: this share of it, and at most so many frames."""


@dataclass(frozen=True)
class ClipSpan:
    """The clip that a measure looks at: its place in the source, and its frames a second.

    shown: where the source's frames come at uneven times, `fps` is the clip's average, and this is for each of as many
    frames at that rate the number of the source's frame that is on screen, counted from the clip's first (`uneven`);
    empty: they are the same. A row of such a clip says so (`CLOCK`).
    """

    id: str
    start: int
    end: int
    fps: float
    shown: tuple[int, ...] = ()

    @classmethod
    def uneven(cls, id: str, start: int, end: int, seconds: np.ndarray) -> ClipSpan:
        """seconds: of each frame, and of the last one's end."""
        fps = (end - start) / max(float(seconds[-1] - seconds[0]), 1e-3)
        moments = seconds[0] + np.arange(end - start) / fps
        shown = np.searchsorted(seconds[:-1], moments + 1e-9, side="right") - 1
        return cls(id, start, end, fps, tuple(shown.tolist()))

    def indices(self, number: int) -> range:
        """The clip's frames in which the source's frame with this number is on screen."""
        place = number - self.start
        return (
            range(bisect_left(self.shown, place), bisect_right(self.shown, place))
            if self.shown
            else range(place, place + 1)
        )

    @property
    def num_frames(self) -> int:
        return self.end - self.start

    @property
    def step(self) -> int:
        """Frames from one sample to the next."""
        return max(1, round(self.fps / SAMPLE_FPS))

    @property
    def head(self) -> int:
        """Frames that count as the clip's beginning."""
        return max(1, min(HEAD_FRAMES, int(HEAD_SHARE * self.num_frames)))

    def wants(self, index: int) -> bool:
        """Whether the frame with this number in the clip is looked at."""
        return index % self.step == 0 or index < self.head


class View:
    """One frame of a clip, reduced once for all measures. `index` counts from the clip's first frame, `place` the
    source's frames from there."""

    def __init__(self, frame: Frame, clip: ClipSpan, index: int | None = None) -> None:
        self.frame = frame
        self.place = frame.number - clip.start
        self.index = self.place if index is None else index
        self.clip = clip
        self.sample = self.index % clip.step == 0
        self.head = self.index < clip.head

    def since(self, before: int) -> float:
        """Seconds from the clip's frame with this number to this one."""
        return (self.index - before) / self.clip.fps

    @cached_property
    def rgb(self) -> np.ndarray:
        """uint8 [h, w, 3], the longer side at most `SIDE`."""
        return self.frame.rgb(SIDE)

    @cached_property
    def gray(self) -> np.ndarray:
        """uint8 [h, w], the size of `rgb`."""
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        return cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY)

    @cached_property
    def slopes(self) -> np.ndarray:
        """int16 [4, h, w]: `lasting.signed_slopes` of `gray`."""
        return signed_slopes(self.gray)

    @cached_property
    def small(self) -> np.ndarray:
        """uint8 [h, w], grey, the longer side at most `FLOW_SIDE`: what flow is computed on."""
        return reduced(self.gray, FLOW_SIDE)

    @cached_property
    def native_gray(self) -> np.ndarray:
        """uint8 [H, W], grey at the source's own size; costly, and only for measures that are defined on it."""
        return self.frame.opencv_gray()


class Reader(ABC):
    """What a measure remembers while a clip's frames pass by. Memory must not grow with the picture times the time."""

    def wants(self, index: int) -> bool:
        """Whether the measure needs a frame that is neither a sample nor of the head; for a rhythm of its own."""
        return False

    @abstractmethod
    def add(self, view: View) -> None:
        """Look at one frame; frames come in order, and also those that only other measures wanted."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """The row: names to numbers, texts, lists of numbers or bytes."""


class Measure(Stage):
    """Base of all measures."""

    needs_motion_vectors: ClassVar[bool] = False
    needs_time: ClassVar[bool] = False
    """Whether it says nothing about a still picture, and images go without it."""

    columns: ClassVar[Sequence[str]] = ()
    """Names of the numbers that thresholds can be put on; a threshold calls one `<measure>.<column>`."""

    group: ClassVar[str] = "other"
    """Where figure 4 of the report counts what its scores leave out: one of `decide.GROUPS`."""

    proxy: ClassVar[str] = ""
    """What the numbers stand in for without being it; empty where they are what they are called."""

    @property
    def reads_motion_vectors(self) -> bool:
        """Whether the decoder is to hand over the codec's motion vectors."""
        return self.needs_motion_vectors

    def describe(self) -> dict[str, Any]:
        sampling = [SAMPLE_FPS, SIDE, FLOW_SIDE, HEAD_SHARE, HEAD_FRAMES, READING]
        return {**super().describe(), "sampling": sampling}

    @abstractmethod
    def begin(self, clip: ClipSpan) -> Reader:
        """A reader for one clip."""


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture with its longer side at most `side`, by area average."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    width, height = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
