"""Which camera move a clip has from which frame to which: labels second by second, and equal neighbours merged."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from openhunyuan.curate.camera.classifier import Classifier, labels_of
from openhunyuan.curate.camera.features import Moves
from openhunyuan.curate.camera.primitives import LABELS, NONE, STATES
from openhunyuan.curate.camera.tracks import STEPS, Tracks

WINDOW = 2.0
"""Seconds that are judged together, as in training; windows follow each other at half of that."""

TOGETHER = 24
"""Windows whose segments are fitted at once: memory does not grow with the clip."""


@dataclass(frozen=True)
class Piece:
    """The frames [first, last) of a clip: their label (a move, or "none") and how often such a label is right."""

    first: int
    last: int
    label: str
    confidence: float


def state_probabilities(tracks: Tracks, classifier: Classifier) -> np.ndarray:
    """float [K, states] for every segment of the tracks, from all windows that it lies in; 0 where nothing could be
    followed. A segment listens most to the windows in whose middle it lies."""
    total, weights = np.zeros((len(tracks), len(STATES))), np.zeros((len(tracks), 1))
    size = max(1, round(WINDOW / (STEPS * tracks.seconds)))
    starts = sorted({*range(0, max(1, len(tracks) - size + 1), max(1, size // 2)), max(0, len(tracks) - size)})
    for block in (starts[i : i + TOGETHER] for i in range(0, len(starts), TOGETHER)):
        moves = Moves(tracks.part(block[0], block[-1] + size))
        for start in block:
            features = moves.features(start - block[0], start - block[0] + size)
            if features is None:
                continue
            places = np.arange(start, min(start + size, len(tracks)))
            weight = 1.0 - np.abs(places + 0.5 - start - len(places) / 2) / (len(places) / 2 + 0.5)
            total[places] += weight[:, None] * classifier.states(features[None])[0]
            weights[places] += weight[:, None]
    return total / np.maximum(weights, 1e-9)


def pieces(
    states: np.ndarray, seconds: float, step: int, num_frames: int, classifier: Classifier, merge: bool = True
) -> list[Piece]:
    """Pieces of a clip, without gaps, from the probabilities of its segments [K, states].

    seconds: from one frame that was looked at to the next. step: the clip's frames from one to the next. merge:
    neighbours of one label become one piece; else every second is a piece, the last one up to half a second longer.
    """
    if not len(states):
        return []
    labels = labels_of(states)
    second = max(1, round(1.0 / (STEPS * seconds)))
    bounds = list(range(0, max(1, len(states) - second // 2), second)) + [len(states)]
    found: list[tuple[int, int, int]] = []  # first segment, last segment, number of the label
    for first, last in pairwise(bounds):
        mean = labels[first:last].mean(axis=0)
        number = int(mean.argmax()) if mean.max() > 0 else LABELS.index(NONE)
        if merge and found and found[-1][2] == number:
            first = found.pop()[0]
        found.append((first, last, number))
    result = []
    for first, last, number in found:
        end = num_frames if last == len(states) else last * STEPS * step
        confidence = float(classifier.confidence(labels[first:last, number].mean()))
        result.append(Piece(first * STEPS * step, end, LABELS[number], confidence))
    return result
