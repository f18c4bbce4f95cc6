"""Prompt templates: the fixed text around a prompt when the language model reads it, and how many tokens of it to drop.

The released models read a prompt inside a system instruction (release fact D.2). Those instructions are not stored
here: they are read from an installed ``diffusers`` (Apache-2.0), without importing it, and used only if their SHA-256
is the one of the release. What it lacks is read from a file that the user names (the official ``constants.py``, say),
checked in the same way. The embedded model has its own short template in ``template.json`` beside its weights.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openhunyuan.base.errors import UserError

TEMPLATE_FILE = "template.json"
DATA_TYPES = ("video", "image")
STRINGS_VARIABLE = "OPENHUNYUAN_RELEASED_STRINGS"
"""Environment variable that names a file with released templates and negative prompts."""

_SYSTEM_OPEN = "<|start_header_id|>system<|end_header_id|>\n\n"
_USER_PART = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"


@dataclass(frozen=True)
class PromptTemplate:
    """The text around a prompt.

    Attributes:
        text: the template with exactly one ``{}`` where the prompt goes; no BOS, the tokenizer adds it.
        crop_start: number of leading tokens (BOS included) whose states are dropped after the language model.
        max_tokens: token budget of the whole templated prompt, BOS and template included.
    """

    text: str
    crop_start: int
    max_tokens: int

    def __post_init__(self) -> None:
        if self.text.count("{}") != 1:
            raise UserError(f"A prompt template must contain {{}} exactly once, this one has {self.text.count('{}')}.")
        if self.crop_start < 0:
            raise UserError(f"crop_start of a prompt template must be 0 or more, not {self.crop_start}.")
        if self.max_tokens <= self.crop_start:
            raise UserError(
                f"max_tokens of a prompt template must be larger than its crop_start {self.crop_start}, "
                f"not {self.max_tokens}."
            )

    @property
    def prefix(self) -> str:
        """What stands before the prompt."""
        return self.text.split("{}")[0]

    @property
    def suffix(self) -> str:
        """What stands after the prompt."""
        return self.text.split("{}")[1]

    def format(self, prompt: str) -> str:
        """The prompt inside the template; braces in the prompt stay as they are."""
        return self.prefix + prompt + self.suffix


@dataclass(frozen=True)
class TemplateSet:
    """One template per data type (release: 95 tokens are cropped for videos, 36 for images).

    Attributes:
        video, image: for text alone.
        image_to_video: for a picture and a text, where a language model sees pictures; None elsewhere.
        notes: what a user should know of this choice; stored in a video's record.
    """

    video: PromptTemplate
    image: PromptTemplate
    image_to_video: PromptTemplate | None = None
    notes: tuple[str, ...] = ()

    def for_type(self, data_type: str) -> PromptTemplate:
        if data_type not in DATA_TYPES:
            raise UserError(f"data_type must be one of {', '.join(DATA_TYPES)}, not {data_type!r}.")
        return self.video if data_type == "video" else self.image

    @classmethod
    def same(cls, template: PromptTemplate) -> TemplateSet:
        """The same template for both data types."""
        return cls(video=template, image=template)


@dataclass(frozen=True)
class _Released:
    """Where a released template can be read, and the facts that identify it (release fact D.2)."""

    module: str
    variable: str
    sha256: str
    crop_start: int
    max_tokens: int
    instruction_only: bool = False  # the source has the same instruction, but around it another model's special tokens


# One budget for both text data types: 256 prompt tokens after the crop of the video template (release fact D.1).
RELEASED_MAX_TOKENS = 256 + 95
RELEASED = {
    "dit-llm-encode-video": _Released(
        module="pipelines/hunyuan_video/pipeline_hunyuan_video.py",
        variable="DEFAULT_PROMPT_TEMPLATE",
        sha256="a52f68dde3637b127592fffe9e2483a5d0563987a49db6ddb9b06146f2ba7cb5",
        crop_start=95,
        max_tokens=RELEASED_MAX_TOKENS,
    ),
    "dit-llm-encode": _Released(
        module="modular_pipelines/qwenimage/prompt_templates.py",
        variable="QWENIMAGE_PROMPT_TEMPLATE",
        sha256="e6794c248e31c8efee73f33028bbb095324ec79e0b05dfae78b373b0abd4fb98",
        crop_start=36,
        max_tokens=RELEASED_MAX_TOKENS,
        instruction_only=True,
    ),
    "dit-llm-encode-video-i2v": _Released(
        module="pipelines/hunyuan_video/pipeline_hunyuan_video_image2video.py",
        variable="DEFAULT_PROMPT_TEMPLATE",
        sha256="7f45a330cc8fa70b613010c4fb6b4315a991c39eef7a405df46cb2591a547a21",
        crop_start=103,
        max_tokens=256 + 103,
    ),
}
NEGATIVE_PROMPTS = {
    "text-to-video": "3ffecf480d92c0bdb1a7f97e752a825405a499e3d7de97d50da0a7c65c0e887b",
    "image-to-video": "48fba20107d6a61247cab197a4d7bf61f5ea7af6e49f831fbf2d6df350fdce6e",
}
"""SHA-256 of the released default negative prompts (release fact D.5)."""

_NO_IMAGE_TEMPLATE = (
    "The released image template was not found (in diffusers, or in a file named for it): the video template serves."
)


def released_templates(strings: Path | str | None = None) -> TemplateSet:
    """The templates of the released models.

    Args:
        strings: a file that holds those which ``diffusers`` lacks; None asks the environment variable
            OPENHUNYUAN_RELEASED_STRINGS.

    Without the image template the video template takes its place, and the set's notes say so. Raises ``UserError``
    where the video template is nowhere, or the file holds nothing released.
    """
    video = released_template("dit-llm-encode-video", strings)
    notes: tuple[str, ...] = ()
    try:
        image = released_template("dit-llm-encode", strings)
    except UserError:
        image, notes = video, (_NO_IMAGE_TEMPLATE,)
    try:
        image_to_video = released_template("dit-llm-encode-video-i2v", strings)
    except UserError:
        image_to_video = None
    return TemplateSet(video=video, image=image, image_to_video=image_to_video, notes=notes)


def released_template(name: str, strings: Path | str | None = None) -> PromptTemplate:
    """One released template by its release name, from ``diffusers`` or the named file (see ``released_templates``)."""
    if name not in RELEASED:
        raise UserError(f"Unknown released template {name!r}; known are {', '.join(RELEASED)}.")
    facts = RELEASED[name]
    text = released_strings(strings).get(facts.sha256)
    if text is None:
        value = _read_assignment(_diffusers_file(facts.module), facts.variable)
        text = value.get("template") if isinstance(value, dict) else value
        if isinstance(text, str) and facts.instruction_only:
            text = _SYSTEM_OPEN + _system_instruction(text) + _USER_PART
    if not isinstance(text, str) or _sha256(text) != facts.sha256:
        raise UserError(
            f"The installed diffusers holds a different {name} prompt template than the release; install diffusers "
            f"0.42.1, name a file that holds it in {STRINGS_VARIABLE}, or give the template as {TEMPLATE_FILE} in the "
            "text encoder folder."
        )
    return PromptTemplate(text=text, crop_start=facts.crop_start, max_tokens=facts.max_tokens)


def released_negative_prompt(kind: str, strings: Path | str | None = None) -> str | None:
    """The released default negative prompt of "text-to-video" or "image-to-video", None if no named file holds it."""
    return released_strings(strings).get(NEGATIVE_PROMPTS[kind])


def released_strings(path: Path | str | None = None) -> dict[str, str]:
    """The released strings that a file holds, by their SHA-256; nothing of a Python file is run.

    Args:
        path: Python source (its string literals), JSON (its strings) or plain text (the whole, and each line); None
            takes the file that OPENHUNYUAN_RELEASED_STRINGS names, if any.

    Raises:
        UserError: an unreadable file, or one that holds nothing released.
    """
    path = os.environ.get(STRINGS_VARIABLE) or None if path is None else path
    if path is None:
        return {}
    known = {facts.sha256 for facts in RELEASED.values()} | set(NEGATIVE_PROMPTS.values())
    found = {digest: text for text in _strings(Path(path)) if (digest := _sha256(text)) in known}
    if not found:
        raise UserError(
            f"{path} holds none of the released prompt templates and negative prompts (their SHA-256 do not match); "
            "name the official constants.py, unchanged."
        )
    return found


def _strings(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
        elif path.suffix == ".json":
            yield from _json_strings(json.loads(text))
        else:
            yield from (text, text.strip(), *text.splitlines())
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"The file {path} of released strings cannot be read ({error}).") from None


def _json_strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _json_strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _json_strings(item)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_templates(folder: Path) -> TemplateSet | None:
    """The templates of ``folder/template.json``, or None when the folder has no such file.

    The file is ``{"template", "crop_start", "max_tokens"}`` and optionally ``"image"`` and ``"image_to_video"`` with
    the same three keys; without ``image`` images use the same template as videos.
    """
    path = Path(folder) / TEMPLATE_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a JSON object with template, crop_start and max_tokens.")
    image, image_to_video = data.pop("image", None), data.pop("image_to_video", None)
    video = _from_json(data, path)
    return TemplateSet(
        video=video,
        image=video if image is None else _from_json(image, path),
        image_to_video=None if image_to_video is None else _from_json(image_to_video, path),
    )


def write_templates(folder: Path, templates: TemplateSet) -> None:
    """Write ``folder/template.json`` in the form that ``read_templates`` reads."""
    data: dict[str, object] = _to_json(templates.video)
    if templates.image != templates.video:
        data["image"] = _to_json(templates.image)
    if templates.image_to_video is not None:
        data["image_to_video"] = _to_json(templates.image_to_video)
    (Path(folder) / TEMPLATE_FILE).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_json(template: PromptTemplate) -> dict[str, object]:
    return {"template": template.text, "crop_start": template.crop_start, "max_tokens": template.max_tokens}


def _from_json(data: object, path: Path) -> PromptTemplate:
    keys = {"template": str, "crop_start": int, "max_tokens": int}
    if not isinstance(data, dict) or set(data) != set(keys):
        raise UserError(
            f"{path} must hold exactly the keys {', '.join(keys)} (and optionally image and image_to_video, each "
            "with the same keys)."
        )
    for key, kind in keys.items():
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            raise UserError(f"{key} in {path} must be of type {kind.__name__}, not {data[key]!r}.")
    return PromptTemplate(text=data["template"], crop_start=data["crop_start"], max_tokens=data["max_tokens"])


def _diffusers_file(relative: str) -> Path:
    """A source file of the installed diffusers; found, not imported: the import takes seconds and needs extras."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        raise UserError(
            "The released prompt templates are read from the package diffusers; install it with: pip install diffusers "
            f"(or put a {TEMPLATE_FILE} into the text encoder folder)."
        )
    path = Path(spec.origin).parent / relative
    if not path.is_file():
        raise UserError(f"The installed diffusers has no {relative}; install diffusers 0.42.1.")
    return path


def _read_assignment(path: Path, variable: str) -> object:
    """The literal value that ``variable`` is given at the top level of a Python file, or None."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == variable for t in node.targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                return None
    return None


def _system_instruction(text: str) -> str:
    """The instruction line of a chat template written with ``<|im_start|>`` markers ("" when there is none)."""
    opening = "<|im_start|>system\n"
    if not text.startswith(opening):
        return ""
    return text[len(opening) :].split("<|im_end|>")[0]
