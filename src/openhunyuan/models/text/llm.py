"""The language model as a text encoder: a decoder-only model read at a middle layer (report 4.2, release D.1, D.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.folder import (
    build,
    check_model_folder,
    fill,
    load_config,
    load_tokenizer,
    stored_weights,
)
from openhunyuan.models.text.templates import PromptTemplate

WHAT = "language model"
SKIP_LAYERS = 2  # the release reads hidden_states[-(2 + 1)]

_LANGUAGE_KEY = re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?((?:layers|embed_tokens|norm)\..+)")


def language_key(name: str) -> str | None:
    """A checkpoint's key as the bare decoder names it, None for keys of other parts.

    A decoder's weights are named ``layers...`` (a bare model), ``model.layers...`` (with a head), and inside LLaVA
    ``language_model.model.layers...`` (transformers 4) or ``model.language_model.layers...`` (transformers 5).
    """
    found = _LANGUAGE_KEY.fullmatch(name)
    return found[1] if found else None


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
        int8: bool = False,
    ) -> LLMEncoder:
        """Load from a Hugging Face folder: a bare model, one with a head, or the language part of a LLaVA.

        ``dtype`` is what is computed in; ``int8`` keeps the linears' weights in eight bits. Raises ``UserError`` if
        the folder is unusable.
        """
        from transformers import AutoModel

        path = check_model_folder(Path(folder), WHAT)
        config = load_config(path, WHAT)
        config = getattr(config, "text_config", config)
        layers = getattr(config, "num_hidden_layers", 0)
        if skip < 0 or skip >= layers:
            raise UserError(
                f"The layers to skip must be 0 to {layers - 1} for the language model in {path}, not {skip}."
            )
        config.num_hidden_layers = layers - skip
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[: layers - skip]
        config.use_cache = False
        model = build(lambda: AutoModel.from_config(config, attn_implementation="sdpa"))
        if not isinstance(getattr(model, "norm", None), nn.Module) or not hasattr(model, "layers"):
            raise UserError(f"The model in {path} is a {type(model).__name__}, not a decoder-only language model.")
        model.norm = nn.Identity()
        tensors = {key: tensor for name, tensor in stored_weights(path, WHAT).items() if (key := language_key(name))}
        fill(model, tensors, f"the {WHAT} in {path}", device, dtype, int8)
        return cls(model, load_tokenizer(path, "tokenizer", WHAT))

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
        for prompt in (prompt.strip() for prompt in prompts):
            ids, ends = self._tokens(prompt, template)
            rows.append(self._embed(ids[: template.max_tokens]))
            kept = ends[: template.max_tokens]
            lost.append(lost_words(prompt, max(kept) - len(template.prefix)))
        states, lengths = self._run(rows)
        return _padded([row[template.crop_start : end] for row, end in zip(states, lengths, strict=True)], lost)

    @torch.no_grad()
    def encode_with_images(
        self, prompts: list[str], template: PromptTemplate, images: Tensor, image_token: int, subsample: int
    ) -> LLMOutput:
        """States of an image and of the prompt after it, for each prompt: [image tokens, text tokens].

        Args:
            prompts: one text a sample.
            template: has one image token before the prompt and an assistant header after it.
            images: [B, N, D], what the vision tower and projector gave for each sample (N is 576 in the release).
            image_token: id of the token that stands for an image; it becomes N positions.
            subsample: keep every so many image states (4 for token replace, 2 for latent concat).

        The template's beginning, and the assistant header without its last line break, are cut away. A prompt that
        reaches into the header loses as many tokens at its own end, as in the release (release fact D.4).
        """
        header = len(self.tokenizer(template.suffix, add_special_tokens=False)["input_ids"]) - 1
        rows, spans, lost = [], [], []
        for prompt, image in zip((prompt.strip() for prompt in prompts), images, strict=True):
            ids, ends = self._tokens(prompt, template)
            if image_token not in ids[: template.crop_start]:
                raise UserError("The image-to-video template has no image token for this tokenizer; use LLaVA's own.")
            at = ids.index(image_token)
            # The end of the header: the template's last token follows it, if the budget reaches so far.
            end = min(len(ids) - 1, template.max_tokens)
            kept = ids[: template.max_tokens]
            rows.append(torch.cat([self._embed(kept[:at]), image.to(self._embed([0])), self._embed(kept[at + 1 :])]))
            spans.append((at, end - header, end))
            lost.append(lost_words(prompt, max(ends[: end - header]) - len(template.prefix)))
        states, lengths = self._run(rows)
        grown = images.shape[1] - 1
        parts = []
        for row, length, (at, stop, end) in zip(states, lengths, spans, strict=True):
            image = row[at : at + grown + 1][::subsample]
            text = row[template.crop_start + grown : max(stop, template.crop_start) + grown]
            parts.append(torch.cat([image, text, row[end + grown : length]]))
        return _padded(parts, lost)

    def _embed(self, ids: list[int]) -> Tensor:
        """Token ids → [S, D]."""
        return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))  # type: ignore[operator]

    def _run(self, rows: list[Tensor]) -> tuple[Tensor, list[int]]:
        """The model on embedded tokens of different lengths: states [B, longest, D], and each row's length."""
        lengths = [len(row) for row in rows]
        embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        # Padding on the right never reaches a valid position of a causal model; the mask is passed for models that
        # use it otherwise, and left out where there is nothing to mask (the faster attention path).
        mask = None
        if min(lengths) < max(lengths):
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(self.device)
        return self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state, lengths

    def _tokens(self, prompt: str, template: PromptTemplate) -> tuple[list[int], list[int]]:
        """Token ids of the whole templated prompt, and the character where each one ends."""
        # Not cut by the tokenizer: what a prompt loses depends on how long the whole would be.
        encoded = self.tokenizer(template.format(prompt), return_offsets_mapping=True, truncation=False, verbose=False)
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]


def _padded(rows: list[Tensor], lost: list[str]) -> LLMOutput:
    states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(states.shape[1]) < lengths[:, None]).to(states.device)
    return LLMOutput(states=states, mask=mask, lost=lost)


def lost_words(text: str, kept: int) -> str:
    """The words of ``text`` that are not wholly inside its first ``kept`` characters."""
    rest = text[max(kept, 0) :].strip()
    if not rest:
        return ""
    start = max(kept, 0)
    while start > 0 and not text[start].isspace() and not text[start - 1].isspace():
        start -= 1
    return text[start:].strip()
