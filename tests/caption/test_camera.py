from __future__ import annotations

from typing import Any

import pytest

from openhunyuan.caption.camera import (
    CAMERA_MOVES,
    CAMERA_OF_PHRASE,
    camera_labels,
    camera_phrase,
    caption_of_frames,
    gate_of,
    gated_camera,
)
from openhunyuan.curate.clip import CameraEvidence, CameraLabel, ClipCaption


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


def label(first: int, last: int, move: str, confidence: float) -> CameraLabel:
    return CameraLabel(first=first, last=last, move=move, confidence=confidence)


def test_the_gate_weighs_labels_by_the_frames_they_cover() -> None:
    labels = [label(0, 30, "pan left", 1.0), label(30, 60, "static", 0.9)]
    assert gated_camera(labels, 0, 30) == "pan left"
    assert gated_camera(labels, 30, 60) == "static"
    assert gated_camera(labels, 30, 60, gate=0.91) is None
    assert gated_camera(labels, 0, 60) is None
    assert gated_camera(labels, 0, 60, gate=0.5) == "pan left"
    assert gated_camera(labels, 0, 33) == "pan left"
    assert gated_camera([], 0, 33, gate=0.0) is None


def test_labels_of_a_row_count_from_where_the_file_begins() -> None:
    row = {"first": [0, 20], "last": [20, 40], "move": ["zoom in", "none"], "confidence": [0.9, 0.7]}
    assert camera_labels(row, offset=5) == (label(-5, 15, "zoom in", 0.9),)
    assert camera_labels({}) == ()
    seconds = [dict(zip(row, values, strict=True)) for values in ((0, 4, "static", 0.5), (4, 40, "pan left", 0.98765))]
    assert camera_labels({**row, "seconds": seconds}, offset=5) == (label(-1, 35, "pan left", 0.9877),)


def said(camera: str | None, labels: list[CameraLabel] | None, gate: float = 0.9, **more: Any) -> ClipCaption:
    evidence = None if labels is None else CameraEvidence(labels=tuple(labels), gate=gate, measure="camera@1")
    return ClipCaption(captioner="x", text="a", fields={"short": "a", "camera": camera}, camera=evidence, **more)


def test_a_caption_of_frames_has_the_move_that_these_frames_have_by_its_own_gate() -> None:
    labels = [label(0, 72, "pan left", 0.97), label(72, 144, "static", 0.95)]
    whole = said(gated_camera(labels, 0, 144), labels)

    def camera(first: int, last: int, caption: ClipCaption = whole) -> object:
        return caption_of_frames(caption, 144, first, last).fields["camera"]

    assert (camera(0, 144), camera(0, 49), camera(80, 129)) == (None, "pan left", "static")
    assert camera(48, 97) is None  # half of it each
    assert camera(0, 74) == "pan left" and camera(0, 79) is None  # 0.944 and 0.884
    assert camera(0, 79, said(None, labels, gate=0.8)) == "pan left"
    assert camera(0, 1) is None  # a single frame shows no move
    assert caption_of_frames(whole, 144, 0, 144) is whole
    assert gate_of(whole) == "camera@1 at 0.9, version 1"


def test_a_label_without_evidence_is_for_what_it_was_said_of() -> None:
    own = said("zoom in", None)
    assert gate_of(own) is None
    assert caption_of_frames(own, 36, 0, 33) is own
    assert caption_of_frames(own, 40, 0, 33).fields == {"short": "a", "camera": None}
    assert caption_of_frames(said("zoom in", None, window=(10, 20)), 40, 10, 19).fields["camera"] == "zoom in"
    bare = ClipCaption(captioner="x", text="a")
    assert caption_of_frames(bare, 40, 0, 5) is bare
    still = said("static", None)
    assert caption_of_frames(still, 1, 0, 1) is still  # an image
