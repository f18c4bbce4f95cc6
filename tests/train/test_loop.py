import json
import os
import signal
import time

import pytest
import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.train import checkpoint
from openhunyuan.train.config import BatchShape, FaultConfig, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer, step_generator
from openhunyuan.train.precision import faster_dtype

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


class Poisoned(Regression):
    """Its data is NaN, or a thousand times too large, at one step."""

    def __init__(self, step, factor=float("nan")):
        super().__init__()
        self.bad, self.factor = step, factor

    def batch(self, step, stage, shape):
        batch = super().batch(step, stage, shape)
        return {"x": batch["x"] * self.factor} if step == self.bad else batch


@pytest.mark.parametrize("factor", [float("nan"), 1e3])
def test_a_step_gone_wrong_goes_back_and_is_left_out(tmp_path, factor):
    cfg = config(60, faults=FaultConfig(spike_factor=20.0))
    task = Poisoned(35, factor)
    trainer = run(tmp_path / "faulty", task, cfg)
    (fault,) = [json.loads(line) for line in (tmp_path / "faulty" / "faults.jsonl").read_text().splitlines()]
    assert (fault["step"], fault["went_back_to"]) == (35, 30)
    assert ("not finite" in fault["reason"]) == (factor != factor)
    # the same weights as a run that was told from the start to leave the step out
    other = tmp_path / "told"
    other.mkdir()
    (other / "faults.jsonl").write_text(json.dumps(fault) + "\n")
    told = Regression()
    assert torch.equal(run(other, told, cfg).ema.shadow["weight"], trainer.ema.shadow["weight"])
    assert torch.equal(told.net.weight, task.net.weight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "faulty" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 60  # what was made twice is recorded once


def test_a_spike_is_no_fault_unless_asked_for(tmp_path):
    run(tmp_path, Poisoned(35, 1e3), config(40))
    assert not (tmp_path / "faults.jsonl").exists()


def test_a_run_that_keeps_going_wrong_ends_with_its_last_checkpoint(tmp_path):
    class Broken(Regression):
        def batch(self, step, stage, shape):
            batch = super().batch(step, stage, shape)
            return {"x": batch["x"] * float("nan")} if step > 11 else batch

    with pytest.raises(UserError, match=r"went wrong 4 times \(last at step 15: .*not finite\).*step 10"):
        run(tmp_path, Broken(), config(faults=FaultConfig(max_faults=3)))
    assert [n for n, _ in checkpoint.checkpoints(tmp_path)] == [0, 10]


def test_sigterm_saves_and_loses_nothing(tmp_path, monkeypatch):
    written = checkpoint.write_safetensors

    def slow(*args):  # the checkpoint of step 10 is still being written when the signal comes
        time.sleep(0.1)
        written(*args)

    monkeypatch.setattr(checkpoint, "write_safetensors", slow)

    class Interrupted(Regression):
        def loss(self, phase, batch, context):
            if context.step == 17:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(phase, batch, context)

    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "stopped", Interrupted())
    assert stop.value.code == 128 + signal.SIGTERM
    assert [n for n, _ in checkpoint.checkpoints(tmp_path / "stopped")] == [10, 18]  # with the step being made
    again, whole = Regression(), Regression()
    run(tmp_path / "stopped", again)
    run(tmp_path / "whole", whole)
    assert torch.equal(whole.net.weight, again.net.weight)


def test_a_corrupted_newest_checkpoint_is_left_for_the_one_before(tmp_path):
    whole, again = Regression(), Regression()
    run(tmp_path / "whole", whole)
    run(tmp_path / "run", Regression())
    newest = checkpoint.checkpoints(tmp_path / "run")[-1][1]
    assert newest.name == "step_00000040"
    weights = newest / "modules.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    trainer = Trainer(config(), again, again, tmp_path / "run")
    assert trainer.resume() and trainer.step == 30
    run(tmp_path / "run", again := Regression())
    assert torch.equal(whole.net.weight, again.net.weight)
    assert (tmp_path / "run" / "checkpoints" / "step_00000040.damaged").is_dir()


def test_when_every_checkpoint_is_damaged_it_does_not_start_over_silently(tmp_path):
    run(tmp_path, Regression())
    for _, path in checkpoint.checkpoints(tmp_path):
        (path / "modules.safetensors").unlink()
    with pytest.raises(UserError, match=r"modules\.safetensors is missing"):
        run(tmp_path, Regression())


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    from openhunyuan.base import tensorfile

    written = checkpoint.write_safetensors

    def full(path, tensors, *rest):
        if "step_00000020" in str(path) and "optimizers" in path.name:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device", str(path))
        return written(path, tensors, *rest)

    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    trainer = Trainer(config(), task := Regression(), task, tmp_path)
    with pytest.raises(OSError, match=r"step 20 cannot be written .*No space left.*last good one is step_00000010"):
        trainer.run()
    assert 20 < trainer.step <= 30  # said after a step, and not later than the next checkpoint
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000000", "step_00000010"]
    monkeypatch.setattr(checkpoint, "write_safetensors", tensorfile.write_safetensors)
    whole, again = Regression(), Regression()
    run(tmp_path, again)
    run(tmp_path / "whole", whole)
    assert torch.equal(whole.net.weight, again.net.weight)


def test_what_auto_was_found_to_mean_holds_for_the_whole_run(tmp_path, monkeypatch):
    from openhunyuan.train import loop

    monkeypatch.setattr(loop, "faster_dtype", lambda *_: torch.bfloat16)
    trainer = Trainer(config(autocast="auto"), task := Regression(), task, tmp_path)
    log = loop.MetricLog(tmp_path, log=())
    assert trainer._autocast_dtype(log) is torch.bfloat16
    trainer.save()
    monkeypatch.setattr(loop, "faster_dtype", lambda *_: None)  # the machine is busier now
    again = Trainer(config(autocast="auto"), task, task, tmp_path)
    again.resume()
    assert again._autocast_dtype(log) is torch.bfloat16


@pytest.mark.parametrize(("slow_in_bf16", "expected"), [(True, None), (False, torch.bfloat16)])
def test_the_faster_dtype_is_measured(monkeypatch, slow_in_bf16, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)

    def once():
        time.sleep(0.03 if torch.is_autocast_enabled("cpu") == slow_in_bf16 else 0.0)

    assert faster_dtype(nn.Linear(1, 1), once) is expected


def test_without_bfloat16_units_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert faster_dtype(nn.Linear(1, 1), lambda: pytest.fail("was run")) is None
