"""Parallelism from outside: one ordered function on a finished module, which does not know.

Tokens of a video over several processes first (context parallelism), then recomputation or offload of activations, then
compilation, then sharding (FSDP2; with replicas of the shards, HSDP), a block at a time. States go in and out whole, so
a checkpoint is the same for every layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import Record
from openhunyuan.parallel import context
from openhunyuan.parallel.offload import offload
from openhunyuan.parallel.world import World


class Layout(Record):
    """How a run's processes share the work. The result does not depend on it, up to rounding."""

    replicas: int = Field(
        default=1, gt=0, description="groups that each hold all weights, sharded within (HSDP); 1 = FSDP"
    )
    recompute: bool = Field(
        default=False, description="keep no activations within blocks; compute them again going backward"
    )
    offload: bool = Field(
        default=False, description="what blocks keep for the backward pass waits in host memory; not with recompute"
    )
    compile: Literal["none", "inductor", "aot_eager"] = Field(
        default="none", description="torch.compile of each block by this backend; not with ulysses or ring"
    )
    ulysses: int = Field(
        default=1, gt=0, description="processes that share a video's tokens and deal its heads out for attention"
    )
    ring: int = Field(
        default=1, gt=0, description="such groups that share a video's tokens and pass keys and values round"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Layout:
        if self.offload and self.recompute:
            raise ValueError("recompute leaves nothing within blocks that offload could move; choose one of them.")
        if self.compile != "none" and self.ulysses * self.ring > 1:
            raise ValueError("compile is not made for ulysses or ring; set it to none, or both of them to 1.")
        return self

    def data_rank(self, world: World) -> tuple[int, int]:
        """(which part of the data this process gets, parts): what a source is told as its rank and world size."""
        alike = self.ulysses * self.ring
        return world.rank // alike, world.size // alike


ALONE = Layout()


def check(module: nn.Module, layout: Layout) -> None:
    """Whether a module can be parallelised so, before anything is done.

    Raises:
        UserError: it cannot.
    """
    context.check(module, layout.ulysses, layout.ring)


def make_mesh(layout: Layout, world: World, device_type: str) -> DeviceMesh | None:
    """Processes as (replicate, shard, ring, ulysses), outer first, those of size 1 left out but shard; None where there
    is one process.

    Raises:
        UserError: the layout does not divide the processes.
    """
    shared = layout.ulysses * layout.ring
    groups = world.size // shared
    if world.size % shared:
        raise UserError(
            f"{world.size} processes cannot share videos in groups of {shared} (ulysses {layout.ulysses} × ring "
            f"{layout.ring}); choose degrees whose product divides {world.size}."
        )
    if groups % layout.replicas:
        of = f" of groups of {shared}" if shared > 1 else ""
        raise UserError(
            f"{world.size} processes cannot make {layout.replicas} equal replicas{of}; choose a divisor of {groups}."
        )
    if world.size == 1:
        return None
    sizes = {
        "replicate": layout.replicas,
        "shard": groups // layout.replicas,
        "ring": layout.ring,
        "ulysses": layout.ulysses,
    }
    sizes = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    return init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def sharding_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Over which weights are sharded: all processes within a replica, whatever else they share."""
    names = mesh.mesh_dim_names or ()
    within = tuple(name for name in names if name in ("shard", *context.DIMS))
    shards = mesh[within]._flatten("_".join(within))
    return DeviceMesh._concatenate([mesh["replicate"], shards]) if "replicate" in names else shards


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered, and recomputed, at a time: the members of a module's lists of blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def apply(module: nn.Module, layout: Layout, mesh: DeviceMesh | None) -> None:
    """Change ``module`` in place, before its optimizer is made. Gradients are then added over the processes."""
    if mesh is not None:
        context.share_tokens(module, mesh)
    units = list(blocks(module))
    if layout.recompute:
        from torch.distributed._composable import checkpoint

        for unit in units:
            checkpoint(unit)
    if layout.offload:
        for unit in units:
            offload(unit)
    if layout.compile != "none":
        for unit in units:
            # The computation alone: what others hook onto the call (recomputation, sharding) stays outside.
            unit.forward = torch.compile(unit.forward, backend=layout.compile)
    if mesh is not None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        weights = sharding_mesh(mesh)
        for unit in (*units, module):
            fully_shard(unit, mesh=weights)
        for unit in (*units, module):
            assert isinstance(unit, FSDPModule)
            # Added, not averaged: every loss is already weighted by its share of the whole batch.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(state: Any) -> Any:
    """A nested state with every sharded tensor gathered. All processes have to ask for it together."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
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
