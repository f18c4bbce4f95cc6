"""One process of the tensor-parallel runs of ``test_tensor``: tensor_program.py OUT DATA RUNS.

Writes to OUT how far every layout of this number of processes is from one process, which each process is, too. Two
processes then leave two steps in RUNS/shards, sharded, and go on from a copy of them in RUNS/2 as one tensor-parallel
group; four go on in RUNS/4 as two of them.
"""

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.parallel.apply import Layout, apply, make_mesh, whole
from openhunyuan.parallel.tensor import orders
from openhunyuan.parallel.world import World
from openhunyuan.train import optim
from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.ema import EMA
from openhunyuan.train.optim import build_optimizers
from tests.parallel.program import trainer

DIT = DiTConfig(
    in_channels=2, out_channels=2, hidden_size=32, num_heads=4, num_double_blocks=2, num_single_blocks=2,
    num_refiner_blocks=1, rope_axes_dim=(2, 2, 4), text_dim=4, pooled_dim=4, mlp_ratio=3.0,
)  # fmt: skip

CASES = {
    2: ((Layout(tensor=2, sequence=False), "adamw"), (Layout(tensor=2, recompute=True), "muon")),
    4: (
        (Layout(tensor=2), "muon"),
        (Layout(tensor=4, recompute=True), "adamw"),
        (Layout(tensor=2, replicas=2), "adamw"),
    ),
    8: ((Layout(tensor=2, replicas=2, recompute=True), "adamw"),),
}
"""Processes → the layouts and optimizers that are compared with one process."""

OPTIMIZERS = {
    "adamw": OptimizerConfig(lr=1e-2, warmup_steps=0, eps=1e-3, schedule="constant", grad_clip=0.5),
    "muon": OptimizerConfig(name="muon", lr=1e-2, warmup_steps=0, eps=1e-3, schedule="constant", grad_clip=0.5),
}


def model() -> DiT:
    torch.manual_seed(0)
    dit = DiT(DIT)
    for p in dit.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim > 1 else 0.1)
    return dit


def sample(step: int, number: int) -> dict[str, Tensor]:
    """Inputs and target of one sample. 15 and 21 image tokens: 2 and 4 do not divide them, nor them and the text."""
    g = torch.Generator().manual_seed(100 * step + number)
    frames = (3, 1)[number % 2]
    shape, text = (1, 2, frames, 2, 10) if frames > 1 else (1, 2, 1, 6, 14), 4 + number
    return {
        "latents": torch.randn(shape, generator=g), "timestep": 1000 * torch.rand(1, generator=g),
        "text_states": torch.randn(1, text, 4, generator=g), "text_mask": torch.ones(1, text, dtype=torch.bool),
        "pooled": torch.randn(1, 4, generator=g), "guidance": 1000 * torch.rand(1, generator=g),
        "clean_frames": torch.arange(frames)[None] < (1 if frames > 1 else 0),
        "enhance_weight": 2.0 if number == 2 else None, "target": torch.randn(shape, generator=g),
    }  # fmt: skip


def train(
    dit: DiT, config: OptimizerConfig, numbers: list[int], steps: int = 3
) -> Iterator[tuple[float, Tensor, dict]]:
    """(loss of these samples, gradient norm, gradients before clipping) of every step."""
    optimizers, ema = build_optimizers(dit, config), EMA(dit, 0.9)
    for step in range(steps):
        total = 0.0
        for number in numbers:
            inputs = sample(step, number)
            target = inputs.pop("target")
            loss = (dit(**inputs) - target).square().mean()
            loss.backward()
            total += float(loss.detach())
        gradients = {name: p.grad.clone() for name, p in dit.named_parameters() if p.grad is not None}
        norm = nn.utils.clip_grad_norm_(dit.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ema.update(dit)
        yield total, norm, gradients
    yield 0.0, torch.zeros(()), dict(ema.shadow)


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative distance of any tensor; one that is almost zero counts against the mean of all."""
    assert found.keys() == wanted.keys() and all(found[k].shape == wanted[k].shape for k in wanted)
    floor = 1e-2 * sum(float(v.norm()) for v in wanted.values()) / len(wanted)
    return max(float((found[k] - v).norm()) / max(float(v.norm()), floor) for k, v in wanted.items())


def parity(world: World, out: Path) -> None:
    optim.iteration_dtype = lambda device: (
        torch.float32
    )  # what is compared is the layout, not the rounding of Muon's products
    report = []
    for layout, name in CASES[world.size]:
        config, dit, everything = OPTIMIZERS[name], model(), list(range(4))
        plain = copy.deepcopy(dit)
        alone = train(plain, config, everything)
        apply(dit, layout, make_mesh(layout, world, "cpu"))
        rank, ranks = layout.data_rank(world)
        errors = []
        for part, norm, values in train(dit, config, everything[rank::ranks]):
            summed = world.sum({"loss": part})["loss"] * ranks / world.size
            norm, values = whole(norm), whole(values, orders(dit))
            if world.is_main:
                loss, wanted_norm, wanted = next(alone)
                errors.append(abs(summed - loss) / max(loss, 1e-9))
                errors.append(float((norm - wanted_norm).abs() / wanted_norm.clamp(min=1e-9)))
                errors.append(distance(values, wanted))
        weights = whole(dit.state_dict(), orders(dit))
        if world.is_main:
            errors.append(distance(weights, dict(plain.state_dict())))
            report.append({"layout": layout.model_dump(), "optimizer": name, "errors": errors})
    if world.is_main:
        out.write_text(json.dumps(report))


def resume(world: World, data: Path, runs: Path) -> None:
    if world.size == 2:
        made = trainer(data, runs / "shards", Layout())
        for _ in range(2):
            made.train_step(made.fetch(made.step))
        made.save()
    run_dir = runs / str(world.size)
    world.once(lambda: shutil.copytree(runs / "shards", run_dir))
    trainer(data, run_dir, Layout(tensor=2)).run()


def main() -> None:
    out, data, runs = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    world = World.join(torch.device("cpu"))
    parity(world, out)
    if world.size < 8:
        resume(world, data, runs)
    world.leave()


if __name__ == "__main__":
    main()
