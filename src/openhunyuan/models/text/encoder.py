"""Prompt to text features: the language model's states for the tokens, CLIP's pooled vector for the modulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.models.text.clip import CLIPEncoder
from openhunyuan.models.text.llm import SKIP_LAYERS, LLMEncoder
from openhunyuan.models.text.templates import PromptTemplate, TemplateSet, read_templates, released_templates

_log = get_logger("text")


@dataclass(frozen=True)
class TextFeatures:
    """What the transformer reads of a batch of prompts.

    Attributes:
        states: [B, S, D] language-model states, zero at padding.
        mask: [B, S] bool, True at the prompt's tokens, padding on the right.
        pooled: [B, P] CLIP vector.
        truncated: per prompt, the words the language model did not see ("" when it saw all).
        truncated_pooled: per prompt, the words the CLIP tower did not see.
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor
    truncated: list[str]
    truncated_pooled: list[str]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextFeatures:
        """The same features on another device, floating tensors in ``dtype``."""
        return TextFeatures(
            states=self.states.to(device=device, dtype=dtype),
            mask=self.mask.to(device),
            pooled=self.pooled.to(device=device, dtype=dtype),
            truncated=self.truncated,
            truncated_pooled=self.truncated_pooled,
        )


class TextEncoder:
    """Both text models behind one call."""

    def __init__(self, llm: LLMEncoder, clip: CLIPEncoder, templates: TemplateSet) -> None:
        self.llm = llm
        self.clip = clip
        self.templates = templates
        for template in {templates.video, templates.image}:
            llm.check_template(template)

    @classmethod
    def from_folder(
        cls,
        llm_dir: Path | str,
        clip_dir: Path | str,
        template: TemplateSet | PromptTemplate | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        skip: int = SKIP_LAYERS,
    ) -> TextEncoder:
        """Load both models from Hugging Face folders.

        Args:
            llm_dir: folder of the decoder-only language model with its tokenizer (or beside it in ``tokenizer``).
            clip_dir: folder of the CLIP text model with its tokenizer (or beside it in ``tokenizer_2``).
            template: None takes ``template.json`` of ``llm_dir``, and without that file the released templates.
            skip: how many layers before its end the language model is read.
        """
        templates = TemplateSet.same(template) if isinstance(template, PromptTemplate) else template
        if templates is None:
            templates = read_templates(Path(llm_dir)) or released_templates()
        llm = LLMEncoder.from_folder(llm_dir, device=device, dtype=dtype, skip=skip)
        return cls(llm, CLIPEncoder.from_folder(clip_dir, device=device, dtype=dtype), templates)

    @property
    def states_width(self) -> int:
        """D of the states."""
        return self.llm.width

    @property
    def pooled_width(self) -> int:
        """P of the pooled vector."""
        return self.clip.width

    def encode(self, prompts: list[str], data_type: str = "video") -> TextFeatures:
        """Features of the prompts; "" is a valid prompt (it is what text dropout trains on).

        Blanks around a prompt are ignored: a leading line break would melt into the template's and shift the crop.
        Words that do not fit are logged and returned, never dropped in silence.
        """
        if not prompts:
            raise UserError("There is no prompt to encode; give at least one (it may be empty).")
        states = self.llm.encode(prompts, self.templates.for_type(data_type))
        pooled = self.clip.encode(prompts)
        for prompt, lost in zip(prompts, states.lost, strict=True):
            if lost:
                _log.warning("The prompt %r is too long, these last words are not read: %r", _short(prompt), lost)
        for prompt, lost in zip(prompts, pooled.lost, strict=True):
            if lost:
                _log.info("The pooled vector of the prompt %r does not see its last words: %r", _short(prompt), lost)
        return TextFeatures(
            states=states.states,
            mask=states.mask,
            pooled=pooled.pooled,
            truncated=states.lost,
            truncated_pooled=pooled.lost,
        )


def _short(prompt: str, length: int = 60) -> str:
    return prompt if len(prompt) <= length else prompt[: length - 1] + "…"
