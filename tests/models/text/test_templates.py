"""Prompt templates: the released ones by their SHA-256, our own from template.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.models.text import templates
from openhunyuan.models.text.templates import (
    RELEASED,
    PromptTemplate,
    TemplateSet,
    read_templates,
    released_template,
    released_templates,
    write_templates,
)


@pytest.mark.parametrize(
    ("name", "size", "crop_start"), [("dit-llm-encode-video", 512, 95), ("dit-llm-encode", 241, 36)]
)
def test_released_templates_are_the_release_byte_for_byte(name: str, size: int, crop_start: int) -> None:
    template = released_template(name)
    data = template.text.encode("utf-8")
    assert (len(data), template.crop_start, template.max_tokens) == (size, crop_start, 351)
    assert hashlib.sha256(data).hexdigest() == RELEASED[name].sha256


def test_released_video_template_is_what_diffusers_uses() -> None:
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    chosen = released_templates().for_type("video")
    assert chosen.text == DEFAULT_PROMPT_TEMPLATE["template"]
    assert chosen.crop_start == DEFAULT_PROMPT_TEMPLATE["crop_start"]


def test_a_changed_source_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "pipeline.py"
    other.write_text('DEFAULT_PROMPT_TEMPLATE = {"template": "Describe: {}", "crop_start": 95}\n')
    monkeypatch.setattr(templates, "_diffusers_file", lambda relative: other)
    for name in RELEASED:
        with pytest.raises(UserError, match="different"):
            released_template(name)


def test_without_diffusers_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install diffusers"):
        released_templates()


def test_braces_in_a_prompt_stay() -> None:
    assert PromptTemplate("[{}]", 1, 9).format("a {} b {0}") == "[a {} b {0}]"


@pytest.mark.parametrize(
    ("text", "crop_start", "max_tokens"), [("no place", 1, 9), ("{} {}", 1, 9), ("{}", -1, 9), ("{}", 9, 9)]
)
def test_impossible_templates_are_refused(text: str, crop_start: int, max_tokens: int) -> None:
    with pytest.raises(UserError):
        PromptTemplate(text, crop_start, max_tokens)


def test_template_file_round_trip(tmp_path: Path) -> None:
    video, image = PromptTemplate("v\n\n{}", 3, 20), PromptTemplate("i{}", 2, 20)
    assert read_templates(tmp_path) is None
    for templates_ in (TemplateSet.same(video), TemplateSet(video, image)):
        write_templates(tmp_path, templates_)
        assert read_templates(tmp_path) == templates_
    with pytest.raises(UserError, match="audio"):
        TemplateSet.same(video).for_type("audio")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"template": "{}", "crop_start": 1}',
        '{"template": "{}", "crop_start": "1", "max_tokens": 9}',
        '{"a": 1}',
    ],
)
def test_broken_template_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "template.json").write_text(content)
    with pytest.raises(UserError, match=r"template\.json"):
        read_templates(tmp_path)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="dit-llm-encode"):
        released_template("dit-llm-encode-audio")
    assert json.dumps(sorted(RELEASED)) == '["dit-llm-encode", "dit-llm-encode-video"]'
