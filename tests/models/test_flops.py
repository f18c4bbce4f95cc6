"""The FLOP formulas against torch's own counter on the meta device."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openhunyuan.base.sizes import VideoSize
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.flops import attention_flops, dit_flops, vae_decode_flops, vae_encode_flops
from openhunyuan.models.vae.config import VAEConfig

SMALL = DiTConfig(
    hidden_size=96, num_heads=4, num_double_blocks=2, num_single_blocks=3, rope_axes_dim=(4, 10, 10), text_dim=40
)


@pytest.mark.parametrize("config", [SMALL, SMALL.model_copy(update={"guidance_embed": False, "mlp_ratio": 2.0})])
def test_dit_flops_equal_the_counter(config: DiTConfig) -> None:
    latent = VideoSize(9, 64, 96).latent
    with torch.device("meta"):
        model = DiT(config)
        args = [
            torch.empty(2, 16, latent.frames, latent.height, latent.width),
            torch.empty(2),
            torch.empty(2, 7, config.text_dim),
            torch.ones(2, 7, dtype=torch.bool),
            torch.empty(2, config.pooled_dim),
        ]
        if config.guidance_embed:
            args.append(torch.empty(2))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*args)
    assert dit_flops(config, latent, 7, batch=2) == counter.get_total_flops()


@pytest.mark.parametrize("frames", [1, 9])
def test_vae_flops_equal_the_counter(frames: int) -> None:
    """Counted on diffusers' VAE, whose convolutions run at their nominal cost; attention is checked by formula."""
    from diffusers import AutoencoderKLHunyuanVideo

    config = VAEConfig(block_out_channels=(8, 16, 16, 32), norm_num_groups=4, mid_block_add_attention=False)
    latent = VideoSize(frames, 32, 48).latent
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo(
            block_out_channels=config.block_out_channels, norm_num_groups=4, mid_block_add_attention=False
        )
        vae.use_framewise_decoding = vae.use_framewise_encoding = False
        z = torch.empty(1, 16, latent.frames, latent.height, latent.width)
        x = torch.empty(1, 3, frames, 32, 48)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(z)
    assert vae_decode_flops(config, latent) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(x)
    assert vae_encode_flops(config, latent) == counter.get_total_flops()


def test_vae_attention_is_frame_causal() -> None:
    plain, attending = (VAEConfig(mid_block_add_attention=flag) for flag in (False, True))
    latent = VideoSize(9, 32, 48).latent
    per_frame = latent.height * latent.width
    tokens = latent.frames * per_frame
    expected = 8 * tokens * 512 * 512 + sum(attention_flops(per_frame, n * per_frame, 512) for n in (1, 2, 3))
    assert vae_decode_flops(attending, latent) - vae_decode_flops(plain, latent) == expected


def test_released_model_at_720p() -> None:
    """118,800 image tokens: attention is most of a step."""
    latent = VideoSize(129, 720, 1280).latent
    total = dit_flops(DiTConfig(), latent, 256)
    attention = 60 * attention_flops(118_800 + 256, 118_800 + 256, 3072)
    assert 10e15 < attention < total < 14e15
