"""RAFT optical flow (Teed and Deng 2020) as a motion scorer, in the layout of torchvision's checkpoints.

Both published sizes load as they are: `raft_large_*.pth` and `raft_small_*.pth`. The scores are those of the default
motion measure, from another flow, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import ClipSpan, Measure, Reader, View
from openhunyuan.curate.measures.motion import speed_row, speeds
from openhunyuan.curate.models.weights import ModelStage, fill, read_tensors

LEVELS = 4
SMALLEST = 8 * 2 ** (LEVELS - 1) * 2
"""The coarsest level of correlations must have two cells a side."""


class Raft(ModelStage, Measure):
    """Speed of a clip, as `measures.motion` defines it for "dis"."""

    name: ClassVar[str] = "raft"
    group: ClassVar[str] = "motion"
    needs_time: ClassVar[bool] = True
    version: ClassVar[int] = 1
    columns: ClassVar = ("speed", "camera_speed", "subject_speed", "moving_share", "speed_p90")

    side: int = Field(default=512, ge=SMALLEST, description="Longer side of the pictures between which flow is found.")
    updates: int = Field(default=12, ge=1, description="Refinements of the flow.")

    def load(self) -> RaftNetwork:
        tensors = read_tensors(self.path)
        network = RaftNetwork(small=not any(name.startswith("mask_predictor.") for name in tensors))
        fill(network, tensors, self.path, "RAFT checkpoint of torchvision")
        return network

    def begin(self, clip: ClipSpan) -> Reader:
        return _Reader(self, clip)


def _unit(
    inputs: int, outputs: int, size: int, norm: type[nn.Module] | None, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2)]
    layers += [norm(outputs)] if norm else []
    layers += [nn.ReLU()] if relu else []
    return nn.Sequential(*layers)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: type[nn.Module] | None, stride: int) -> None:
        super().__init__()
        self.convnormrelu1 = _unit(inputs, outputs, 3, norm, stride)
        self.convnormrelu2 = _unit(outputs, outputs, 3, norm)
        same = stride == 1
        self.downsample = nn.Identity() if same else _unit(inputs, outputs, 1, norm, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.downsample(x) + self.convnormrelu2(self.convnormrelu1(x))).relu()


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: type[nn.Module] | None, stride: int) -> None:
        super().__init__()
        self.convnormrelu1 = _unit(inputs, outputs // 4, 1, norm)
        self.convnormrelu2 = _unit(outputs // 4, outputs // 4, 3, norm, stride)
        self.convnormrelu3 = _unit(outputs // 4, outputs, 1, norm)
        same = stride == 1
        self.downsample = nn.Identity() if same else _unit(inputs, outputs, 1, norm, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.downsample(x) + self.convnormrelu3(self.convnormrelu2(self.convnormrelu1(x)))).relu()


class _Encoder(nn.Module):
    """[B, 3, H, W] → [B, widths[4], H / 8, W / 8]."""

    def __init__(self, widths: Sequence[int], block: type[nn.Module], norm: type[nn.Module] | None) -> None:
        super().__init__()
        self.convnormrelu = _unit(3, widths[0], 7, norm, 2)
        self.layer1 = nn.Sequential(block(widths[0], widths[1], norm, 1), block(widths[1], widths[1], norm, 1))
        self.layer2 = nn.Sequential(block(widths[1], widths[2], norm, 2), block(widths[2], widths[2], norm, 1))
        self.layer3 = nn.Sequential(block(widths[2], widths[3], norm, 2), block(widths[3], widths[3], norm, 1))
        self.conv = nn.Conv2d(widths[3], widths[4], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.layer3(self.layer2(self.layer1(self.convnormrelu(x)))))


class _Motion(nn.Module):
    """Correlations and the flow so far → features, the flow itself in the last two channels."""

    def __init__(self, correlations: int, corr: Sequence[int], flow: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.convcorr1 = _unit(correlations, corr[0], 1, None)
        self.convcorr2 = _unit(corr[0], corr[1], 3, None) if len(corr) == 2 else nn.Identity()
        self.convflow1 = _unit(2, flow[0], 7, None)
        self.convflow2 = _unit(flow[0], flow[1], 3, None)
        self.conv = _unit(corr[-1] + flow[1], outputs - 2, 3, None)

    def forward(self, flow: Tensor, correlations: Tensor) -> Tensor:
        seen = torch.cat([self.convcorr2(self.convcorr1(correlations)), self.convflow2(self.convflow1(flow))], dim=1)
        return torch.cat([self.conv(seen), flow], dim=1)


class _Gru(nn.Module):
    def __init__(self, inputs: int, hidden: int, size: tuple[int, int]) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2)
        self.convz = nn.Conv2d(hidden + inputs, hidden, size, padding=padding)
        self.convr = nn.Conv2d(hidden + inputs, hidden, size, padding=padding)
        self.convq = nn.Conv2d(hidden + inputs, hidden, size, padding=padding)

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        both = torch.cat([state, x], dim=1)
        update, reset = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        return torch.lerp(state, self.convq(torch.cat([reset * state, x], dim=1)).tanh(), update)


class _Recurrent(nn.Module):
    def __init__(self, inputs: int, hidden: int, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.convgru1 = _Gru(inputs, hidden, sizes[0])
        if len(sizes) == 2:
            self.convgru2 = _Gru(inputs, hidden, sizes[1])

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        state = self.convgru1(state, x)
        return self.convgru2(state, x) if hasattr(self, "convgru2") else state


class _FlowHead(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        return self.conv2(self.conv1(state).relu())


class _Update(nn.Module):
    def __init__(self, motion_encoder: nn.Module, recurrent_block: nn.Module, flow_head: nn.Module) -> None:
        super().__init__()
        self.motion_encoder, self.recurrent_block, self.flow_head = motion_encoder, recurrent_block, flow_head

    def forward(self, state: Tensor, context: Tensor, correlations: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        motion = self.motion_encoder(flow, correlations)
        state = self.recurrent_block(state, torch.cat([context, motion], dim=1))
        return state, self.flow_head(state)


class _Mask(nn.Module):
    """Weights by which each pixel's flow is made of nine neighbours'."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.convrelu = _unit(hidden, 256, 3, None)
        self.conv = nn.Conv2d(256, 8 * 8 * 9, 1)

    def forward(self, state: Tensor) -> Tensor:
        return 0.25 * self.conv(self.convrelu(state))


class RaftNetwork(nn.Module):
    """Two pictures [B, 3, H, W] in [-1, 1], H and W multiples of 8 and at least `SMALLEST` → flow [B, 2, H, W] in
    pixels (x, y) from the first to the second."""

    def __init__(self, small: bool = False) -> None:
        super().__init__()
        if small:
            self.radius, self.hidden = 3, 96
            self.feature_encoder = _Encoder((32, 32, 64, 96, 128), _Bottleneck, nn.InstanceNorm2d)
            self.context_encoder = _Encoder((32, 32, 64, 96, 160), _Bottleneck, None)
            motion, context, sizes, head = ((96,), (64, 32), 82), 64, [(3, 3)], 128
            self.mask_predictor = None
        else:
            self.radius, self.hidden = 4, 128
            self.feature_encoder = _Encoder((64, 64, 96, 128, 256), _Residual, nn.InstanceNorm2d)
            self.context_encoder = _Encoder((64, 64, 96, 128, 256), _Residual, nn.BatchNorm2d)
            motion, context, sizes, head = ((256, 192), (128, 64), 128), 128, [(1, 5), (5, 1)], 256
            self.mask_predictor = _Mask(self.hidden)
        self.update_block = _Update(
            _Motion(LEVELS * (2 * self.radius + 1) ** 2, *motion),
            _Recurrent(motion[2] + context, self.hidden, sizes),
            _FlowHead(self.hidden, head),
        )

    def forward(self, first: Tensor, second: Tensor, updates: int = 12) -> Tensor:
        features = self.feature_encoder(torch.cat([first, second]))
        pyramid = correlation_pyramid(*features.chunk(2))
        state, context = self.context_encoder(first).split_with_sizes([self.hidden, self._context], dim=1)
        state, context = state.tanh(), context.relu()
        start = grid(state)
        places = start
        for _ in range(updates):
            correlations = looked_up(pyramid, places, self.radius)
            state, step = self.update_block(state, context, correlations, places - start)
            places = places + step
        return upsampled(places - start, None if self.mask_predictor is None else self.mask_predictor(state))

    @property
    def _context(self) -> int:
        return self.context_encoder.conv.out_channels - self.hidden


def grid(like: Tensor) -> Tensor:
    """[B, 2, h, w]: each cell's own place, x and y."""
    batch, _, height, width = like.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).to(like).expand(batch, 2, height, width)


def correlation_pyramid(one: Tensor, other: Tensor) -> list[Tensor]:
    """Products of every feature of one picture with every one of the other: `LEVELS` tensors [B * h * w, 1, h', w'],
    each with half the places of the one before; one, other [B, C, h, w]."""
    batch, channels, height, width = one.shape
    products = one.flatten(2).transpose(1, 2) @ other.flatten(2) / channels**0.5
    level = products.reshape(batch * height * width, 1, height, width)
    levels = [level]
    for _ in range(LEVELS - 1):
        level = functional.avg_pool2d(level, 2)
        levels.append(level)
    return levels


def looked_up(pyramid: Sequence[Tensor], places: Tensor, radius: int) -> Tensor:
    """Correlations around `places` [B, 2, h, w] (x, y) at every level: [B, LEVELS * (2 * radius + 1) ** 2, h, w].

    Within a level x runs slowest: the published networks were trained with the two axes of the window exchanged.
    """
    batch, _, height, width = places.shape
    offsets = torch.arange(-radius, radius + 1).to(places)
    window = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1)  # [x, y] → (x, y)
    centres = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for number, level in enumerate(pyramid):
        sides = torch.tensor([level.shape[-1] - 1, level.shape[-2] - 1]).to(places)
        where = 2 * (centres / 2**number + window) / sides - 1
        found.append(functional.grid_sample(level, where, align_corners=True).reshape(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def upsampled(flow: Tensor, weights: Tensor | None) -> Tensor:
    """Flow [B, 2, h, w] in cells of eight pixels → [B, 2, 8 h, 8 w] in pixels."""
    batch, _, height, width = flow.shape
    if weights is None:
        size = (8 * height, 8 * width)
        return 8 * functional.interpolate(flow, size, mode="bilinear", align_corners=True)
    weights = weights.view(batch, 1, 9, 8, 8, height, width).softmax(dim=2)
    near = functional.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    return (weights * near).sum(dim=2).permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * height, 8 * width)


class _Reader(Reader):
    def __init__(self, stage: Raft, clip: ClipSpan) -> None:
        self.stage, self.clip = stage, clip
        self.pictures: list[np.ndarray] = []
        self.numbers: list[int] = []
        self.pairs: list[tuple[float, float, float]] = []

    def add(self, view: View) -> None:
        if not view.sample:
            return
        self.pictures.append(fitted(view.rgb, self.stage.side))
        self.numbers.append(view.index)
        if len(self.pictures) > self.stage.batch:
            self._run()

    def _run(self) -> None:
        """Flow of all pairs that wait; the last picture stays, as the first of the next pair."""
        x = torch.from_numpy(np.stack(self.pictures)).to(self.stage.place)
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.inference_mode():
            flows = self.stage.model(x[:-1], x[1:], self.stage.updates).permute(0, 2, 3, 1).cpu().numpy()
        seconds = [(last - first) / self.clip.fps for first, last in pairwise(self.numbers)]
        self.pairs += [speeds(flow, later) for flow, later in zip(flows, seconds, strict=True)]
        self.pictures, self.numbers = self.pictures[-1:], self.numbers[-1:]

    def finish(self) -> dict[str, Any]:
        if len(self.pictures) > 1:
            self._run()
        return speed_row(self.pairs)


def fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture with its longer side `side`, both sides multiples of 8 and at least `SMALLEST`."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = [max(SMALLEST, round(length * scale / 8) * 8) for length in (width, height)]
    shrinks = size[0] < width
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
