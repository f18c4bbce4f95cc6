"""One process of ``test_estimate``'s runs: estimate_program.py OUT [PROCESSES]. Writes to OUT what each layout of this
number of processes really holds, keeps and sends, of the process for which that is the most. PROCESSES: pretend that
there are so many."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from openhunyuan.base.sizes import LatentSize
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.parallel.apply import Layout, apply, local, make_mesh
from openhunyuan.parallel.world import World, pretend
from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.ema import EMA
from openhunyuan.train.optim import build_optimizers

DIT = DiTConfig(
    in_channels=2, out_channels=2, hidden_size=48, num_heads=4, num_double_blocks=2, num_single_blocks=2,
    num_refiner_blocks=1, rope_axes_dim=(4, 4, 4), text_dim=6, pooled_dim=10, guidance_embed=False,
)  # fmt: skip
"""What is held does not divide everywhere: 4 processes share 12 channels of a head's norm, and 8 rows at the end."""

LATENT, TEXT = LatentSize(3, 6, 10), 5
"""45 image tokens."""

LAYOUTS = {
    2: (Layout(), Layout(tensor=2), Layout(tensor=2, sequence=False), Layout(ring=2), Layout(ulysses=2)),
    4: (Layout(tensor=2), Layout(replicas=2), Layout(tensor=2, replicas=2), Layout(ulysses=2, tensor=2)),
}
"""Processes → layouts."""


def inputs(samples: int, device: str = "cpu") -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    values = [
        torch.randn(samples, DIT.in_channels, LATENT.frames, LATENT.height, LATENT.width, generator=g),
        torch.rand(samples, generator=g),
        torch.randn(samples, TEXT, DIT.text_dim, generator=g),
        torch.ones(samples, TEXT, dtype=torch.bool),
        torch.randn(samples, DIT.pooled_dim, generator=g),
    ]
    return [value.to(device) for value in values]


class Sent:
    """Bytes of weights and gradients that this process sends through FSDP's collectives."""

    NAMES = (
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "all_reduce",
        "all_gather_single",
        "reduce_scatter_single",
    )

    def __init__(self) -> None:
        self.bytes, self.held = 0.0, {name: getattr(dist, name) for name in self.NAMES if hasattr(dist, name)}

    def __enter__(self) -> "Sent":
        for name, called in self.held.items():
            setattr(dist, name, self._counting(name, called))
        return self

    def __exit__(self, *_: object) -> None:
        for name, called in self.held.items():
            setattr(dist, name, called)

    def _counting(self, name: str, called: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            tensors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
            processes = dist.get_world_size(named.get("group"))
            if name == "all_reduce":
                self.bytes += 2 * (processes - 1) / processes * tensors[0].nbytes
            else:  # the part that is given to, or comes from, each of the others
                self.bytes += (processes - 1) * min(tensor.nbytes for tensor in tensors)
            return called(*args, **named)

        return counted


def measure(layout: Layout, world: World) -> dict[str, float]:
    torch.manual_seed(0)
    dit = DiT(DIT)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    apply(dit, layout, make_mesh(layout, world, "cpu"))
    config = OptimizerConfig(name="muon", lr=1e-3, warmup_steps=0)
    optimizers, ema = build_optimizers(dit, config), EMA(dit, 0.9)
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in {local(p).untyped_storage().data_ptr() for p in dit.parameters()}:
            kept[place] = tensor  # and so its memory is nobody else's meanwhile
        return tensor

    with Sent() as sent:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            out = dit(*inputs(1))
        activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        out.square().mean().backward()
    parameters = list(dit.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    for optimizer in optimizers:
        optimizer.step()
    states = [v for o in optimizers for held in o.state.values() for v in held.values() if v.ndim]
    return {
        "weights": sum(local(p).untyped_storage().nbytes() for p in parameters),
        "gradients": sum(local(g).nbytes for g in gradients),
        "optimizer": sum(local(v).nbytes for v in states),
        "average": sum(local(v).nbytes for v in ema.shadow.values()),
        "activations": activations,
        "sent": sent.bytes,
    }


def main() -> None:
    out, *processes = sys.argv[1:]
    torch.set_num_threads(1)
    if processes:
        pretend(int(processes[0]))
    world = World.join(torch.device("cpu"))
    report = []
    for layout in LAYOUTS[world.size]:
        found = world.every(lambda layout=layout: measure(layout, world))
        report.append({"layout": layout.model_dump(), "most": {k: max(one[k] for one in found) for k in found[0]}})
    if world.is_main:
        Path(out).write_text(json.dumps(report))
    world.leave()


if __name__ == "__main__":
    main()
