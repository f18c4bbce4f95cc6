"""Latent shards: round trip, atomicity, padding, and a loader that is a pure function of (seed, step)."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.latents.shards import (
    INDEX_NAME,
    LatentSample,
    Loader,
    MixEntry,
    ShardDataset,
    ShardWriter,
    collate,
    read_shard_header,
    write_shard,
)


def make_sample(i: int, frames: int = 3, tokens: int | None = None) -> LatentSample:
    generator = torch.Generator().manual_seed(i)
    return LatentSample(
        latents=torch.randn(16, frames, 4, 4, generator=generator),
        states=torch.randn(tokens or 2 + i % 5, 8, generator=generator),
        pooled=torch.randn(6, generator=generator),
        prompt=f"sample {i}",
        metadata={"id": i, "camera": None},
    )


def make_dataset(path: Path, count: int, frames: int = 3) -> ShardDataset:
    with ShardWriter(path, samples_per_shard=4) as writer:
        for i in range(count):
            writer.add(make_sample(i, frames))
    return ShardDataset(path)


def test_round_trip_keeps_tensors_in_half_precision_and_all_words(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 10)
    assert len(dataset) == 10 and len(list(tmp_path.glob("shard-*"))) == 3
    for i, sample in enumerate(dataset.samples):
        expected = make_sample(i)
        assert torch.equal(sample.latents, expected.latents.half())
        assert torch.equal(sample.states, expected.states.half())
        assert torch.equal(sample.pooled, expected.pooled.half())
        assert sample.prompt == expected.prompt and sample.metadata == expected.metadata
    assert json.loads((tmp_path / INDEX_NAME).read_text())["latent_shapes"] == {"16x3x4x4": 10}


def test_batch_pads_text_on_the_right_to_the_longest_of_the_batch(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 10)
    batch = dataset.batch([0, 3, 1])
    assert batch["latents"].shape == (3, 16, 3, 4, 4) and batch["pooled"].shape == (3, 6)
    assert batch["text_states"].shape == (3, 5, 8)
    assert batch["text_mask"].sum(1).tolist() == [2, 5, 3]
    assert batch["text_mask"][0].tolist() == [True, True, False, False, False]
    assert torch.equal(batch["text_states"][2, :3], dataset[1].states.float())
    assert (batch["text_states"][~batch["text_mask"]] == 0).all()


def test_different_latent_shapes_do_not_stack_but_form_buckets(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        for i in range(6):
            writer.add(make_sample(i, frames=1 + 2 * (i % 2)))
    dataset = ShardDataset(tmp_path)
    assert dataset.buckets() == {(16, 1, 4, 4): [0, 2, 4], (16, 3, 4, 4): [1, 3, 5]}
    with pytest.raises(ValueError, match="one shape"):
        dataset.batch([0, 1])


def test_a_cut_off_shard_is_told_apart_and_never_half_read(tmp_path: Path) -> None:
    make_dataset(tmp_path, 4)
    shard = tmp_path / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert read_shard_header(shard) is None
    with pytest.raises(UserError, match="cut off"):
        ShardDataset(tmp_path)


def test_no_index_without_a_finished_dataset(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path, samples_per_shard=2) as writer:
        for i in range(3):
            writer.add(make_sample(i))
        raise RuntimeError("stop")
    with pytest.raises(UserError, match="no latent dataset"):
        ShardDataset(tmp_path)


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    sample = make_sample(0)
    sample.latents[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="not finite"):
        write_shard(tmp_path / "shard-00000.safetensors", [sample])
    assert list(tmp_path.iterdir()) == []


def test_every_epoch_visits_every_sample_once_in_a_new_order(tmp_path: Path) -> None:
    loader = Loader(make_dataset(tmp_path, 12), batch_size=4, seed=5)
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in loader.select(step)[1]] for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_seed_and_step_only(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 11)
    first, second = Loader(dataset, 4, seed=1), Loader(dataset, 4, seed=1)
    forward = [first.select(step)[1] for step in range(20)]
    backward = [second.select(step)[1] for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [Loader(dataset, 4, seed=2).select(step)[1] for step in range(20)]


def test_ranks_share_the_global_order_without_overlap(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 16)
    whole = Loader(dataset, 8, seed=3)
    ranks = [Loader(dataset, 4, seed=3, rank=r, world_size=2) for r in range(2)]
    for step in range(6):
        assert whole.select(step)[1] == ranks[0].select(step)[1] + ranks[1].select(step)[1]


def test_a_mix_keeps_its_shares_and_shows_every_sample(tmp_path: Path) -> None:
    images = make_dataset(tmp_path / "images", 9, frames=1)
    videos = make_dataset(tmp_path / "videos", 6, frames=3)
    loader = Loader([MixEntry(images, 3.0), MixEntry(videos, 1.0)], batch_size=3, seed=0)
    drawn: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    for step in range(loader.PERIOD):
        dataset, indices = loader.select(step)
        drawn["images" if dataset is images else "videos"] += 1
        if dataset is videos:
            seen.update(indices)
    assert drawn == {"images": 750, "videos": 250}
    assert set(seen.values()) == {125}  # 250 batches of 3 over 6 samples: 125 whole epochs
    assert loader.source_of(loader.PERIOD * 2 + 17)[1] >= 2 * 250


def test_a_batch_of_a_mix_has_one_shape(tmp_path: Path) -> None:
    images = make_dataset(tmp_path / "images", 5, frames=1)
    videos = make_dataset(tmp_path / "videos", 5, frames=3)
    loader = Loader([MixEntry(images), MixEntry(videos)], batch_size=2)
    frames = {loader.batch(step)["latents"].shape[2] for step in range(20)}
    assert frames == {1, 3}


@pytest.mark.parametrize("bad", [dict(batch_size=0), dict(batch_size=1, rank=2, world_size=2)])
def test_impossible_loaders_are_refused(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Loader(make_dataset(tmp_path, 2), **bad)


def test_collate_can_return_half_precision() -> None:
    assert collate([make_sample(0)], torch.float16)["latents"].dtype == torch.float16
