import pytest
import torch

from openhunyuan.latents.plan import CostModel
from openhunyuan.latents.shards import LatentSample, ShardDataset, ShardWriter
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer
from openhunyuan.train.planned import PlannedBatches
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask

DIT = DiTConfig(
    in_channels=2, out_channels=2, hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1,
    num_refiner_blocks=1, rope_axes_dim=(4, 6, 6), text_dim=4, pooled_dim=4, guidance_embed=False,
)  # fmt: skip
STAGE = Stage(
    name="mixed",
    steps=4,
    shapes=(
        BatchShape(batch_size=3, num_frames=1, height=32, width=32),
        BatchShape(batch_size=2, num_frames=9, height=16, width=32),
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ShardDataset:
    g = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("data")
    with ShardWriter(folder) as writer:
        for i in range(18):
            shape = (2, 1, 4, 4) if i % 3 else (2, 3, 2, 4)
            latents, states = torch.randn(shape, generator=g), torch.randn(1 + i % 4, 4, generator=g)
            writer.add(LatentSample(latents, states, torch.randn(4, generator=g), str(i)))
    return ShardDataset(folder)


def flow() -> FlowTask:
    torch.manual_seed(0)
    dit = DiT(DIT)
    dit.init_weights()
    for p in dit.final_layer.parameters():
        torch.nn.init.normal_(p, std=0.1)
    config = FlowConfig(text_dropout=0.3, image_share=0.0)
    return FlowTask(config, dit, EmptyText(torch.zeros(1, 4), torch.zeros(4)), {})


def source(data, rank=0, world_size=1, largest=None) -> PlannedBatches:
    return PlannedBatches([data], CostModel(0, 1, 0), 6, (1, 1), seed=1, rank=rank, world_size=world_size)


def gradients(data, tmp_path, world_size) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of step 2, added over the processes."""
    loss, total = 0.0, None
    for rank in range(world_size):
        task = flow()
        config = TrainConfig(name="p", stages=(STAGE,), optimizer=OptimizerConfig(lr=1e-3, grad_clip=1e9), ema_decay=0)
        trainer = Trainer(config, task, source(data, rank, world_size), tmp_path / f"{world_size}-{rank}")
        trainer.step = 2
        loss += trainer.train_step(trainer.fetch(2))["loss"]
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in task.dit.parameters()]
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
    assert total is not None
    return loss, total


def test_loss_and_gradients_do_not_depend_on_the_number_of_processes(data, tmp_path):
    one, three = gradients(data, tmp_path, 1), gradients(data, tmp_path, 3)
    assert three[0] == pytest.approx(one[0], rel=1e-5)
    scale = max(float(g.abs().max()) for g in one[1])
    for a, b in zip(one[1], three[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * scale)


def test_a_planned_run_trains_and_says_what_it_trains_on(data, tmp_path, caplog):
    config = TrainConfig(
        name="p", stages=(STAGE,), ema_decay=0, sample_every=0, validate_every=0, log_every=1,
        optimizer=OptimizerConfig(lr=1e-3),
    )  # fmt: skip
    with caplog.at_level("INFO", logger="openhunyuan"):
        Trainer(config, flow(), source(data), tmp_path).run()
    assert "mixed: images:videos 1:1, 6 samples a step, 1 processes" in caplog.text
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum('"loss"' in line for line in lines) == 4


def test_what_memory_is_measured_with_has_the_longest_text(data):
    for shape in STAGE.shapes:
        ((weight, batch),) = source(data).longest(shape, 5)["parts"]
        assert weight == 1 and batch["latents"].shape[:2] == (5, 2) and batch["text_states"].shape == (5, 4, 4)
        frames, height, width = batch["latents"].shape[2:]
        assert (4 * frames - 3, 8 * height, 8 * width) == (shape.num_frames, shape.height, shape.width)
        assert bool(batch["text_mask"].all()) and len(batch["keys"]) == 5
