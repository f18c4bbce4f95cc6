"""A model that sees in a local folder, run by vLLM in this process, its answers held to the caption's form.

For many GPUs or many clips at a time, start `vllm serve FOLDER` and give its address instead.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Self

from openhunyuan.base.errors import UserError
from openhunyuan.base.require import require
from openhunyuan.caption.local import MAX_NEW_TOKENS, check_folder
from openhunyuan.caption.vision import ANSWER_SCHEMA, Message, served


class VLLMVision:
    """A vLLM engine. Answers greedily; one conversation at a time, because its calls are not made for threads."""

    def __init__(self, engine: Any, sampling: Any) -> None:
        self.engine, self.sampling = engine, sampling
        self._turn = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path | str, frames: int, seed: int = 0) -> Self:
        """Start an engine on a folder. `UserError` without vLLM, or for a folder it cannot run.

        frames: pictures of one conversation, at most.
        """
        path = check_folder(folder)
        vllm: Any = require("vllm", package="vllm")
        parameters: Any = require("vllm.sampling_params", package="vllm")
        if not hasattr(parameters, "StructuredOutputsParams"):
            raise UserError("This vLLM is older than 0.12; install a newer one with: pip install -U vllm.")
        try:
            engine = vllm.LLM(
                model=str(path), trust_remote_code=False, seed=seed, limit_mm_per_prompt={"image": frames}
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"vLLM cannot run the captioner folder {path}: {reason}") from None
        form = parameters.StructuredOutputsParams(json=ANSWER_SCHEMA)
        return cls(
            engine, vllm.SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS, seed=seed, structured_outputs=form)
        )

    def ask(self, messages: list[Message]) -> str:
        """The answer to a conversation. Raises `UserError` if it does not fit or does not end."""
        turns = [{**message, "content": served(message["content"])} for message in messages]
        try:
            with self._turn:
                (reply,) = self.engine.chat(turns, sampling_params=self.sampling, use_tqdm=False)
        except ValueError as error:
            raise UserError(f"vLLM did not take the frames: {' '.join(str(error).split())[:300]}") from None
        answer = reply.outputs[0]
        if answer.finish_reason == "length":
            raise UserError(f"The captioner's answer did not end within {MAX_NEW_TOKENS} tokens")
        return answer.text
