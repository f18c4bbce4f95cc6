"""A source that is forgotten leaves a receipt and nothing else, and does not come back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import file_sha256
from openhunyuan.curate.duplicates import Duplicates
from openhunyuan.curate.forget import clips_from, find_source, forget
from openhunyuan.curate.measures.fingerprint import Fingerprint
from openhunyuan.curate.run import SCAN, Plan, curate, read_clips
from openhunyuan.curate.stage import Outcome
from openhunyuan.curate.tables import Table, all_tables, alone, read_rows
from openhunyuan.latents.shards import LatentSample, ShardDataset, ShardWriter, remove_samples
from tests.curate.films import save, shot
from tests.curate.test_run import PLAN

WITH_PAIRS = replace(PLAN, measures=(*PLAN.measures, Fingerprint()), duplicates=Duplicates())


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
    for folder in (data / SCAN / "of a run that was killed", data / ".work"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compared").touch()
    receipt = forget(data, sha)
    assert not (data / SCAN).exists() and not (data / ".work").exists(), "thumbnails of whichever source"
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


@pytest.mark.parametrize("plan", [PLAN, WITH_PAIRS], ids=["scores", "pairs"])
def test_what_was_killed_in_between_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    """Killed after any table: the same call ends it, with one receipt that counts all."""
    raw, whole = tmp_path / "raw", tmp_path / "whole"
    save(raw / "a.mp4", shot(1, 24), shot(2, 20))
    save(raw / "b.mp4", shot(3, 20), shot(1, 24))
    curate(raw, whole, plan)
    for pairs in whole.glob("tables/duplicates/*"):
        ((row,),) = read_rows(pairs).values()
        assert len({*row["first"]}) == 2, "one of its clips is in a pair"
    sha = file_sha256(raw / "a.mp4")
    (raw / "a.mp4").unlink()
    real = Table.forget
    for alive in range(len(all_tables(whole))):
        data = Path(shutil.copytree(whole, tmp_path / f"data{alive}"))
        left = alive

        def dying(table: Table, keys: set[str], *instead: list[Outcome]) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(table, keys, *instead)

        with monkeypatch.context() as patch:
            patch.setattr(Table, "forget", dying)
            with pytest.raises(KeyboardInterrupt):
                forget(data, "a.mp4", lambda clips: (2, 1))
        receipt = forget(data, "a.mp4", lambda clips: (0, 0))
        assert (receipt.files, receipt.latents, receipt.tars, len(receipt.clips)) == (2, 2, 1, 2)
        receipts = (data / "forgotten.jsonl").read_text().splitlines()
        assert len(receipts) == 1 and json.loads(receipts[0])["sha256"] == sha
        (data / "forgotten.jsonl").unlink()
        # The other one's clip says in the manifest, until the next run, of which clip it was a duplicate.
        held = everything(data / "tables" if plan.duplicates else data)
        assert not any(word.encode() in held for word in (sha, *receipt.clips))


def test_a_file_that_another_source_has_too_stays(tmp_path: Path) -> None:
    """Two pictures of other bytes and the same pixels share a file of the store."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    raw, data = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    for name, level in (("a.png", 1), ("b.png", 9)):
        Image.fromarray(picture).save(raw / name, compress_level=level)
    curate(raw, data, Plan(images="files"))
    a, b = sorted(read_clips(data), key=lambda clip: clip.source)
    assert a.path == b.path and a.source_sha256 != b.source_sha256
    assert forget(data, "a.png").files == 0
    assert (data / str(b.path)).is_file()
    assert forget(data, "b.png").files == 1
    assert not (data / str(b.path)).exists()


def test_the_funnel_is_counted_anew_and_nothing_is_touched_beside_another_run(tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"
    save(raw / "a.mp4", shot(1, 24), shot(2, 20))
    save(raw / "b.mp4", shot(3, 20))
    curate(raw, data, PLAN)
    with alone(data), pytest.raises(UserError, match="Another run is writing"):
        forget(data, "a.mp4", lambda clips: pytest.fail("samples were removed"))
    assert json.loads((data / "funnel.json").read_text())[0]["seen"] == 3
    forget(data, "a.mp4")
    assert json.loads((data / "funnel.json").read_text())[0]["seen"] == 1
