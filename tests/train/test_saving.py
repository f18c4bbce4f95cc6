import threading

import pytest
import torch

from openhunyuan.parallel.apply import whole
from openhunyuan.train import checkpoint
from openhunyuan.train.saving import Saver


@pytest.fixture
def gate(monkeypatch):
    """Files are written only while it is open; how many are being written at once is counted."""
    opened, counts, written = threading.Event(), [0, 0], checkpoint.write_safetensors

    def held(*args):
        counts[0] += 1
        counts[1] = max(counts)
        assert opened.wait(60)
        written(*args)
        counts[0] -= 1

    monkeypatch.setattr(checkpoint, "write_safetensors", held)
    opened.counts = counts
    return opened


def test_what_is_saved_is_the_state_of_then_and_training_goes_on(tmp_path, gate):
    saver = Saver(tmp_path, 3, {})
    state = {"modules": {"w": torch.arange(4.0), "low": torch.ones(2, dtype=torch.bfloat16)}, "step": 1}
    saver.save(1, lambda then: whole(state, then=then))
    state["modules"]["w"] += 100  # a step, while the file is not there yet
    assert not checkpoint.checkpoints(tmp_path) and not saver.failed
    gate.set()
    saver.wait()
    ((step, path),) = checkpoint.checkpoints(tmp_path)
    assert step == 1 and checkpoint.damage(path) is None
    found = checkpoint.load(path)
    assert torch.equal(found["modules"]["w"], torch.arange(4.0)) and found["step"] == 1
    assert found["modules"]["low"].dtype == torch.bfloat16


def test_one_at_a_time_and_memory_is_used_again(tmp_path, gate):
    saver = Saver(tmp_path, 3, {})
    w = torch.zeros(4)
    saver.save(1, lambda then: {"modules": {"w": then(w)}})
    (held,) = saver.host.held
    threading.Timer(0.2, gate.set).start()
    second = saver.save(2, lambda then: {"modules": {"w": then(w + 1)}})
    assert second > 0.1 and next(iter(checkpoint.checkpoints(tmp_path)))[0] == 1  # it waited for the first
    saver.save(3, lambda then: {"modules": {"w": then(torch.ones(2)), "v": then(torch.ones(1))}})
    saver.close()
    assert gate.counts[1] == 1 and held is not saver.host.held[0]
    values = [checkpoint.load(path)["modules"]["w"].tolist() for _, path in checkpoint.checkpoints(tmp_path)]
    assert values == [[0.0] * 4, [1.0] * 4, [1.0] * 2]


def test_what_goes_wrong_in_the_thread_is_said_once_and_leaves_the_one_before(tmp_path, monkeypatch, caplog):
    saver = Saver(tmp_path, 1, {})
    saver.save(1, lambda then: {"w": then(torch.ones(1))})
    saver.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    saver.save(2, lambda then: {"w": then(torch.ones(1))})
    with pytest.raises(OSError, match=r"step 2 cannot be written .*the last good one is step_00000001"):
        saver.wait()
    assert not saver.failed and [n for n, _ in checkpoint.checkpoints(tmp_path)] == [1]
    saver.save(3, lambda then: {"w": then(torch.ones(1))})
    saver.close()  # as when the run ends in another error: this one is written down, that one is raised
    assert "step 3 cannot be written" in caplog.text


def test_saving_that_is_not_to_go_on_meanwhile_is_there_at_once(tmp_path, monkeypatch):
    saver = Saver(tmp_path, 1, {}, background=False)
    saver.save(1, lambda then: {"w": then(torch.ones(1))})
    assert [n for n, _ in checkpoint.checkpoints(tmp_path)] == [1] and saver.pool is None and not saver.host.held
