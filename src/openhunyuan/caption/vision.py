"""Captions by a model that sees: frames in, the structured caption as JSON out.

The model is behind an OpenAI-compatible address (vLLM, llama.cpp, a hosted one; here), or in a folder opened by
transformers (`caption.local`) or by vLLM (`caption.vllm`). The answer must be a JSON object with the fields of
`caption.schema.Caption`; one that is not is sent back once with the reason. The camera is not asked for: language
models are known to be wrong about it more often than not. Nor are tags, which are measured.
"""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import Field, PrivateAttr

from openhunyuan.base.chat import ChatEndpoint, ChatError, is_refusal, json_object, without_thought
from openhunyuan.base.errors import UserError
from openhunyuan.caption.captioner import Captioned, Captioner, Declined, Item, TryLater
from openhunyuan.caption.schema import DESCRIPTIONS, Caption
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.stills import open_footage

INSTRUCTION = (
    "You write captions for training a text-to-video model. You are shown frames of one video clip in order. Describe "
    "only what can be seen; do not guess names, places or what happens outside of the frames. Answer with one JSON "
    "object and nothing else. Its keys: short (one sentence: subject and action), dense (three to five sentences: "
    "subjects, actions in order, setting), background, style, shot_type, lighting, atmosphere (a phrase each; an empty "
    "string where nothing can be said). Say nothing about camera movement. Plain English."
)
_AGAIN = "That was not in the form asked for: {}. Answer again with the JSON object alone."

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in DESCRIPTIONS},
    "required": list(DESCRIPTIONS),
    "additionalProperties": False,
}
"""The form of an answer as a JSON schema, for servers that hold a model to one."""

Message = dict[str, Any]
"""A turn of a conversation: `role`, and `content`, a text or a list of texts and pictures (uint8 [h, w, 3])."""


class Seer(Protocol):
    """A model that answers conversations with pictures in them."""

    def ask(self, messages: list[Message]) -> str:
        """The answer. Raises ChatError for an address that gives none, UserError for a failure that is the clip's."""
        ...


class _Address(ChatEndpoint):
    who = "captioner"
    model_option = "--caption-model"


class Endpoint:
    """An address that serves the captioner. With `structured`, the server is asked to hold the model to the answer's
    form (`response_format` with a JSON schema, as vLLM and the hosted ones know it)."""

    def __init__(self, url: str, *args: Any, structured: bool = False, **options: Any) -> None:
        self.chat = _Address(url, *args, **options)
        self.structured = structured

    @property
    def model(self) -> str:
        """The model's name there."""
        return self.chat.model

    def ask(self, messages: list[Message]) -> str:
        fields = None
        if self.structured:
            schema = {"name": "caption", "strict": True, "schema": ANSWER_SCHEMA}
            fields = {"response_format": {"type": "json_schema", "json_schema": schema}}
        return self.chat.ask([{**message, "content": served(message["content"])} for message in messages], fields)


def served(content: str | list[Any]) -> str | list[dict[str, Any]]:
    """A turn's content as the API takes it: texts, and JPEGs in data URLs."""
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part} if isinstance(part, str) else _picture(part) for part in content]


class Vision(Captioner):
    """A model that sees. What the key of a caption is made of: the model's name, the frames, the windows, the text of
    the instruction, whether the form was enforced; not where it runs, so that a model may move."""

    name: ClassVar[str] = "vision"
    version: ClassVar[int] = 2

    model: str = Field(description="The model's name; for a folder with the hash of its weights.")
    frames: int = Field(default=8, ge=1, le=64, description="Frames shown of a clip or window, evenly spread.")
    side: int = Field(default=448, ge=64, description="Longer side of a frame that is shown, in pixels.")
    window: float | None = Field(default=None, gt=0, description="Seconds captioned at a time; None: the whole clip.")
    structured: bool = False
    instruction: str = INSTRUCTION

    _seer: Any = PrivateAttr(default=None)

    def at(self, seer: Seer) -> Vision:
        """This captioner, asking that model."""
        self._seer = seer
        return self

    def windows(self, clip: Clip) -> list[tuple[int, int]]:
        """Equal windows of about the wanted length; none for a clip that would be one."""
        if self.window is None:
            return []
        count = round(clip.num_frames / clip.fps / self.window)
        bounds = [round(i * clip.num_frames / count) for i in range(count + 1)] if count > 1 else []
        return list(pairwise(bounds))

    def caption(self, item: Item) -> Captioned:
        if self._seer is None:
            raise UserError("The captioner has no model to ask.")
        pictures = spread_frames(item, self.frames, self.side)
        first, last = item.span
        text = f"{len(pictures)} frames of a clip of {(last - first) / item.clip.fps:.1f} seconds."
        text = "An image." if item.clip.kind == "image" else text
        messages: list[Message] = [
            {"role": "system", "content": self.instruction},
            {"role": "user", "content": [text, *pictures]},
        ]
        complaint = ""
        for _ in range(2):
            answer = without_thought(self._ask(messages))
            try:
                caption = read_caption(answer)
            except UserError as error:
                complaint = str(error).rstrip(".")
                messages += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": _AGAIN.format(complaint)},
                ]
                continue
            return Captioned(caption=caption, text=caption.dense)
        raise UserError(f"The captioner's answer was twice not in the form asked for: {complaint}.")

    def _ask(self, messages: list[Message]) -> str:
        try:
            return self._seer.ask(messages)
        except ChatError as error:
            if error.refused:
                raise Declined(str(error)) from None
            if error.of_request:
                raise UserError(str(error)) from None
            raise TryLater(str(error)) from None


def read_caption(answer: str) -> Caption:
    """The caption in an answer. Raises Declined for a refusal, UserError for anything that is not in the form."""
    found = json_object(answer)
    if found is None:
        if is_refusal(answer):
            raise Declined(f"refused: {answer[:200]}")
        raise UserError("there is no complete JSON object in the answer")
    values = {name: value for name, value in found.items() if value is not None and name not in ("camera", "tags")}
    caption = Caption(**values)
    if is_refusal(caption.dense):
        raise Declined(f"refused: {caption.dense[:200]}")
    return caption.model_copy(update={name: getattr(caption, name).strip() for name in DESCRIPTIONS})


def spread_frames(item: Item, count: int, side: int) -> list[np.ndarray]:
    """Frames of the item's span of its file, evenly spread, each uint8 [h, w, 3].

    Raises:
        UserError: the file holds none of them.
    """
    first, last = item.span
    wanted = np.unique(np.linspace(first, last - 1, min(count, last - first)).round().astype(int)).tolist()
    found = []
    with open_footage(item.path) as footage:
        for frame in footage.frames():
            if frame.number in wanted:
                found.append(frame.rgb(side))
            if frame.number >= wanted[-1]:
                break
    if not found:
        raise UserError(f"{item.path} holds no frame from {first} to {last}; cut the clips again")
    return found


def _picture(frame: np.ndarray) -> dict[str, Any]:
    """A frame as the API takes it: a JPEG in a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
