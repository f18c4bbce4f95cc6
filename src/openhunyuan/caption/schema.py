"""The structured caption of a clip (seven descriptions, camera label, tags) and the assembly of training text from it.

Source: report section 3.2. The report names the parts and the three operations — dropout, permutation, combination —
and states no probabilities; those below are ours.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, field_validator

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

MAIN_ONLY_PROBABILITY = 0.25
"""How often a training text is the short or the dense description alone, the form in which users write prompts."""

KEEP_PROBABILITY = 0.5
"""How often each further part survives dropout when the text is a combination."""


class Caption(Record):
    """What is said about one clip.

    `short` and `dense` must not be empty; any other description may be. `camera` is one of `CAMERA_MOVES`, or None
    where no prediction was confident (only confident labels enter a caption). `tags` are free words from metadata:
    source, quality and others. Frozen; a wrong value or an unknown field raises `UserError`.
    """

    short: str = Field(min_length=1)
    dense: str = Field(min_length=1)
    background: str = ""
    style: str = ""
    shot_type: str = ""
    lighting: str = ""
    atmosphere: str = ""
    camera: str | None = None
    tags: tuple[str, ...] = ()

    @field_validator("camera")
    @classmethod
    def _known_camera(cls, value: str | None) -> str | None:
        if value is not None and value not in CAMERA_MOVES:
            raise ValueError(f"{value!r} is not a camera move; choose one of {', '.join(CAMERA_MOVES)}.")
        return value


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text[-1] in ".!?" else text + "."


def assemble(caption: Caption, rng: np.random.Generator) -> str:
    """One training text from a caption, its length and order drawn from `rng`.

    The text always holds `short` or `dense` (with equal chance, or both), because without them it would not say what
    happens. With `MAIN_ONLY_PROBABILITY` it is that description alone, unpunctuated as a prompt is; otherwise every
    other non-empty part — descriptions, the camera clause, the tags — is kept with `KEEP_PROBABILITY`, the parts are
    permuted, and each becomes a sentence. Never empty; the same generator state gives the same text.
    """
    main = (caption.short, caption.dense)[int(rng.integers(2))]
    if rng.random() < MAIN_ONLY_PROBABILITY:
        return main.strip()

    other = caption.dense if main == caption.short else caption.short
    candidates = [other, caption.background, caption.style, caption.shot_type, caption.lighting, caption.atmosphere]
    if caption.camera is not None:
        candidates.append(camera_phrase(caption.camera))
    if caption.tags:
        candidates.append(", ".join(caption.tags))

    kept = [part for part in candidates if part.strip() and rng.random() < KEEP_PROBABILITY]
    parts = [main, *kept]
    order = rng.permutation(len(parts))
    return " ".join(_sentence(parts[i]) for i in order)
