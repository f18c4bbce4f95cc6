"""The data verbs end to end: raw footage, clips, captions, latents; refusals before anything expensive."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from openhunyuan.cli.main import main
from openhunyuan.curate.run import read_clips
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.zoo import check_model
from openhunyuan.recipes import own_data
from tests.curate.films import save, shot

LOOSE = ["--threshold", "clarity.edge_width<=30", "--threshold", "clip.seconds>=0.5", "--without", "overlay"]
ENGINES = {"processes": ["--workers", "1"], "ray": ["--engine", "ray", "--workers", "1"]}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    save(tmp_path / "raw/a.mp4", shot(1, 30), shot(2, 26), shot(3, 10))
    return tmp_path / "raw"


def test_from_raw_footage_to_latents(
    raw: Path, tmp_path: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    curate = ["curate", str(raw), "--output", str(data), "--workers", "0"]
    assert main([*curate, *LOOSE, "--min-seconds", "0.5"]) == 0
    assert capsys.readouterr().out.strip() == str(data / "manifest.jsonl")
    clips = read_clips(data)
    assert [c.dropped.stage if c.dropped else None for c in clips] == [None, None, "split"]
    assert main(["caption", str(data)]) == 0
    assert main(["encode", str(data), "--model", str(micro_model_folder), "--device", "cpu"]) == 0
    dataset = ShardDataset(data / "latents")
    assert [sample.prompt for sample in dataset.samples] == [c.captions[0].text for c in read_clips(data) if c.captions]
    assert len(dataset) == 2
    # As `train tiny-video --data` does, with the micro model in the embedded one's place.
    run = own_data.train(data, tmp_path / "runs", 2, torch.device("cpu"), str(micro_model_folder))
    assert (run / "model" / "dit" / "model.safetensors").is_file()
    assert check_model(str(run / "model"))[1].description.endswith("2 more steps on 2 clips of data.")
    assert main(["train", "tiny-video", "--data", str(data), "--runs-dir", str(tmp_path / "other")]) == 2
    assert "other weights" in capsys.readouterr().err
    assert main(["curate", "report", str(data)]) == 0
    assert "Dropped by split" in (data / "report.html").read_text()
    capsys.readouterr()
    assert main(["curate", "forget", "a.mp4", "--output", str(data)]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["latents"], receipt["files"], len(receipt["clips"])) == (2, 2, 3)
    assert main([*curate, *LOOSE]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_the_commands_as_they_are_documented(raw: Path, tmp_path: Path, engine: str) -> None:
    """With the embedded model, and with either engine; the manifest is that of a run without one."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with: pip install 'openhunyuan[ray]'")
    data, plain, runs = tmp_path / "data", tmp_path / "plain", tmp_path / "runs"
    curate = ["curate", str(raw), *LOOSE, "--min-seconds", "0.5"]
    assert main([*curate, "--output", str(data), *ENGINES[engine]]) == 0
    assert main([*curate, "--output", str(plain), "--workers", "0"]) == 0
    assert (data / "manifest.jsonl").read_bytes() == (plain / "manifest.jsonl").read_bytes()
    assert main(["caption", str(data)]) == 0
    assert main(["encode", str(data), "--model", "tiny", "--device", "cpu"]) == 0
    train = ["train", "tiny-video", "--data", str(data), "--steps", "1", "--runs-dir", str(runs), "--device", "cpu"]
    assert main(train) == 0
    (model,) = runs.glob("*/model")
    assert check_model(str(model))[1].description.endswith(f"1 more steps on 2 clips of {data.name}.")


def test_an_engine_that_is_not_installed_is_named(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without_ray(name: str, package: str | None = None) -> object:
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_ray)
    assert main(["curate", str(raw), "--output", str(tmp_path / "data"), "--engine", "ray"]) == 2
    error = capsys.readouterr().err.strip()
    assert error == "error: This needs the package ray; install it with: pip install 'openhunyuan[ray]'."


@pytest.mark.parametrize(
    "args, said",
    [
        (["curate", "nowhere"], "No video"),
        (["curate", "{raw}", "--threshold", "motion>=2"], "did you mean motion."),
        (["curate", "{raw}", "--threshold", "motion.speed=2"], "is not a threshold"),
        (["curate", "{raw}", "--without", "blur"], "Unknown filter blur"),
        (["curate", "{raw}", "--workers", "-3"], "workers"),
        (["curate", "{raw}", "--engine", "ray", "--workers", "0"], "needs 1 or more"),
        (["curate", "{raw}", "--engine", "dask"], "engine"),
        (["curate", "{raw}", "--ray-address", "auto"], "is for --engine ray"),
        (["curate", "report", "nowhere"], "holds no manifest"),
        (["curate", "forget", "a.mp4", "--output", "nowhere"], "holds no manifest"),
        (["caption", "nowhere"], "holds no manifest"),
        (["caption", "nowhere", "--captioner", "endpoint"], "needs --endpoint"),
        (["encode", "nowhere"], "holds no manifest"),
        (["train", "tiny-video", "--data", "nowhere"], "holds no latents"),
        (["train", "tiny-vae", "--data", "nowhere"], "Only the recipe tiny-video"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    save(tmp_path / "raw/a.mp4", shot(1, 4))
    filled = [arg.format(raw=tmp_path / "raw") for arg in args]
    assert main(filled) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "data").exists()


def test_a_motion_scorer_of_another_scale_has_no_threshold_of_this_one(tmp_path: Path) -> None:
    save(tmp_path / "raw/a.mp4", shot(1, 30))
    args = ["--output", str(tmp_path / "data"), "--workers", "0", "--threshold", "clarity.edge_width<=30"]
    assert main(["curate", str(tmp_path / "raw"), *args, "--without", "overlay", "--motion", "farneback"]) == 0
    (clip,) = read_clips(tmp_path / "data")
    assert clip.scores["motion.speed"] > 0
    assert "motion" not in [d.filter for d in clip.decisions]
