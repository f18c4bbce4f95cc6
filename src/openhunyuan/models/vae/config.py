"""The sizes of the causal 3D VAE (release facts A.4 and C.2-C.4)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openhunyuan.base.errors import UserError

SPATIAL_COMPRESSION = 8
TEMPORAL_COMPRESSION = 4

# Keys of published config.json files that say nothing this class does not fix, with the values that are understood.
_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "down_block_types": (("DownEncoderBlockCausal3D",) * 4, ("HunyuanVideoDownBlock3D",) * 4),
    "up_block_types": (("UpDecoderBlockCausal3D",) * 4, ("HunyuanVideoUpBlock3D",) * 4),
    "time_compression_ratio": (TEMPORAL_COMPRESSION,),
    "temporal_compression_ratio": (TEMPORAL_COMPRESSION,),
    "spatial_compression_ratio": (SPATIAL_COMPRESSION,),
    "force_upcast": (True, False),
}


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a `CausalVAE`; the defaults are the released 884-16 model (246,478,803 parameters).

    Attributes:
        in_channels: colour channels of the video that is encoded.
        out_channels: colour channels of the video that is decoded.
        latent_channels: channels of the latent; the encoder gives twice as many (mean and log variance).
        block_out_channels: channels of the four resolution stages, finest first; each a multiple of `norm_num_groups`.
        layers_per_block: residual blocks per encoder stage; a decoder stage has one more.
        norm_num_groups: groups of every group norm.
        scaling_factor: diffusion latent = scaling_factor * VAE latent (release fact C.4).
        mid_block_add_attention: whether the two middle blocks hold frame-causal self-attention.
        sample_size: side of a spatial tile, pixels (release fact C.5).
        sample_tsize: length of a temporal tile, frames, not counting its one frame of context (release fact C.5).

    Raises:
        UserError: sizes that cannot be built.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.476986
    mid_block_add_attention: bool = True
    sample_size: int = 256
    sample_tsize: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        if len(self.block_out_channels) != 4:
            raise UserError(
                f"block_out_channels has {len(self.block_out_channels)} values; "
                "a 4x8x8 VAE has exactly four stages, so give four channel counts."
            )
        for name in ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for channels in self.block_out_channels:
            if channels < 1 or channels % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels holds {channels}, which norm_num_groups={self.norm_num_groups} "
                    "does not divide; use multiples of the group count."
                )
        if self.sample_size < 4 * SPATIAL_COMPRESSION or self.sample_size % (4 * SPATIAL_COMPRESSION):
            raise UserError(f"sample_size is {self.sample_size}; a tile side must be a positive multiple of 32 pixels.")
        if self.sample_tsize < 4 * TEMPORAL_COMPRESSION or self.sample_tsize % (4 * TEMPORAL_COMPRESSION):
            raise UserError(f"sample_tsize is {self.sample_tsize}; it must be a positive multiple of 16 frames.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VAEConfig:
        """Reads our own dictionary or a published config.json, whose fixed keys are checked and left out.

        Raises:
            UserError: an unknown key, or a fixed key with a value this architecture does not have.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        kept: dict[str, Any] = {}
        for key, value in values.items():
            if key in names:
                kept[key] = value
            elif key in _FIXED_KEYS:
                if (tuple(value) if isinstance(value, list) else value) not in _FIXED_KEYS[key]:
                    raise UserError(f"VAE config: {key}={value!r} is not supported; expected {_FIXED_KEYS[key][0]!r}.")
            elif not key.startswith("_"):
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(names)}."
                raise UserError(f"VAE config: unknown key {key!r}; {hint}")
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        values = dataclasses.asdict(self)
        values["block_out_channels"] = list(self.block_out_channels)
        return values
