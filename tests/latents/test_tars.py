"""Tar files that the webdataset library reads, with everything a dataset holds."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import ClipCaption
from openhunyuan.curate.run import read_clips
from openhunyuan.latents.shards import LatentSample, ShardDataset, ShardWriter
from openhunyuan.latents.tars import export_tars, remove_from_tars, sample_offsets
from tests.latents.test_encode import encode, make_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    clips = make_clips(folder, [5, 5, 5])
    encode(clips, folder, folder / "latents")
    (folder / "manifest.jsonl").write_text("".join(clip.model_dump_json() + "\n" for clip in clips))
    return folder


def test_the_webdataset_library_reads_every_sample(data: Path, tmp_path: Path) -> None:
    report = export_tars(data / "latents", tmp_path, samples_per_tar=2, clips=data)
    assert (report.samples, report.tars, report.written) == (3, 2, 2)
    dataset = ShardDataset(data / "latents")
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert len(found) == 3
    for sample, expected in zip(found, dataset.samples, strict=True):
        assert expected.logvar is not None
        for name, tensor in (
            ("mean", expected.latents), ("logvar", expected.logvar), ("states", expected.states),
            ("pooled", expected.pooled),
        ):  # fmt: skip
            assert sample[f"{name}.npy"].dtype == np.float16
            assert torch.equal(torch.from_numpy(sample[f"{name}.npy"]), tensor)
        assert sample["txt"] == expected.prompt
        assert sample["json"] == {**expected.metadata, "prompt": expected.prompt}
        path = data / f"clips/{expected.metadata['clip']}.mp4"
        assert sample["mp4"] == path.read_bytes()


def test_offsets_find_a_sample_and_the_same_dataset_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    export_tars(data / "latents", tmp_path / "a", samples_per_tar=2)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    index = json.loads(first["index.json"])
    assert [tar["samples"] for tar in index["tars"]] == [2, 1]
    name, offset = list(index["tars"][0]["offsets"].items())[1]
    with (tmp_path / "a" / index["tars"][0]["file"]).open("rb") as file:
        file.seek(offset)
        with tarfile.open(fileobj=file, mode="r|") as tar:
            assert tar.next().name == f"{name}.mean.npy"  # type: ignore[union-attr]
    gone = next((tmp_path / "a").glob("*.tar"))
    gone.unlink()
    assert export_tars(data / "latents", tmp_path / "a", samples_per_tar=2).written == 1
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def test_latents_without_variances_and_bad_folders(data: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "old") as writer:
        sample = LatentSample(torch.zeros(16, 1, 4, 4), torch.ones(1, 8), torch.ones(6), "a.b", {"clip": "x.y"})
        writer.add(sample)
    export_tars(tmp_path / "old", tmp_path / "out")
    (tar,) = (tmp_path / "out").glob("*.tar")
    assert list(sample_offsets(tar)) == ["000000000-x_y"]
    with tarfile.open(tar) as opened:
        assert not any("logvar" in name for name in opened.getnames())
    with pytest.raises(UserError, match="no export's"):
        export_tars(data / "latents", data / "latents")
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match=r"delete it and export again"):
        export_tars(tmp_path / "old", tmp_path / "out")
    with pytest.raises(UserError, match="holds no manifest"):
        export_tars(tmp_path / "old", tmp_path / "out", clips=tmp_path)


def test_a_folder_holds_one_export(data: Path, tmp_path: Path) -> None:
    export_tars(data / "latents", tmp_path / "out", samples_per_tar=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    clips = [clip.with_caption(ClipCaption(captioner="new", text="new words")) for clip in read_clips(data)]
    encode(clips, data, tmp_path / "latents")
    (tmp_path / "out/index.json").unlink()  # as when the run died
    for folder, options in ((tmp_path / "latents", {}), (data / "latents", {"clips": data})):
        with pytest.raises(UserError, match=r"\.tar, which is not of this export"):
            export_tars(folder, tmp_path / "out", samples_per_tar=2, **options)
    assert export_tars(data / "latents", tmp_path / "out", samples_per_tar=2).written == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_forgotten_samples_leave_tars_and_their_index(data: Path, tmp_path: Path) -> None:
    export_tars(data / "latents", tmp_path, samples_per_tar=2, clips=data)
    clips = [sample.metadata["clip"] for sample in ShardDataset(data / "latents").samples]
    film = (data / f"clips/{clips[0]}.mp4").read_bytes()
    (tar, _) = sorted(tmp_path.glob("*.tar"))
    half = tmp_path / f".{tar.name}.17.tmp"
    half.write_bytes(film)
    kept = {name: content for name, content in members(tar).items() if clips[1] in name}
    assert len(kept) == 7
    assert remove_from_tars(tmp_path, lambda about: about["clip"] == clips[0]) == 1
    assert members(tar) == kept
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert film not in left and clips[0].encode() not in left and not half.exists()
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["samples"], [entry["samples"] for entry in index["tars"]]) == (2, [1, 1])
    for entry in index["tars"]:
        assert entry["offsets"] == sample_offsets(tmp_path / entry["file"])
        assert entry["bytes"] == (tmp_path / entry["file"]).stat().st_size
    assert remove_from_tars(tmp_path, lambda about: True) == 2
    assert not list(tmp_path.iterdir())


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
