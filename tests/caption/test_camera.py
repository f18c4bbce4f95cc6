from __future__ import annotations

import pytest

from openhunyuan.caption.camera import CAMERA_MOVES, CAMERA_OF_PHRASE, camera_phrase


def test_the_fourteen_classes_of_the_report() -> None:
    assert len(CAMERA_MOVES) == len(set(CAMERA_MOVES)) == 14
    kinds = [move.split()[0] for move in CAMERA_MOVES]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "zoom": 2,
        "pan": 4,
        "tilt": 4,
        "around": 2,
        "static": 1,
        "handheld": 1,
    }


def test_phrases_are_distinct_and_invertible() -> None:
    assert [CAMERA_OF_PHRASE[camera_phrase(move)] for move in CAMERA_MOVES] == list(CAMERA_MOVES)
    assert camera_phrase("pan left") == "the camera pans left"
    assert camera_phrase("around left") == "the camera circles to the left"
    with pytest.raises(KeyError):
        camera_phrase("dolly in")
