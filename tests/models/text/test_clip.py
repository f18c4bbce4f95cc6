"""The pooled CLIP vector, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModel

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.clip import CLIPEncoder
from openhunyuan.models.text.llm import lost_words

PROMPTS = ["a large red circle moves right", "a star", ""]


def test_pooled_is_the_pooler_output(clip_dir: Path) -> None:
    whole = CLIPTextModel.from_pretrained(str(clip_dir)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(clip_dir))
    # The release pads to the full length and passes a mask; neither may change the vector.
    inputs = tokenizer(PROMPTS, padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        wanted = whole(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    out = CLIPEncoder.from_folder(clip_dir).encode(PROMPTS)
    torch.testing.assert_close(out.pooled, wanted, atol=1e-5, rtol=1e-5)
    assert out.lost == ["", "", ""]
    assert (out.pooled[0] - out.pooled[1]).abs().max() > 1e-3


def test_the_text_tower_is_found_inside_a_whole_clip(clip_dir: Path, whole_clip_dir: Path) -> None:
    one, two = (CLIPEncoder.from_folder(folder).encode(PROMPTS).pooled for folder in (clip_dir, whole_clip_dir))
    torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_a_long_prompt_keeps_the_end_token_and_names_what_is_lost(clip_dir: Path) -> None:
    encoder = CLIPEncoder.from_folder(clip_dir)
    text = "a red circle " * 10 + "moves"
    ids = encoder.tokenizer(text, truncation=True, max_length=24)["input_ids"]
    assert (len(ids), ids[-1]) == (24, encoder.tokenizer.eos_token_id)
    kept = encoder.tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith(kept)
    assert encoder.encode([text]).lost == [lost_words(text, len(kept))]
    assert encoder.encode([text]).lost[0].endswith("circle moves")


def test_another_kind_of_model_is_refused(llm_dir: Path) -> None:
    with pytest.raises(UserError, match="not a CLIP text model"):
        CLIPEncoder.from_folder(llm_dir)
