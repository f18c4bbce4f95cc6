"""How numbers are rounded on the way to a video: as the released program does, or finer.

Two things are the same in both: the embedded guidance is rounded to bfloat16 (6.0 becomes 6016, which is what the
weights were made for), and the VAE works in its own official tiles, blended in place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

NumericsName = Literal["official", "ours"]


@dataclass(frozen=True)
class Numerics:
    """One choice, by name.

    Attributes:
        name: what the request calls it.
        noise: the format that the initial noise is rounded to (release fact E.4); latents are float32 in any case.
        pixels: how brightness becomes 0..255; the release cuts fractions off (release fact J.11).
    """

    name: NumericsName
    noise: Literal["float16", "float32"]
    pixels: Literal["truncate", "round"]

    def round_noise(self, noise: Tensor) -> Tensor:
        """Noise as the transformer first sees it, float32."""
        return noise.half().float() if self.noise == "float16" else noise

    def to_uint8(self, video: Tensor) -> Tensor:
        """Pixels in [-1, 1] → 0..255, uint8."""
        scaled = (video.clamp(-1, 1) + 1) * 127.5
        return (scaled if self.pixels == "truncate" else scaled.round()).to(torch.uint8)

    def record(self) -> dict[str, Any]:
        """The choice, for a video's record."""
        return asdict(self)


OFFICIAL = Numerics("official", noise="float16", pixels="truncate")
OURS = Numerics("ours", noise="float32", pixels="round")


def pick_numerics(name: str, released: bool) -> Numerics:
    """The choice that a request names; "auto" is official for released weights and ours for others."""
    if name == "auto":
        name = "official" if released else "ours"
    return OFFICIAL if name == "official" else OURS
