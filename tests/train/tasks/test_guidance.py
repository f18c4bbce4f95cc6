import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.diffusion.guidance import embedded_guidance, embedded_scales
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import StepContext, Trainer, step_generator
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig
from openhunyuan.train.tasks.guidance import GuidanceConfig, GuidanceTask, student_of

DIT = DiTConfig(
    in_channels=2, out_channels=2, hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1,
    num_refiner_blocks=1, rope_axes_dim=(4, 6, 6), text_dim=8, pooled_dim=8, guidance_embed=False,
)  # fmt: skip
STAGE = Stage(name="s", steps=80, shapes=(BatchShape(batch_size=8, num_frames=1, height=32, width=32),))


def batch(step: int, size: int = 8, frames: int = 1) -> dict[str, torch.Tensor]:
    g = step_generator(3, step)
    return {
        "latents": torch.randn(size, 2, frames, 4, 4, generator=g),
        "text_states": torch.randn(size, 3, 8, generator=g),
        "text_mask": torch.ones(size, 3, dtype=torch.bool),
        "pooled": torch.randn(size, 8, generator=g),
    }


class Source:
    def batch(self, step, stage, shape):
        return batch(step, shape.batch_size)


@pytest.fixture
def teacher() -> DiT:
    torch.manual_seed(0)
    dit = DiT(DIT)
    for name, p in dit.named_parameters():  # random everywhere: text and time matter
        torch.nn.init.normal_(p, std=0.08 if p.ndim > 1 else 0.02)
        if name.startswith("vector_in"):
            torch.nn.init.normal_(p, std=0.3)
    return dit


@pytest.fixture
def task(teacher) -> GuidanceTask:
    empty = EmptyText(torch.zeros(1, 8), torch.zeros(8))
    return GuidanceTask(GuidanceConfig(), student_of(teacher), teacher, empty, {"held": batch(99)})


def test_the_student_starts_as_the_teacher_whatever_it_is_told(teacher):
    student = student_of(teacher)
    data, t = batch(0), torch.full((8,), 500.0)
    text = data["text_states"], data["text_mask"], data["pooled"]
    for scale in (1.0, 6.0):
        told = embedded_guidance(scale, 8)
        assert torch.equal(student(data["latents"], t, *text, guidance=told), teacher(data["latents"], t, *text))
    assert sum(p.requires_grad for p in student.parameters()) == len(list(student.parameters()))
    with pytest.raises(UserError, match="already"):
        student_of(student)


def test_the_target_is_the_guided_velocity_at_the_scale_that_is_told(task, teacher):
    seen = {}
    real = task.student.forward

    def student(x, time, *text, guidance=None, clean_frames=None):
        seen.update(x=x, time=time, text=text, guidance=guidance)
        return real(x, time, *text, guidance=guidance)

    task.student.forward = student
    loss, _ = task.loss("model", batch(1), StepContext(0, 1, STAGE, step_generator(0, 0)))
    scales = seen["guidance"] / 1000
    assert ((scales >= 1) & (scales <= 8.001)).all() and scales.unique().numel() == 8
    empty = torch.zeros(8, 3, 8), torch.tensor([[True, False, False]] * 8), torch.zeros(8, 8)
    uncond, cond = (teacher(seen["x"], seen["time"], *text) for text in (empty, seen["text"]))
    target = uncond + scales.view(-1, 1, 1, 1, 1) * (cond - uncond)
    got = real(seen["x"], seen["time"], *seen["text"], guidance=seen["guidance"])
    # The network is told the scale rounded to bf16; the target has it exactly.
    assert loss.item() == pytest.approx((got - target).square().mean().item(), rel=2e-2)


def test_it_learns_the_guidance_and_leaves_the_teacher_alone(task, teacher, tmp_path):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = OptimizerConfig(name="muon", lr=3e-3, muon_lr=0.01, warmup_steps=5)
    config = TrainConfig(name="g", stages=(STAGE,), optimizer=optimizer, ema_decay=0, sample_every=0, validate_every=0)
    with torch.no_grad():
        start = task.validate(StepContext(0, 1, STAGE, step_generator(0, 0)))
    Trainer(config, task, Source(), tmp_path).run()
    with torch.no_grad():
        end = task.validate(StepContext(0, 1, STAGE, step_generator(0, 0)))
    assert start["error_held_w4"] == pytest.approx(1.0, abs=1e-4)  # it ignores the guidance
    assert end["error_held_w4"] < 0.5 and end["error_held_w8"] < 0.5
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_given_frames_are_clean_for_both(task):
    task.config = GuidanceConfig(flow=FlowConfig(image_share=1.0, text_dropout=0))
    seen = []
    for network in (task.student, task.teacher):
        network.forward = lambda x, *rest, clean_frames=None, **_: (seen.append((x, clean_frames)), x)[1]
    given = batch(0, frames=3)
    task.loss("model", given, StepContext(0, 1, STAGE, step_generator(0, 0)))
    assert len(seen) == 3
    for x, clean in seen:
        assert torch.equal(x[:, :, 0], given["latents"][:, :, 0]) and clean[:, 0].all() and not clean[:, 1:].any()


def test_scales_are_rounded_as_in_inference_and_checked():
    assert torch.equal(embedded_scales(torch.tensor([6.0, 1.0])), torch.cat([embedded_guidance(s) for s in (6.0, 1.0)]))
    with pytest.raises(UserError, match="low must be below high"):
        GuidanceConfig(low=8, high=2)
