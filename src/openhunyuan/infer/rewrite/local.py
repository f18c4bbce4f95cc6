"""A language model in a local folder, through ``transformers``: safetensors only, no code from the folder, no network.

Any causal language model that transformers knows opens, and the layout of the released rewriter (``hunyuan_large``).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

import torch

from openhunyuan.base.device import pick_device, pick_dtype
from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.infer.rewrite.hunyuan_large import is_hunyuan_large, load_hunyuan_large
from openhunyuan.infer.rewrite.instructions import Message
from openhunyuan.infer.rewrite.record import RewriteError
from openhunyuan.models.text.folder import check_model_folder, load_config, load_tokenizer, load_weights

WHAT = "rewriter"
MAX_NEW_TOKENS = 1024


class LocalModel:
    """A causal language model and its tokenizer, answering greedily: the same prompt, the same answer.

    Args:
        name: what a record calls it.
        model: a ``transformers`` causal language model.
        tokenizer: its tokenizer; a chat template is used where there is one.
        timeout: seconds for one whole answer.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, timeout: float = 60.0) -> None:
        self.name = name
        self.model, self.tokenizer, self.timeout = model, tokenizer, timeout

    @classmethod
    def from_folder(cls, folder: Path | str, device: Any = None, dtype: Any = None, timeout: float = 60.0) -> Self:
        """Load a Hugging Face folder. ``UserError`` unless it holds a causal language model in safetensors."""
        where = device if isinstance(device, torch.device) else pick_device(device)
        kind = pick_dtype(dtype, where)
        path = check_model_folder(Path(folder), WHAT)
        if is_hunyuan_large(read_json(path / "config.json")):
            model, tokenizer = load_hunyuan_large(path, kind)
        else:
            model, tokenizer = _load_causal(path, kind)
        return cls(path.resolve().name, model.to(where), tokenizer, timeout)

    @torch.inference_mode()
    def ask(self, messages: list[Message]) -> str:
        """The answer to a conversation. Raises ``RewriteError`` if it does not fit or does not end in time."""
        ids = torch.tensor([self._tokens(messages)], device=self.model.device)
        room = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        budget = min(MAX_NEW_TOKENS, room - ids.shape[1])
        if budget < 1:
            raise RewriteError(
                f"The rewriter reads {room} tokens, but the instructions and the prompt have {ids.shape[1]}; "
                "shorten the prompt."
            )
        start = time.monotonic()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=budget,
            max_time=self.timeout,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._pad(),
        )[0, ids.shape[1] :].tolist()
        if not out or out[-1] not in self._ends():
            if time.monotonic() - start >= self.timeout:
                raise RewriteError(f"The rewriter did not answer within {self.timeout:g} s.")
            raise RewriteError(f"The rewriter's answer did not end within {budget} tokens.")
        return self.tokenizer.decode(out, skip_special_tokens=True)

    def _tokens(self, messages: list[Message]) -> list[int]:
        if not self.tokenizer.chat_template:
            # A model without a format of its own gets the plainest one.
            lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
            return list(self.tokenizer("\n\n".join([*lines, "Assistant:"]))["input_ids"])
        try:
            return self._templated(messages)
        except RewriteError:
            # Some templates know no system role: the instruction then opens the first request.
            system, first, *rest = messages
            merged: Message = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
            return self._templated([merged, *rest])

    def _templated(self, messages: list[Message]) -> list[int]:
        from jinja2.exceptions import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError as error:
            raise RewriteError(f"The rewriter's chat template cannot be used ({error}).") from None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        ends = self._ends()
        return pad if pad is not None else (ends[0] if ends else 0)


def _load_causal(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    config = load_config(path, WHAT)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"The {WHAT} folder {path} holds a {config.model_type}, not a causal language model.")
    return load_weights(AutoModelForCausalLM, path, config, dtype, WHAT), load_tokenizer(path, "tokenizer", WHAT)
