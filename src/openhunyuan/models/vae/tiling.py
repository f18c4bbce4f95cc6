"""Encoding and decoding in overlapping tiles, so that peak memory does not grow with the video (release fact C.5).

Tiles overlap by a quarter; the overlap is cross-faded with a linear ramp. Group norms see one tile at a time, so a
tiled result differs slightly from an untiled one; with the official sizes it equals the official tiled result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, VAEConfig

Coder = Callable[[Tensor], Tensor]


class TileCoder(Protocol):
    """The two untiled maps that tiling is built from."""

    def encode_moments(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> [B, 2*C, (F-1)//4+1, H/8, W/8]."""
        ...

    def decode_video(self, latents: Tensor) -> Tensor:
        """[B, C, T, h, w] -> [B, 3, 4*(T-1)+1, 8*h, 8*w]."""
        ...


@dataclass(frozen=True)
class TilingConfig:
    """Tile sizes in pixels and frames; the defaults are the official ones (release fact C.5).

    Attributes:
        tile_size: side of a spatial tile, pixels.
        tile_stride: distance between spatial tiles, pixels; `tile_size - tile_stride` are cross-faded.
        tile_frames: length of a temporal tile, frames, not counting its one leading context frame.
        tile_frame_stride: distance between temporal tiles, frames.
        spatial: whether to tile height and width.
        temporal: whether to tile time.

    Raises:
        UserError: sizes that are not whole latents, or a stride outside [tile/2, tile].
    """

    tile_size: int = 256
    tile_stride: int = 192
    tile_frames: int = 64
    tile_frame_stride: int = 48
    spatial: bool = True
    temporal: bool = True

    def __post_init__(self) -> None:
        for size_name, stride_name, unit in (
            ("tile_size", "tile_stride", SPATIAL_COMPRESSION),
            ("tile_frames", "tile_frame_stride", TEMPORAL_COMPRESSION),
        ):
            size, stride = getattr(self, size_name), getattr(self, stride_name)
            if size < unit or size % unit or stride % unit:
                raise UserError(f"{size_name}={size} and {stride_name}={stride} must be positive multiples of {unit}.")
            # Under half, three tiles would meet in one place, which a cross-fade of two cannot describe.
            if not size <= 2 * stride <= 2 * size:
                raise UserError(f"{stride_name} is {stride}; it must lie between {size // 2} and {size_name}={size}.")

    @classmethod
    def from_vae(cls, config: VAEConfig, spatial: bool = True, temporal: bool = True) -> TilingConfig:
        """The official tiles of a VAE: `sample_size` and `sample_tsize`, overlapping by a quarter."""
        return cls(
            tile_size=config.sample_size,
            tile_stride=config.sample_size * 3 // 4,
            tile_frames=config.sample_tsize,
            tile_frame_stride=config.sample_tsize * 3 // 4,
            spatial=spatial,
            temporal=temporal,
        )


@dataclass(frozen=True)
class _Grid:
    """One direction (encode or decode) of a tiling: extents in units of its input and of its output."""

    size: int
    stride: int
    frames: int
    frame_stride: int
    out_stride: int
    out_blend: int
    out_frame_stride: int
    out_frame_blend: int


def tiled_encode(vae: TileCoder, video: Tensor, tiling: TilingConfig) -> Tensor:
    """Moments of a video, tile by tile; the moments are blended, not samples of them.

    Args:
        vae: the untiled maps.
        video: [B, 3, F, H, W] in [-1, 1].
        tiling: tile sizes; a video that fits into one tile is encoded directly.

    Returns:
        [B, 2*C, (F-1)//4+1, H/8, W/8].
    """
    grid = _Grid(
        size=tiling.tile_size,
        stride=tiling.tile_stride,
        frames=tiling.tile_frames,
        frame_stride=tiling.tile_frame_stride,
        out_stride=tiling.tile_stride // SPATIAL_COMPRESSION,
        out_blend=(tiling.tile_size - tiling.tile_stride) // SPATIAL_COMPRESSION,
        out_frame_stride=tiling.tile_frame_stride // TEMPORAL_COMPRESSION,
        out_frame_blend=(tiling.tile_frames - tiling.tile_frame_stride) // TEMPORAL_COMPRESSION,
    )
    frames, height, width = video.shape[2:]
    out = ((frames - 1) // TEMPORAL_COMPRESSION + 1, height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION)
    return _code(vae.encode_moments, video, grid, tiling, out)


def tiled_decode(vae: TileCoder, latents: Tensor, tiling: TilingConfig) -> Tensor:
    """Video of a latent, tile by tile.

    Args:
        vae: the untiled maps.
        latents: [B, C, T, h, w] in the units of the VAE (not multiplied by its scaling factor).
        tiling: tile sizes; a latent that fits into one tile is decoded directly.

    Returns:
        [B, 3, 4*(T-1)+1, 8*h, 8*w], about [-1, 1], not clamped.
    """
    grid = _Grid(
        size=tiling.tile_size // SPATIAL_COMPRESSION,
        stride=tiling.tile_stride // SPATIAL_COMPRESSION,
        frames=tiling.tile_frames // TEMPORAL_COMPRESSION,
        frame_stride=tiling.tile_frame_stride // TEMPORAL_COMPRESSION,
        out_stride=tiling.tile_stride,
        out_blend=tiling.tile_size - tiling.tile_stride,
        out_frame_stride=tiling.tile_frame_stride,
        out_frame_blend=tiling.tile_frames - tiling.tile_frame_stride,
    )
    frames, height, width = latents.shape[2:]
    out = ((frames - 1) * TEMPORAL_COMPRESSION + 1, height * SPATIAL_COMPRESSION, width * SPATIAL_COMPRESSION)
    return _code(vae.decode_video, latents, grid, tiling, out)


def seam_mask(tiling: TilingConfig, size: tuple[int, ...]) -> Tensor:
    """Where tiles meet in a decoded video of (frames, height, width): bool of that size.

    True in the cross-faded strips and at the one position before each, where a fade starts.
    """
    frames, height, width = size
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    if tiling.temporal and (frames - 1) // TEMPORAL_COMPRESSION + 1 > tiling.tile_frames // TEMPORAL_COMPRESSION:
        fade = max(1, tiling.tile_frames - tiling.tile_frame_stride)
        for start in range(tiling.tile_frame_stride + 1, frames, tiling.tile_frame_stride):
            mask[start - 1 : start + fade] = True
    if tiling.spatial and (height > tiling.tile_size or width > tiling.tile_size):
        fade = max(1, tiling.tile_size - tiling.tile_stride)
        for start in range(tiling.tile_stride, height, tiling.tile_stride):
            mask[:, start - 1 : start + fade] = True
        for start in range(tiling.tile_stride, width, tiling.tile_stride):
            mask[:, :, start - 1 : start + fade] = True
    return mask


def _code(coder: Coder, x: Tensor, grid: _Grid, tiling: TilingConfig, out: tuple[int, int, int]) -> Tensor:
    """Time first, then space inside each temporal tile; `out` is the exact (frames, height, width) to give."""
    if not (tiling.temporal and x.shape[2] > grid.frames):
        return _code_spatial(coder, x, grid, tiling, out[1:])
    result: Tensor | None = None
    tail: Tensor | None = None
    for start in range(0, x.shape[2], grid.frame_stride):
        chunk = x[:, :, start : start + grid.frames + 1]
        if start and chunk.shape[2] == 1:
            break  # only the context frame is left: its output is dropped, so there is nothing to compute
        tile = _code_spatial(coder, chunk, grid, tiling, out[1:])
        if start:
            tile = tile[:, :, 1:]
        if tail is not None:
            _blend(tail, tile, dim=2, extent=grid.out_frame_blend)
        if result is None:
            result = tile.new_empty(*tile.shape[:2], *out)
            position, keep = 0, grid.out_frame_stride + 1
        else:
            position, keep = start // grid.frame_stride * grid.out_frame_stride + 1, grid.out_frame_stride
        kept = tile[:, :, : min(keep, out[0] - position)]
        result[:, :, position : position + kept.shape[2]] = kept
        tail = _tail(tile, 2, grid.out_frame_blend)
    assert result is not None
    return result


def _code_spatial(coder: Coder, x: Tensor, grid: _Grid, tiling: TilingConfig, out: tuple[int, int]) -> Tensor:
    """One temporal tile. Only the strips that a later tile blends with are kept beside the result."""
    height, width = x.shape[3:]
    if not (tiling.spatial and (height > grid.size or width > grid.size)):
        return coder(x)
    result: Tensor | None = None
    bottoms: list[Tensor] = []  # per column, the lower edge of the tile above, already blended
    for row, top in enumerate(range(0, height, grid.stride)):
        right: Tensor | None = None
        new_bottoms: list[Tensor] = []
        for column, left in enumerate(range(0, width, grid.stride)):
            tile = coder(x[:, :, :, top : top + grid.size, left : left + grid.size])
            # Above first, then left, and each from neighbours that are blended themselves: the official order,
            # which decides what the corners look like.
            if row:
                _blend(bottoms[column], tile, dim=3, extent=grid.out_blend)
            if right is not None:
                _blend(right, tile, dim=4, extent=grid.out_blend)
            new_bottoms.append(_tail(tile, 3, grid.out_blend))
            right = _tail(tile, 4, grid.out_blend)
            if result is None:
                result = tile.new_empty(*tile.shape[:3], *out)
            y, x_ = row * grid.out_stride, column * grid.out_stride
            kept = tile[:, :, :, : min(grid.out_stride, out[0] - y), : min(grid.out_stride, out[1] - x_)]
            result[:, :, :, y : y + kept.shape[3], x_ : x_ + kept.shape[4]] = kept
        bottoms = new_bottoms
    assert result is not None
    return result


def _tail(tile: Tensor, dim: int, extent: int) -> Tensor:
    """A copy of the last `extent` positions, so that the tile itself can be freed."""
    length = min(extent, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - length, length).clone()


def _blend(before: Tensor, tile: Tensor, dim: int, extent: int) -> None:
    """Cross-fades the start of `tile`, in place, from the end of `before`; the ramp is x/e for x in 0..e-1."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return
    shape = [1] * tile.ndim
    shape[dim] = extent
    ramp = (torch.arange(extent, dtype=torch.float32, device=tile.device) / extent).to(tile.dtype).view(shape)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start = tile.narrow(dim, 0, extent)
    start.copy_(end * (1 - ramp) + start * ramp)
