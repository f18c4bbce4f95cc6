"""`python -m benchmarks.dit`: one DiT forward, ours against diffusers, on the same converted random weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import common
from openhunyuan.base.sizes import VideoSize
from openhunyuan.convert.dit_diffusers import to_diffusers
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT


@dataclass(frozen=True)
class Case:
    """A network and what it is given; text is padded from `text_valid` to `text_tokens`."""

    config: DiTConfig
    video: VideoSize
    text_tokens: int
    text_valid: int
    batch: int = 1

    def __str__(self) -> str:
        config, latent = self.config, self.video.latent
        with torch.device("meta"):
            parameters = sum(p.numel() for p in DiT(config).parameters())
        return (
            f"{parameters / 1e6:.1f}M parameters, hidden {config.hidden_size}, "
            f"{config.num_double_blocks}+{config.num_single_blocks} blocks, batch {self.batch}, "
            f"{latent.tokens(config.patch_size)} image tokens, {self.text_valid} of {self.text_tokens} text tokens"
        )


SMALL = DiTConfig(
    hidden_size=192,
    num_heads=4,
    num_double_blocks=3,
    num_single_blocks=5,
    rope_axes_dim=(8, 20, 20),
    text_dim=192,
    pooled_dim=128,
    guidance_embed=False,
)
MEDIUM = DiTConfig(hidden_size=480, num_heads=5, num_double_blocks=6, num_single_blocks=12, rope_axes_dim=(12, 42, 42))
LARGE = DiTConfig(hidden_size=1536, num_heads=12, num_double_blocks=2, num_single_blocks=4)
SMOKE = SMALL.model_copy(update={"num_double_blocks": 1, "num_single_blocks": 1})

CASES = {
    "small": Case(SMALL, VideoSize(33, 64, 64), 24, 24, batch=4),
    "medium": Case(MEDIUM, VideoSize(33, 128, 128), 256, 256),
    "large": Case(LARGE, VideoSize(17, 256, 256), 256, 256),
    "padded": Case(MEDIUM, VideoSize(33, 128, 128), 256, 40),
    "smoke": Case(SMOKE, VideoSize(9, 32, 32), 12, 12),
}
"""The first three give every text token as valid, so that trimming saves nothing; "padded" is a usual prompt."""


def build(name: str, side: str) -> Callable[[], Tensor]:
    """The forward of one side; weights and inputs are drawn from a fixed seed."""
    case = CASES[name]
    config = case.config
    torch.manual_seed(0)
    model = DiT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.normal_(mean=0.5, std=0.1)
    latent = case.video.latent
    latents = torch.randn(case.batch, config.in_channels, latent.frames, latent.height, latent.width)
    timestep = torch.full((case.batch,), 700.0)
    states = torch.randn(case.batch, case.text_tokens, config.text_dim)
    mask = (torch.arange(case.text_tokens) < case.text_valid).expand(case.batch, -1)
    pooled = torch.randn(case.batch, config.pooled_dim)
    guidance = torch.full((case.batch,), 6016.0) if config.guidance_embed else None
    if side == "ours":
        return lambda: model(latents, timestep, states, mask, pooled, guidance)
    return _theirs(model, latents, timestep, states, mask, pooled, guidance)


def _theirs(
    model: DiT,
    latents: Tensor,
    timestep: Tensor,
    states: Tensor,
    mask: Tensor,
    pooled: Tensor,
    guidance: Tensor | None,
) -> Callable[[], Tensor]:
    """The diffusers model with the weights of `model`, as its pipeline calls it."""
    from diffusers import HunyuanVideoTransformer3DModel

    config = model.config
    with torch.device("meta"):
        other = HunyuanVideoTransformer3DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            num_layers=config.num_double_blocks,
            num_single_layers=config.num_single_blocks,
            num_refiner_layers=config.num_refiner_blocks,
            text_embed_dim=config.text_dim,
            pooled_projection_dim=config.pooled_dim,
            rope_axes_dim=config.rope_axes_dim,  # pyright: ignore[reportArgumentType]
            guidance_embeds=config.guidance_embed,
        )
    # Own memory for every weight: slices of our fused ones would be laid out as no diffusers user has them.
    weights = {key: value.clone() for key, value in to_diffusers(model.state_dict()).items()}
    other.load_state_dict(weights, assign=True)
    other.eval().requires_grad_(False)

    def theirs() -> Tensor:
        return other(latents, timestep, states, mask.long(), pooled, guidance, return_dict=False)[0]

    return theirs


if __name__ == "__main__":
    common.run(
        "benchmarks.dit",
        "DiT forward, openhunyuan against diffusers, CPU",
        {name: str(case) for name, case in CASES.items()},
        build,
        default=("small", "medium", "large", "padded"),
    )
