"""The verb encode: refusals before anything is loaded, its smaller jobs, and what it says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset

from openhunyuan.cli.main import main
from openhunyuan.curate.clip import ClipCaption
from openhunyuan.curate.run import write_manifest
from openhunyuan.latents.shards import ShardDataset
from tests.latents.test_encode import make_clips


@pytest.mark.parametrize(
    "args, said",
    [
        (["{data}", "--bucket", "33x256"], "is not a bucket"),
        (["{data}", "--bucket", "34x32x32"], "4n + 1"),
        (["{data}", "--bucket", "5x4p"], "side 4"),
        (["{data}", "--bucket", "5x32x32", "--num-frames", "5"], "leave --num-frames"),
        (["{data}", "--part", "3/2"], "N/OF"),
        (["{data}", "--captioner", "nobody"], "by nobody"),
        (["{data}", "--model", "nothing"], "nothing"),
        (["{data}", "--fps", "0"], "fps"),
        (["export", "{data}", "--output", "{data}/tars"], "holds no latents"),
        (["import", "{data}/none", "--output", "{data}/out"], "does not exist"),
        (["import", "{data}", "--output", "{data}/out"], "not an official latent cache"),
        (["{data}", "--output", "{data}/."], "is the folder that is read"),
        (["export", "{data}", "--output", "{data}"], "is the folder that is read"),
        (["import", "{data}", "--output", "{data}"], "is the folder that is read"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    write_manifest(tmp_path, make_clips(tmp_path, [5]))
    assert main(["encode", *(arg.format(data=tmp_path) for arg in args)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]


def test_encode_export_and_import(tmp_path: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = make_clips(tmp_path, [5, 20, 3, 5])
    own = ClipCaption(captioner="truth", text="a", fields={"short": "a", "dense": "a b", "camera": "zoom in"})
    clips[1] = clips[1].with_caption(own)
    (tmp_path / str(clips[3].path)).write_bytes(b"")
    write_manifest(tmp_path, clips)
    model = ["--model", str(micro_model_folder), "--device", "cpu"]
    buckets = ["--bucket", "5x32x48", "--bucket", "9x32x48", "--fps", "24"]
    assert main(["encode", str(tmp_path), *model, *buckets, "--part", "1/2"]) == 0
    assert "1 shard is other parts' work" in capsys.readouterr().err
    assert main(["encode", str(tmp_path), *model, *buckets]) == 0
    said = capsys.readouterr().err
    assert "2 samples in 2 shards" in said
    assert "1 of 4 clips left out: too short for 5 frames; --bucket may ask for fewer" in said
    assert f"1 sample left out, to be tried again by the next run:\n  {clips[3].id} cannot be read" in said
    assert "1 sample without the camera label of the whole caption" in said
    dataset = ShardDataset(tmp_path / "latents")
    assert sorted(shape[1:] for shape in dataset.shapes) == [(2, 4, 6), (3, 4, 6)]
    assert all(sample.logvar is not None for sample in dataset.samples)

    assert main(["encode", "export", str(tmp_path), "--output", str(tmp_path / "tars"), "--clips"]) == 0
    tars = [str(path) for path in (tmp_path / "tars").glob("*.tar")]
    found = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode())
    assert len(found) == 2 and all("mp4" in sample for sample in found)

    cache = tmp_path / "cache"
    (cache / "json_path").mkdir(parents=True)
    np.save(cache / "a.npy", np.ones((1, 16, 2, 4, 4), np.float16))
    about = {"video_id": "a", "latent_shape": [1, 16, 2, 4, 4], "video_path": "/", "prompt": "a red circle"}
    (cache / "json_path/a.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert main(["encode", "import", str(cache), "--output", str(tmp_path / "imported"), *model]) == 0
    assert "1 latent read, 1 of them repaired" in capsys.readouterr().err
    assert ShardDataset(tmp_path / "imported")[0].prompt == "a red circle"


def test_shorter_clips_are_shorter_samples_unless_a_length_is_asked_for(
    tmp_path: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(micro_model_folder, tmp_path / "model")
    about = json.loads((model / "model.json").read_text())
    about["defaults"]["num_frames"] = 17
    (model / "model.json").write_text(json.dumps(about))
    clips = make_clips(tmp_path, [17, 16, 9, 8])
    write_manifest(tmp_path, clips)
    command = ["encode", str(tmp_path), "--model", str(model), "--fps", "24", "--device", "cpu"]
    assert main(command) == 0
    assert "1 of 4 clips left out: too short for 9 frames" in capsys.readouterr().err
    assert sorted(shape[1] for shape in ShardDataset(tmp_path / "latents").shapes) == [3, 3, 5]
    assert main([*command, "--num-frames", "17", "--output", str(tmp_path / "own")]) == 0
    assert "3 of 4 clips left out: too short for 17 frames" in capsys.readouterr().err
