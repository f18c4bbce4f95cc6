"""Both text models behind one call."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.text.templates import PromptTemplate, TemplateSet, read_templates

PROMPTS = ["a large red circle moves right", "a star", ""]


@pytest.fixture(scope="module")
def encoder(llm_dir: Path, clip_dir: Path) -> TextEncoder:
    return TextEncoder.from_folder(llm_dir, clip_dir)


def test_features_have_the_promised_shapes(encoder: TextEncoder) -> None:
    features = encoder.encode(PROMPTS)
    batch, length, width = features.states.shape
    assert (batch, width, features.pooled.shape) == (3, encoder.states_width, (3, encoder.pooled_width))
    assert features.mask.shape == (batch, length)
    assert features.mask.dtype == torch.bool
    assert features.mask[:, 0].all()
    assert (features.mask.int().diff(dim=1) <= 0).all()  # right padding
    assert features.truncated == features.truncated_pooled == ["", "", ""]
    assert not features.states.requires_grad
    moved = features.to("cpu", torch.bfloat16)
    assert (moved.states.dtype, moved.mask.dtype) == (torch.bfloat16, torch.bool)


def test_data_type_chooses_the_template(llm_dir: Path, clip_dir: Path, encoder: TextEncoder) -> None:
    own = read_templates(llm_dir)
    assert own is not None
    assert encoder.templates == own
    image = PromptTemplate("{}", 1, 60)
    both = TextEncoder.from_folder(llm_dir, clip_dir, TemplateSet(video=own.video, image=image))
    video_states, image_states = (both.encode(["a star"], kind).states for kind in ("video", "image"))
    torch.testing.assert_close(video_states, encoder.encode(["a star"]).states)
    assert video_states.shape[1] == image_states.shape[1] + 1  # the image template here has no end token
    with pytest.raises(UserError, match="audio"):
        both.encode(["a star"], "audio")


def test_a_cut_prompt_is_reported(encoder: TextEncoder, caplog: pytest.LogCaptureFixture) -> None:
    long = "a red circle " * 20 + "and a dog"
    with caplog.at_level(logging.WARNING, logger="openhunyuan"):
        features = encoder.encode(["a star", long])
    assert features.truncated[0] == ""
    assert features.truncated[1].endswith("and a dog")
    assert features.truncated_pooled[1].endswith("and a dog")
    assert "and a dog" in caplog.text


def test_no_prompt_and_a_foreign_template_are_refused(llm_dir: Path, clip_dir: Path, encoder: TextEncoder) -> None:
    with pytest.raises(UserError, match="at least one"):
        encoder.encode([])
    with pytest.raises(UserError, match="crop_start"):
        TextEncoder.from_folder(llm_dir, clip_dir, PromptTemplate("word word {}", 9, 60))
