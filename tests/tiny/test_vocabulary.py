from __future__ import annotations

from itertools import combinations as pairs

import numpy as np

from openhunyuan.tiny.vocabulary import (
    BACKGROUND_COLORS,
    COLORS,
    MOTIONS,
    SHAPES,
    TONE_GAIN,
    TONE_OFFSET,
    combinations,
    is_heldout,
)


def test_heldout_is_one_fifth_and_holds_every_value() -> None:
    combos = combinations()
    assert len(combos) == len(SHAPES) * len(COLORS) * len(MOTIONS) - len(COLORS)
    held = [combo for combo in combos if is_heldout(*combo)]
    assert 0.15 < len(held) / len(combos) < 0.25
    for position, values in enumerate((SHAPES, tuple(COLORS), MOTIONS)):
        for split in (held, [combo for combo in combos if combo not in held]):
            assert {combo[position] for combo in split} == set(values)


def test_heldout_never_changes() -> None:
    # A changed hash would silently put trained combinations into the evaluation of a shipped model.
    # (SHA-256 of the words, computed apart from the code with coreutils: sha256sum, modulo 5.)
    assert {words: is_heldout(*words.split("/")) for words in KNOWN} == KNOWN


KNOWN = {
    "circle/red/left": False,
    "square/blue/still": False,
    "star/white/orbits": False,
    "cross/green/spins": False,
    "circle/red/grows": True,
    "square/white/grows": True,
    "triangle/red/left": True,
    "triangle/green/up": True,
}


def _tones(color: tuple[int, int, int]) -> list[np.ndarray]:
    base = np.array(color, float)
    return [np.clip(base + sign * (TONE_GAIN * base + TONE_OFFSET), 0, 255) for sign in (-1, 0, 1)]


def test_subject_colours_are_well_apart_and_brighter_than_any_background() -> None:
    for one, other in pairs(COLORS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) >= 60
    brightest = max(tone.max() for color in BACKGROUND_COLORS.values() for tone in _tones(color))
    assert min(max(color) for color in COLORS.values()) > brightest + 40
    for color in COLORS.values():
        for background in BACKGROUND_COLORS.values():
            assert min(np.linalg.norm(np.array(color) - tone) for tone in _tones(background)) > 90


def test_background_colours_stay_apart_at_all_tones() -> None:
    for one, other in pairs(BACKGROUND_COLORS.values(), 2):
        # Compared at the tones of one material, which moves both alike, and at their opposite extremes.
        for tone, counterpart in zip(_tones(one), _tones(other), strict=True):
            assert np.linalg.norm(tone - counterpart) > 40
        assert min(np.linalg.norm(a - b) for a in _tones(one) for b in _tones(other)) > 28
