"""Enhance-A-Video (arXiv 2502.07508): image tokens take more from attention, the more their frames look at each other.

For every place of the picture its queries and keys of all frames are compared, as in attention over time alone. The
mean weight that a frame gives to another frame (the cross-frame intensity), times (frames + weight), is the factor for
what attention gives to image tokens; it is never below 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Enhancer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention's result, queries and keys → the result enhanced: an `Enhance`, or what stands for it from outside."""


@dataclass(frozen=True)
class Enhance:
    """How to enhance one forward pass.

    Attributes:
        weight: the temperature, 0 or more; larger enhances more.
        grid: tokens along time, height and width; image tokens come first, width fastest.
    """

    weight: float
    grid: tuple[int, int, int]

    @property
    def num_image(self) -> int:
        """Image tokens in all."""
        frames, height, width = self.grid
        return frames * height * width

    def factor(self, q: Tensor, k: Tensor) -> Tensor:
        """The factor of each sample, fp32 [B], 1 or more. q, k: [B, L, H, D], turned by their positions.

        Each sample has its own, so that a video does not depend on what shares its batch. One frame has no other to
        look at: 1.
        """
        if self.grid[0] == 1:
            return torch.ones(len(q), device=q.device)
        return (self.intensity(q, k) * (self.grid[0] + self.weight)).clamp(min=1)

    def intensity(self, q: Tensor, k: Tensor) -> Tensor:
        """The cross-frame intensity of each sample, the mean over the given heads, fp32 [B]."""
        frames = self.grid[0]
        total = torch.zeros(len(q), device=q.device)
        # One head at a time: the weights of all heads at once are as large as the activations of a block.
        for q_head, k_head in zip(q[:, : self.num_image].unbind(2), k[:, : self.num_image].unbind(2), strict=True):
            q_time, k_time = (x.unflatten(1, (frames, -1)).transpose(1, 2) for x in (q_head, k_head))
            scores = (q_time * q.shape[-1] ** -0.5) @ k_time.transpose(-1, -2)
            weights = scores.float().softmax(dim=-1)
            # Rows sum to 1: what is not on the diagonal goes to other frames.
            total += 1 - weights.diagonal(dim1=-2, dim2=-1).mean(dim=(1, 2))
        return total / q.shape[2] / (frames - 1)

    def __call__(self, out: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Attention's result [B, L, C] with its image tokens multiplied by `factor`; text is left as it is."""
        scaled = out[:, : self.num_image] * self.factor(q, k).to(out.dtype)[:, None, None]
        return torch.cat((scaled, out[:, self.num_image :]), dim=1)
