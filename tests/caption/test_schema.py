from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from openhunyuan.base.errors import UserError
from openhunyuan.caption.schema import (
    DESCRIPTIONS,
    KEEP_PROBABILITY,
    MAIN_ONLY_PROBABILITY,
    PROMPT_PARTS,
    Caption,
    assemble,
    combine,
)
from openhunyuan.infer.rewrite.answer import read_answer

CAPTION = Caption(
    short="SHORT",
    dense="DENSE",
    background="BACKGROUND",
    style="STYLE",
    shot_type="SHOT",
    lighting="LIGHT",
    atmosphere="MOOD",
    camera="pan left",
    tags=("one", "two"),
)


def test_schema_is_strict_and_frozen() -> None:
    assert set(DESCRIPTIONS) < set(Caption.model_fields)
    with pytest.raises(UserError, match="camera move"):
        Caption(short="a", dense="b", camera="dolly")
    with pytest.raises(UserError, match="style"):
        Caption(short="a", dense="b", stile="flat")  # pyright: ignore[reportCallIssue]
    for blank in ("", " \n"):
        with pytest.raises(UserError, match="short is empty"):
            Caption(short=blank, dense="b")
    with pytest.raises(ValidationError):
        CAPTION.short = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert Caption.model_validate_json(CAPTION.model_dump_json()) == CAPTION


def test_assembly_is_deterministic_and_varied() -> None:
    texts = [assemble(CAPTION, np.random.default_rng(seed)) for seed in range(400)]
    assert texts == [assemble(CAPTION, np.random.default_rng(seed)) for seed in range(400)]
    assert len(set(texts)) > 200
    assert all("SHORT" in text or "DENSE" in text for text in texts)
    # Lengths vary from one part to nearly all, and the main description is not always first.
    sizes = {text.count(".") for text in texts}
    assert 0 in sizes and max(sizes) >= 7
    assert any(text.startswith("STYLE.") for text in texts)


def test_dropout_rates() -> None:
    rng = np.random.default_rng(0)
    texts = [assemble(CAPTION, rng) for _ in range(4000)]
    alone = sum(text in ("SHORT", "DENSE") for text in texts) / len(texts)
    assert abs(alone - MAIN_ONLY_PROBABILITY) < 0.03
    for part in ("STYLE", "LIGHT", "The camera pans left", "One, two"):
        rate = sum(part in text for text in texts) / len(texts)
        assert abs(rate - (1 - MAIN_ONLY_PROBABILITY) * KEEP_PROBABILITY) < 0.03, part


def test_empty_parts_leave_no_trace() -> None:
    bare = Caption(short="a red circle", dense="a red circle moves")
    for seed in range(50):
        text = assemble(bare, np.random.default_rng(seed))
        assert text and ".." not in text and "  " not in text and not text.startswith(".")


def test_a_rewritten_prompt_is_a_text_that_training_draws_to_the_byte() -> None:
    fields = {"short": "a fox", "dense": "a red fox  runs", "lighting": 'a sign says "OPEN."', "camera": "zoom in"}
    prompt = read_answer(json.dumps(fields), "a fox").text
    assert prompt == 'A red fox runs. The camera zooms in. A sign says "OPEN."'
    drawn = {assemble(Caption(**fields), np.random.default_rng(seed)) for seed in range(600)}
    assert prompt in drawn
    assert prompt == combine(Caption(**fields), PROMPT_PARTS)
