"""What the small networks of curation answer, in NumPy alone: a worker that only runs them needs no torch, whose import
takes longer than all that they compute of a minute of film.

`models.small` is the definition and is what is trained; this is tested equal to it. Pictures lie as [B, h, w, C], so
that a convolution is one matrix product over the neighbourhoods of all pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openhunyuan.base.weights import load_arrays, refuse_others

MARK_CHANNELS = 8
"""Mean red, green, blue; how much the picture changes; lasting slope across and down; nearness of the sides."""


class Layout(NamedTuple):
    """What a `models.small.SmallNet` is made of: channels in and out, side of the first kernel, channels after each of
    the three halvings."""

    inputs: int
    outputs: int
    stem: int
    widths: tuple[int, int, int]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the network's tensors by their names."""
        a, b, c = self.widths
        kernels = {
            "body.0": (a, self.inputs, self.stem, self.stem),
            "body.2": (b, a, 3, 3),
            "body.3.conv": (b, b, 3, 3),
            "body.5": (c, b, 3, 3),
            **{f"body.{number}.conv": (c, c, 3, 3) for number in (6, 7, 8)},
            "head": (self.outputs, c, 1, 1),
        }
        return {
            f"{layer}.{part}": shape if part == "weight" else shape[:1]
            for layer, shape in kernels.items()
            for part in ("weight", "bias")
        }


LAYOUTS: dict[str, Layout] = {
    "watermark": Layout(MARK_CHANNELS, 1, 3, (16, 24, 32)),
    "blur": Layout(3, 3, 5, (16, 24, 32)),
}


class Forward:
    """float32 [B, h, w, inputs] → [B, ⌈h/8⌉, ⌈w/8⌉, outputs], as `SmallNet` with the same tensors."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.layers = {
            name.removesuffix(".weight"): _Layer(weight, tensors[f"{name.removesuffix('.weight')}.bias"])
            for name, weight in tensors.items()
            if name.endswith(".weight")
        }

    def __call__(self, x: np.ndarray) -> np.ndarray:
        conv = self.layers
        x = _rectified(conv["body.0"](x, stride=2))
        x = conv["body.2"](x, stride=2)
        x = _rectified(conv["body.3.conv"].added(x))
        x = conv["body.5"](x, stride=2)
        for dilation, layer in enumerate(("body.6.conv", "body.7.conv", "body.8.conv"), start=1):
            x = conv[layer].added(x, dilation)
        return conv["head"](_rectified(x))


class _Layer:
    """A convolution: kernel [k · k · C, O] and bias [O]."""

    def __init__(self, weight_OCkk: np.ndarray, bias: np.ndarray) -> None:
        self.side = weight_OCkk.shape[2]
        self.kernel = np.ascontiguousarray(weight_OCkk.transpose(2, 3, 1, 0).reshape(-1, len(bias)))
        self.bias = bias

    def __call__(self, x: np.ndarray, stride: int = 1, dilation: int = 1) -> np.ndarray:
        """[B, h, w, C] → [B, ⌈h/stride⌉, ⌈w/stride⌉, O], zeros beyond the border."""
        count, height, width, channels = x.shape
        side, room = self.side, dilation * (self.side // 2)
        padded = np.zeros((count, height + 2 * room, width + 2 * room, channels), np.float32)
        padded[:, room : room + height, room : room + width] = x
        picture, down, right, deep = padded.strides
        rows, columns = -(-height // stride), -(-width // stride)
        around = np.lib.stride_tricks.as_strided(
            padded,
            (count, rows, columns, side, side, channels),
            (picture, down * stride, right * stride, down * dilation, right * dilation, deep),
            writeable=False,
        )
        found = (around.reshape(-1, side * side * channels) @ self.kernel).reshape(count, rows, -1)
        found += np.tile(self.bias, columns)  # long rows are quicker to add to than many short ones
        return found.reshape(count, rows, columns, -1)

    def added(self, x: np.ndarray, dilation: int = 1) -> np.ndarray:
        """x + the convolution of the rectified x."""
        found = self(np.maximum(x, 0), dilation=dilation)
        found += x
        return found


def _rectified(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=x)


def load_small(name: str, path: Path | str) -> Forward:
    """The network of this name with the weights of a safetensors file. Raises UserError where they are not its own."""
    tensors = load_arrays(path)
    refuse_others(LAYOUTS[name].shapes, {n: tuple(t.shape) for n, t in tensors.items()}, path, f"small network {name}")
    return Forward(tensors)
