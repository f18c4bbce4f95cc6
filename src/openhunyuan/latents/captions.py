"""Training texts assembled from structured captions when a batch is made: dropout, permutation, combination (§3.2).

Stored text states hold one wording. A sample that carries its caption (``metadata["caption"]``, as ``encode_clips``
writes it) gets another one at every epoch, a pure function of (seed, clip, epoch), encoded on the spot.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.caption.schema import Caption, assemble
from openhunyuan.latents.shards import LatentSample

if TYPE_CHECKING:
    from openhunyuan.models.text.encoder import TextFeatures

CAPTION = "caption"


class PromptEncoder(Protocol):
    """The text encoders as this room sees them."""

    def encode(self, prompts: list[str], data_type: str = "video") -> TextFeatures: ...


class CaptionAssembly:
    """Replaces the text of samples. The last ``remembered`` encoded texts are kept, since short ones come again."""

    def __init__(self, text: PromptEncoder, seed: int, remembered: int = 4096) -> None:
        self.text, self.seed, self.remembered = text, seed, remembered
        self._held: OrderedDict[tuple[str, str], tuple[Tensor, Tensor]] = OrderedDict()

    def prompt(self, sample: LatentSample, number: int, epoch: int) -> str:
        """The text of a sample in an epoch; the stored one where the sample carries no caption.

        number: ``ShardDataset.number``.

        Raises:
            UserError: the caption is not one; names the sample.
        """
        fields = sample.metadata.get(CAPTION)
        if not fields:
            return sample.prompt
        try:
            caption = Caption(**fields)
        except (UserError, TypeError) as error:
            name = sample.metadata.get("sample", number)
            raise UserError(f"The caption of sample {name} ({sample.prompt!r}) cannot be used: {error}") from None
        return assemble(caption, np.random.default_rng((self.seed, number, epoch)))

    def apply(self, samples: Sequence[LatentSample], keys: Sequence[tuple[int, int]]) -> list[LatentSample]:
        """The samples with the texts of their (number, epoch)."""
        wanted = []
        for sample, (number, epoch) in zip(samples, keys, strict=True):
            kind = "image" if sample.latents.shape[1] == 1 else "video"
            wanted.append((kind, self.prompt(sample, number, epoch)))
        encoded = self._encode(wanted)
        return [
            replace(sample, states=encoded[key][0], pooled=encoded[key][1], prompt=key[1])
            for sample, key in zip(samples, wanted, strict=True)
        ]

    def _encode(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        for kind in ("image", "video"):
            new = list(dict.fromkeys(text for k, text in wanted if k == kind and (k, text) not in self._held))
            if new:
                features = self.text.encode(new, data_type=kind)
                for row, text in enumerate(new):
                    self._held[kind, text] = features.states[row][features.mask[row]].cpu(), features.pooled[row].cpu()
        found = {}
        for key in wanted:
            self._held.move_to_end(key)
            found[key] = self._held[key]
        while len(self._held) > self.remembered:
            self._held.popitem(last=False)
        return found
