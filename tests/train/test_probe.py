import json
import os
import signal

import pytest
import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.parallel.apply import ALONE, Layout
from openhunyuan.parallel.world import World
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.probe import Trials, largest, memory_limit, peak_of_child, probed
from tests.parallel.launch import launch
from tests.train.test_loop import Regression

IMAGE, VIDEO = (BatchShape(batch_size=3, num_frames=n, height=16, width=16) for n in (1, 5))
CONFIG = TrainConfig(
    name="p", stages=(Stage(name="s", steps=9, shapes=(IMAGE, VIDEO)),), optimizer=OptimizerConfig(lr=0.1)
)
MIB = 1 << 20


@pytest.mark.parametrize("most", [1, 2, 7, 8, 33])
def test_the_largest_that_fits_is_found_in_few_trials(most):
    for room in range(most + 3):
        tried = []
        found = largest(lambda n: tried.append(n) or n <= room, most)  # noqa: B023
        assert found == min(room, most)
        assert len(tried) == len(set(tried)) <= 2 * most.bit_length() + 1
        assert max(tried) <= min(most, max(1, 2 * room))  # not far beyond what fits


def test_every_bucket_gets_its_own_and_what_was_found_is_kept(tmp_path):
    tried = []

    def peak(stage, shape, count):
        tried.append((shape.num_frames, count))
        return count * shape.num_frames * 10 if count * shape.num_frames < 30 else None

    def sizes(limit, device="a"):
        found = probed(CONFIG, peak, 12, limit, tmp_path / "kept.json", {"device": device})
        assert [s.model_copy(update={"batch_size": 3}) for s in found.stages[0].shapes] == [IMAGE, VIDEO]
        return [shape.batch_size for shape in found.stages[0].shapes]

    assert sizes(100) == [10, 2]
    first = len(tried)
    assert sizes(100) == [10, 2] and len(tried) == first
    assert sizes(10_000) == [12, 5] and len(tried) > first  # no more than asked for; and where memory ran out
    second = len(tried)
    assert sizes(100, "b") == [10, 2] and len(tried) > second  # another device is tried anew


def test_a_sample_that_does_not_fit_is_said_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match=r"One sample of 5x16x16 does not fit into 4e-08 GB \(it needs 5e-08\)"):
        probed(CONFIG, lambda stage, shape, n: 10 * n * shape.num_frames, 4, 40, tmp_path / "kept.json", {})
    assert not (tmp_path / "kept.json").exists()


def test_a_childs_peak_is_its_memory_and_a_child_that_is_killed_found_no_room():
    def take(mib):
        return lambda: torch.ones(mib * MIB // 4).sum()

    small, large = (peak_of_child(take(mib), 1 << 40) for mib in (1, 101))
    assert 90 * MIB < large - small < 120 * MIB
    assert peak_of_child(take(400), small + 50 * MIB) is None  # ended while it grew, or seen afterwards to be too large
    assert peak_of_child(lambda: os.kill(os.getpid(), signal.SIGKILL), 1 << 40) is None
    assert peak_of_child(lambda: torch.empty(1 << 60), 1 << 62) is None  # no such memory
    with pytest.raises(UserError, match="ValueError: of its own"):
        peak_of_child(lambda: (_ for _ in ()).throw(ValueError("of its own")), 1 << 40)


class Wide(Regression):
    """Keeps some memory of every sample for the backward pass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 1 << 18), nn.Tanh(), nn.Linear(1 << 18, 1))


def test_a_trial_is_steps_of_the_trainer_in_a_child(tmp_path):
    task = Wide()
    before = [p.clone() for p in task.net.parameters()]
    trials = Trials(CONFIG, task, torch.device("cpu"), lambda shape, n: {"x": torch.ones(n, 1)}, 1 << 40, ALONE)
    one, many = (trials.peak(CONFIG.stages[0], IMAGE, count) for count in (1, 65))
    assert many - one > 64 * 2 * MIB  # at least the two inputs of the layers that follow
    assert all(torch.equal(a, b) for a, b in zip(before, task.net.parameters(), strict=True))
    assert all(p.grad is None for p in task.net.parameters())


class Heavy(Regression):
    """Its state is most of the memory."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 1 << 11), nn.Linear(1 << 11, 1 << 12), nn.Linear(1 << 12, 1))


def test_the_first_of_several_holds_its_part_and_tries_without_the_others():
    def samples(shape, n):
        return {"parts": [(1.0, {"x": torch.ones(n, 1)})]}

    config, task = CONFIG.model_copy(update={"ema_decay": 0.9}), Heavy()
    one, four = (
        Trials(config, task, torch.device("cpu"), samples, 1 << 40, Layout(), n).peak(CONFIG.stages[0], IMAGE, 1)
        for n in (1, 4)
    )
    weights = 4 * (1 << 23)
    # Of weights, gradients, moments, average and what is copied to be saved; blocks are gathered besides.
    assert one - four > 2 * weights
    assert not torch.distributed.is_initialized()  # in the child alone


def test_several_gpus_are_not_tried_where_processes_are_connected(monkeypatch):
    trials = Trials(CONFIG, Wide(), torch.device("cpu"), lambda shape, n: {}, 1 << 40, ALONE, 2)
    trials.device = torch.device("cuda")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    with pytest.raises(UserError, match="run the same command with --processes 2 and without torchrun"):
        trials.peak(CONFIG.stages[0], IMAGE, 1)


def test_one_process_without_room_decides_for_all(tmp_path):
    class Two(World):
        """This process, and one that needs twice as much and has room for 6."""

        def every(self, work):
            mine = work()
            return [mine, 2 * mine if mine <= 60 else None]

    found = probed(CONFIG, lambda stage, shape, n: 10 * n, 12, 110, tmp_path / "kept.json", {}, Two(0, 1))
    assert [shape.batch_size for shape in found.stages[0].shapes] == [5, 5]
    found = probed(CONFIG, lambda stage, shape, n: 10 * n, 12, 990, tmp_path / "kept.json", {}, Two(0, 1))
    assert [shape.batch_size for shape in found.stages[0].shapes] == [6, 6]


@pytest.mark.slow  # two processes
def test_two_processes_find_the_same_and_train_with_it(tmp_path):
    launch("tests.train.probe_program", 2, tmp_path)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two and one["world"] == 2
    assert one["sizes"] == [10, 2]  # 10 values are room for ten images or two videos of five frames
    assert [1, 12] in one["tried"] and len(one["tried"]) <= 2 * 9
    assert one["refused"].startswith("UserError: One sample of 1x16x16 does not fit into 1e-06 GB")
    (kept,) = json.loads((tmp_path / "kept.json").read_text()).values()
    assert kept == {"1x16x16": 10, "5x16x16": 2}
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["train"]["stages"][0]["shapes"][0]["batch_size"] == 10
    )


def test_a_limit_beyond_the_devices_memory_is_refused():
    assert memory_limit(1e-3, torch.device("cpu")) == 1_000_000
    with pytest.raises(UserError, match=r"--memory is 1e\+09 GB, but cpu has"):
        memory_limit(1e9, torch.device("cpu"))
