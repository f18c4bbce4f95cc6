"""Parallelism from outside: one ordered function on a finished module, which does not know.

Recomputation of activations first, then sharding (FSDP2; with replicas of the shards, HSDP), a block at a time. States
go in and out whole, so a checkpoint is the same for every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.parallel.world import World


class Layout(Record):
    """How a run's processes share the work. The result does not depend on it, up to rounding."""

    replicas: int = Field(
        default=1, gt=0, description="groups that each hold all weights, sharded within (HSDP); 1 = FSDP"
    )
    recompute: bool = Field(
        default=False, description="keep no activations within blocks; compute them again going backward"
    )


ALONE = Layout()


def check_layout(layout: Layout, processes: int) -> None:
    """Raise ``UserError`` unless the replicas divide the processes."""
    if processes % layout.replicas:
        raise UserError(
            f"{processes} processes cannot make {layout.replicas} equal replicas; choose a divisor of {processes}."
        )


def make_mesh(layout: Layout, world: World, device_type: str) -> DeviceMesh | None:
    """Processes as (replicas, shards), or (shards,); None where there is one.

    Raises:
        UserError: the replicas do not divide the processes.
    """
    check_layout(layout, world.size)
    if world.size == 1:
        return None
    if layout.replicas == 1:
        return init_device_mesh(device_type, (world.size,), mesh_dim_names=("shard",))
    sizes = layout.replicas, world.size // layout.replicas
    return init_device_mesh(device_type, sizes, mesh_dim_names=("replicate", "shard"))


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
    if layout.recompute:
        from torch.distributed._composable import checkpoint

        for unit in units:
            checkpoint(unit)
    if mesh is not None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        for unit in (*units, module):
            fully_shard(unit, mesh=mesh)
        for unit in (*units, module):
            assert isinstance(unit, FSDPModule)
            # Added, not averaged: every loss is already weighted by its share of the whole batch.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(state: Any, then: Callable[[Tensor], Any] = lambda tensor: tensor) -> Any:
    """A nested state with every sharded tensor gathered. All processes have to ask for it together.

    then: what to keep of a tensor that is whole, before the next one is gathered.
    """
    if isinstance(state, Tensor):
        return then(state.full_tensor() if isinstance(state, DTensor) else state)
    if isinstance(state, Mapping):
        return {key: whole(value, then) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value, then) for value in state)
    return state


def placed_like(value: Any, like: Any) -> Any:
    """A whole tensor cut as ``like`` is; what is not sharded, or of another shape, as it is."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def placed_states(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's saved whole state, cut as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = {
        number: {name: placed_like(value, parameters[number]) for name, value in held.items()}
        for number, held in saved["state"].items()
    }
    return {**saved, "state": states}
