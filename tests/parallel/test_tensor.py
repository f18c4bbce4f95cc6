"""Tensor parallelism against one process, on the CPU over gloo: losses, gradients, weights, averages, resuming."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import LatentSize
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.flops import dit_flops
from openhunyuan.parallel.apply import Layout, each, make_mesh, whole
from openhunyuan.parallel.tensor import Order, check_splits, split_alone
from openhunyuan.parallel.world import World
from openhunyuan.train import checkpoint
from tests.parallel.launch import launch
from tests.parallel.program import DIT, trainer


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process's whole run, in ``one``; and what two processes leave."""
    folder = tmp_path_factory.mktemp("runs")
    trainer(data, folder / "one", Layout()).run()
    launch("tests.parallel.tensor_program", 2, folder / "2.json", data, folder)
    return folder


def close(report: Path, cases: int) -> None:
    """Losses, gradients and their norm of three steps, averages and weights."""
    found = json.loads(report.read_text())
    assert len(found) == cases
    for case in found:
        assert len(case["errors"]) == 13 and max(case["errors"]) < 1e-5, case


def goes_on_as_one_process(runs: Path, name: str) -> None:
    def logged(run: str) -> dict[int, dict[str, float]]:
        lines = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line for line in lines if "loss" in line}

    one, many = logged("one"), logged(name)
    assert list(many) == [3, 4]
    for step, line in many.items():
        for key in ("loss", "grad_norm"):
            assert line[key] == pytest.approx(one[step][key], rel=1e-5)
    (_, wanted), (_, found) = checkpoint.checkpoints(runs / "one")[-1], checkpoint.checkpoints(runs / name)[-1]
    assert found.name == wanted.name == "step_00000004"
    wanted, found = checkpoint.load(wanted), checkpoint.load(found)
    moments = {f"{n}/{k}": v for n, held in found["optimizers"]["model"][0]["state"].items() for k, v in held.items()}
    for number, held in wanted["optimizers"]["model"][0]["state"].items():
        for key, value in held.items():
            torch.testing.assert_close(moments[f"{number}/{key}"], value, rtol=1e-4, atol=1e-6)
    for part in (lambda s: s["modules"]["model"], lambda s: s["ema"]["shadow"]):
        for key, value in part(wanted).items():
            torch.testing.assert_close(part(found)[key], value, rtol=1e-4, atol=1e-5)


def test_two_processes_with_and_without_sequence_parallelism_equal_one(runs: Path) -> None:
    close(runs / "2.json", 2)


def test_a_sharded_run_goes_on_as_a_tensor_parallel_one(runs: Path) -> None:
    goes_on_as_one_process(runs, "2")


@pytest.mark.slow  # four processes
def test_shards_and_replicas_of_tensor_parallel_groups_equal_one_process(runs: Path, data: Path) -> None:
    launch("tests.parallel.tensor_program", 4, runs / "4.json", data, runs)
    close(runs / "4.json", 3)
    goes_on_as_one_process(runs, "4")


@pytest.mark.slow  # eight processes
def test_sharded_replicas_of_tensor_parallel_groups_equal_one_process(runs: Path, data: Path) -> None:
    launch("tests.parallel.tensor_program", 8, runs / "8.json", data, runs)
    close(runs / "8.json", 1)


def test_an_order_gives_every_process_a_run_of_every_part() -> None:
    fused = torch.arange(24)[:, None].expand(24, 3)  # q 0-5, k 6-11, v 12-17, feed-forward 18-23
    order = Order(0, (6, 6, 6, 6), 2)
    first, second = order.split(fused).chunk(2)
    assert first[:, 0].tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    assert second[:, 0].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17, 21, 22, 23]
    assert torch.equal(order.join(order.split(fused)), fused)


def test_states_are_reordered_at_the_places_that_say_so() -> None:
    order = Order(0, (2, 2), 2)
    state = {"a": [{"state": {3: {"m": torch.arange(4), "step": torch.tensor(7.0)}}, "lr": 0.1}], "b": torch.arange(4)}
    split = lambda value, order: order.split(value) if order and value.ndim else value  # noqa: E731
    found = each(state, {"a": [{"state": {3: order}}]}, split)
    assert found["a"][0]["state"][3]["m"].tolist() == [0, 2, 1, 3]
    assert found["a"][0]["state"][3]["step"] == 7 and found["a"][0]["lr"] == 0.1 and found["b"].tolist() == [0, 1, 2, 3]
    assert whole(state)["b"].tolist() == [0, 1, 2, 3]


def test_what_cannot_be_split_is_refused() -> None:
    dit = DiT(DIT)
    check_splits(dit, 2)
    with pytest.raises(UserError, match=r"tensor is 4, but has to divide the model's 2 heads and its 128 .* 1 or 2"):
        check_splits(dit, 4)
    with pytest.raises(UserError, match="not for a Linear; set tensor to 1"):
        check_splits(nn.Linear(4, 4), 2)
    dit.double_blocks[0].txt_mlp.fc1 = nn.Identity()
    with pytest.raises(UserError, match=r"double_blocks\.0\.txt_mlp\.fc1 is a Identity"):
        check_splits(dit, 2)


@pytest.mark.parametrize("sequence", [True, False])
def test_one_process_without_the_others_computes_what_the_formula_says(sequence: bool) -> None:
    latent, text = LatentSize(3, 6, 10), 5  # 45 image tokens: 2 divides neither them nor them and the text
    with torch.device("meta"):
        dit = DiT(DIT)
        shape = (2, 2, latent.frames, latent.height, latent.width)
        inputs = [torch.empty(shape), torch.empty(2), torch.empty(2, text, 4), torch.ones(2, text), torch.empty(2, 4)]
    split_alone(dit, 2, sequence)
    with FlopCounterMode(display=False) as counter:
        out = dit(*inputs)
    assert out.shape == shape and counter.get_total_flops() == dit_flops(DIT, latent, text, 2, tensor=2)


def test_groups_that_do_not_fit_are_refused_and_neighbours_share_their_samples() -> None:
    with pytest.raises(UserError, match=r"6 processes cannot work on the same samples in groups of 4 \(tensor 4 "):
        make_mesh(Layout(tensor=4), World(0, 6), "cpu")
    with pytest.raises(UserError, match=r"8 processes cannot make 3 equal replicas of groups of 2; choose a .* 4"):
        make_mesh(Layout(tensor=2, replicas=3), World(0, 8), "cpu")
    parts = [Layout(tensor=2, replicas=2).data_rank(World(rank, 8)) for rank in range(8)]
    assert parts == [(0, 4), (0, 4), (1, 4), (1, 4), (2, 4), (2, 4), (3, 4), (3, 4)]


def test_a_source_of_other_parts_is_refused(data: Path, tmp_path: Path) -> None:
    made = trainer(data, tmp_path / "run", Layout())
    made.world, made.data_rank, made.data_ranks = World(1, 2), 0, 1
    made.source.rank, made.source.world_size = 1, 2  # as for two processes with data of their own
    with pytest.raises(UserError, match="gives part 2 of 2, but this layout needs part 1 of 1 here"):
        made._check_shared()
