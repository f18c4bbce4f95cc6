import sys
from types import SimpleNamespace

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.train.metrics import MetricLog, read_metrics


class FakeWandb:
    """Remembers what the real one would have been told."""

    def __init__(self):
        self.started, self.logged, self.defined, self.finished = [], [], [], 0

    def init(self, **given):
        self.started.append(given)
        return SimpleNamespace(
            log=self.logged.append, finish=self.finish, define_metric=lambda *a, **k: self.defined.append((a, k))
        )

    def finish(self):
        self.finished += 1


def test_wandb_by_name_is_the_same_run_when_it_goes_on(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for start in (0, 10):
        log = MetricLog(tmp_path, ("wandb",), about={"train": {"name": "n"}})
        log.rewind(start)
        log.write(start + 10, stage="s", loss=1.5)
        log.close()
    first, second = fake.started
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["name"] == "n"
    assert first["project"] == "openhunyuan" and first["config"] == {"train": {"name": "n"}}
    assert fake.logged == [{"step": 10, "loss": 1.5}, {"step": 20, "loss": 1.5}] and fake.finished == 2
    assert fake.defined[0] == (("*",), {"step_metric": "step"})
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]


def test_wandb_is_asked_for_by_name_only_and_missed_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    MetricLog(tmp_path, ()).write(1, loss=1.0)
    with pytest.raises(UserError, match=r"openhunyuan\[wandb\]"):
        MetricLog(tmp_path, ("wandb",))


def test_steps_that_are_repeated_are_hidden_in_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for after, steps in ((-1, (10, 20, 30)), (15, (20, 30, 40))):
        log = MetricLog(tmp_path)
        log.rewind(after)
        for step in steps:
            log.write(step, loss=float(step + after))
        log.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 9.0), (20, 35.0), (30, 45.0), (40, 55.0)]
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30, 40]


@pytest.mark.slow  # the real one takes long to import and starts a process of its own
def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = MetricLog(tmp_path, ("wandb",), about={"train": {"name": "n"}})
    log.write(1, stage="s", loss=1.5)
    log.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"loss" in file.read_bytes()
