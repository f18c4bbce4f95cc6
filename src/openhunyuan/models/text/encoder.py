"""Prompt to text features: the language model's states for the tokens, CLIP's pooled vector for the modulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.models.text.clip import CLIPEncoder
from openhunyuan.models.text.llava import ImageEncoder, is_llava
from openhunyuan.models.text.llm import SKIP_LAYERS, LLMEncoder
from openhunyuan.models.text.templates import PromptTemplate, TemplateSet, read_templates, released_templates

INT8 = "int8"
PRECISIONS = ("float32", "bfloat16", "float16", INT8)
"""How the text models' weights can be kept."""

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
        notes: what a user should know of how the prompts were read.
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor
    truncated: list[str]
    truncated_pooled: list[str]
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextFeatures:
        """The same features on another device, floating tensors in ``dtype``."""
        return replace(
            self,
            states=self.states.to(device=device, dtype=dtype),
            mask=self.mask.to(device),
            pooled=self.pooled.to(device=device, dtype=dtype),
        )


class TextEncoder:
    """Both text models behind one call.

    Attributes:
        llava: the folder of a LLaVA whose language model this is; its vision tower is read when a picture comes. None
            for a language model that sees no pictures.
    """

    def __init__(self, llm: LLMEncoder, clip: CLIPEncoder, templates: TemplateSet, llava: Path | None = None) -> None:
        self.llm = llm
        self.clip = clip
        self.templates = templates
        self.llava = llava
        for template in {templates.video, templates.image}:
            llm.check_template(template)
        if llava is not None and templates.image_to_video is not None:
            llm.check_template(templates.image_to_video)

    @classmethod
    def from_folder(
        cls,
        llm_dir: Path | str,
        clip_dir: Path | str,
        template: TemplateSet | PromptTemplate | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        skip: int = SKIP_LAYERS,
        precision: str | None = None,
        strings: Path | str | None = None,
    ) -> TextEncoder:
        """Load both models from Hugging Face folders.

        Args:
            llm_dir: folder of the decoder-only language model, or of a whole LLaVA, with its tokenizer (or beside it
                in ``tokenizer``).
            clip_dir: folder of the CLIP text model with its tokenizer (or beside it in ``tokenizer_2``).
            template: None takes ``template.json`` of ``llm_dir``, and without that file the released templates.
            device, dtype: where and in what is computed.
            skip: how many layers before its end the language model is read.
            precision: one of ``PRECISIONS`` instead of ``dtype``; int8 keeps the language model's linears in eight
                bits and computes in ``dtype``.
            strings: file of released strings, see ``templates.released_templates``.
        """
        if precision is not None and precision not in PRECISIONS:
            raise UserError(
                f"The text encoders' precision is '{precision}', but it must be in {', '.join(PRECISIONS)}."
            )
        if precision is not None and precision != INT8:
            dtype = getattr(torch, precision)
        templates = TemplateSet.same(template) if isinstance(template, PromptTemplate) else template
        if templates is None:
            templates = read_templates(Path(llm_dir)) or released_templates(strings)
        llm = LLMEncoder.from_folder(llm_dir, device=device, dtype=dtype, skip=skip, int8=precision == INT8)
        clip = CLIPEncoder.from_folder(clip_dir, device=device, dtype=dtype)
        return cls(llm, clip, templates, Path(llm_dir) if is_llava(llm_dir) else None)

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """LLaVA's vision tower and projector, on the language model's device."""
        if self.llava is None:
            raise UserError("This model's language model sees no pictures; give the folder of the whole LLaVA.")
        embeddings = self.llm.model.get_input_embeddings()  # type: ignore[operator]
        return ImageEncoder.from_folder(self.llava, self.llm.device, embeddings.weight.dtype)

    @property
    def sees_images(self) -> bool:
        """Whether ``encode`` can be given pictures."""
        return self.llava is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that are loaded."""
        models: list[nn.Module] = [self.llm.model, self.clip.model]
        if "image_encoder" in self.__dict__:
            models += [self.image_encoder.tower, self.image_encoder.projector]
        tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def states_width(self) -> int:
        """D of the states."""
        return self.llm.width

    @property
    def pooled_width(self) -> int:
        """P of the pooled vector."""
        return self.clip.width

    def encode(
        self,
        prompts: list[str],
        data_type: str = "video",
        images: Sequence[Image.Image] | None = None,
        subsample: int = 4,
    ) -> TextFeatures:
        """Features of the prompts; "" is a valid prompt (it is what text dropout trains on).

        Blanks around a prompt are ignored: a leading line break would melt into the template's and shift the crop.
        Words that do not fit are logged and returned, never dropped in silence.

        Args:
            prompts: texts.
            data_type: "video" or "image" (one frame); chooses the template.
            images: one RGB picture a prompt; the states then begin with the picture's. Only where ``sees_images``.
            subsample: keep every so many states of the picture (4 for token replace, 2 for latent concat).
        """
        if not prompts:
            raise UserError("There is no prompt to encode; give at least one (it may be empty).")
        if images is None:
            states = self.llm.encode(prompts, self.templates.for_type(data_type))
        else:
            template = self.templates.image_to_video
            if template is None:
                raise UserError(
                    "The released image-to-video template was not found; install diffusers 0.42.1 or name a file that "
                    "holds it in OPENHUNYUAN_RELEASED_STRINGS."
                )
            tokens = self.image_encoder.encode(images)
            states = self.llm.encode_with_images(prompts, template, tokens, self.image_encoder.image_token, subsample)
        pooled = self.clip.encode(prompts)
        for prompt, lost in zip(prompts, states.lost, strict=True):
            if lost:
                _log.warning(
                    "The prompt %r is too long, these last words are not read: %r", _short(prompt), _ends(lost)
                )
        for prompt, lost in zip(prompts, pooled.lost, strict=True):
            if lost:
                _log.info(
                    "The pooled vector of the prompt %r does not see its last words: %r", _short(prompt), _ends(lost)
                )
        return TextFeatures(
            states=states.states,
            mask=states.mask,
            pooled=pooled.pooled,
            truncated=states.lost,
            truncated_pooled=pooled.lost,
            notes=self.templates.notes if images is None and data_type == "image" else (),
        )


def _short(prompt: str, length: int = 60) -> str:
    return prompt if len(prompt) <= length else prompt[: length - 1] + "…"


def _ends(words: str, length: int = 100) -> str:
    """Beginning and end of many words, for a log; the whole is in the features."""
    return words if len(words) <= 2 * length else f"{words[:length]} … {words[-length:]}"
