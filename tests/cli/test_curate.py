"""The data verbs end to end: raw footage, clips, captions, latents; refusals before anything expensive."""

import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from openhunyuan.cli.main import main
from openhunyuan.curate.review import VIEWS
from openhunyuan.curate.run import read_clips
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.zoo import check_model
from openhunyuan.recipes import own_data
from tests.curate.films import save, shot

LOOSE = ["--threshold", "blur.width<=90", "--threshold", "clip.seconds>=0.5", "--without", "overlay"]
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
    assert "made with another VAE or other text encoders" in capsys.readouterr().err
    assert main(["curate", "report", str(data)]) == 0
    assert "Dropped by split" in (data / "report.html").read_text()
    assert main(["encode", "export", str(data), "--output", str(data / "exports/tars"), "--clips"]) == 0
    shutil.copytree(data / "latents", data / "deep/died")
    (data / "deep/died/index.json").unlink()
    capsys.readouterr()
    assert main(["curate", "forget", "a.mp4", "--output", str(data)]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["latents"], receipt["tars"], receipt["files"], len(receipt["clips"])) == (2, 2, 2, 3)
    assert not [p for top in ("latents", "exports", "deep") for p in (data / top).rglob("*") if p.is_file()]
    assert main([*curate, *LOOSE]) == 2


@pytest.mark.parametrize("engine", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_the_commands_as_they_are_documented(raw: Path, tmp_path: Path, engine: str) -> None:
    """With the embedded model at the length of short shots, with either engine; manifests are those without one."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with: pip install 'openhunyuan[ray]'")
    data, plain, runs = tmp_path / "data", tmp_path / "plain", tmp_path / "runs"
    curate = ["curate", str(raw), *LOOSE, "--min-seconds", "0.5"]
    assert main([*curate, "--output", str(data), *ENGINES[engine]]) == 0
    assert main([*curate, "--output", str(plain), "--workers", "0"]) == 0
    assert (data / "manifest.jsonl").read_bytes() == (plain / "manifest.jsonl").read_bytes()
    for folder in (data, plain):
        assert main(["caption", str(folder)]) == 0
    assert (data / "manifest.jsonl").read_bytes() == (plain / "manifest.jsonl").read_bytes()
    assert main(["encode", str(data), "--model", "tiny", "--num-frames", "13", "--device", "cpu"]) == 0
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
        (["curate", "{raw}", "--threshold", "540p:motion.speed>=2"], "add --ladder absolute"),
        (["curate", "{raw}", "--ladder", "absolute", "--threshold", "54p:motion.speed>=2"], "did you mean 540p"),
        (["curate", "{raw}", "--ladder", "absolute", "--threshold", "540p:motion.sped>=2"], "did you mean motion."),
        (["curate", "{raw}", "--ladder", "steep"], "must be one of"),
        (["curate", "{raw}", "--ladder", "absolute", "--without", "blur"], "Unknown filter blur"),
        (["curate", "{raw}", "--ladder", "absolute", "--allow-proxy", "qualty"], "did you mean quality"),
        (["curate", "{raw}", "--ladder", "calibrated", "--allow-proxy", "text,motion"], "motion is no proxy"),
        (["curate", "{raw}", "--allow-proxy", "text"], "needs --ladder"),
        (["curate", "{raw}", "--images", "gifs"], "must be one of"),
        (["curate", "review", "nowhere"], "holds no manifest"),
        (["curate", "review", "nowhere", "--port", "99999"], "port"),
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


LOW = [
    item
    for name in ("256p", "360p", "540p", "720p", "image-256", "image-512")
    for item in ("--threshold", f"{name}:clip.short_side>=48", "--threshold", f"{name}:blur.width<=90")
]


def test_one_set_is_encoded_and_people_choose_another(
    tmp_path: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"
    save(raw / "a.mp4", shot(1, 30), shot(2, 26))
    args = ["curate", str(raw), "--output", str(data), "--workers", "0", "--ladder", "absolute", "--images", "frames"]
    loose = ["--threshold", "clip.seconds>=0.5", "--threshold", "clip.short_side>=48", "--without", "overlay"]
    assert main([*args, *loose, *LOW]) == 0
    said = capsys.readouterr().err
    assert "540p, 720p not built" in said
    assert "--allow-proxy blur,quality,text,fingerprint" in said
    clips = read_clips(data)
    assert [(c.kind, c.sets) for c in clips] == [("video", ("256p", "360p"))] * 2 + [
        ("image", ("image-256", "image-512"))
    ] * 2
    assert main([*args, *loose, *LOW, "--threshold", "360p:motion.speed>=1e9"]) == 0
    assert [c.sets for c in read_clips(data)[:2]] == [("256p",)] * 2
    assert main([*args, *loose, *LOW]) == 0
    assert main(["caption", str(data)]) == 0
    encode = ["encode", str(data), "--model", str(micro_model_folder), "--device", "cpu", "--set"]
    capsys.readouterr()
    for name, said in (("540p", "--allow-proxy"), ("sft", "openhunyuan curate review"), ("480p", "Unknown set 480p")):
        assert main([*encode, name]) == 2
        assert said in capsys.readouterr().err
    assert main([*encode, "image-512"]) == 0
    assert capsys.readouterr().out.strip() == str(data / "latents-image-512")
    latents = [sample.latents for sample in ShardDataset(data / "latents-image-512").samples]
    assert [x.shape[1] for x in latents] == [1, 1]

    # People let one of the two videos pass, on the page; it alone is encoded as sft.
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}"}
    command = [sys.executable, "-m", "openhunyuan", "curate", "review", str(data), "--set", "256p", "--port", "0"]
    # A shell's background job, as which tests may run, ignores SIGINT, and so would its children.
    page = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert page.stdout is not None
        url = page.stdout.readline().strip()
        for good, video in zip((True, False), clips, strict=False):
            views = {view.key: good for view in VIEWS}
            body = json.dumps({"annotator": "ann", "clip": video.id, "views": views}).encode()
            request = urllib.request.Request(f"{url}api/answer", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as reply:
                state = json.load(reply)
        assert (state["passed"], state["failed"], state["open"]) == (1, 1, 0)
        page.send_signal(signal.SIGINT)
        _, said = page.communicate(timeout=60)
    finally:
        page.kill()
    assert page.returncode == 0
    assert "1 pass, 1 do not, 0 are open" in said
    assert main([*encode, "sft"]) == 0
    assert [sample.metadata["clip"] for sample in ShardDataset(data / "latents-sft").samples] == [clips[0].id]
    assert main(["curate", "report", str(data)]) == 0
    report = (data / "report.html").read_text()
    assert "Judged by people" in report and "Of 2 clips of the set 256p, 1 pass" in report


def test_the_number_of_concepts_is_an_option(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, groups in ((1, {0}), (2, {0, 1})):
        data = tmp_path / str(count)
        command = ["curate", str(raw), "--output", str(data), "--workers", "0", *LOOSE, "--concepts", str(count)]
        assert main(command) == 0
        assert {clip.concept for clip in read_clips(data) if not clip.dropped} == groups
        assert json.loads((data / "run.json").read_text())["concepts"]["count"] == count
    assert main(["curate", str(raw), "--output", str(tmp_path / "x"), "--concepts", "-1"]) == 2
    assert "concepts" in capsys.readouterr().err


def test_a_motion_scorer_of_another_scale_has_no_threshold_of_this_one(tmp_path: Path) -> None:
    save(tmp_path / "raw/a.mp4", shot(1, 30))
    args = ["--output", str(tmp_path / "data"), "--workers", "0", "--threshold", "blur.width<=90"]
    assert main(["curate", str(tmp_path / "raw"), *args, "--without", "overlay", "--motion", "farneback"]) == 0
    (clip,) = read_clips(tmp_path / "data")
    assert clip.scores["motion.speed"] > 0
    assert "motion" not in [d.filter for d in clip.decisions]
