"""Size of a diffusion transformer, from the 13B of the release down to the embedded one."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class DiTConfig(BaseModel):
    """Every number that shapes the network; the defaults are the released 13B (release fact B.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    hidden_size: int = 3072
    num_heads: int = 24
    num_double_blocks: int = 20
    num_single_blocks: int = 40
    num_refiner_blocks: int = 2
    mlp_ratio: float = 4.0
    rope_axes_dim: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 256.0
    text_dim: int = 4096
    pooled_dim: int = 768
    guidance_embed: bool = True

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden channels of the feed-forward layers in double and single blocks."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def refiner_mlp_size(self) -> int:
        """Hidden channels of the token refiner's feed-forward layers; `mlp_ratio` does not reach them."""
        return 4 * self.hidden_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if sum(self.rope_axes_dim) != self.head_dim or any(dim % 2 for dim in self.rope_axes_dim):
            raise ValueError(f"rope_axes_dim {self.rope_axes_dim} must be even and add up to {self.head_dim}")
        return self
