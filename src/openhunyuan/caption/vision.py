"""The captioner behind an OpenAI-compatible endpoint: frames in, the structured caption as JSON out.

Any server that takes images in chat messages will do: vLLM, llama.cpp, a hosted one. The answer must be a JSON object
with the fields of `caption.schema.Caption`; one that is not is sent back once with the reason. The camera is not asked
for: language models are known to be wrong about it more often than not.
"""

from __future__ import annotations

import base64
import io
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, PrivateAttr

from openhunyuan.base.chat import ChatEndpoint, ChatError, is_refusal, json_object, without_thought
from openhunyuan.base.errors import UserError
from openhunyuan.caption.captioner import Captioned, Captioner, Declined, Item, TryLater
from openhunyuan.caption.schema import DESCRIPTIONS, Caption
from openhunyuan.curate.footage import Footage

INSTRUCTION = (
    "You write captions for training a text-to-video model. You are shown frames of one video clip in order. Describe "
    "only what can be seen; do not guess names, places or what happens outside of the frames. Answer with one JSON "
    "object and nothing else. Its keys: short (one sentence: subject and action), dense (three to five sentences: "
    "subjects, actions in order, setting), background, style, shot_type, lighting, atmosphere (a phrase each; an empty "
    "string where nothing can be said). Say nothing about camera movement. Plain English."
)
_AGAIN = "That was not in the form asked for: {}. Answer again with the JSON object alone."


class Endpoint(ChatEndpoint):
    """An address that serves the captioner."""

    who = "captioner"
    model_option = "--captioner-model"


class Vision(Captioner):
    """A model that sees, by its address. What the key of a caption is made of: the model's name, the frames, the text
    of the instruction; not the address, so that a model may move."""

    name: ClassVar[str] = "vision"
    version: ClassVar[int] = 1

    model: str = Field(description="The model's name at the address.")
    frames: int = Field(default=8, ge=1, le=64, description="Frames shown of a clip, evenly spread.")
    side: int = Field(default=448, ge=64, description="Longer side of a frame that is shown, in pixels.")
    instruction: str = INSTRUCTION

    _endpoint: Any = PrivateAttr(default=None)

    def at(self, endpoint: Endpoint) -> Vision:
        """This captioner, asking that endpoint."""
        self._endpoint = endpoint
        return self

    def caption(self, item: Item) -> Captioned:
        if self._endpoint is None:
            raise UserError("The captioner has no address.")
        pictures = [_picture(frame) for frame in spread_frames(item, self.frames, self.side)]
        seconds = item.clip.num_frames / item.clip.fps
        image = item.clip.kind == "image"
        text = "An image." if image else f"{len(pictures)} frames of a clip of {seconds:.1f} seconds."
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": self.instruction},
            {"role": "user", "content": [{"type": "text", "text": text}, *pictures]},
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

    def _ask(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self._endpoint.ask(messages)
        except ChatError as error:
            if error.refused:
                raise Declined(str(error)) from None
            raise TryLater(str(error)) from None


def read_caption(answer: str) -> Caption:
    """The caption in an answer. Raises Declined for a refusal, UserError for anything that is not in the form."""
    found = json_object(answer)
    if found is None:
        if is_refusal(answer):
            raise Declined(f"refused: {answer[:200]}")
        raise UserError("there is no complete JSON object in the answer")
    values = {name: value for name, value in found.items() if value is not None and name != "camera"}
    caption = Caption(**values)
    blank = [name for name in ("short", "dense") if not getattr(caption, name).strip()]
    if blank:
        raise UserError(f"{blank[0]} is empty")
    if is_refusal(caption.dense):
        raise Declined(f"refused: {caption.dense[:200]}")
    return caption.model_copy(update={name: getattr(caption, name).strip() for name in DESCRIPTIONS})


def spread_frames(item: Item, count: int, side: int) -> list[np.ndarray]:
    """Frames of the clip's file, evenly spread, each uint8 [h, w, 3]."""
    wanted = np.unique(np.linspace(0, item.clip.num_frames - 1, min(count, item.clip.num_frames)).round().astype(int))
    with Footage(item.path) as footage:
        found = [frame.rgb(side) for frame in footage.frames() if frame.number in set(wanted.tolist())]
    return found


def _picture(frame: np.ndarray) -> dict[str, Any]:
    """A frame as the API takes it: a JPEG in a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
