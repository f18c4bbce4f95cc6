"""Context parallelism against one process, on the CPU over gloo: losses, gradients, weights, inference, the loop."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openhunyuan.base.errors import UserError
from openhunyuan.models.dit.model import DiT
from openhunyuan.parallel import context, ring
from openhunyuan.parallel.apply import Layout, check, make_mesh
from openhunyuan.parallel.world import World
from tests.parallel.launch import launch
from tests.parallel.program import DIT, trainer


def equal_one_process(processes: int, cases: int, data: Path, folder: Path) -> None:
    launch("tests.parallel.context_program", processes, folder / "found.json", data, folder / "many")
    found = json.loads((folder / "found.json").read_text())
    assert len(found["parity"]) == cases
    for case in found["parity"]:
        assert max(max(values) for values in case["errors"].values()) < 1e-5, case
    one = trainer(data, folder / "one", Layout())
    for many in found["loop"]:
        assert many == pytest.approx(one.train_step(one.fetch(one.step)), rel=1e-5)


def test_ulysses_and_ring_of_two_equal_one_process(data: Path, tmp_path: Path) -> None:
    equal_one_process(2, 2, data, tmp_path)


@pytest.mark.slow  # four processes, seven layouts
def test_ulysses_within_ring_and_both_with_shards_or_tensors_equal_one_process(data: Path, tmp_path: Path) -> None:
    equal_one_process(4, 7, data, tmp_path)


@pytest.mark.slow  # eight processes: shards × ring × tensors, ring × Ulysses × tensors
def test_three_kinds_of_parallelism_at_once_equal_one_process(data: Path, tmp_path: Path) -> None:
    equal_one_process(8, 2, data, tmp_path)


@pytest.mark.parametrize("lengths", [None, (3, 1)])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_ring_of_one_is_attention_to_the_video_and_the_text(lengths: tuple[int, ...] | None, padding: int) -> None:
    torch.manual_seed(0)
    q, k, v, k_text, v_text = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (8, 5, 5, 3, 3))
    found = ring.ring_attention(q, k, v, k_text, v_text, (5 - padding,), lengths)
    keys = torch.arange(8) < 5 - padding
    mask = keys | (torch.arange(8) - 5 >= 0) & (torch.arange(8) - 5 < torch.tensor(lengths or (3, 3))[:, None])
    wanted = F.scaled_dot_product_attention(
        q, torch.cat((k, k_text), 2), torch.cat((v, v_text), 2), attn_mask=mask[:, None, None]
    )
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(found)
    given = q, k, v, k_text, v_text
    for mine, theirs in zip(
        torch.autograd.grad(found, given, weights), torch.autograd.grad(wanted, given, weights), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_parts_of_the_keys_merge_and_their_gradients_follow_from_the_whole() -> None:
    """Both kernels: the fused one of this device and the explicit one, which GPUs take in 32 bits."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 9, 9))
    wanted = F.scaled_dot_product_attention(q, k, v)
    grad = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, (q, k, v), grad)
    for forward, backward in ((ring.attend, ring.attend_backward), (ring.explicit, ring.explicit_backward)):
        with torch.no_grad():
            first, second = forward(q, k[:, :, :2], v[:, :, :2]), forward(q, k[:, :, 2:], v[:, :, 2:])
            out, lse = ring._merge(first, second)
            torch.testing.assert_close(out, wanted)
            torch.testing.assert_close(lse, ((q * 8**-0.5) @ k.mT).logsumexp(-1))
            parts = [backward(grad, q, k[:, :, cut], v[:, :, cut], out, lse) for cut in (slice(2), slice(2, None))]
            torch.testing.assert_close(parts[0][0] + parts[1][0], gradients[0])
            for number in (1, 2):
                torch.testing.assert_close(torch.cat((parts[0][number], parts[1][number]), 2), gradients[number])


@pytest.mark.parametrize("length, frames, processes", [(12, 3, 2), (15, 3, 4), (21, 1, 4), (3, 3, 4)])
def test_runs_cover_the_tokens_and_know_their_frames(
    length: int, frames: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context.dist, "get_world_size", lambda group: processes)
    tokens = torch.arange(1.0, length + 1).reshape(1, length, 1)
    group = context.Group(object(), object(), None)  # pyright: ignore
    runs, of_frames = [], []
    for place in range(processes):
        monkeypatch.setattr(context.dist, "get_rank", lambda group, place=place: place)
        run = context.Run(group, length)
        runs.append(run.cut(tokens, 1))
        vectors = run.frames(torch.arange(frames).reshape(1, frames, 1))
        of_frames.append(vectors.repeat_interleave(run.size // vectors.shape[1], 1))
    assert torch.equal(torch.cat(runs, 1)[:, :length], tokens) and not torch.cat(runs, 1)[:, length:].any()
    assert torch.cat(of_frames, 1)[0, :length, 0].tolist() == [t * frames // length for t in range(length)]
    assert sum(run.counts) == length and len(run.counts) == processes


def test_layouts_that_do_not_fit_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"6 processes cannot work on the same samples in groups of 4 .* ulysses 2 × ring 2"
    ):
        make_mesh(Layout(ulysses=2, ring=2), World(0, 6), "cpu")
    with pytest.raises(UserError, match=r"1 process cannot work on the same samples in groups of 2"):
        trainer(data, tmp_path / "run", Layout(ring=2))
    with pytest.raises(UserError, match=r"8 processes cannot make 3 equal replicas of groups of 2; choose a .* 4"):
        make_mesh(Layout(ring=2, replicas=3), World(0, 8), "cpu")
    with pytest.raises(UserError, match="ulysses is 4, but 2 attention heads cannot be dealt evenly to 4 processes"):
        check(DiT(DIT), Layout(ulysses=4))
    with pytest.raises(UserError, match="Only the video transformer can share its tokens, Linear cannot"):
        check(nn.Linear(2, 2), Layout(ring=2))
    with pytest.raises(UserError, match="ulysses is 2, but 1 attention heads cannot be dealt evenly"):
        check(DiT(DIT), Layout(tensor=2, ulysses=2))
    assert not (tmp_path / "run").exists()


def test_neighbours_share_their_samples() -> None:
    parts = [Layout(ulysses=2, ring=2).data_rank(World(rank, 8)) for rank in range(8)]
    assert parts == [(0, 2)] * 4 + [(1, 2)] * 4
    parts = [Layout(tensor=2, ring=2).data_rank(World(rank, 8)) for rank in range(8)]
    assert parts == [(0, 2)] * 4 + [(1, 2)] * 4
