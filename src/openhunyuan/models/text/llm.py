"""The language model as a text encoder: a decoder-only model read at a middle layer (report 4.2, release D.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.folder import check_model_folder, load_config, load_tokenizer, load_weights
from openhunyuan.models.text.templates import PromptTemplate

WHAT = "language model"
SKIP_LAYERS = 2  # the release reads hidden_states[-(2 + 1)]


@dataclass(frozen=True)
class LLMOutput:
    """What the language model gives.

    Attributes:
        states: [B, S, D], zero at padding; S is the longest prompt of the batch after the crop.
        mask: [B, S] bool, True at the prompt's tokens; padding is on the right.
        lost: per prompt, the words at its end that the token budget cut off ("" when nothing was cut).
    """

    states: Tensor
    mask: Tensor
    lost: list[str]


class LLMEncoder:
    """A decoder-only language model, read ``skip`` layers before its end and without its final norm.

    With n layers, output is transformers' ``hidden_states[-(skip + 1)]``, i.e. what layer n - skip puts out. The
    layers after it, the final norm and the language-model head do not take part in that value and are not run; the
    layers and the head are not even loaded.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        skip: int = SKIP_LAYERS,
    ) -> LLMEncoder:
        """Load from a Hugging Face folder (causal LM or bare model, safetensors). Raises ``UserError`` if unusable."""
        from transformers import AutoModel

        path = check_model_folder(Path(folder), WHAT)
        config = load_config(path, WHAT)
        layers = getattr(config, "num_hidden_layers", 0)
        if skip < 0 or skip >= layers:
            raise UserError(
                f"The layers to skip must be 0 to {layers - 1} for the language model in {path}, not {skip}."
            )
        config.num_hidden_layers = layers - skip
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[: layers - skip]
        config.use_cache = False
        model = load_weights(AutoModel, path, config, dtype, WHAT)
        if not isinstance(getattr(model, "norm", None), nn.Module) or not hasattr(model, "layers"):
            raise UserError(f"The model in {path} is a {type(model).__name__}, not a decoder-only language model.")
        model.norm = nn.Identity()
        return cls(model.to(device), load_tokenizer(path, "tokenizer", WHAT))

    @property
    def width(self) -> int:
        """Size of one state."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def check_template(self, template: PromptTemplate) -> None:
        """Raise ``UserError`` unless ``crop_start`` is exactly the number of tokens before the prompt."""
        tokens = len(self.tokenizer(template.prefix)["input_ids"])
        if tokens != template.crop_start:
            raise UserError(
                f"The prompt template has {tokens} tokens before the prompt, but its crop_start is "
                f"{template.crop_start}; use the template and the tokenizer of one model."
            )

    @torch.no_grad()
    def encode(self, prompts: list[str], template: PromptTemplate) -> LLMOutput:
        """States of the prompts after the template: cropped at ``crop_start``, padded on the right to the longest."""
        rows, lost = [], []
        for prompt in prompts:
            ids, cut = self._tokens(prompt.strip(), template)
            rows.append(ids)
            lost.append(cut)
        length = max(len(ids) for ids in rows)
        pad = self.tokenizer.pad_token_id
        pad = 0 if pad is None else pad
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.device)
        # Padding on the right never reaches a valid position of a causal model; the mask is passed for models that
        # use it otherwise, and left out where there is nothing to mask (the faster attention path).
        attention_mask = None if bool(mask.all()) else mask
        states = self.model(input_ids=ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        states, mask = states[:, template.crop_start :], mask[:, template.crop_start :].bool()
        return LLMOutput(states=states * mask[..., None].to(states.dtype), mask=mask, lost=lost)

    def _tokens(self, prompt: str, template: PromptTemplate) -> tuple[list[int], str]:
        """Token ids of the templated prompt within the budget, and the words that did not fit."""
        encoded = self.tokenizer(
            template.format(prompt), truncation=True, max_length=template.max_tokens, return_offsets_mapping=True
        )
        ids: list[int] = list(encoded["input_ids"])
        kept = max(end for _, end in encoded["offset_mapping"]) - len(template.prefix)
        return ids, lost_words(prompt, kept)


def lost_words(text: str, kept: int) -> str:
    """The words of ``text`` that are not wholly inside its first ``kept`` characters."""
    rest = text[max(kept, 0) :].strip()
    if not rest:
        return ""
    start = max(kept, 0)
    while start > 0 and not text[start].isspace() and not text[start - 1].isspace():
        start -= 1
    return text[start:].strip()
