import pytest
import torch

from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import StepContext, Trainer, step_generator
from openhunyuan.train.tasks.flow import FIXED_TIMES, EmptyText, FlowConfig, FlowTask, draw

DIT = DiTConfig(
    in_channels=4, out_channels=4, hidden_size=32, num_heads=2,
    num_double_blocks=1, num_single_blocks=1, num_refiner_blocks=1,
    rope_axes_dim=(4, 6, 6), text_dim=8, pooled_dim=8, guidance_embed=False,
)  # fmt: skip
STAGE = Stage(name="s", steps=60, shapes=(BatchShape(batch_size=8, num_frames=1, height=32, width=32),))


def batch(size: int = 8) -> dict[str, torch.Tensor]:
    """Two kinds of latents, +1 and −1 everywhere; the text says which."""
    kind = torch.arange(size) % 2 * 2.0 - 1
    states = kind[:, None, None].expand(size, 3, 8).clone()
    return {
        "latents": kind.view(-1, 1, 1, 1, 1).expand(size, 4, 1, 4, 4).clone(),
        "text_states": states,
        "text_mask": torch.ones(size, 3, dtype=torch.bool),
        "pooled": kind[:, None].expand(size, 8).clone(),
    }


@pytest.fixture
def task() -> FlowTask:
    torch.manual_seed(0)
    dit = DiT(DIT)
    dit.init_weights()
    return FlowTask(FlowConfig(text_dropout=0.1), dit, EmptyText(torch.zeros(1, 8), torch.zeros(8)), {"kinds": batch()})


class Kinds:
    def batch(self, step, stage, shape):
        return batch(shape.batch_size)


def test_dropped_text_is_the_empty_prompt_and_the_rest_is_untouched():
    given = batch(4)
    empty = EmptyText(torch.full((5, 8), 7.0), torch.full((8,), 9.0))
    filled = empty.fill(given, torch.tensor([True, False, False, True]))
    assert filled["text_states"].shape == (4, 5, 8)
    assert (
        (filled["text_states"][0] == 7).all() and filled["text_mask"][0].sum() == 5 and (filled["pooled"][3] == 9).all()
    )
    assert torch.equal(filled["text_states"][1, :3], given["text_states"][1]) and filled["text_mask"][1].sum() == 3
    assert (given["pooled"] != 9).all()  # the batch itself is not written to


def test_the_first_loss_is_that_of_predicting_nothing(task):
    context = StepContext(0, 1, STAGE, step_generator(0, 0))
    loss, _ = task.loss("model", batch(64), context)
    assert loss.item() == pytest.approx(2.0, rel=0.1)  # noise variance 1 + data power 1, against a zero prediction


def test_training_uses_the_text(task, tmp_path):
    optimizer = OptimizerConfig(name="muon", lr=3e-3, muon_lr=0.02, warmup_steps=5)
    config = TrainConfig(name="k", stages=(STAGE,), optimizer=optimizer, ema_decay=0, sample_every=0, validate_every=60)
    Trainer(config, task, Kinds(), tmp_path).run()
    with torch.no_grad():
        values = task.validate(StepContext(0, 1, STAGE, step_generator(0, 0)))
    assert values["loss_kinds"] < 1.0  # 2.0 at the start
    assert values["loss_kinds"] < values["loss_kinds_empty_text"]
    assert {f"loss_kinds_t{t}" for t in FIXED_TIMES} <= set(values)


def video_batch(size: int = 4, frames: int = 3) -> dict[str, torch.Tensor]:
    one = batch(size)
    return one | {"latents": one["latents"].repeat(1, 1, frames, 1, 1)}


def test_given_frames_are_read_clean_and_are_not_judged(task):
    seen = {}

    def velocity(x, timestep, *text, clean_frames=None):
        seen.update(x=x, clean=clean_frames)
        return torch.zeros_like(x)

    task.config = FlowConfig(image_share=1.0, text_dropout=0.0)
    task.dit.forward = velocity
    given = video_batch(64)
    loss, values = task.loss("model", given, StepContext(0, 1, STAGE, step_generator(0, 0)))
    assert torch.equal(seen["x"][:, :, 0], given["latents"][:, :, 0])
    assert (seen["x"][:, :, 1:] != given["latents"][:, :, 1:]).all()
    assert seen["clean"][:, 0].all() and not seen["clean"][:, 1:].any()
    assert loss.item() == pytest.approx(2.0, rel=0.1) and set(values) == {"loss_image_to_video", "by_level"}


def test_some_video_steps_start_from_a_picture_and_images_never_do(task):
    task.config = FlowConfig(image_share=0.3)
    kinds = [
        "loss_image_to_video" in task.loss("model", video_batch(), StepContext(i, 1, STAGE, step_generator(0, i)))[1]
        for i in range(60)
    ]
    assert 8 <= sum(kinds) <= 30
    assert all(
        "loss" in task.loss("model", batch(), StepContext(i, 1, STAGE, step_generator(0, i)))[1] for i in range(20)
    )
    task.validation = {"clips": video_batch()}
    with torch.no_grad():
        assert "loss_clips_from_image_t0.5" in task.validate(StepContext(0, 1, STAGE, step_generator(0, 0)))


class Mixed:
    """Images and clips by turns, other latents and texts at every step."""

    def batch(self, step, stage, shape):
        g = step_generator(9, step)
        size = shape.batch_size, 4, (shape.num_frames - 1) // 4 + 1, shape.height // 8, shape.width // 8
        return batch(shape.batch_size) | {"latents": torch.randn(size, generator=g)}


def test_a_resumed_run_of_images_and_videos_is_bit_exact(task, tmp_path):
    shapes = tuple(BatchShape(batch_size=2, num_frames=n, height=32, width=32, share=s) for n, s in ((9, 2), (1, 1)))
    config = TrainConfig(
        name="mixed", stages=(Stage(name="s", steps=11, shapes=shapes),), ema_decay=0.9, sample_every=0,
        optimizer=OptimizerConfig(name="muon", lr=1e-3, warmup_steps=3), validate_every=4, checkpoint_every=5,
    )  # fmt: skip
    task.config = FlowConfig(image_share=0.5, text_dropout=0.3)
    start = {name: value.clone() for name, value in task.dit.state_dict().items()}
    whole = Trainer(config, task, Mixed(), tmp_path / "whole")
    whole.run()
    wanted, average = dict(task.dit.state_dict()), dict(whole.ema.shadow)
    wanted = {name: value.clone() for name, value in wanted.items()}

    task.dit.load_state_dict(start)
    broken = Trainer(config, task, Mixed(), tmp_path / "broken")
    for _ in range(8):
        if broken.step == 5:
            broken.save()
        broken.train_step(broken.fetch(broken.step))  # the crash comes after step 8
    again = Trainer(config, task, Mixed(), tmp_path / "broken")
    again.run()
    assert all(torch.equal(value, wanted[name]) for name, value in task.dit.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in again.ema.shadow.items())


def test_what_is_drawn_for_a_sample_does_not_depend_on_its_batch():
    config, empty = FlowConfig(text_dropout=0.5), EmptyText(torch.zeros(1, 8), torch.zeros(8))
    whole = video_batch(8) | {"keys": torch.tensor([[i, 2] for i in range(8)])}
    context = StepContext(3, 9, STAGE, step_generator(0, 3), seed=7)
    one = draw(config, empty, whole, context)
    picked = [5, 2]
    other = StepContext(8, 9, STAGE, step_generator(1, 8), seed=7)
    two = draw(config, empty, {name: value[picked] for name, value in whole.items()}, other)
    assert torch.equal(one.x_t[picked], two.x_t) and torch.equal(one.t[picked], two.t)
    assert torch.equal(one.batch["pooled"][picked], two.batch["pooled"])
    for key, seed in (([5, 3], 7), ([5, 2], 8)):  # another epoch, another run
        again = StepContext(3, 9, STAGE, step_generator(0, 3), seed=seed)
        row = {name: value[5:6] for name, value in whole.items()} | {"keys": torch.tensor([key])}
        assert not torch.equal(draw(config, empty, row, again).noise, one.noise[5:6])


def test_all_parts_of_a_step_are_image_to_video_or_none():
    config, empty = FlowConfig(image_share=0.5, text_dropout=0), EmptyText(torch.zeros(1, 8), torch.zeros(8))
    kinds = []
    for step in range(20):
        context = StepContext(step, 20, STAGE, step_generator(7, step), seed=7)
        parts = [video_batch(2) | {"keys": torch.tensor([[i, 0], [i + 1, 0]])} for i in (0, 2)]
        given = {draw(config, empty, part, context).condition is not None for part in parts}
        assert len(given) == 1
        kinds += given
    assert 4 < sum(kinds) < 16


def test_latent_concat_starts_as_the_network_that_it_widens() -> None:
    torch.manual_seed(0)
    config = DiTConfig(
        in_channels=2, out_channels=2, hidden_size=16, num_heads=2, num_double_blocks=1, num_single_blocks=1,
        num_refiner_blocks=1, rope_axes_dim=(4, 2, 2), text_dim=4, pooled_dim=4, guidance_embed=False,
    )  # fmt: skip
    narrow, wide = DiT(config), DiT(config.model_copy(update={"in_channels": 5}))
    for parameter in narrow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weight = torch.zeros_like(wide.img_in.proj.weight)
    weight[:, :2] = narrow.img_in.proj.weight
    wide.load_state_dict(narrow.state_dict() | {"img_in.proj.weight": weight})
    empty = EmptyText(torch.zeros(1, 4), torch.zeros(4))
    tasks = (
        FlowTask(FlowConfig(text_dropout=0.0), narrow, empty, {}),
        FlowTask(FlowConfig(text_dropout=0.0, image_share=1.0), wide, empty, {}, condition="latent_concat"),
    )
    for frames in (1, 3):
        batch = {
            "latents": torch.randn(2, 2, frames, 4, 4), "text_states": torch.randn(2, 3, 4),
            "text_mask": torch.ones(2, 3, dtype=torch.bool), "pooled": torch.randn(2, 4),
        }  # fmt: skip
        stage = Stage(name="s", steps=9, shapes=(BatchShape(batch_size=2, num_frames=1, height=32, width=32),))
        before, after = (task.loss("model", batch, StepContext(3, 9, stage, step_generator(0, 3))) for task in tasks)
        torch.testing.assert_close(after[0], before[0])
        assert set(after[1]) == {"by_level", "loss" if frames == 1 else "loss_image_to_video"}
