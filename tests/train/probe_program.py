"""One process of ``test_probe``'s run of two: probe_program.py FOLDER. Their micro-batches are found together, then the
run is trained with them. Writes to FOLDER what each process found, and what it had to try."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.parallel.apply import Layout
from openhunyuan.parallel.world import World
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer
from openhunyuan.train.probe import Trials, probed
from openhunyuan.train.running import Running
from tests.train.test_loop import Regression

IMAGE, VIDEO = (BatchShape(batch_size=3, num_frames=n, height=16, width=16) for n in (1, 5))
CONFIG = TrainConfig(
    name="p",
    stages=(Stage(name="s", steps=2, shapes=(IMAGE, VIDEO)),),
    optimizer=OptimizerConfig(lr=0.1),
    sample_every=0,
)
MOST = 12


class Scarce(Regression):
    """Finds no memory for more than ``room`` values at once, as a process may find that shares its machine."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.room = room

    def loss(self, phase: str, batch: dict[str, Tensor], context: object) -> tuple[Tensor, dict[str, Tensor]]:
        if batch["x"].numel() > self.room:
            raise MemoryError
        loss = (self.net(batch["x"].reshape(-1, 1)) - 1).square().mean()
        return loss, {"loss": loss.detach()}

    def validate(self, context: object) -> dict[str, float]:
        return {}


def samples(shape: BatchShape, count: int) -> dict:
    return {"parts": [(1.0, {"x": torch.ones(count, shape.num_frames)})]}


@dataclass
class Source:
    """Both processes' micro-batches have the size that was found."""

    rank: int
    world_size: int

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> dict:
        return samples(shape, shape.batch_size)


def main() -> None:
    (folder,) = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    device = torch.device("cpu")
    world = World.join(device)
    tried: list[tuple[int, int]] = []
    task = Scarce(10 if world.rank else 100)  # the second process decides
    trials = Trials(CONFIG, task, device, samples, 1 << 40, Layout(), world.size)

    def peak(stage: Stage, shape: BatchShape, count: int) -> int | None:
        tried.append((shape.num_frames, count))
        return trials.peak(stage, shape, count)

    def find(limit: int) -> TrainConfig:
        return probed(CONFIG, peak, MOST, limit, folder / "kept.json", {}, world)

    found = find(1 << 40)
    first = len(tried)
    assert find(1 << 40) == found and len(tried) == first  # from what is kept
    refused = ""
    try:
        find(1000)  # not even one sample
    except UserError as error:
        refused = f"{type(error).__name__}: {error}"
    # Connections are what they were, and the run takes what was found.
    running = Running(log=(), heartbeat_seconds=0)
    Trainer(found, task, Source(world.rank, world.size), folder / "run", device=device, running=running).run()
    said = {
        "sizes": [shape.batch_size for shape in found.stages[0].shapes],
        "tried": tried[:first],
        "refused": refused,
        "world": asdict(world)["size"],
        "weights": [round(float(p.full_tensor().sum()), 5) for p in task.net.parameters()],
    }
    (folder / f"{world.rank}.json").write_text(json.dumps(said))
    world.leave()


if __name__ == "__main__":
    main()
