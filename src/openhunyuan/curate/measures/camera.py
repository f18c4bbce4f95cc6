"""What the camera does: one of the report's fourteen moves, second by second, with a calibrated confidence."""

from __future__ import annotations

from typing import Any, ClassVar

from openhunyuan.curate.camera.classifier import load_classifier, primitives_of, weights_hash
from openhunyuan.curate.camera.pieces import pieces, state_probabilities
from openhunyuan.curate.camera.primitives import PRIMITIVES
from openhunyuan.curate.camera.tracks import RATE, Tracker
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View


class Camera(Measure):
    """Lists over the clip's pieces: `first`, `last` (frames from the clip's start, the last exclusive), `move` (a name
    of `camera.primitives.MOVES`, or "none") and `confidence` (how often such a label is right, 0 to 1). `seconds`: a
    list of such labels for every second by itself, from which captions take those of their frames. `primitives`: the
    probability of each of `camera.primitives.PRIMITIVES`, mean over the clip.

    Columns: `still` and `shake`, the probabilities that the camera stands and that it is unsteady, mean over the clip.
    Null, and no pieces, where nothing in the picture can be followed.
    """

    name: ClassVar[str] = "camera"
    version: ClassVar[int] = 5
    needs_time: ClassVar[bool] = True
    columns: ClassVar = ("still", "shake")

    @property
    def weights(self) -> str | None:
        return weights_hash()

    def check(self) -> None:
        load_classifier()

    def begin(self, clip: ClipSpan) -> _Reader:
        return _Reader(clip)


class _Reader(Reader):
    def __init__(self, clip: ClipSpan) -> None:
        self.clip = clip
        self.step = max(1, round(clip.fps / RATE))
        self.tracker = Tracker()

    def wants(self, index: int) -> bool:
        return index % self.step == 0

    def add(self, view: View) -> None:
        if self.wants(view.index) and min(view.small.shape) >= 32:
            self.tracker.add(view.small)

    def finish(self) -> dict[str, Any]:
        classifier = load_classifier()
        seconds = self.step / self.clip.fps
        states = state_probabilities(self.tracker.tracks(seconds), classifier)
        if not states.any():
            lists = ("first", "last", "move", "confidence", "seconds", "primitives")
            return {**{name: [] for name in lists}, "still": None, "shake": None}
        found, every = (
            pieces(states, seconds, self.step, self.clip.num_frames, classifier, merge) for merge in (True, False)
        )
        primitives = [float(p) for p in primitives_of(states[states.any(axis=1)]).mean(axis=0)]
        return {
            "first": [piece.first for piece in found],
            "last": [piece.last for piece in found],
            "move": [piece.label for piece in found],
            "confidence": [piece.confidence for piece in found],
            "seconds": [
                {"first": piece.first, "last": piece.last, "move": piece.label, "confidence": piece.confidence}
                for piece in every
            ],
            "primitives": primitives,
            "still": primitives[PRIMITIVES.index("still")],
            "shake": primitives[PRIMITIVES.index("shake")],
        }
