"""One process of a distributed run, for ``test_apply``: program.py DATA RUN STEPS REPLICAS RECOMPUTE."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from openhunyuan.latents.plan import CostModel
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.parallel.apply import Layout
from openhunyuan.parallel.world import World
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer
from openhunyuan.train.planned import PlannedBatches
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask

DIT = DiTConfig(
    in_channels=2, out_channels=2, hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1,
    num_refiner_blocks=1, rope_axes_dim=(4, 6, 6), text_dim=4, pooled_dim=4, guidance_embed=False,
)  # fmt: skip
SHAPES = (
    BatchShape(batch_size=2, num_frames=1, height=32, width=32),
    BatchShape(batch_size=1, num_frames=9, height=16, width=32),
)
CONFIG = TrainConfig(
    name="p",
    stages=(Stage(name="mixed", steps=4, shapes=SHAPES),),
    # Adam divides by the gradient's own size: a small epsilon would turn rounding into differences of whole steps.
    optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0, eps=1e-3, schedule="constant"),
    ema_decay=0.9,
    sample_every=0,
    validate_every=4,
    checkpoint_every=2,
    keep_checkpoints=9,
    log_every=1,
)


def trainer(data: Path, run_dir: Path, layout: Layout) -> Trainer:
    world = World.join(torch.device("cpu"))
    torch.manual_seed(0)
    dit = DiT(DIT)
    dit.init_weights()
    for p in dit.final_layer.parameters():
        torch.nn.init.normal_(p, std=0.1)
    held = ShardDataset(data)
    empty = EmptyText(torch.zeros(1, 4), torch.zeros(4))
    task = FlowTask(FlowConfig(text_dropout=0.3, image_share=0.0), dit, empty, {"held": held.batch([1, 2])})
    rank, ranks = layout.data_rank(world)
    source = PlannedBatches([held], CostModel(0, 1, 0), 7, (1, 1), seed=1, rank=rank, world_size=ranks)
    return Trainer(CONFIG, task, source, run_dir, layout=layout)


def main() -> None:
    data, run_dir, steps, replicas, recompute = sys.argv[1:]
    torch.set_num_threads(1)
    made = trainer(Path(data), Path(run_dir), Layout(replicas=int(replicas), recompute=recompute == "True"))
    if int(steps) == CONFIG.total_steps:
        made.run()
    else:  # as a run that is stopped after its last checkpoint
        losses = [made.train_step(made.fetch(made.step))["loss"] for _ in range(int(steps))]
        made.save()
        if made.world.is_main:
            (Path(run_dir) / "losses.json").write_text(json.dumps(losses))
    if dist.is_initialized():
        dist.barrier()  # a process that leaves early takes the connections of the others with it
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
