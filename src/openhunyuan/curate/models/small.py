"""The two small networks of curation that are trained here: marks that stay, and how wide blur is.

Both are plain convolutions without norms. Each gives one answer for a cell of `CELL` × `CELL` pixels. Their weights are
in the package (`curate/weights`), with a JSON that says how they were trained. Curation runs them without torch
(`models.small_forward`, which also says what they are made of).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openhunyuan.curate.models import small_forward
from openhunyuan.curate.models.small_forward import BODIES, CELL, DIRECTIONS, MARK_CHANNELS, SEEN, Conv


class Residual(nn.Module):
    """x + convolution of the rectified x, of any dilation."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(x))


class SmallNet(nn.Module):
    """[B, inputs, h · CELL / pixels, w · CELL / pixels] → [B, outputs, h, w]: an answer for every cell, 0 at first."""

    name: ClassVar[str]
    inputs: ClassVar[int]
    pixels: ClassVar[int]
    """Pixels of the picture that one place of the input stands for, along a side."""

    def __init__(self) -> None:
        super().__init__()
        *body, head = (_module(part) for part in BODIES[self.name])
        self.body, self.head = nn.Sequential(*body), head
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.head:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
            if isinstance(module, Residual):
                module.conv.weight.data.mul_(0.5)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _module(part: small_forward.Part) -> nn.Module:
    if isinstance(part, Conv):
        return nn.Conv2d(part.inputs, part.outputs, part.side, stride=part.stride, padding=part.side // 2)
    return Residual(*part) if isinstance(part, small_forward.Residual) else nn.ReLU()


class MarkNet(SmallNet):
    """[B, MARK_CHANNELS, h, w] of a clip's looks → logits [B, 1, h/8, w/8]: does a pasted mark cover this cell."""

    name, inputs, pixels = "watermark", MARK_CHANNELS, 1


class BlurNet(SmallNet):
    """[B, SEEN, h, w] of `measures.blur.network_input` → [B, 2 · DIRECTIONS, h, w]: log of the blur's
    width in pixels, by direction, then the log of each answer's variance.

    One small network is asked for each direction, and sees the others by how they lie to it: what it learns of one
    direction it knows of all, and a blur that has a direction need not be learned apart from one that has none.
    """

    name, inputs, pixels = "blur", SEEN, CELL

    def forward(self, x: Tensor) -> Tensor:
        along = x.unflatten(1, (DIRECTIONS, -1))
        level = along.mean((1, 2), keepdim=True)
        along = along - level  # contrast cancels out; how much there is stands beside it
        across = along.roll(DIRECTIONS // 2, 1)
        beside = 0.5 * (along.roll(1, 1) + along.roll(-1, 1))
        one = level.expand(-1, DIRECTIONS, -1, -1, -1)
        diagonal = torch.arange(DIRECTIONS, device=x.device).view(1, -1, 1, 1, 1) % 2 + 0 * one
        out = super().forward(torch.cat([along, across, beside, one, diagonal], dim=2).flatten(0, 1))
        return out.unflatten(0, (-1, DIRECTIONS)).transpose(1, 2).flatten(1, 2)


NETWORKS: dict[str, Callable[[], SmallNet]] = {"watermark": MarkNet, "blur": BlurNet}
