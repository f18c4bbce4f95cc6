"""Activations in host memory: what a block keeps for its backward pass waits there and comes back when it is asked for.

Copies are made in the order of the computation, to pinned memory where there is a GPU. They are exact, so results are
the same to the bit. Parameters stay where they are, and on a CPU a copy is made all the same, which only costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor


def offload(block: nn.Module) -> None:
    """Change ``block`` in place; apply it before sharding, whose gathered weights then count as its parameters."""
    running: list[saved_tensors_hooks] = []

    def begin(block: nn.Module, _: Any) -> None:
        local = (p.to_local() if isinstance(p, DTensor) else p for p in block.parameters())
        kept = {p.untyped_storage().data_ptr() for p in local}

        def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
            return tensor if tensor.untyped_storage().data_ptr() in kept else (tensor.device, to_host(tensor))

        hooks = saved_tensors_hooks(pack, unpack)
        hooks.__enter__()
        running.append(hooks)

    def end(*_: Any) -> None:
        running.pop().__exit__()

    block.register_forward_pre_hook(begin)
    block.register_forward_hook(end, always_call=True)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, pinned where that makes copies faster; the copy may still be under way on the GPU."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return host.copy_(tensor, non_blocking=True)


def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    """What ``pack`` was given."""
    if isinstance(packed, Tensor):
        return packed
    device, host = packed
    return host.to(device, non_blocking=True)
