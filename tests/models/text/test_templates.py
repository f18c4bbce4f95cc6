"""Prompt templates: the released ones by their SHA-256, our own from template.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.models.text import templates
from openhunyuan.models.text.templates import (
    NEGATIVE_PROMPTS,
    RELEASED,
    PromptTemplate,
    TemplateSet,
    read_templates,
    released_negative_prompt,
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


def test_the_image_to_video_template_is_the_release_byte_for_byte() -> None:
    template = released_template("dit-llm-encode-video-i2v")
    assert (len(template.text.encode()), template.crop_start, template.max_tokens) == (602, 103, 359)
    assert released_templates().image_to_video == template
    assert released_templates().notes == ()


def _constants(folder: Path, *texts: str, name: str = "constants.py") -> Path:
    path = folder / name
    lines = ["import nothing_that_exists", *(f"NAME_{i} = ({text!r})" for i, text in enumerate(texts))]
    path.write_text("\n".join(lines))
    return path


def test_a_named_file_gives_what_diffusers_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python source is read, not run; JSON and plain text serve as well; the hash decides."""
    texts = [released_template(name).text for name in RELEASED]
    files = [_constants(tmp_path, *texts), tmp_path / "strings.json", tmp_path / "image.txt"]
    files[1].write_text(json.dumps({"a": {"b": texts}, "c": 1}))
    files[2].write_text(texts[1] + "\n")
    wanted = released_templates()
    monkeypatch.setattr(templates.importlib.util, "find_spec", lambda name: None)
    assert [released_templates(path) for path in files[:2]] == [wanted, wanted]
    assert released_template("dit-llm-encode", files[2]) == wanted.image
    monkeypatch.setenv(templates.STRINGS_VARIABLE, str(files[0]))
    assert released_templates() == wanted


def test_without_the_image_template_the_video_template_serves_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = _constants(tmp_path, released_template("dit-llm-encode-video").text)
    monkeypatch.setattr(templates.importlib.util, "find_spec", lambda name: None)
    found = released_templates(path)
    assert found.image == found.video
    assert found.image_to_video is None
    assert len(found.notes) == 1
    assert "video template serves" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("constants.py", "TEXT = 'Describe: {}'", "none of the released"),
        ("constants.py", "TEXT = (", "cannot be read"),
        ("strings.json", "{", "cannot be read"),
        ("none.py", None, "cannot be read"),
    ],
)
def test_a_named_file_without_released_strings_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        released_templates(tmp_path / name)


def test_negative_prompts_are_known_by_their_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert released_negative_prompt("text-to-video") is None
    monkeypatch.setitem(NEGATIVE_PROMPTS, "text-to-video", hashlib.sha256(b"bad hands").hexdigest())
    path = _constants(tmp_path, "bad hands")
    assert released_negative_prompt("text-to-video", path) == "bad hands"
    assert released_negative_prompt("image-to-video", path) is None
    assert all(len(digest) == 64 for digest in NEGATIVE_PROMPTS.values())


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
    for templates_ in (TemplateSet.same(video), TemplateSet(video, image), TemplateSet(video, video, image)):
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
    assert sorted(RELEASED) == ["dit-llm-encode", "dit-llm-encode-video", "dit-llm-encode-video-i2v"]
