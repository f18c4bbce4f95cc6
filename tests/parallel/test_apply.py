"""Several processes against one, on the CPU over gloo: losses, weights, average, and resuming in another layout."""

import copy
import json
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.models.dit.model import DiT
from openhunyuan.parallel import offload
from openhunyuan.parallel.apply import Layout, apply, blocks, make_mesh
from openhunyuan.parallel.world import World
from openhunyuan.train import checkpoint
from tests.parallel.launch import launch
from tests.parallel.program import DIT


def start(processes: int, data: Path, run_dir: Path, steps: int, replicas: int = 1, recompute: bool = False) -> None:
    launch("tests.parallel.program", processes, data, run_dir, steps, replicas, recompute)


def losses(run_dir: Path) -> list[float]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def validation(run_dir: Path) -> float:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return next(record["val/loss_held"] for record in records if "val/loss_held" in record)


@pytest.mark.slow  # seven processes
def test_sharded_runs_equal_one_process_and_go_on_in_another_layout(data: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    start(1, data, one, 4)
    start(2, data, many, 2)  # FSDP over two
    first = json.loads((many / "losses.json").read_text())
    assert first == pytest.approx(losses(one)[:2], rel=1e-5)
    start(4, data, many, 4, replicas=2, recompute=True)  # HSDP, two by two, activations made again
    assert losses(many) == pytest.approx(losses(one)[2:], rel=1e-5)
    assert validation(many) == pytest.approx(validation(one), rel=1e-4)
    (_, wanted), (_, found) = checkpoint.checkpoints(one)[-1], checkpoint.checkpoints(many)[-1]
    assert found.name == wanted.name == "step_00000004"
    wanted, found = checkpoint.load(wanted), checkpoint.load(found)
    for part in (lambda s: s["modules"]["model"], lambda s: s["ema"]["shadow"]):
        for name, value in part(wanted).items():
            torch.testing.assert_close(part(found)[name], value, rtol=1e-4, atol=1e-5)


def test_alone_nothing_changes_but_recomputation_which_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    dit = DiT(DIT)
    names = list(dit.state_dict())
    inputs = (
        torch.randn(1, 2, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 2, 4), torch.ones(1, 2, dtype=torch.bool),
        torch.randn(1, 4),
    )  # fmt: skip
    dit(*inputs).square().sum().backward()
    wanted = [p.grad.clone() for p in dit.parameters() if p.grad is not None]
    dit.zero_grad()
    apply(dit, Layout(recompute=True), make_mesh(Layout(), World(), "cpu"))
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = dit(*inputs).square().sum()
    plain, kept = kept, 0
    loss.backward()
    assert all(
        torch.equal(a, b) for a, b in zip(wanted, [p.grad for p in dit.parameters() if p.grad is not None], strict=True)
    )
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        DiT(DIT)(*inputs)
    assert plain < kept / 2 and list(dit.state_dict()) == names


INPUTS = (
    torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0, 20.0]),
    torch.ones(2, 2, 4), torch.tensor([[True, True], [True, False]]), torch.ones(2, 4),
)  # fmt: skip


@pytest.mark.parametrize("layout", [Layout(offload=True), Layout(compile="aot_eager")], ids=["offload", "compile"])
def test_offload_and_compilation_change_no_gradient(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(offload, "to_host", lambda tensor: moved.append(tensor) or tensor.clone())
    torch.manual_seed(0)
    plain = DiT(DIT)
    changed = copy.deepcopy(plain)
    apply(changed, layout, None)
    for dit in (plain, changed):
        dit(*INPUTS).square().sum().backward()
    for one, other in zip(plain.parameters(), changed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert list(changed.state_dict()) == list(plain.state_dict())
    assert bool(moved) is layout.offload
    parameters = {p.data_ptr() for p in changed.parameters()}
    assert not any(tensor.untyped_storage().data_ptr() in parameters for tensor in moved)


def test_blocks_are_the_members_of_lists_of_blocks() -> None:
    kinds = [type(block).__name__ for block in blocks(DiT(DIT))]
    assert sorted(kinds) == ["DoubleBlock", "RefinerBlock", "SingleBlock"]


def test_layouts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="4 processes cannot make 3 equal replicas"):
        make_mesh(Layout(replicas=3), World(0, 4), "cpu")
    with pytest.raises(UserError, match="recompute leaves nothing within blocks that offload could move"):
        Layout(offload=True, recompute=True)
    with pytest.raises(UserError, match="compile is not made for tensor, ulysses or ring"):
        Layout(compile="inductor", ring=2)
    with pytest.raises(UserError, match="did you mean replicas"):
        Layout(replica=2)
