"""Sharded states in and out of files, in any layout: which part of a whole tensor a process holds, and reading that
part from files that were written in parts of another layout.

Places count in the whole tensor in the network's own order. A run of a fused linear that tensor parallelism has ordered
anew (``Order``) is several parts there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from openhunyuan.base.tensorfile import StoredTensor
from openhunyuan.parallel.apply import Orders, each
from openhunyuan.parallel.tensor import Order
from openhunyuan.parallel.world import World

Place = tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """A block of a whole tensor that a process holds: where it starts there, and where in the process's own part."""

    start: Place
    within: tuple[slice, ...]


def runs(tensor: DTensor, order: Order | None = None) -> list[Run]:
    """The blocks of the whole tensor that are this process's part of it; none where the part is empty."""
    sizes, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tuple(sizes) == tuple(tensor.to_local().shape)
    if not prod(sizes):
        return []
    if order is None:
        return [Run(tuple(start), tuple(slice(0, size) for size in sizes))]
    places = order.places()[start[order.dim] : start[order.dim] + sizes[order.dim]].tolist()
    breaks = [n for n in range(1, len(places)) if places[n] != places[n - 1] + 1]
    found = []
    for begin, end in zip([0, *breaks], [*breaks, len(places)], strict=True):
        at = (*start[: order.dim], places[begin], *start[order.dim + 1 :])
        within = [slice(0, size) for size in sizes]
        within[order.dim] = slice(begin, end)
        found.append(Run(at, tuple(within)))
    return found


@dataclass(frozen=True)
class Part:
    """What one process writes of a tensor: blocks by where they start. shape, dtype: of the whole."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Mapping[Place, Tensor]


def parts(
    state: Any,
    ordered: Orders = None,
    then: Callable[[Tensor], Any] = lambda tensor: tensor,
    world: World | None = None,
) -> Any:
    """A nested state with a ``Part`` in the place of every sharded tensor. Nothing is sent.

    Of a block that several processes hold (replicas, or neighbours in tensor parallelism) one writes it: the one that
    has least to write so far. What is not sharded, the main process.

    then: what to keep of a tensor that this process writes.
    """
    main = world is None or world.is_main
    loads: dict[int, list[int]] = {}  # how many processes hold the same → values that each of them has been given

    def part(value: Tensor, order: Order | None) -> Any:
        if not isinstance(value, DTensor):
            return then(value) if main else None
        mesh, copies, place = value.device_mesh, 1, 0
        for dim, placement in enumerate(value.placements):
            if placement.is_replicate():
                copies, place = copies * mesh.size(dim), place * mesh.size(dim) + mesh.get_local_rank(dim)
        given = loads.setdefault(copies, [0] * copies)
        writer = given.index(min(given))
        given[writer] += value.numel()
        mine = place == writer
        local = value.to_local()
        blocks = {run.start: then(local[run.within]) for run in runs(value, order)} if mine else {}
        return Part(tuple(value.shape), value.dtype, blocks)

    return each(state, ordered, part)


@dataclass(frozen=True)
class Stored:
    """A whole tensor that lies in files, in blocks by where they start. Blocks neither overlap nor leave gaps."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Mapping[Place, StoredTensor]

    def read(self, start: Place | None = None, sizes: Sequence[int] | None = None) -> Tensor:
        """A block of it, by default all, in memory of its own; only what the block needs is read."""
        start = start or (0,) * len(self.shape)
        sizes = tuple(self.shape if sizes is None else sizes)
        held = self.blocks.get(start)
        if held is not None and held.shape == sizes:
            return held.read()
        out = torch.empty(sizes, dtype=self.dtype)
        for at, block in self.blocks.items():
            begin = [max(a, b) for a, b in zip(at, start, strict=True)]
            end = [min(a + n, b + m) for a, n, b, m in zip(at, block.shape, start, sizes, strict=True)]
            if all(a < b for a, b in zip(begin, end, strict=True)):
                out[_within(begin, end, start)] = block.map()[_within(begin, end, at)]
        return out


def _within(begin: Iterable[int], end: Iterable[int], start: Place) -> tuple[slice, ...]:
    return tuple(slice(a - s, b - s) for a, b, s in zip(begin, end, start, strict=True))


def placed(value: Any, like: Any = None, order: Order | None = None) -> Any:
    """A saved tensor, in the network's order, as this process holds ``like``: its part where that is sharded and of the
    same shape, else all of it. Anything but a tensor as it is. Nothing is sent."""
    if not isinstance(value, Tensor | Stored):
        return value
    if not (isinstance(like, DTensor) and tuple(value.shape) == tuple(like.shape)):
        return value.read() if isinstance(value, Stored) else value
    local = torch.empty(like.to_local().shape, dtype=value.dtype, device=like.device)
    for run in runs(like, order):
        sizes = [part.stop - part.start for part in run.within]
        end = [a + n for a, n in zip(run.start, sizes, strict=True)]
        zero = (0,) * len(end)
        local[run.within] = (
            value.read(run.start, sizes) if isinstance(value, Stored) else value[_within(run.start, end, zero)]
        ).to(like.device)
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def placed_all(saved: Mapping[str, Any], like: Mapping[str, Any], ordered: Mapping[str, Order]) -> dict[str, Any]:
    """Saved tensors by name, as this process holds those of the same name."""
    return {name: placed(value, like.get(name), ordered.get(name)) for name, value in saved.items()}


def placed_states(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], ordered: Orders = None) -> dict[str, Any]:
    """An optimizer's saved state, as this process holds its parameters. ordered: see ``optimizer_orders``."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known: Any = ordered["state"] if isinstance(ordered, Mapping) else {}
    states = {
        number: {name: placed(value, parameters[number], known.get(number)) for name, value in held.items()}
        for number, held in saved["state"].items()
    }
    return {**saved, "state": states}
