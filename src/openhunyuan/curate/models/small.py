"""The two small networks of curation that are trained here: marks that stay, and how wide blur is.

Both are plain convolutions without norms, so that a crop and a whole picture are the same to them. Each gives one
answer for a cell of `CELL` × `CELL` pixels. Their weights are in the package (`curate/weights`), with a JSON that says
how they were trained. Curation runs them without torch (`models.small_forward`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from openhunyuan.curate.models.small_forward import LAYOUTS

CELL = 8


class Residual(nn.Module):
    """x + convolution of the rectified x, of any dilation."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(x))


class SmallNet(nn.Module):
    """[B, inputs, h, w] → [B, outputs, ⌈h/8⌉, ⌈w/8⌉], three halvings and then context."""

    def __init__(self, inputs: int, outputs: int, stem: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = widths
        self.body = nn.Sequential(
            nn.Conv2d(inputs, a, stem, stride=2, padding=stem // 2),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            Residual(b),
            nn.ReLU(),
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            Residual(c),
            Residual(c, 2),
            Residual(c, 3),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(c, outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.head:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
            if isinstance(module, Residual):
                module.conv.weight.data.mul_(0.5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class MarkNet(SmallNet):
    """[B, MARK_CHANNELS, h, w] of a clip's looks → logits [B, 1, h/8, w/8]: does a pasted mark cover this cell."""

    def __init__(self) -> None:
        super().__init__(*LAYOUTS["watermark"])


class BlurNet(SmallNet):
    """[B, 3, h, w] of a picture → [B, 3, h/8, w/8]: log of the blur's width in pixels, log of that answer's variance,
    and the logit of motion blur (against blur that is the same in all directions)."""

    def __init__(self) -> None:
        super().__init__(*LAYOUTS["blur"])


NETWORKS: dict[str, Callable[[], SmallNet]] = {"watermark": MarkNet, "blur": BlurNet}
