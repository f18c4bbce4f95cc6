from __future__ import annotations

import pytest

from openhunyuan.caption.camera import (
    CAMERA_MOVES,
    CAMERA_OF_PHRASE,
    CameraLabel,
    camera_labels,
    camera_phrase,
    gated_camera,
)


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


def test_the_gate_weighs_labels_by_the_frames_they_cover() -> None:
    labels = [CameraLabel(0, 30, "pan left", 1.0), CameraLabel(30, 60, "static", 0.9)]
    assert gated_camera(labels, 0, 30) == "pan left"
    assert gated_camera(labels, 30, 60) == "static"
    assert gated_camera(labels, 30, 60, gate=0.91) is None
    assert gated_camera(labels, 0, 60) is None
    assert gated_camera(labels, 0, 60, gate=0.5) == "pan left"
    assert gated_camera(labels, 0, 33) == "pan left"
    assert gated_camera([], 0, 33, gate=0.0) is None


def test_labels_of_a_row_count_from_where_the_file_begins() -> None:
    row = {"first": [0, 20], "last": [20, 40], "move": ["zoom in", "none"], "confidence": [0.9, 0.7]}
    assert camera_labels(row, offset=5) == (CameraLabel(-5, 15, "zoom in", 0.9),)
    assert camera_labels({}) == ()
