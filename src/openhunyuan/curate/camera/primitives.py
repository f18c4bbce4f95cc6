"""What a camera can do, and which of the report's fourteen camera moves that is.

The report (section 3.2) names its classes and does not define them. The one complete reading of them, taken here and in
`tiny.world`: *pan* is the camera moving sideways or up and down (truck, pedestal), *tilt* the camera turning (yaw,
pitch), *around* an arc about the subject, *zoom* a change of focal length or a dolly along the optical axis, which a
caption does not tell apart. Directions are the camera's: when it moves to the left, the picture goes to the right.

A clip is described by a set of primitives. `MOVES` is the table from sets to moves; a set that is not in it (a roll, a
diagonal, a dolly zoom) is none of the fourteen, and is called so rather than forced into one.
"""

from __future__ import annotations

import numpy as np

PRIMITIVES: tuple[str, ...] = (
    "zoom in",
    "zoom out",
    "dolly in",
    "dolly out",
    "truck left",
    "truck right",
    "pedestal up",
    "pedestal down",
    "yaw left",
    "yaw right",
    "pitch up",
    "pitch down",
    "roll left",
    "roll right",
    "arc left",
    "arc right",
    "still",
    "shake",
)
"""`zoom` is focal length alone. `arc` is a translation with the turn that keeps the subject where it is. `roll left`
turns the camera counter-clockwise about its axis. `shake` is unsteadiness that outweighs any steady movement."""

State = frozenset[str]
"""The primitives that hold at one time."""

NONE = "none"
"""The label of a state that is none of the fourteen moves."""

MOVES: dict[str, tuple[State, ...]] = {
    "zoom in": (frozenset({"zoom in"}), frozenset({"dolly in"}), frozenset({"zoom in", "dolly in"})),
    "zoom out": (frozenset({"zoom out"}), frozenset({"dolly out"}), frozenset({"zoom out", "dolly out"})),
    "pan up": (frozenset({"pedestal up"}),),
    "pan down": (frozenset({"pedestal down"}),),
    "pan left": (frozenset({"truck left"}),),
    "pan right": (frozenset({"truck right"}),),
    "tilt up": (frozenset({"pitch up"}),),
    "tilt down": (frozenset({"pitch down"}),),
    "tilt left": (frozenset({"yaw left"}),),
    "tilt right": (frozenset({"yaw right"}),),
    "around left": (frozenset({"arc left"}),),
    "around right": (frozenset({"arc right"}),),
    "static": (frozenset({"still"}),),
    "handheld": (frozenset({"shake"}),),
}
"""The report's moves, in its order, and the states that each stands for."""


def _compounds() -> tuple[State, ...]:
    """Pairs that are none of the moves: everything that turns with everything that moves or zooms, and diagonals."""
    axes = (
        ("zoom in", "zoom out"),
        ("dolly in", "dolly out"),
        ("truck left", "truck right"),
        ("pedestal up", "pedestal down"),
        ("yaw left", "yaw right"),
        ("pitch up", "pitch down"),
        ("roll left", "roll right"),
    )
    pairs = [
        frozenset({one, other})
        for i, first in enumerate(axes)
        for second in axes[i + 1 :]
        for one in first
        for other in second
    ]
    # A truck against the turn is an arc about some point, and is not asked about as a compound.
    arcs = {frozenset({"truck left", "yaw right"}), frozenset({"truck right", "yaw left"})}
    arcs |= {frozenset({"pedestal up", "pitch down"}), frozenset({"pedestal down", "pitch up"})}
    named = {state for states in MOVES.values() for state in states}
    return tuple(pair for pair in pairs if pair not in named | arcs)


COMPOUNDS: tuple[State, ...] = _compounds()
"""Pairs of primitives that are none of the moves."""

STATES: tuple[State, ...] = (
    *(frozenset({name}) for name in PRIMITIVES),
    *(state for states in MOVES.values() for state in states if len(state) > 1),
    *COMPOUNDS,
)
"""Every state that the classifier weighs against the others."""

LABELS: tuple[str, ...] = (*MOVES, NONE)

MEMBERS: np.ndarray = np.array([[name in state for name in PRIMITIVES] for state in STATES], np.float32)
"""float32 [states, primitives]: 1 where the primitive is in the state."""


def label_of(state: State) -> str:
    """The move that a state is, or "none"."""
    return next((move for move, states in MOVES.items() if state in states), NONE)


LABEL_OF_STATE: np.ndarray = np.array([LABELS.index(label_of(state)) for state in STATES])
"""int [states]: the number in `LABELS` of each state's label."""

_MIRRORED = {
    "h": {"left": "right", "right": "left"},
    "v": {"up": "down", "down": "up"},
    "t": {"left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "out": "in"},
}


def mirrored(state: State, how: str) -> State:
    """The state of a clip that is mirrored left to right ("h"), upside down ("v") or played backwards ("t").

    A roll turns round under each of them.
    """
    words = _MIRRORED[how]
    found = set()
    for name in state:
        kind, _, direction = name.partition(" ")
        turned = {"left": "right", "right": "left"}.get(direction, direction) if kind == "roll" else None
        found.add(f"{kind} {turned or words.get(direction, direction)}".strip())
    return frozenset(found)
