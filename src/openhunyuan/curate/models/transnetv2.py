"""TransNetV2 (Souček and Lokoč 2020), a network that says of each frame whether the next shot begins behind it.

Its boundaries are combined with those of the default split, as the report does (section 3.1). The layout of names is
that of the authors' PyTorch checkpoint, so that `transnetv2-pytorch-weights.pth` loads as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from openhunyuan.base.require import require
from openhunyuan.curate.models.weights import ModelStage, fill, read_tensors
from openhunyuan.curate.split import Boundaries, Detector, Split

HEIGHT, WIDTH = 27, 48
WINDOW, KEPT = 100, 50
MARGIN = (WINDOW - KEPT) // 2
LOOKUP = 101
"""Frames around each with which it is compared."""

EXACT = 2
"""A boundary of the default split so near to one of the network is the same one, and the default's place is kept."""


class TransNetV2Split(ModelStage, Split):
    """The default split with TransNetV2 beside it: a boundary that either of them sees is one."""

    detectors: Literal["adaptive + gradual + transnetv2"] = "adaptive + gradual + transnetv2"
    network_threshold: float = Field(default=0.5, gt=0, lt=1, description="A frame's least chance to end a shot.")

    def load(self) -> TransNetV2:
        network = TransNetV2()
        fill(network, read_tensors(self.path), self.path, "TransNetV2 checkpoint")
        return network

    def detector(self) -> Detector:
        return _Windows(self.model, self.batch, self.network_threshold)


class TransNetV2(nn.Module):
    """uint8 [B, T, 27, 48, 3] → two logits for every frame, each [B, T]: that it is the last of a shot or inside a
    transition (one frame of each), and that it is any frame of a transition."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        inputs = (3, 4 * widths[0], 4 * widths[1])
        self.SDDCNN = nn.ModuleList(_Stack(i, width) for i, width in zip(inputs, widths, strict=True))
        self.frame_sim_layer = _Similarity(4 * sum(widths))
        self.color_hist_layer = _Colours()
        self.fc1 = nn.Linear(4 * widths[-1] * 3 * 6 + 2 * 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = frames.permute(0, 4, 1, 2, 3).float() / 255.0  # [B, 3, T, 27, 48]
        pooled = []
        for stack in self.SDDCNN:
            x = stack(x)
            pooled.append(x.mean(dim=(3, 4)))
        flat = x.permute(0, 2, 3, 4, 1).flatten(2)  # [B, T, 3 * 6 * C]
        likeness = self.frame_sim_layer(torch.cat(pooled, dim=1).transpose(1, 2))
        x = torch.cat([self.color_hist_layer(frames), likeness, flat], dim=2)
        x = self.fc1(x).relu()
        return self.cls_layer1(x).squeeze(-1), self.cls_layer2(x).squeeze(-1)


class _Stack(nn.Module):
    """Two dilated layers with a shortcut, then half the height and width."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Dilated(inputs, width), _Dilated(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.DDCNN[0](x).relu()
        second = self.DDCNN[1](first).relu()
        return functional.avg_pool3d(first + second, (1, 2, 2))


class _Dilated(nn.Module):
    """Convolutions over space, then over time at four distances side by side; [B, 4 * width, T, H, W]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.Conv3D_1 = _Factored(inputs, width, 1)
        self.Conv3D_2 = _Factored(inputs, width, 2)
        self.Conv3D_4 = _Factored(inputs, width, 4)
        self.Conv3D_8 = _Factored(inputs, width, 8)
        self.bn = nn.BatchNorm3d(4 * width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.Conv3D_1, self.Conv3D_2, self.Conv3D_4, self.Conv3D_8)
        return self.bn(torch.cat([branch(x) for branch in branches], dim=1))


class _Factored(nn.Module):
    def __init__(self, inputs: int, width: int, distance: int) -> None:
        super().__init__()
        space = nn.Conv3d(inputs, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(2 * width, width, (3, 1, 1), dilation=(distance, 1, 1), padding=(distance, 0, 0), bias=False)
        self.layers = nn.Sequential(space, time)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Similarity(nn.Module):
    """How much each frame's features are like those of the 50 before and the 50 after; [B, T, C] → [B, T, 128]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, 128)
        self.fc = nn.Linear(LOOKUP, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(_neighbours(self.projection(x))).relu()


class _Colours(nn.Module):
    """The same of histograms of 8 × 8 × 8 colours; uint8 [B, T, H, W, 3] → [B, T, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(LOOKUP, 128)

    def forward(self, frames: Tensor) -> Tensor:
        steps = frames.long() >> 5
        bins = (steps[..., 0] << 6) + (steps[..., 1] << 3) + steps[..., 2]  # [B, T, H, W]
        flat = bins.flatten(2)
        counts = torch.zeros(*flat.shape[:2], 512, device=frames.device)
        counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=counts.dtype))
        return self.fc(_neighbours(counts)).relu()


def _neighbours(x: Tensor) -> Tensor:
    """Cosine of each frame's vector with those at -50 .. 50, 0 beyond the ends; [B, T, C] → [B, T, 101]."""
    x = functional.normalize(x, dim=2)
    reach = LOOKUP // 2
    alike = functional.pad(x @ x.transpose(1, 2), (reach, reach))  # [B, T, T + 100]
    # Row t of the band begins at column t: a step down goes one further.
    count = x.shape[1]
    return alike.as_strided((x.shape[0], count, LOOKUP), (alike.stride(0), alike.stride(1) + 1, 1))


class _Windows(Detector):
    """Shows a video to the network in windows of 100 frames, of which the middle 50 are believed."""

    def __init__(self, network: TransNetV2, batch: int, threshold: float) -> None:
        self.network, self.batch, self.threshold = network, batch, threshold
        self.frames: list[np.ndarray] = []
        self.waiting: list[np.ndarray] = []
        self.found: list[np.ndarray] = []
        self.count = 0

    def add(self, picture: np.ndarray) -> None:
        cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
        small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        self.frames += [small] * (MARGIN + 1 if self.count == 0 else 1)
        self.count += 1
        self._take()

    def _take(self) -> None:
        if len(self.frames) == WINDOW:
            self.waiting.append(np.stack(self.frames))
            del self.frames[:KEPT]
            if len(self.waiting) == self.batch:
                self._run()

    def _run(self) -> None:
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            one, _ = self.network(torch.from_numpy(np.stack(self.waiting)).to(device))
        self.found += list(one.sigmoid().cpu().numpy()[:, MARGIN : MARGIN + KEPT])
        self.waiting.clear()

    def chances(self) -> np.ndarray:
        """Of every frame shown so far, the chance that it is the last of its shot or inside a transition."""
        while self.count and KEPT * (len(self.found) + len(self.waiting)) < self.count:
            self.frames.append(self.frames[-1])
            self._take()
        if self.waiting:
            self._run()
        return np.concatenate(self.found)[: self.count] if self.found else np.zeros(0, np.float32)

    def combine(self, boundaries: Boundaries) -> Boundaries:
        return combined(boundaries, runs(self.chances() > self.threshold))


def runs(above: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def combined(known: Boundaries, seen: Sequence[tuple[int, int]]) -> Boundaries:
    """What the default split knows, and the network's runs of frames above the threshold that are none of it.

    A shot ends with the first frame of a run, and the next begins behind its last (as the authors read their output).
    """
    cuts, spans = list(known.cuts), list(known.spans)
    for first, end in seen:
        begin = first + 1
        if begin >= known.count:
            continue  # the last shot ends with the video
        same_cut = any(begin - EXACT <= cut <= end + EXACT for cut in known.cuts)
        if same_cut and end - first <= 2 * EXACT:
            continue
        if any(a - EXACT <= begin and end <= b + EXACT for a, b in known.spans):
            continue
        if begin == end:
            cuts.append(begin)
        else:
            spans.append((begin, end))
    return Boundaries(known.count, tuple(sorted(set(cuts))), tuple(_merged(spans)))


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for a, b in sorted(spans):
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return merged
