"""Tuning of guidance-distilled weights: what the loss is while the weights are those that are kept."""

from contextlib import nullcontext

import pytest
import torch

from openhunyuan.diffusion.flow import velocity_target
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.train.config import BatchShape, Stage
from openhunyuan.train.loop import StepContext, step_generator
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, draw
from openhunyuan.train.tasks.preserve import PreservingFlowTask

CONFIG = DiTConfig(
    in_channels=2, out_channels=2, hidden_size=16, num_heads=2, num_double_blocks=1, num_single_blocks=1,
    num_refiner_blocks=1, rope_axes_dim=(4, 2, 2), text_dim=4, pooled_dim=4, guidance_embed=True,
)  # fmt: skip
STAGE = Stage(name="s", steps=9, shapes=(BatchShape(batch_size=3, num_frames=5, height=32, width=32),))


def context(step: int) -> StepContext:
    return StepContext(step, 9, STAGE, step_generator(0, step))


def network() -> DiT:
    torch.manual_seed(0)
    dit = DiT(CONFIG)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dit


def test_before_anything_is_learned_the_loss_is_the_plain_one_at_scale_1_whatever_the_scale():
    dit, g = network(), torch.Generator().manual_seed(1)
    empty = EmptyText(torch.zeros(1, 4), torch.zeros(4))
    task = PreservingFlowTask(FlowConfig(text_dropout=0.5), dit, empty, {}, lambda: nullcontext(dit))
    batch = {
        "latents": torch.randn(3, 2, 2, 4, 4, generator=g),
        "text_states": torch.randn(3, 5, 4, generator=g),
        "text_mask": torch.ones(3, 5, dtype=torch.bool),
        "pooled": torch.randn(3, 4, generator=g),
    }
    loss, values = task.loss("model", batch, context(2))
    drawn = draw(task.config, empty, batch, context(2))
    assert drawn.batch is batch  # no text is dropped

    def velocity(scale: float) -> torch.Tensor:
        told = torch.full((3,), 1000 * scale)
        return dit(drawn.x_t, 1000 * drawn.t, batch["text_states"], batch["text_mask"], batch["pooled"], guidance=told)

    target = velocity_target(batch["latents"], drawn.noise)
    plain = (velocity(1.0) - target).square().mean()
    assert float(loss) == pytest.approx(float(plain), rel=1e-4) and set(values) == {"loss", "by_level"}
    assert float((velocity(5.0) - target).square().mean()) != pytest.approx(float(plain), rel=1e-2)
    loss.backward()
    assert dit.guidance_in is not None and all(p.grad is not None for p in dit.guidance_in.parameters())
