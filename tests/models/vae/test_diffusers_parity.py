"""The VAE against diffusers' independent implementation, on random small weights: names, shapes and numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.vae.tiling import TilingConfig, tiled_encode

diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation compared with")

TOLERANCE = 5e-5
SMALL = VAEConfig(block_out_channels=(8, 16, 24, 24), layers_per_block=1, norm_num_groups=4)
TILES = TilingConfig(tile_size=32, tile_stride=24, tile_frames=16, tile_frame_stride=12)


def reference_of(config: VAEConfig) -> Any:
    """diffusers' model without its default temporal tiling, which the official plain path does not have."""
    reference = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
    ).eval()
    reference.use_framewise_encoding = False
    reference.use_framewise_decoding = False
    return reference


@pytest.fixture(scope="module")
def pair() -> tuple[CausalVAE, Any]:
    torch.manual_seed(0)
    reference = reference_of(SMALL)
    for name, parameter in reference.named_parameters():
        if "norm" in name:  # fresh norms are the identity, which would hide a wrong affine
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    vae = CausalVAE(SMALL).eval()
    vae.load_state_dict(reference.state_dict(), strict=True)
    return vae, reference


def enable_tiles(reference: Any, tiles: TilingConfig) -> None:
    reference.enable_tiling(
        tile_sample_min_height=tiles.tile_size,
        tile_sample_min_width=tiles.tile_size,
        tile_sample_min_num_frames=tiles.tile_frames,
        tile_sample_stride_height=tiles.tile_stride,
        tile_sample_stride_width=tiles.tile_stride,
        tile_sample_stride_num_frames=tiles.tile_frame_stride,
    )
    reference.use_framewise_encoding = tiles.temporal
    reference.use_framewise_decoding = tiles.temporal


@pytest.fixture
def tiled_pair(pair: tuple[CausalVAE, Any]):
    vae, reference = pair
    enable_tiles(reference, TILES)
    yield vae, reference
    reference.use_tiling = reference.use_framewise_encoding = reference.use_framewise_decoding = False


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 32, 48), (5, 32, 16), (17, 24, 32)])
def test_encode_and_decode_equal_diffusers(pair: tuple[CausalVAE, Any], size: tuple[int, int, int]) -> None:
    vae, reference = pair
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    posterior, expected = vae.encode(video), reference.encode(video).latent_dist
    latent_size = ((size[0] - 1) // 4 + 1, size[1] // 8, size[2] // 8)
    assert posterior.mean.shape == (2, 16, *latent_size)
    torch.testing.assert_close(posterior.mean, expected.mean, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(posterior.logvar, expected.logvar, atol=TOLERANCE, rtol=0)
    latents = torch.randn(2, 16, *latent_size, generator=generator)
    decoded = vae.decode(latents)
    assert decoded.shape == video.shape
    torch.testing.assert_close(decoded, reference.decode(latents).sample, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("latent_size", [(3, 5, 9), (1, 8, 4), (8, 4, 4), (7, 6, 5)])
def test_tiled_decode_equals_diffusers(tiled_pair: tuple[CausalVAE, Any], latent_size: tuple[int, int, int]) -> None:
    vae, reference = tiled_pair
    latents = torch.randn(1, 16, *latent_size, generator=torch.Generator().manual_seed(2))
    decoded, expected = vae.decode(latents, TILES), reference.decode(latents).sample
    assert decoded.shape == expected.shape
    torch.testing.assert_close(decoded, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 40, 72), (29, 32, 32), (25, 48, 40)])
def test_tiled_encode_equals_diffusers(tiled_pair: tuple[CausalVAE, Any], size: tuple[int, int, int]) -> None:
    vae, reference = tiled_pair
    video = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3)) * 2 - 1
    posterior, expected = vae.encode(video, TILES), reference.encode(video).latent_dist
    torch.testing.assert_close(posterior.mean, expected.mean, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(posterior.logvar, expected.logvar, atol=TOLERANCE, rtol=0)
    moments = tiled_encode(vae, video, TILES)
    torch.testing.assert_close(moments, expected.parameters, atol=TOLERANCE, rtol=0)


def test_the_released_size_has_the_released_names_and_shapes() -> None:
    with torch.device("meta"):
        vae = CausalVAE(VAEConfig())
        reference = diffusers.AutoencoderKLHunyuanVideo()
    state = {name: tensor.shape for name, tensor in vae.state_dict().items()}
    assert state == {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert len(state) == 248
    assert sum(parameter.numel() for parameter in vae.parameters()) == 246_478_803


@torch.no_grad()
def test_a_vae_without_middle_attention_equals_diffusers() -> None:
    torch.manual_seed(4)
    config = VAEConfig(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    reference = diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=config.block_out_channels,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    vae = CausalVAE(config).eval()
    vae.load_state_dict(reference.state_dict(), strict=True)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    torch.testing.assert_close(vae.encode(video).mean, reference.encode(video).latent_dist.mean, atol=TOLERANCE, rtol=0)
