"""Tiling: the official sizes, when it applies, how it blends, and that it computes no tile in vain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.tiling import TilingConfig, _blend, tiled_decode, tiled_encode

TILES = TilingConfig(tile_size=32, tile_stride=24, tile_frames=16, tile_frame_stride=12)


class CopyingCoder:
    """Decodes by repeating and encodes by subsampling, so a correct tiling of it changes nothing; records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def encode_moments(self, video: Tensor) -> Tensor:
        self.calls.append(tuple(video.shape[2:]))
        return video[:, :, ::4, ::8, ::8].clone()

    def decode_video(self, latents: Tensor) -> Tensor:
        self.calls.append(tuple(latents.shape[2:]))
        frames = torch.cat((latents[:, :, :1], latents[:, :, 1:].repeat_interleave(4, dim=2)), dim=2)
        return frames.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)


def test_the_official_sizes() -> None:
    tiling = TilingConfig.from_vae(VAEConfig())
    assert tiling == TilingConfig()
    assert (tiling.tile_size, tiling.tile_stride) == (256, 192)
    assert (tiling.tile_frames, tiling.tile_frame_stride) == (64, 48)


def test_the_released_video_size_takes_the_official_tiles() -> None:
    coder = CopyingCoder()
    tiled_decode(coder, torch.zeros(1, 1, 33, 90, 160, device="meta"), TilingConfig())
    assert len(coder.calls) == 3 * 4 * 7
    assert [call[0] for call in coder.calls[::28]] == [17, 17, 9]
    assert coder.calls[0] == (17, 32, 32) and coder.calls[-1] == (9, 18, 16)


@pytest.mark.parametrize("size", [(1, 2, 3), (4, 4, 4), (5, 4, 4), (13, 9, 4), (7, 11, 14), (3, 5, 4)])
def test_tiling_a_local_map_changes_nothing(size: tuple[int, int, int]) -> None:
    latents = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    coder = CopyingCoder()
    video = coder.decode_video(latents)
    torch.testing.assert_close(tiled_decode(coder, latents, TILES), video, atol=1e-6, rtol=0)
    torch.testing.assert_close(tiled_encode(coder, video, TILES), latents, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, [(5, 4, 4), (5, 4, 2), (5, 3, 4), (5, 3, 2), (3, 4, 4), (3, 4, 2), (3, 3, 4), (3, 3, 2)]),
        ({"spatial": False}, [(5, 6, 5), (3, 6, 5)]),
        ({"temporal": False}, [(6, 4, 4), (6, 4, 2), (6, 3, 4), (6, 3, 2)]),
        ({"spatial": False, "temporal": False}, [(6, 6, 5)]),
    ],
)
def test_space_and_time_are_switched_separately(options: dict[str, Any], calls: list[tuple[int, ...]]) -> None:
    coder = CopyingCoder()
    sizes = {"tile_size": 32, "tile_stride": 24, "tile_frames": 16, "tile_frame_stride": 12}
    tiled_decode(coder, torch.zeros(1, 1, 6, 6, 5), TilingConfig(**sizes, **options))
    assert coder.calls == calls


def test_what_fits_into_one_tile_is_coded_directly() -> None:
    coder = CopyingCoder()
    tiled_decode(coder, torch.zeros(1, 1, 4, 4, 4), TILES)
    tiled_encode(coder, torch.zeros(1, 1, 13, 32, 32), TILES)
    assert coder.calls == [(4, 4, 4), (13, 32, 32)]


def test_a_tile_of_nothing_but_context_is_not_computed() -> None:
    coder = CopyingCoder()
    tiled_decode(coder, torch.zeros(1, 1, 7, 1, 1), TILES)  # tiles start at 0, 3 and 6; the last would add no frame
    assert coder.calls == [(5, 1, 1), (4, 1, 1)]


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_the_ramp_starts_at_the_previous_tile_and_never_reaches_one(dim: int) -> None:
    before, tile = torch.zeros(1, 1, 6, 6, 6), torch.ones(1, 1, 6, 6, 6)
    _blend(before, tile, dim=dim, extent=4)
    line = tile.movedim(dim, 0).flatten(1)[:, 0]
    torch.testing.assert_close(line, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]))


def test_blending_is_limited_by_the_shorter_tile() -> None:
    before, tile = torch.arange(3.0).view(1, 1, 3, 1, 1), torch.full((1, 1, 2, 1, 1), 10.0)
    _blend(before, tile, dim=2, extent=4)
    torch.testing.assert_close(tile.flatten(), torch.tensor([1.0, 6.0]))


def test_tiles_that_differ_are_cross_faded() -> None:
    class NumberingCoder(CopyingCoder):
        def decode_video(self, latents: Tensor) -> Tensor:
            return torch.full_like(super().decode_video(latents), float(len(self.calls)))

    coder = NumberingCoder()
    video = tiled_decode(coder, torch.zeros(1, 1, 1, 1, 5), TILES)
    row = video[0, 0, 0, 0]
    # The first tile (1.0) keeps 24 pixels, then 8 pixels lead over to the second (2.0).
    expected = F.pad(torch.ones(24), (0, 16), value=2.0)
    expected[24:32] = 1.0 + torch.arange(8) / 8
    torch.testing.assert_close(row, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 30}, "multiples of 8"),
        ({"tile_frames": 18}, "multiples of 4"),
        ({"tile_stride": 264}, "tile_stride is 264"),
        ({"tile_stride": 120}, "tile_stride is 120"),
        ({"tile_frame_stride": 0}, "tile_frame_stride is 0"),
    ],
)
def test_impossible_tiles_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TilingConfig(**options)
