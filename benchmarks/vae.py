"""VAE decode against diffusers, on the same random weights: `python -m benchmarks.vae`.

diffusers cuts every clip of more than 16 frames into temporal tiles unless told otherwise, which is another
computation; both sides decode the whole latent at once here.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from benchmarks import common
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE

CONFIGS = {
    "small": VAEConfig(block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=4),
    "medium": VAEConfig(block_out_channels=(32, 64, 128, 128), norm_num_groups=8),
    "large": VAEConfig(block_out_channels=(64, 128, 256, 256), norm_num_groups=16),
}
LATENTS = {"small": (9, 8, 8), "medium": (5, 16, 16), "large": (3, 32, 32)}
CASES = {
    "small": "33 frames of 64x64, widths 16-64, one block per stage (the embedded model)",
    "medium": "17 frames of 128x128, widths 32-128 (a quarter of the release)",
    "large": "9 frames of 256x256, widths 64-256 (half of the release)",
}


def build(case: str, side: str) -> Callable[[], Tensor]:
    """One decode of a standard-normal latent by one side; the weights are diffusers' random ones on both."""
    config = CONFIGS[case]
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        name: getattr(config, name) for name in ("block_out_channels", "layers_per_block", "norm_num_groups")
    }
    reference = AutoencoderKLHunyuanVideo(**sizes).eval()
    reference.use_framewise_decoding = False
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, config.latent_channels, *LATENTS[case], generator=generator)
    if side == "theirs":
        return lambda: reference.decode(latents, return_dict=False)[0]
    vae = CausalVAE(config).eval()
    vae.load_state_dict(reference.state_dict(), strict=True)
    return lambda: vae.decode(latents)


def main() -> None:
    """Compare the three sizes and print a row for each."""
    common.run("benchmarks.vae", "Causal VAE decode, ours / diffusers", CASES, build, default=tuple(CASES))


if __name__ == "__main__":
    main()
