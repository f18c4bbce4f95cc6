"""DOVER (Wu et al. 2022): technical and aesthetic quality of a video, in the layout of its published checkpoints.

`DOVER.pth` and `DOVER-Mobile.pth` load as they are; their licence (S-Lab) allows no commercial use. The technical view
keeps the source's own pixels: 7 × 7 little windows of 32 pixels, joined, three times 32 frames. The aesthetic view is
the whole picture at 224 × 224, 32 frames.

The authors draw windows and times at random at every run. Here they depend on the clip's id, times are the middle of
what is drawn from, and a picture too small for the windows is enlarged before the grid is laid (theirs after).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.models.embedding import spread
from openhunyuan.curate.models.weights import ModelStage, batches, fill, read_tensors

CELLS, CELL = 7, 32
SIDE = CELLS * CELL
LENGTH, INTERVAL, PARTS = 32, 2, 3
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MASKED = -100.0


class Dover(ModelStage, Measure):
    """Columns: `technical` and `aesthetic`, the network's own scales (larger is better; about -0.3 .. 0.3);
    `overall`, both fused with the authors' constants, 0 .. 1."""

    name: ClassVar[str] = "dover"
    group: ClassVar[str] = "aesthetic"
    version: ClassVar[int] = 1
    columns: ClassVar = ("technical", "aesthetic", "overall")

    def load(self) -> DoverNetwork:
        tensors = read_tensors(self.path)
        network = DoverNetwork() if "technical_backbone.patch_embed.proj.weight" in tensors else DoverMobileNetwork()
        fill(network, tensors, self.path, "DOVER checkpoint")
        return network

    def begin(self, clip: ClipSpan) -> Reader:
        return _Reader(self, clip)


class DoverNetwork(nn.Module):
    """Views [B, 3, T, 224, 224], in levels less `MEAN` over `STD` → scores."""

    def __init__(
        self,
        width: int = 96,
        heads: Sequence[int] = (3, 6, 12, 24),
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self.technical_backbone = Swin(width, heads)
        self.aesthetic_backbone = ConvNeXt(widths, depths)
        self.technical_head = _Head(8 * width, hidden)
        self.aesthetic_head = _Head(widths[-1], hidden)

    def technical(self, x: Tensor) -> Tensor:
        """[B, 3, T, H, W] → [B]"""
        return self.technical_head(self.technical_backbone(x)).mean(dim=(1, 2, 3, 4))

    def aesthetic(self, x: Tensor) -> Tensor:
        """[B, 3, T, H, W] → [B]"""
        return self.aesthetic_head(self.aesthetic_backbone(x)).mean(dim=(1, 2, 3, 4))


class DoverMobileNetwork(DoverNetwork):
    """Both halves are ConvNeXt V2 femto."""

    def __init__(self, widths: Sequence[int] = (48, 96, 192, 384), depths: Sequence[int] = (2, 2, 6, 2)) -> None:
        nn.Module.__init__(self)
        self.technical_backbone = ConvNeXt(widths, depths, second=True)
        self.aesthetic_backbone = ConvNeXt(widths, depths, second=True)
        self.technical_head = _Head(widths[-1], 32)
        self.aesthetic_head = _Head(widths[-1], 32)


class _Head(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(width, hidden, 1)
        self.fc_last = nn.Conv3d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_last(functional.gelu(self.fc_hid(x)))


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, T, H, W]."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Grn(nn.Module):
    """Global response normalization of [B, T, H, W, C], over time and height as it was trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class _Block(nn.Module):
    def __init__(self, width: int, time: int, second: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(width, width, (time, 7, 7), padding=(time // 2, 3, 3), groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        if second:
            self.grn = _Grn(4 * width)
        else:
            self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.pwconv2 = nn.Linear(4 * width, width)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.pwconv1(self.norm(self.dwconv(x).movedim(1, -1))))
        y = self.pwconv2(self.grn(y) if self.second else y)
        return x + (y if self.second else self.gamma * y).movedim(-1, 1)


class ConvNeXt(nn.Module):
    """ConvNeXt (Liu et al. 2022, or its second version) made three-dimensional; [B, 3, T, H, W] →
    [B, widths[3], T / 2, H / 32, W / 32]. In each stage every third block, from the second on, sees over time."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], second: bool = False) -> None:
        super().__init__()
        before = (3, *widths[:3])
        self.downsample_layers = nn.ModuleList()
        for number, (i, o) in enumerate(zip(before, widths, strict=True)):
            size = (1, 2, 2) if number else (2, 4, 4)
            conv = nn.Conv3d(i, o, size, stride=size)
            norm = _ChannelNorm(i if number else o, eps=1e-6)
            self.downsample_layers.append(nn.Sequential(norm, conv) if number else nn.Sequential(conv, norm))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(width, 3 if j % 3 == 1 else 1, second) for j in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        if second:
            self.head = nn.Linear(widths[-1], 1000)  # is in the checkpoint, is not used

    def forward(self, x: Tensor) -> Tensor:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Swin(nn.Module):
    """Video Swin tiny with position biases that know whether two places are of one window of the source ("gated
    relative position bias", Wu et al. 2022); [B, 3, T, H, W] → [B, 8 * width, T / 2, H / 32, W / 32]."""

    def __init__(self, width: int, heads: Sequence[int], window: tuple[int, int, int] = (8, 7, 7)) -> None:
        super().__init__()
        self.patch_embed = _Patches(width)
        self.layers = nn.ModuleList(
            _Layer(width * 2**i, depth, heads[i], window, gated=i < 3, last=i == 3)
            for i, depth in enumerate((2, 2, 6, 2))
        )
        self.norm = nn.LayerNorm(8 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).movedim(-1, 1)


class _Patches(nn.Module):
    """[B, 3, T, H, W] → [B, T / 2, H / 4, W / 4, C]"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (2, 4, 4), stride=(2, 4, 4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).movedim(1, -1))


class _Merging(nn.Module):
    """Four neighbours become one: half the height and width, twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class _Layer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, window: Sequence[int], gated: bool, last: bool) -> None:
        super().__init__()
        self.window = tuple(window)
        self.blocks = nn.ModuleList(_SwinBlock(width, heads, window, gated) for _ in range(depth))
        self.downsample = None if last else _Merging(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, C]"""
        sizes = x.shape[1:4]
        window = tuple(min(w, size) for w, size in zip(self.window, sizes, strict=True))
        if any(size % w for w, size in zip(window, sizes, strict=True)):
            raise ValueError(f"a feature map of {tuple(sizes)} is not made of windows of {window}")
        shift = tuple(0 if size <= w else w // 2 for w, size in zip(self.window, sizes, strict=True))
        for number, block in enumerate(self.blocks):
            x = block(x, window, shift if number % 2 else (0, 0, 0))
        return x if self.downsample is None else self.downsample(x)


class _SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: Sequence[int], gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads, window, gated)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
        y = self.norm1(x).roll([-s for s in shift], dims=(1, 2, 3))
        gate = apart(x.shape[1:4], window, shift, x.device)
        mask = masked(x.shape[1:4], window, shift, x.device) if any(shift) else None
        y = joined(self.attn(windows(y, window), gate, mask), window, x.shape).roll(list(shift), dims=(1, 2, 3))
        x = x + y
        return x + self.mlp(self.norm2(x))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Attention(nn.Module):
    """Attention within windows, with a bias by relative place."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: Sequence[int], gated: bool) -> None:
        super().__init__()
        self.heads, self.gated = heads, gated
        t, h, w = window
        places = (2 * t - 1) * (2 * h - 1) * (2 * w - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(places, heads))
        if gated:
            self.fragment_position_bias_table = nn.Parameter(torch.zeros(places, heads))
        axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
        at = torch.stack(axes).flatten(1)
        gap = at[:, :, None] - at[:, None, :] + torch.tensor([t - 1, h - 1, w - 1])[:, None, None]
        self.register_buffer("relative_position_index", (gap[0] * (2 * h - 1) + gap[1]) * (2 * w - 1) + gap[2])
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, gate: Tensor, mask: Tensor | None) -> Tensor:
        """x [B * windows, N, C]; gate, mask [windows, N, N]."""
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self._bias(self.relative_position_bias_table, tokens)  # [1, heads, N, N]
        if self.gated:
            near = self._bias(self.fragment_position_bias_table, tokens)
            bias = bias * gate[:, None] + near * (1 - gate[:, None])
        if mask is not None:
            bias = bias + mask[:, None]
        q, k, v = (part.reshape(-1, len(bias), self.heads, tokens, width // self.heads) for part in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(-2, -3).reshape(count, tokens, width))

    def _bias(self, table: Tensor, tokens: int) -> Tensor:
        index = self.relative_position_index[:tokens, :tokens]
        return table[index.reshape(-1)].view(1, tokens, tokens, -1).permute(0, 3, 1, 2)


def windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """[B, T, H, W, C] → [B * windows, tokens of one, C]"""
    batch, t, h, w, channels = x.shape
    a, b, c = window
    x = x.reshape(batch, t // a, a, h // b, b, w // c, c, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(-1, a * b * c, channels)


def joined(x: Tensor, window: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The inverse of `windows`; shape: that of its input."""
    batch, t, h, w, channels = shape
    a, b, c = window
    x = x.view(batch, t // a, h // b, w // c, a, b, c, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(batch, t, h, w, channels)


def apart(sizes: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """[windows, N, N]: how many windows of the source two tokens are apart, rows and columns added; 0 within one.

    The source is taken to be as many windows high and wide as an attention window has tokens, as it was trained.
    """
    rows, columns = window[1], window[2]
    y = (torch.arange(sizes[1], device=device) * rows // sizes[1]).view(1, -1, 1).expand(*sizes)
    x = (torch.arange(sizes[2], device=device) * columns // sizes[2]).view(1, 1, -1).expand(*sizes)
    at = torch.stack([y, x], dim=-1)[None].roll([-s for s in shift], dims=(1, 2, 3))
    at = windows(at, window)
    return (at[:, :, None] - at[:, None, :]).abs().sum(dim=-1).float()


def masked(sizes: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """[windows, N, N]: `MASKED` between tokens that only the roll by `shift` has brought together, else 0."""
    region = torch.zeros(1, *sizes, 1, device=device)
    for axis, (size, w, s) in enumerate(zip(sizes, window, shift, strict=True)):
        at = torch.arange(size, device=device)
        part = ((at >= size - w).float() + (at >= size - s).float()) if s else torch.zeros(size, device=device)
        shape = [1] * 5
        shape[axis + 1] = size
        region = 3 * region + part.view(shape)
    flat = windows(region, window).squeeze(-1)
    return (flat[:, :, None] != flat[:, None, :]).float() * MASKED


def overall(technical: float, aesthetic: float) -> float:
    """Both scores fused, 0 .. 1, with the authors' constants."""
    fused = (technical - 0.1107) / 0.07355 * 0.6104 + (aesthetic + 0.08285) / 0.03774 * 0.3896
    return float(1.0 / (1.0 + np.exp(-fused)))


def technical_frames(count: int) -> list[int]:
    """PARTS × LENGTH frames of a clip of `count`, in order of use; beyond the end it begins anew."""
    part = count // PARTS
    offset = max(0, part - LENGTH * INTERVAL) // 2
    return [(i * part + offset + INTERVAL * j) % count for i in range(PARTS) for j in range(LENGTH)]


def aesthetic_frames(count: int) -> list[int]:
    """LENGTH frames spread over the clip."""
    part = count // LENGTH
    if part == 0:
        return spread(count, LENGTH)
    return [i * part + max(0, part - INTERVAL) // 2 for i in range(LENGTH)]


def fragments(frame: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: from each cell of a 7 × 7 grid over the frame [h, w, 3] a window of 32 pixels.

    draws: [7, 7, 2] in [0, 1), where in its cell a window lies (down, across).
    """
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    short = min(frame.shape[:2])
    if short < SIDE:
        size = [max(SIDE, int(length * SIDE / short)) for length in (frame.shape[1], frame.shape[0])]
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    height, width = frame.shape[:2]
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    for i in range(CELLS):
        for j in range(CELLS):
            top = min(height // CELLS * i, height - CELL) + int(draws[i, j, 0] * max(0, height // CELLS - CELL))
            left = min(width // CELLS * j, width - CELL) + int(draws[i, j, 1] * max(0, width // CELLS - CELL))
            out[CELL * i : CELL * (i + 1), CELL * j : CELL * (j + 1)] = frame[top : top + CELL, left : left + CELL]
    return out


class _Reader(Reader):
    def __init__(self, stage: Dover, clip: ClipSpan) -> None:
        self.stage = stage
        self.technical, self.aesthetic = technical_frames(clip.num_frames), aesthetic_frames(clip.num_frames)
        self.wanted = {*self.technical, *self.aesthetic}
        seed = int.from_bytes(hashlib.sha256(clip.id.encode()).digest()[:8], "big")
        self.draws = np.random.default_rng(seed).random((PARTS, CELLS, CELLS, 2))
        self.pieces: dict[tuple[int, int], np.ndarray] = {}
        self.wholes: dict[int, np.ndarray] = {}

    def wants(self, index: int) -> bool:
        return index in self.wanted

    def add(self, view: View) -> None:
        if view.index not in self.wanted:
            return
        frame = view.frame.rgb()  # the source's own pixels: technical quality is in them
        for place, index in enumerate(self.technical):
            key = (place // LENGTH, index)
            if index == view.index and key not in self.pieces:
                self.pieces[key] = fragments(frame, self.draws[key[0]])
        if view.index in self.aesthetic:
            cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
            self.wholes[view.index] = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)

    def finish(self) -> dict[str, Any]:
        pieces = [self.pieces[place // LENGTH, index] for place, index in enumerate(self.technical)]
        views = [np.stack(part) for part in batches(pieces, LENGTH)]
        network: DoverNetwork = self.stage.model
        with torch.inference_mode():
            scores = [network.technical(self._input(part)) for part in batches(views, self.stage.batch)]
            technical = float(torch.cat(scores).mean())
            whole = np.stack([self.wholes[index] for index in self.aesthetic])
            aesthetic = float(network.aesthetic(self._input([whole])).mean())
        return {"technical": technical, "aesthetic": aesthetic, "overall": overall(technical, aesthetic)}

    def _input(self, views: Sequence[np.ndarray]) -> Tensor:
        """Views uint8 [T, H, W, 3] → [B, 3, T, H, W], normalized."""
        x = torch.from_numpy(np.stack(views)).to(self.stage.place).float()
        x = (x - torch.tensor(MEAN, device=x.device)) / torch.tensor(STD, device=x.device)
        return x.permute(0, 4, 1, 2, 3)
