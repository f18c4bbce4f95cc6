import math

import numpy as np
import pytest
import torch

from openhunyuan.evals import reconstruction
from openhunyuan.models.vae.quality import psnr, seam_ratio, ssim
from openhunyuan.models.vae.tiling import TilingConfig, seam_mask, tiled_decode

TILES = TilingConfig(tile_size=32, tile_stride=24, tile_frames=16, tile_frame_stride=12)


def test_psnr_of_a_known_error():
    x = torch.zeros(1, 3, 1, 8, 8)
    assert psnr(x, x + 0.2).item() == pytest.approx(20, abs=1e-4)


def test_ssim_equals_the_evaluations():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    second = np.clip(first * 0.7 + rng.normal(20, 25, first.shape), 0, 255).astype(np.uint8)
    x, y = (torch.from_numpy(v).permute(3, 0, 1, 2)[None].float() / 127.5 - 1 for v in (first, second))
    assert ssim(x, y).item() == pytest.approx(reconstruction.ssim(first, second), abs=2e-4)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-5)


class Marking:
    """Decodes every tile to its own number: where the result is not one of them, or changes, tiles meet."""

    def __init__(self):
        self.calls = 0

    def encode_moments(self, video):
        raise NotImplementedError

    def decode_video(self, latents):
        self.calls += 1
        frames, height, width = latents.shape[2:]
        return torch.full((1, 1, 4 * (frames - 1) + 1, 8 * height, 8 * width), float(10**self.calls))


@pytest.mark.parametrize("size", [(1, 7, 4), (1, 4, 9), (9, 4, 4), (7, 5, 6), (4, 4, 4)])
def test_the_mask_is_where_tiles_meet(size):
    decoded = tiled_decode(Marking(), torch.zeros(1, 1, *size), TILES)[0, 0]
    mixed = torch.ones_like(decoded, dtype=torch.bool)
    for number in range(1, 13):
        mixed &= decoded != 10.0**number
    mask = seam_mask(TILES, tuple(decoded.shape))
    assert not (mixed & ~mask).any()  # no mixed position is missed
    extra = (mask & ~mixed).float().mean()  # the position before each fade, and the fade's first, which is one tile's
    assert extra < 0.35 and (mask.any() == mixed.any())


def test_the_seam_ratio_sees_a_seam_and_only_a_seam():
    truth = torch.zeros(1, 3, 1, 64, 64)
    g = torch.Generator().manual_seed(0)
    noisy = 0.1 * torch.randn(truth.shape, generator=g)
    assert seam_ratio(truth, noisy, TILES) == pytest.approx(1, abs=0.1)
    seamed = noisy + 0.2 * seam_mask(TILES, (1, 64, 64))
    assert seam_ratio(truth, seamed, TILES) > 2
    assert math.isnan(seam_ratio(truth[..., :32, :32], noisy[..., :32, :32], TILES))
