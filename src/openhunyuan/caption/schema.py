"""The structured caption of a clip (seven descriptions, camera label, tags), and the one way from its parts to a text.

Training texts and rewritten prompts are written by the same function, `combine`; they differ in which parts they take
and in what order. A rewritten prompt is a text that training can draw, to the byte.

Source: report section 3.2. The report names the parts and the three operations — dropout, permutation, combination —
and states no probabilities; those below are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from pydantic import ValidationInfo, field_validator

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.caption.camera import CAMERA_MOVES, camera_phrase

DESCRIPTIONS: tuple[str, ...] = (
    "short",
    "dense",
    "background",
    "style",
    "shot_type",
    "lighting",
    "atmosphere",
)
"""The seven descriptive fields, in the order of the report."""

PROMPT_PARTS: tuple[str, ...] = ("dense", "background", "shot_type", "camera", "lighting", "style", "atmosphere")
"""The parts of a rewritten prompt, in its one order: without `short`, which repeats, and without tags."""

MAIN_ONLY_PROBABILITY = 0.25
"""How often a training text is the short or the dense description alone, the form in which users write prompts."""

KEEP_PROBABILITY = 0.5
"""How often each further part survives dropout when the text is a combination."""


class Caption(Record):
    """What is said about one clip.

    `short` and `dense` must not be empty; any other description may be. `camera` is one of `CAMERA_MOVES`, or None
    where no prediction was confident (only confident labels enter a caption). `tags` are words for where the
    clip comes from and how it was measured to look (`caption.tags`). Frozen; a wrong value or an unknown field raises
    `UserError`.
    """

    short: str
    dense: str
    background: str = ""
    style: str = ""
    shot_type: str = ""
    lighting: str = ""
    atmosphere: str = ""
    camera: str | None = None
    tags: tuple[str, ...] = ()

    @field_validator("short", "dense")
    @classmethod
    def _said(cls, value: str, info: ValidationInfo) -> str:
        if not value.strip():
            raise UserError(f"{info.field_name} is empty; a caption needs short and dense.")
        return value

    @field_validator("camera")
    @classmethod
    def _known_camera(cls, value: str | None) -> str | None:
        if value is not None and value not in CAMERA_MOVES:
            raise ValueError(f"{value!r} is not a camera move; choose one of {', '.join(CAMERA_MOVES)}.")
        return value


def part_text(caption: Caption, part: str) -> str:
    """The words of a part (a description, "camera" or "tags") with single blanks; empty where nothing is said."""
    if part == "camera":
        return camera_phrase(caption.camera) if caption.camera else ""
    return " ".join((", ".join(caption.tags) if part == "tags" else str(getattr(caption, part))).split())


def combine(caption: Caption, parts: Iterable[str]) -> str:
    """The parts in the order given, each a sentence: first letter upper case, an end mark where it has none. Parts that
    say nothing leave no trace."""
    sentences = []
    for part in parts:
        if text := part_text(caption, part):
            text = text[0].upper() + text[1:]
            sentences.append(text if re.search(r"[.!?][\"”']?$", text) else f"{text}.")
    return " ".join(sentences)


def assemble(caption: Caption, rng: np.random.Generator) -> str:
    """One training text from a caption, its length and order drawn from `rng`.

    The text always holds `short` or `dense` (with equal chance, or both), because without them it would not say what
    happens. With `MAIN_ONLY_PROBABILITY` it is that description alone, as it stands; otherwise every other non-empty
    part — descriptions, the camera clause, the tags — is kept with `KEEP_PROBABILITY`, the parts are permuted and
    combined. Never empty; the same generator state gives the same text.
    """
    main = ("short", "dense")[int(rng.integers(2))]
    if rng.random() < MAIN_ONLY_PROBABILITY:
        return str(getattr(caption, main)).strip()
    others = (
        "dense" if main == "short" else "short", "background", "style", "shot_type", "lighting", "atmosphere", "camera",
        "tags",
    )  # fmt: skip
    parts = [main, *(part for part in others if part_text(caption, part) and rng.random() < KEEP_PROBABILITY)]
    return combine(caption, [parts[i] for i in rng.permutation(len(parts))])
