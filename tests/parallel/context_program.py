"""One process of the context-parallel runs of ``test_context``: context_program.py OUT DATA RUN.

Writes to OUT how far every layout of this number of processes is from one process, which each process is, too, and the
losses and gradient norms of the training loop.
"""

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.parallel.apply import Layout, apply, make_mesh, whole
from openhunyuan.parallel.context import share_tokens
from openhunyuan.parallel.tensor import orders, split_tensors
from openhunyuan.parallel.world import World
from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.optim import build_optimizers
from tests.parallel.program import trainer

DIT = DiTConfig(
    in_channels=2, out_channels=2, hidden_size=32, num_heads=4, num_double_blocks=2, num_single_blocks=2,
    num_refiner_blocks=1, rope_axes_dim=(2, 2, 4), text_dim=4, pooled_dim=4, guidance_embed=False,
)  # fmt: skip

LAYOUTS = {
    2: (Layout(ulysses=2, offload=True), Layout(ring=2, recompute=True)),
    4: (
        Layout(ulysses=2, ring=2), Layout(ring=2), Layout(ring=4), Layout(ulysses=2, replicas=2),
        Layout(ring=2, replicas=2, recompute=True), Layout(tensor=2, ring=2), Layout(tensor=2, ulysses=2),
    ),
    8: (Layout(tensor=2, ring=2, recompute=True), Layout(tensor=2, ulysses=2, ring=2)),
}  # fmt: skip
"""Processes → what is compared with one process; what the degrees leave over is FSDP, or HSDP with replicas."""

LOOP = {2: Layout(ulysses=2), 4: Layout(ring=2), 8: Layout(ring=2)}
"""Processes → the layout of the training loop."""

OPTIMIZER = OptimizerConfig(lr=1e-2, warmup_steps=0, eps=1e-3, schedule="constant", grad_clip=0.5)
SHAPES = ((3, 2, 10), (1, 6, 14), (1, 2, 6), (2, 4, 4))
"""Latents of 15, 21, 3 and 8 tokens: not divided by 2 or 4, fewer than 4, and divided."""


def model() -> DiT:
    torch.manual_seed(0)
    dit = DiT(DIT)
    for p in dit.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.1)
    return dit


def sample(step: int, number: int) -> dict[str, Tensor]:
    """Inputs and target of two samples. Texts of number 1 are as long as each other; videos have their first frame."""
    g = torch.Generator().manual_seed(100 * step + number)
    frames, height, width = SHAPES[number]
    shape, text = (2, 2, frames, height, width), 4 + number
    lengths = torch.tensor([text, text if number == 1 else 2])
    return {
        "latents": torch.randn(shape, generator=g), "timestep": 1000 * torch.rand(2, generator=g),
        "text_states": torch.randn(2, text, 4, generator=g), "text_mask": torch.arange(text) < lengths[:, None],
        "pooled": torch.randn(2, 4, generator=g), "target": torch.randn(shape, generator=g),
    } | ({"clean_frames": torch.arange(frames).expand(2, -1) < 1} if frames > 1 else {})  # fmt: skip


def train(dit: DiT, numbers: list[int]) -> Iterator[tuple[float, Tensor, dict[str, Tensor]]]:
    """(loss of these samples, gradient norm, gradients before clipping) of three steps."""
    (optimizer,) = build_optimizers(dit, OPTIMIZER)
    for step in range(3):
        total = 0.0
        for number in numbers:
            inputs = sample(step, number)
            target = inputs.pop("target")
            loss = (dit(**inputs) - target).square().mean()
            loss.backward()
            total += float(loss.detach())
        gradients = {name: p.grad.clone() for name, p in dit.named_parameters() if p.grad is not None}
        norm = nn.utils.clip_grad_norm_(dit.parameters(), OPTIMIZER.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        yield total, norm, gradients


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative distance of any tensor; one that is almost zero counts against the mean of all."""
    assert found.keys() == wanted.keys() and all(found[k].shape == wanted[k].shape for k in wanted)
    floor = 1e-2 * sum(float(v.norm()) for v in wanted.values()) / len(wanted)
    return max(float((found[k] - v).norm()) / max(float(v.norm()), floor) for k, v in wanted.items())


def inference(layout: Layout, world: World) -> float:
    """Largest relative distance of a forward pass without gradients, enhanced, of every shape."""
    plain, shared = model(), model()
    mesh = make_mesh(layout, world, "cpu")
    assert mesh is not None
    if layout.tensor > 1:
        split_tensors(shared, mesh["tensor"], layout.sequence)
    share_tokens(shared, mesh)
    errors = []
    with torch.inference_mode():
        for number in range(len(SHAPES)):
            inputs = sample(9, number) | {"enhance_weight": 2.0}
            del inputs["target"]
            wanted = plain(**inputs)
            errors.append(float((shared(**inputs) - wanted).norm() / wanted.norm()))
    return max(errors)


def parity(world: World) -> list[dict]:
    report = []
    for layout in LAYOUTS[world.size]:
        dit = model()
        plain = copy.deepcopy(dit)
        apply(dit, layout, make_mesh(layout, world, "cpu"))
        rank, ranks = layout.data_rank(world)
        everything = list(range(len(SHAPES)))
        errors = {"inference": [inference(layout, world)], "loss": [], "norm": [], "gradients": []}
        steps = zip(train(plain, everything), train(dit, everything[rank::ranks]), strict=True)
        for (loss, norm, wanted), (part, found_norm, found) in steps:
            summed = world.sum({"loss": part})["loss"] * ranks / world.size
            errors["loss"].append(abs(summed - loss) / loss)
            errors["norm"].append(float((whole(found_norm) - norm).abs() / norm))
            errors["gradients"].append(distance(whole(found, orders(dit)), wanted))
        errors["weights"] = [distance(whole(dit.state_dict(), orders(dit)), dict(plain.state_dict()))]
        report.append({"layout": layout.model_dump(), "errors": errors})
    return report


def loop(world: World, data: Path, run: Path) -> list[dict[str, float]]:
    made = trainer(data, run, LOOP[world.size])
    return [made.train_step(made.fetch(made.step)) for _ in range(3)]


def main() -> None:
    out, data, run = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    world = World.join(torch.device("cpu"))
    found = {"parity": parity(world), "loop": loop(world, data, run)}
    if world.is_main:
        out.write_text(json.dumps(found))
    dist.barrier()  # a process that leaves early takes the connections of the others with it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
