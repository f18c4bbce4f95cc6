"""Labels over time, from probabilities that are given."""

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.camera.classifier import WEIGHTS, Classifier, load_classifier, weights_hash
from openhunyuan.curate.camera.pieces import pieces
from openhunyuan.curate.camera.primitives import STATES

PLAIN = Classifier({"calibration": np.array([1.0, 0.0])})
"""Confidence is the probability."""


def certain(*names: str, share: float = 0.96) -> np.ndarray:
    rows = np.full((len(names), len(STATES)), (1 - share) / (len(STATES) - 1))
    for row, name in zip(rows, names, strict=True):
        row[STATES.index(frozenset({name}))] = share
    return rows


def test_equal_seconds_are_merged_and_pieces_cover_the_clip() -> None:
    states = certain(*["still"] * 6, *["yaw left"] * 6, *["still"] * 3)
    found = pieces(states, seconds=1 / 12, step=2, num_frames=125, classifier=PLAIN)
    assert [(piece.first, piece.last, piece.label) for piece in found] == [
        (0, 48, "static"),
        (48, 96, "tilt left"),
        (96, 125, "static"),
    ]
    assert all(0.95 < piece.confidence < 0.97 for piece in found)


def test_seconds_that_are_not_merged_have_a_confidence_of_their_own() -> None:
    states = np.concatenate([certain(*["still"] * 6), certain(*["still"] * 4, share=0.6)])
    found = pieces(states, seconds=1 / 12, step=2, num_frames=81, classifier=PLAIN, merge=False)
    assert [(piece.first, piece.last, piece.label) for piece in found] == [
        (0, 24, "static"),
        (24, 48, "static"),
        (48, 81, "static"),
    ]
    assert found[0].confidence > 0.95 and found[2].confidence < 0.7


def test_what_is_no_move_is_called_none_and_unseen_seconds_have_no_confidence() -> None:
    found = pieces(certain(*["roll left"] * 3), 1 / 12, 2, 24, PLAIN)
    assert [piece.label for piece in found] == ["none"]
    unseen = pieces(np.zeros((3, len(STATES))), 1 / 12, 2, 24, PLAIN)
    assert [(piece.label, piece.confidence < 0.01) for piece in unseen] == [("none", True)]
    assert pieces(np.zeros((0, len(STATES))), 1 / 12, 2, 24, PLAIN) == []


def test_the_weights_come_with_the_package_and_damaged_ones_are_refused(tmp_path) -> None:
    assert WEIGHTS.stat().st_size <= 3_000_000
    assert len(weights_hash()) == 64
    with pytest.raises(UserError, match="do not exist"):
        load_classifier(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load_classifier(tmp_path / "bad.safetensors")
