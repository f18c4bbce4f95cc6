"""The pooled text vector: CLIP's text tower at its end-of-text token (report section 4.2, release fact D.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.folder import check_model_folder, load_config, load_tokenizer, load_weights
from openhunyuan.models.text.llm import lost_words

WHAT = "CLIP text model"


@dataclass(frozen=True)
class CLIPOutput:
    """What the CLIP text tower gives.

    Attributes:
        pooled: [B, P], the last layer's normed state at the end token, before any projection (``pooler_output``).
        lost: per prompt, the words at its end that did not fit ("" when nothing was cut).
    """

    pooled: Tensor
    lost: list[str]


class CLIPEncoder:
    """CLIP's text tower; the prompt goes in without a template."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        positions = int(model.config.max_position_embeddings)  # type: ignore[union-attr]
        self.max_tokens = min(positions, int(tokenizer.model_max_length))

    @classmethod
    def from_folder(
        cls, folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> CLIPEncoder:
        """Load from a Hugging Face folder of a CLIP text tower or a whole CLIP (safetensors)."""
        from transformers import CLIPTextModel

        path = check_model_folder(Path(folder), WHAT)
        config = load_config(path, WHAT)
        if config.model_type not in ("clip", "clip_text_model"):
            raise UserError(f"The model in {path} is of type {config.model_type}, not a CLIP text model.")
        config = getattr(config, "text_config", config)
        model = load_weights(CLIPTextModel, path, config, dtype, WHAT)
        return cls(model.to(device), load_tokenizer(path, "tokenizer_2", WHAT))

    @property
    def width(self) -> int:
        """Size of the pooled vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> CLIPOutput:
        """Pooled vectors of the prompts; the end token is kept when a prompt is cut."""
        texts = [prompt.strip() for prompt in prompts]
        rows, lost = [], []
        for text in texts:
            encoded = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True)
            rows.append(list(encoded["input_ids"]))
            lost.append(lost_words(text, max(end for _, end in encoded["offset_mapping"])))
        length = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        # Padding stands after the end token, which a causal tower cannot see: no mask is needed (release fact D.3).
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self.device)
        return CLIPOutput(pooled=self.model(input_ids=ids).pooler_output, lost=lost)
