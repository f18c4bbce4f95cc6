import json

import pytest
import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.train import checkpoint
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer, faster_dtype, step_generator

SHAPE = BatchShape(batch_size=8, num_frames=1, height=16, width=16)


class Regression:
    """Learns y = 3x − 1 with a noisy loss, so that a wrong random stream shows up in the weights."""

    phases = ("model",)

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)
        self.sampled: list[int] = []

    def modules(self):
        return {"model": self.net}

    def optimizer(self, phase):
        return None

    def active(self, phase, context):
        return True

    def loss(self, phase, batch, context):
        noise = 0.1 * torch.randn(len(batch["x"]), 1, generator=context.generator)
        loss = (self.net(batch["x"]) - (3 * batch["x"] - 1 + noise)).square().mean()
        return loss, {"loss": loss.detach()}

    def validate(self, context):
        return {"slope": float(self.net.weight)}

    def sample(self, folder, context):
        self.sampled.append(context.step)
        (folder / "slope.txt").write_text(str(float(self.net.weight)))

    def batch(self, step, stage, shape):
        return {"x": torch.randn(shape.batch_size, 1, generator=step_generator(5, step))}


def config(steps=40, **changes):
    fields = {
        "checkpoint_every": 10,
        "sample_every": 20,
        "validate_every": 20,
        "log_every": 10,
        "ema_decay": 0.9,
    } | changes
    optimizer = OptimizerConfig(lr=0.1, warmup_steps=2)
    return TrainConfig(name="t", stages=(Stage(name="s", steps=steps, shapes=(SHAPE,)),), optimizer=optimizer, **fields)


def run(folder, task, cfg=None):
    trainer = Trainer(cfg or config(), task, task, folder)
    trainer.run()
    return trainer


def test_it_learns_and_leaves_what_a_run_should_leave(tmp_path):
    task = Regression()
    run(tmp_path, task, config(200))
    assert task.net.weight.item() == pytest.approx(3, abs=0.1)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < losses[0] / 20
    assert [r["step"] for r in records if "val/slope" in r][-1] == 200
    assert (tmp_path / "samples" / "step_00000200" / "slope.txt").exists()
    assert json.loads((tmp_path / "run.json").read_text())["train"]["name"] == "t"
    assert [n for n, _ in checkpoint.checkpoints(tmp_path)] == [190, 200]


def test_a_resumed_run_ends_bit_equal(tmp_path):
    whole, broken = Regression(), Regression()
    run(tmp_path / "whole", whole)
    trainer = Trainer(config(), broken, broken, tmp_path / "broken")
    for _ in range(17):
        trainer.train_step(trainer.fetch(trainer.step))
        if trainer.step == 10:
            trainer.save()  # the crash comes 7 steps later
    again = Regression()
    run(tmp_path / "broken", again)
    assert torch.equal(whole.net.weight, again.net.weight) and torch.equal(whole.net.bias, again.net.bias)


def test_averaged_weights_are_swapped_in_and_back(tmp_path):
    task = Regression()
    trainer = Trainer(config(), task, task, tmp_path)
    for _ in range(5):
        trainer.train_step(trainer.fetch(trainer.step))
    raw = task.net.weight.detach().clone()
    with trainer.averaged():
        assert not torch.equal(raw, task.net.weight)
    assert torch.equal(raw, task.net.weight)


def test_a_directory_of_another_run_is_refused(tmp_path):
    task = Regression()
    Trainer(config(), task, task, tmp_path)
    with pytest.raises(UserError, match="another run"):
        Trainer(config(steps=41), task, task, tmp_path)


def test_a_step_that_is_not_finite_leaves_the_weights_alone(tmp_path):
    task = Regression()
    trainer = Trainer(config(), task, task, tmp_path)
    before = task.net.weight.detach().clone()
    metrics = trainer.train_step({"x": torch.full((8, 1), float("nan"))})
    assert metrics["model/skipped"] == 1 and torch.equal(before, task.net.weight)


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return print, ("ran",)

    path = tmp_path / "step_00000001.pt"
    torch.save({"step": Payload()}, path)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)


def test_a_partial_checkpoint_is_not_found(tmp_path):
    checkpoint.save(tmp_path, 5, {"step": 5}, keep=2)
    (tmp_path / "checkpoints" / "step_00000006.partial").write_bytes(b"half")
    assert [n for n, _ in checkpoint.checkpoints(tmp_path)] == [5]


def test_the_faster_dtype_is_measured():
    import time

    def once():
        time.sleep(0.03 if torch.is_autocast_enabled("cpu") else 0.0)

    assert faster_dtype(nn.Linear(1, 1), once) is None
