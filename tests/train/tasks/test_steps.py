"""Step distillation against a flow whose velocity is known: data is +1 or −1, so the paths bend."""

import pytest
import torch
from torch import nn

from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import StepContext, Trainer, step_generator
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig
from openhunyuan.train.tasks.steps import StepsConfig, StepsTask, fine_sigmas

STAGE = Stage(name="s", steps=400, shapes=(BatchShape(batch_size=256, num_frames=1, height=16, width=16),))
CONFIG = StepsConfig(num_steps=2, flow_shift=1.0, substeps=16)


class Exact(nn.Module):
    """E[noise − data | x_t] for data ±1 with equal chance."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, time, states, mask, pooled, clean_frames=None):
        self.calls += 1
        t = (time / 1000).view(-1, 1, 1, 1, 1).clamp(min=1e-3)
        return (x - torch.tanh(x * (1 - t) / t**2)) / t


class Learner(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x, time, states, mask, pooled, clean_frames=None):
        flat, t = x.flatten(), time / 1000
        features = [flat, t, flat * t, torch.tanh(4 * flat), torch.tanh(4 * flat) * t, (t > 0.5).float()]
        return self.net(torch.stack(features, 1)).view_as(x)


def batch(step: int, size: int = 256) -> dict[str, torch.Tensor]:
    sign = torch.randint(2, (size, 1, 1, 1, 1), generator=step_generator(1, step)) * 2.0 - 1
    return {
        "latents": sign,
        "text_states": torch.zeros(size, 1, 1),
        "text_mask": torch.ones(size, 1, dtype=torch.bool),
        "pooled": torch.zeros(size, 1),
    }


class Source:
    def batch(self, step, stage, shape):
        return batch(step)


EMPTY = EmptyText(torch.zeros(1, 1), torch.zeros(1))


def test_the_fine_grid_holds_the_few_steps():
    fine = fine_sigmas(StepsConfig(num_steps=4, flow_shift=3.0, substeps=5))
    assert len(fine) == 21 and fine[0] == 1 and fine[-1] == 0 and (fine.diff() < 0).all()
    assert fine[::5].tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_few_steps_of_the_student_end_where_many_of_the_teacher_do(tmp_path):
    task = StepsTask(CONFIG, Learner(), Exact(), EMPTY, {"held": batch(99)})
    config = TrainConfig(
        name="d", stages=(STAGE,), optimizer=OptimizerConfig(lr=3e-3, warmup_steps=10), ema_decay=0.98,
        sample_every=0, validate_every=0, checkpoint_every=1000,
    )  # fmt: skip
    Trainer(config, task, Source(), tmp_path).run()
    values = task.validate(StepContext(0, 1, STAGE, step_generator(0, 0)))
    assert values["distance_held_teacher"] > 0.05  # two plain steps miss the bend
    assert values["distance_held_student"] < values["distance_held_teacher"] / 4


def test_a_phases_last_point_is_taught_by_the_teacher_alone():
    task = StepsTask(StepsConfig(num_steps=2, flow_shift=1.0, substeps=1), Learner(), Exact(), EMPTY, {})
    seen = []
    real = task.student.forward
    task.student.forward = lambda x, time, *text, **_: (seen.append((x, time)), real(x, time, *text))[1]
    loss, _ = task.loss("model", batch(0), StepContext(0, 1, STAGE, step_generator(0, 0)))
    x, time = seen[-1]
    expected = (real(x, time, None, None, None) - Exact()(x, time, None, None, None)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


def test_two_pass_guidance_is_built_in_and_given_frames_stay():
    task = StepsTask(CONFIG.model_copy(update={"true_cfg_scale": 3.0}), Learner(), Exact(), EMPTY, {})
    task.loss("model", batch(0), StepContext(0, 1, STAGE, step_generator(0, 0)))
    assert task.teacher.calls == 2
    task.config = CONFIG.model_copy(update={"flow": FlowConfig(image_share=1.0, text_dropout=0)})
    seen = []
    task.student.forward = lambda x, time, *text, clean_frames=None: (seen.append((x, clean_frames)), x)[1]
    video = batch(0, 8) | {"latents": batch(0, 8)["latents"].repeat(1, 1, 3, 1, 1)}
    task.loss("model", video, StepContext(0, 1, STAGE, step_generator(0, 0)))
    for x, clean in seen:
        assert torch.equal(x[:, :, 0], video["latents"][:, :, 0]) and clean[:, 0].all()
