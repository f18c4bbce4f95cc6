"""Tensors that are not there yet: a format, a shape, and how to get the values when they are wanted.

A conversion is written on these, checked as a whole without reading a weight, and then run one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openhunyuan.base.tensorfile import StoredTensor


@dataclass(frozen=True)
class Lazy:
    """A tensor to be.

    Attributes:
        dtype, shape: what ``read`` will give.
        get: gives it; the argument allows the result to be a mapping of a file, or to share another tensor's memory.
        cut: gives its rows start..stop without reading the others, where that is possible.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[bool], Tensor]
    cut: Callable[[int, int], Lazy | None] | None = None

    def read(self) -> Tensor:
        """The values, read from the file."""
        return self.get(False)

    def map(self) -> Tensor:
        """The values, mapped from the file where they lie there as they are."""
        return self.get(True)

    def rows(self, start: int, stop: int) -> Lazy:
        """Rows start..stop."""
        part = self.cut(start, stop) if self.cut else None
        if part is not None:
            return part
        shape = (stop - start, *self.shape[1:])
        return Lazy(self.dtype, shape, lambda mapped: self.get(mapped)[start:stop])


def from_file(stored: StoredTensor) -> Lazy:
    """A tensor in a file."""

    def cut(start: int, stop: int) -> Lazy | None:
        part = stored.rows(start, stop)
        return None if part is None else from_file(part)

    return Lazy(stored.dtype, stored.shape, lambda mapped: stored.map() if mapped else stored.read(), cut)


def from_tensor(tensor: Tensor) -> Lazy:
    """A tensor that is there already (or on the meta device, to follow names and shapes alone)."""
    return Lazy(
        tensor.dtype, tuple(tensor.shape), lambda mapped: tensor, lambda start, stop: from_tensor(tensor[start:stop])
    )


def join(parts: Sequence[Lazy]) -> Lazy:
    """Rows of several tensors below one another."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    dtype = parts[0].dtype
    # As one tensor, filled part by part, so that the parts are never all in memory beside the whole.
    return Lazy(dtype, shape, lambda mapped: _filled(parts, dtype, shape, mapped))


def _filled(parts: Sequence[Lazy], dtype: torch.dtype, shape: tuple[int, ...], mapped: bool) -> Tensor:
    first = parts[0].get(mapped)
    out = torch.empty(shape, dtype=dtype, device=first.device)
    out[: len(first)] = first
    row = len(first)
    del first
    for part in parts[1:]:
        out[row : row + part.shape[0]] = part.get(mapped)
        row += part.shape[0]
    return out


def swap_halves(x: Lazy) -> Lazy:
    """The second half of the rows first."""
    half = x.shape[0] // 2
    return join([x.rows(half, x.shape[0]), x.rows(0, half)])


def reshape(x: Lazy, shape: tuple[int, ...]) -> Lazy:
    """The same values in another shape."""
    return Lazy(x.dtype, shape, lambda mapped: x.get(mapped).reshape(shape))


def apply(
    x: Lazy, function: Callable[[Tensor], Tensor], dtype: torch.dtype, shape: tuple[int, ...] | None = None
) -> Lazy:
    """``function`` of the values; ``dtype`` and ``shape`` (None: unchanged) are what it gives."""
    return Lazy(dtype, x.shape if shape is None else shape, lambda mapped: function(x.get(mapped)))
