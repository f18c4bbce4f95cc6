"""Parallelism from outside: one ordered function on a finished module, which does not know.

Tensor (and sequence) parallelism first, then the tokens of a video over several processes (context parallelism), then
recomputation or offload of activations, then compilation, then sharding over the processes that have other data or
other tokens (FSDP2; with replicas of the shards, HSDP), a block at a time. ``whole`` gathers a state in the network's
own order; how it goes into files and out of them in parts, ``parallel.resharding`` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from openhunyuan.parallel.tensor import Order, check_splits, orders, split_tensors
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
    offload: bool = Field(
        default=False, description="what blocks keep for the backward pass waits in host memory; not with recompute"
    )
    compile: Literal["none", "inductor", "aot_eager"] = Field(
        default="none", description="torch.compile of each block by this backend; not with tensor, ulysses or ring"
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
        if self.compile != "none" and self.alike > 1:
            raise ValueError("compile is not made for tensor, ulysses or ring; set it to none, or all of them to 1.")
        return self

    @property
    def alike(self) -> int:
        """Processes that are given the same samples."""
        return self.tensor * self.ulysses * self.ring

    def data_rank(self, world: World) -> tuple[int, int]:
        """(which part of the data this process gets, parts): what a source is told as its rank and world size."""
        return world.rank // self.alike, world.size // self.alike


ALONE = Layout()


def check(module: nn.Module, layout: Layout) -> None:
    """Whether a module can be parallelised so, before anything is done.

    Raises:
        UserError: it cannot.
    """
    if layout.tensor > 1:
        check_splits(module, layout.tensor)
    heads = module.config.num_heads // layout.tensor if isinstance(module, context.DiT) else None
    context.check(module, layout.ulysses, layout.ring, heads)


def check_layout(layout: Layout, processes: int) -> None:
    """Raise ``UserError`` unless groups with the same samples, and replicas of them, divide the processes."""
    alike = layout.alike
    count = f"{processes} process{'es' if processes > 1 else ''}"
    if processes % alike:
        raise UserError(
            f"{count} cannot work on the same samples in groups of {alike} (tensor {layout.tensor} × "
            f"ulysses {layout.ulysses} × ring {layout.ring}); choose degrees whose product divides {processes}."
        )
    groups = processes // alike
    if groups % layout.replicas:
        of = f" of groups of {alike}" if alike > 1 else ""
        raise UserError(f"{count} cannot make {layout.replicas} equal replicas{of}; choose a divisor of {groups}.")


def make_mesh(layout: Layout, world: World, device_type: str) -> DeviceMesh | None:
    """Processes as (replicate, shard, ring, ulysses, tensor), outer first, without the dims of one (but shard, where
    weights are sharded at all); None where there is one process.

    Neighbours share tensors, then tokens: their traffic is the most, and they are on one machine.

    Raises:
        UserError: the layout does not divide the processes.
    """
    check_layout(layout, world.size)
    if world.size == 1:
        return None
    sizes = {
        "replicate": layout.replicas,
        "shard": world.size // layout.alike // layout.replicas,
        "ring": layout.ring,
        "ulysses": layout.ulysses,
        "tensor": layout.tensor,
    }
    sharded = world.size > layout.tensor
    sizes = {name: size for name, size in sizes.items() if size > 1 or (name == "shard" and sharded)}
    return init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def sharding_mesh(mesh: DeviceMesh) -> DeviceMesh | None:
    """Over which weights are sharded: all processes within a replica that do not hold parts of the same tensors; None
    where those are all."""
    names = mesh.mesh_dim_names or ()
    within = [name for name in names if name in ("shard", *context.DIMS)]
    if not within:
        return None
    if len(within) == 1:
        return mesh["replicate", "shard"] if "replicate" in names else mesh[within[0]]
    shards = mesh[tuple(within)]._flatten("_".join(within))
    return DeviceMesh._concatenate([mesh["replicate"], shards]) if "replicate" in names else shards


def shards(layout: Layout, processes: int) -> int:
    """Over how many processes weights are sharded (``sharding_mesh``), when there are so many in all."""
    return processes // layout.tensor // layout.replicas


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered, and recomputed, at a time: the members of a module's lists of blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def apply(module: nn.Module, layout: Layout, mesh: DeviceMesh | None) -> None:
    """Change ``module`` in place, before its optimizer is made. Gradients are then added over the processes."""
    if mesh is not None and layout.tensor > 1:
        split_tensors(module, mesh["tensor"], layout.sequence)
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
    weights = sharding_mesh(mesh) if mesh is not None else None
    if weights is not None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

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


Orders = Mapping[Any, "Orders"] | Sequence["Orders"] | Order | None
"""Beside a nested state, nested as it is: how the tensors at and below a place are ordered."""


def whole(state: Any, ordered: Orders = None, then: Callable[[Tensor], Any] = lambda tensor: tensor) -> Any:
    """A nested state with every sharded tensor gathered, in the network's order. All processes have to ask together.

    then: what to keep of a tensor that is whole, before the next one is gathered.
    """

    def gathered(value: Tensor, order: Order | None) -> Any:
        if not isinstance(value, DTensor):
            return then(value)
        return then(order.join(value.full_tensor()) if order else value.full_tensor())

    return each(state, ordered, gathered)


def each(state: Any, ordered: Orders, change: Callable[[Tensor, Order | None], Any]) -> Any:
    """A nested state with ``change`` of every tensor, which is told how the tensor is ordered, in its place."""

    def below(key: Any) -> Orders:
        if isinstance(ordered, Mapping):
            return ordered.get(key)
        return ordered if isinstance(ordered, Order) or ordered is None else ordered[key]

    if isinstance(state, Tensor):
        return change(state, ordered if isinstance(ordered, Order) else None)
    if isinstance(state, Mapping):
        return {key: each(value, below(key), change) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(each(value, below(place), change) for place, value in enumerate(state))
    return state


def placed_like(value: Any, like: Any) -> Any:
    """A whole tensor cut as ``like`` is; what is not sharded, or of another shape, as it is."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        # Every process has the whole tensor: nothing is sent.
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def optimizer_orders(optimizer: torch.optim.Optimizer, module: nn.Module) -> Orders:
    """How the tensors of an optimizer's state are ordered."""
    known = orders(module)
    found = {id(p): known[name] for name, p in module.named_parameters() if name in known}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {"state": {number: found[id(p)] for number, p in enumerate(parameters) if id(p) in found}}
