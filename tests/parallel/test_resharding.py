"""Sharded checkpoints: every layout's parts make the whole, every layout reads another's; of two processes, what is
bit-equal, broken or full."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from openhunyuan.base.tensorfile import stored_safetensors, write_safetensors
from openhunyuan.models.dit.model import DiT
from openhunyuan.parallel.apply import Layout, apply, make_mesh
from openhunyuan.parallel.resharding import Part, Stored, parts, placed, placed_all
from openhunyuan.parallel.tensor import orders
from openhunyuan.parallel.world import World
from openhunyuan.train import checkpoint
from tests.parallel.launch import launch
from tests.parallel.tensor_program import model

LAYOUTS = {
    "fsdp": (3, Layout()),
    "hsdp": (4, Layout(replicas=2)),
    "tensor": (2, Layout(tensor=2)),
    "tensor and shards": (6, Layout(tensor=2)),
    "tensor, shards and replicas": (8, Layout(tensor=2, replicas=2)),
    "context": (4, Layout(ring=2, ulysses=2)),
}
"""Processes and layout."""


def processes(count: int, layout: Layout) -> Iterator[tuple[World, DiT]]:
    """One process of ``count`` after another, with its model; nothing that one sends arrives."""
    for rank in range(count):
        _clear_sharding_prop_cache()  # it takes equal meshes of two ranks for the same
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
        try:
            world, dit = World(rank, count), model()
            apply(dit, layout, make_mesh(layout, world, "cpu"))
            yield world, dit
        finally:
            dist.destroy_process_group()
            _clear_sharding_prop_cache()


def written(count: int, layout: Layout, folder: Path) -> tuple[dict[str, Stored], list[int]]:
    """The model's weights in files, and how many values each process wrote."""
    blocks: dict[str, dict] = {}
    shapes, values = {}, []
    for world, dit in processes(count, layout):
        mine = {}
        for name, part in parts(dit.state_dict(), orders(dit), world=world).items():
            assert isinstance(part, Part)
            shapes[name] = part.shape, part.dtype
            mine |= {(name, start): block.clone() for start, block in part.blocks.items()}
        path = folder / f"{world.rank}.safetensors"
        write_safetensors(path, {str(n): _Tensor(block) for n, block in enumerate(mine.values())})
        stored = stored_safetensors(path)
        for n, (name, start) in enumerate(mine):
            assert start not in blocks.setdefault(name, {})  # each is written once
            blocks[name][start] = stored[str(n)]
        values.append(sum(block.numel() for block in mine.values()))
    return {name: Stored(*shapes[name], held) for name, held in blocks.items()}, values


class _Tensor:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.dtype, self.shape = tensor, tensor.dtype, tuple(tensor.shape)

    def read(self) -> torch.Tensor:
        return self.tensor


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_parts_of_all_processes_are_the_whole_and_every_layout_reads_its_own(name: str, tmp_path: Path) -> None:
    wanted = model().state_dict()
    stored, values = written(*LAYOUTS[name], tmp_path)
    assert stored.keys() == wanted.keys()
    for key, value in wanted.items():
        assert sum(math.prod(block.shape) for block in stored[key].blocks.values()) == value.numel()
        assert torch.equal(stored[key].read(), value), key
    assert min(values) > 0.5 * sum(values) / len(values)  # also replicas and neighbours write their share
    names = list(LAYOUTS)
    for other in (names[names.index(name) - 1], names[names.index(name) - 3]):
        for world, dit in processes(*LAYOUTS[other]):
            if world.rank in (1, world.size - 1):
                held = dit.state_dict()
                for key, found in placed_all(stored, held, orders(dit)).items():
                    assert isinstance(found, DTensor) and found.placements == held[key].placements
                    assert torch.equal(found.to_local(), held[key].to_local()), key


def test_what_is_whole_or_of_another_shape_is_placed_as_it_is() -> None:
    whole = torch.arange(6.0)
    assert placed(whole) is whole and placed(3) == 3
    for _, dit in processes(2, Layout()):
        (like, *_) = dit.state_dict().values()
        assert placed(whole, like) is whole


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    launch("tests.parallel.checkpoint_program", 2, data, folder)
    return folder


@pytest.mark.slow  # two processes, ten runs
def test_a_resumed_sharded_run_is_bit_equal_and_every_process_writes(runs: Path) -> None:
    wanted, found = (
        checkpoint.read_manifest(runs / run / "checkpoints" / "step_00000004") for run in ("kept", "stopped")
    )
    names = {f"{part}-0000{rank}.safetensors" for part in ("modules", "optimizers", "ema") for rank in (0, 1)}
    assert set(wanted["files"]) == set(found["files"]) == {*names, "state.json"}
    assert all(wanted["files"][name] == found["files"][name] for name in names)
    sizes = [sum(wanted["files"][n]["bytes"] for n in names if f"-0000{rank}" in n) for rank in (0, 1)]
    assert max(sizes) < 1.3 * min(sizes)


@pytest.mark.slow
def test_a_missing_shard_sends_all_processes_to_the_one_before_and_a_full_disk_of_one_is_said_by_all(
    runs: Path,
) -> None:
    found = json.loads((runs / "found.json").read_text())
    assert len(found) == 2 and found[0] == found[1]
    steps = [Path(path).name for path in found[0]["newest"]]
    assert steps == ["step_00000004", "step_00000002", "step_00000000"]
    assert "ema-00001.safetensors has 0 of" in found[0]["none"]
    assert "step 1 cannot be written" in found[0]["full"] and "the last good one is step_00000000" in found[0]["full"]
    folders = sorted(path.name for path in (runs / "full" / "checkpoints").iterdir())
    assert folders == ["step_00000000", "step_00000002"]
    assert [checkpoint.damage(runs / "full" / "checkpoints" / name) for name in folders] == [None, None]


@pytest.mark.slow
def test_blocks_that_are_not_there_are_refused(runs: Path) -> None:
    path = runs / "kept" / "checkpoints" / "step_00000002"
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["modules-00001.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.UserError, match=r"blocks of modules/model/.* are missing"):
        checkpoint.load(path)
