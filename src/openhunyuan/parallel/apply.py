"""Parallelism from outside: one ordered function on a finished module, which does not know.

Tensor (and sequence) parallelism first, then recomputation of activations, then sharding over the processes that have
other data (FSDP2; with replicas of the shards, HSDP), a block at a time. States go in and out whole and in the
network's own order, so a checkpoint is the same for every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.parallel.tensor import Order, orders, split_tensors
from openhunyuan.parallel.world import World


class Layout(Record):
    """How a run's processes share the work. The result does not depend on it, up to rounding."""

    replicas: int = Field(
        default=1, gt=0, description="groups that each hold all weights, sharded within (HSDP); 1 = FSDP"
    )
    tensor: int = Field(
        default=1, gt=0, description="processes that split heads and feed-forward channels and see the same samples"
    )
    sequence: bool = Field(
        default=True, description="with tensor: split the tokens between the linears too (sequence parallelism)"
    )
    recompute: bool = Field(
        default=False, description="keep no activations within blocks; compute them again going backward"
    )

    def data_rank(self, world: World) -> tuple[int, int]:
        """(which part of the data this process gets, parts): what a source is told as its rank and world size."""
        return world.rank // self.tensor, world.size // self.tensor


ALONE = Layout()


def make_mesh(layout: Layout, world: World, device_type: str) -> DeviceMesh | None:
    """Processes as (replicate, shard, tensor), without the dims of one; None where there is one process.

    Neighbours share tensors: their traffic is the most, and they are on one machine.

    Raises:
        UserError: replicas and tensor-parallel groups do not divide the processes.
    """
    within = world.size // layout.tensor
    if world.size % layout.tensor:
        raise UserError(
            f"{world.size} processes cannot make tensor-parallel groups of {layout.tensor}; choose a divisor of "
            f"{world.size}."
        )
    if within % layout.replicas:
        of = f" of groups of {layout.tensor}" if layout.tensor > 1 else ""
        raise UserError(
            f"{world.size} processes cannot make {layout.replicas} equal replicas{of}; choose a divisor of {within}."
        )
    if world.size == 1:
        return None
    sizes = {"replicate": layout.replicas, "shard": within // layout.replicas, "tensor": layout.tensor}
    sharded = layout.replicas > 1, within > 1, layout.tensor > 1
    names = tuple(name for name, wanted in zip(sizes, sharded, strict=True) if wanted)
    return init_device_mesh(device_type, tuple(sizes[name] for name in names), mesh_dim_names=names)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered, and recomputed, at a time: the members of a module's lists of blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def apply(module: nn.Module, layout: Layout, mesh: DeviceMesh | None) -> None:
    """Change ``module`` in place, before its optimizer is made. Gradients are then added over the processes."""
    units = list(blocks(module))
    if layout.tensor > 1:
        assert mesh is not None
        split_tensors(module, mesh["tensor"], layout.sequence)
    if layout.recompute:
        from torch.distributed._composable import checkpoint

        for unit in units:
            checkpoint(unit)
    data = tuple(name for name in ("replicate", "shard") if mesh is not None and name in (mesh.mesh_dim_names or ()))
    if mesh is not None and data:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        with_other_data = mesh[data]
        for unit in (*units, module):
            fully_shard(unit, mesh=with_other_data)
        for unit in (*units, module):
            assert isinstance(unit, FSDPModule)
            # Added, not averaged: every loss is already weighted by its share of the whole batch.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


Orders = Mapping[Any, "Orders"] | Sequence["Orders"] | Order | None
"""Beside a nested state, nested as it is: how the tensors at and below a place are ordered."""


def whole(state: Any, ordered: Orders = None) -> Any:
    """A nested state with every sharded tensor gathered, in the network's order. All processes have to ask together."""

    def gathered(value: Tensor, order: Order | None) -> Tensor:
        if not isinstance(value, DTensor):
            return value
        return order.join(value.full_tensor()) if order else value.full_tensor()

    return _each(state, ordered, gathered)


def reordered(state: Any, ordered: Orders) -> Any:
    """A nested whole state in the order that a module holds it in, for ``placed_like`` and ``placed_states``."""
    return _each(state, ordered, lambda value, order: order.split(value) if order and value.ndim else value)


def _each(state: Any, ordered: Orders, change: Callable[[Tensor, Order | None], Tensor]) -> Any:
    def below(key: Any) -> Orders:
        if isinstance(ordered, Mapping):
            return ordered.get(key)
        return ordered if isinstance(ordered, Order) or ordered is None else ordered[key]

    if isinstance(state, Tensor):
        return change(state, ordered if isinstance(ordered, Order) else None)
    if isinstance(state, Mapping):
        return {key: _each(value, below(key), change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_each(value, below(place), change) for place, value in enumerate(state))
    return state


def placed_like(value: Any, like: Any) -> Any:
    """A whole tensor cut as ``like`` is; what is not sharded, or of another shape, as it is."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        # Every process has the whole tensor: nothing is sent.
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def placed_states(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's saved whole state, cut as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = {
        number: {name: placed_like(value, parameters[number]) for name, value in held.items()}
        for number, held in saved["state"].items()
    }
    return {**saved, "state": states}


def optimizer_orders(optimizer: torch.optim.Optimizer, module: nn.Module) -> Orders:
    """How the tensors of an optimizer's state are ordered."""
    known = orders(module)
    found = {id(p): known[name] for name, p in module.named_parameters() if name in known}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {"state": {number: found[id(p)] for number, p in enumerate(parameters) if id(p) in found}}
