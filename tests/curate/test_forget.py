"""A source that is forgotten leaves a receipt and nothing else, and does not come back."""

import json
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import file_sha256
from openhunyuan.curate.forget import clips_from, find_source, forget
from openhunyuan.curate.run import curate, read_clips
from openhunyuan.latents.shards import LatentSample, ShardDataset, ShardWriter, remove_samples
from tests.curate.films import save, shot
from tests.curate.test_run import PLAN


def everything(data: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(data.rglob("*")) if p.is_file())


def test_a_source_and_all_that_was_made_of_it(tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"
    save(raw / "a.mp4", shot(1, 24), shot(2, 20))
    save(raw / "b.mp4", shot(3, 20))
    first = curate(raw, data, PLAN)
    sha = file_sha256(raw / "a.mp4")
    for name in (str(raw / "a.mp4"), "a.mp4", sha):
        assert find_source(data, name) == sha
    with pytest.raises(UserError, match="is no source"):
        find_source(data, "c.mp4")
    gone = [c for c in first.clips if c.source_sha256 == sha]
    assert set(clips_from(data, sha)) == {c.id for c in gone}
    receipt = forget(data, sha)
    assert (receipt.files, len(receipt.clips), receipt.paths) == (2, 2, (str(raw / "a.mp4"),))
    assert [c.source_sha256 for c in read_clips(data)] == [file_sha256(raw / "b.mp4")]
    assert not any((data / str(c.path)).exists() for c in gone)
    (data / "forgotten.jsonl").rename(tmp_path / "receipt")
    left = everything(data)
    assert not any(word.encode() in left for word in (sha, *(c.id for c in gone)))
    (tmp_path / "receipt").rename(data / "forgotten.jsonl")
    again = curate(raw, data, PLAN)
    assert (again.forgotten, len(again.clips)) == (1, 1)
    assert json.loads((data / "forgotten.jsonl").read_text())["sha256"] == sha


def test_latents_of_forgotten_clips_go_too(tmp_path: Path) -> None:
    sample = {"latents": torch.zeros(2, 1, 2, 2), "states": torch.ones(1, 3), "pooled": torch.ones(2)}
    with ShardWriter(tmp_path, samples_per_shard=2) as writer:
        for name in ("a", "b", "a", "a", "c"):
            writer.add(LatentSample(**sample, prompt=name, metadata={"clip": name}))
    assert remove_samples(tmp_path, lambda about: about["clip"] == "a") == 3
    assert [s.prompt for s in ShardDataset(tmp_path).samples] == ["b", "c"]
    assert remove_samples(tmp_path, lambda about: True) == 2
    assert not (tmp_path / "index.json").exists()
    assert remove_samples(tmp_path / "none", lambda about: True) == 0
