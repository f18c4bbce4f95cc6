"""The table from primitives to moves."""

from openhunyuan.caption.camera import CAMERA_MOVES
from openhunyuan.curate.camera.classifier import PRIMITIVE_FLIPS
from openhunyuan.curate.camera.features import COMBINATIONS
from openhunyuan.curate.camera.primitives import COMPOUNDS, MOVES, NONE, PRIMITIVES, STATES, label_of, mirrored


def test_the_moves_are_those_that_captions_know_in_their_order() -> None:
    assert tuple(MOVES) == CAMERA_MOVES


def test_no_state_is_two_moves_and_compounds_are_none() -> None:
    named = [state for states in MOVES.values() for state in states]
    assert len(set(named)) == len(named)
    assert {label_of(state) for state in COMPOUNDS} == {NONE}
    assert label_of(frozenset({"roll left"})) == NONE
    assert label_of(frozenset({"dolly in"})) == "zoom in"
    assert label_of(frozenset({"yaw left", "truck left"})) == NONE
    assert len(set(STATES)) == len(STATES)
    assert set().union(*STATES) == set(PRIMITIVES)


def test_mirroring_twice_gives_the_state_again_and_every_state_stays_one() -> None:
    for state in STATES:
        for flip in "hvt":
            assert mirrored(state, flip) in STATES
            assert mirrored(mirrored(state, flip), flip) == state
    assert mirrored(frozenset({"yaw left"}), "h") == {"yaw right"}
    assert mirrored(frozenset({"zoom in"}), "h") == {"zoom in"}
    assert mirrored(frozenset({"zoom in"}), "t") == {"zoom out"}
    assert mirrored(frozenset({"roll left"}), "v") == {"roll right"}
    assert (PRIMITIVE_FLIPS[COMBINATIONS.index("")] == range(len(PRIMITIVES))).all()
