"""What the small networks of curation answer, in NumPy alone: a worker that only runs them needs no torch, whose import
takes longer than all that they compute of a minute of film.

`models.small` is the definition and is what is trained; this is tested equal to it. Pictures lie as [B, h, w, C], so
that a convolution is one matrix product over the neighbourhoods of all pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openhunyuan.base.weights import load_arrays, refuse_others

MARK_CHANNELS = 8
"""Mean red, green, blue; how much the picture changes; lasting slope across and down; nearness of the sides."""


CELL = 8
"""Side of the squares that have an answer of their own, in pixels."""

DIRECTIONS = 4
"""Directions of a step from dark to light, 180°/4 apart, from the picture's x axis to its y axis (downwards)."""

KINDS = 16
"""What `measures.blur.network_input` says of a cell in each direction."""

SEEN = DIRECTIONS * KINDS
"""Channels of what the blur network sees: by direction, distance, and how a cell is summed up."""


class Conv(NamedTuple):
    """A convolution that halves the picture, or leaves its size."""

    inputs: int
    outputs: int
    side: int = 3
    stride: int = 1


class Residual(NamedTuple):
    """x + convolution of the rectified x, of any dilation."""

    width: int
    dilation: int = 1


class Relu(NamedTuple):
    """What is below 0 becomes 0."""


Part = Conv | Residual | Relu

BODIES: dict[str, tuple[Part, ...]] = {
    # Three halvings, then context.
    "watermark": (
        Conv(MARK_CHANNELS, 16, stride=2), Relu(), Conv(16, 24, stride=2), Residual(24), Relu(), Conv(24, 32, stride=2),
        Residual(32), Residual(32, 2), Residual(32, 3), Relu(), Conv(32, 1, side=1),
    ),
    "blur": (Conv(3 * KINDS + 2, 40), Residual(40), Residual(40, 2), Relu(), Conv(40, 2, side=1)),
}  # fmt: skip
"""The networks' parts, the last of which is called their head."""


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's tensors by their names."""
    found: dict[str, tuple[int, ...]] = {}
    for layer, part in _named(name):
        if isinstance(part, Conv):
            found |= {
                f"{layer}.weight": (part.outputs, part.inputs, part.side, part.side),
                f"{layer}.bias": (part.outputs,),
            }
        elif isinstance(part, Residual):
            found |= {f"{layer}.conv.weight": (part.width, part.width, 3, 3), f"{layer}.conv.bias": (part.width,)}
    return found


def _named(name: str) -> Iterator[tuple[str, Part]]:
    *body, head = BODIES[name]
    yield from ((f"body.{number}", part) for number, part in enumerate(body))
    yield "head", head


class Forward:
    """float32 [B, h, w, inputs] → [B, rows, columns, outputs], as the network of `models.small` with these tensors."""

    def __init__(self, name: str, tensors: Mapping[str, np.ndarray]) -> None:
        self.name = name
        self.layers = {
            weight.removesuffix(".weight"): _Layer(tensor, tensors[f"{weight.removesuffix('.weight')}.bias"])
            for weight, tensor in tensors.items()
            if weight.endswith(".weight")
        }

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.name != "blur":
            return self._answers(x)
        count, rows, columns, _ = x.shape
        found = self._answers(by_direction(x)).reshape(count, DIRECTIONS, rows, columns, -1)
        return found.transpose(0, 2, 3, 4, 1).reshape(count, rows, columns, -1)

    def _answers(self, x: np.ndarray) -> np.ndarray:
        for name, part in _named(self.name):
            if isinstance(part, Conv):
                x = self.layers[name](x, part.stride)
            elif isinstance(part, Residual):
                x = self.layers[f"{name}.conv"].added(x, part.dilation)
            else:
                x = np.maximum(x, 0, out=x)
        return x


def by_direction(x: np.ndarray) -> np.ndarray:
    """[B, h, w, DIRECTIONS · KINDS] → [B · DIRECTIONS, h, w, 3 · KINDS + 2]: see `models.small.BlurNet`."""
    count, rows, columns, _ = x.shape
    along = x.reshape(count, rows, columns, DIRECTIONS, KINDS)
    level = along.mean((3, 4), keepdims=True)
    along = along - level
    beside = 0.5 * (np.roll(along, 1, 3) + np.roll(along, -1, 3))
    one = np.broadcast_to(level, (*along.shape[:-1], 1))
    diagonal = np.broadcast_to((np.arange(DIRECTIONS, dtype=np.float32) % 2)[:, None], one.shape)
    whole = np.concatenate([along, np.roll(along, DIRECTIONS // 2, 3), beside, one, diagonal], axis=-1)
    return whole.transpose(0, 3, 1, 2, 4).reshape(count * DIRECTIONS, rows, columns, -1)


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


def load_small(name: str, path: Path | str) -> Forward:
    """The network of this name with the weights of a safetensors file. Raises UserError where they are not its own."""
    tensors = load_arrays(path)
    refuse_others(shapes(name), {n: tuple(t.shape) for n, t in tensors.items()}, path, f"small network {name}")
    return Forward(name, tensors)
