"""The command line: most cases in this process, a few through a real one."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from openhunyuan.base.video import read_metadata, read_video
from openhunyuan.cli.main import VERBS, main

PROMPT = "a large red circle moves right on a black background"


def run(*args: object) -> int:
    """The exit code, whether it is returned or raised (``--help`` raises)."""
    try:
        return main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run what must be refused: exit code 2, nothing on stdout, one line on stderr, which is returned."""
    capsys.readouterr()
    assert run(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "a", "--num-frames", "16"], "num_frames is 16"),
        (["--prompt", "a", "--height", "50"], "height is 50"),
        (["--prompt", "a", "--num-inference-step", "5"], "did you mean --num-inference-steps"),
        (["--prompt", "a", "--steps=5"], "did you mean --num-inference-steps"),
        (["--prompt", "a", "--zzz", "5"], "Unknown option --zzz"),
        (["--prompt", "a", "--model", "tinny"], "did you mean tiny"),
        (["--prompt", "a", "--num-inference-steps", "0"], "num_inference_steps is 0"),
        (["--prompt", "a", "--seed", "one"], "seed is 'one', but it must be a whole number"),
        (["--prompt", "a", "--seed", "1.5"], "seed is '1.5'"),
        (["--prompt", "a", "--seed", "-1"], "seed is -1"),
        (["--prompt", "a", "--dtype", "int8"], "dtype is 'int8'"),
        (["--prompt", "a", "--seed"], "--seed needs a value"),
        (["--prompt", "--seed", "1"], "--prompt=VALUE"),
        (["--prompt", "a", "red"], "needs quotes"),
        (["--seed", "1"], "--prompt is missing"),
        ([], "--prompt is missing"),
    ],
)
def test_refusals(place: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert message in refused(capsys, "generate", *options)
    assert list(place.iterdir()) == []


def test_unwritable_output(place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path) -> None:
    (place / "file").write_text("x")
    model = ("--model", micro_model_folder)
    for output in (place / "file" / "out.mp4", Path("/proc/no/out.mp4")):
        assert "output folder" in refused(capsys, "generate", "--prompt", "a", *model, "--output-path", output)
    assert [path.name for path in place.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path) -> None:
    (place / "closed").mkdir(mode=0o555)
    options = ("--model", micro_model_folder, "--output-path", place / "closed" / "out.mp4")
    assert "cannot be written" in refused(capsys, "generate", "--prompt", "a", *options)


def test_damaged_weights(place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path) -> None:
    model = Path(shutil.copytree(micro_model_folder, place / "model"))
    weights = model / "dit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    command = ("generate", "--prompt", "a", "--model", model, "--output-path", place / "out.mp4")
    assert "truncated" in refused(capsys, *command)
    torch.save({"a": torch.ones(1)}, weights)
    assert "pickle" in refused(capsys, *command)
    assert [path.name for path in place.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["generat"], "did you mean generate"),
        (["--verbose"], "Unknown option --verbose"),
        (["evaluate", "alignmnt"], "did you mean alignment"),
        (["evaluate", "alignment", "--num-prompts", "0"], "num_prompts is 0"),
        (["evaluate", "alignment", "--split", "all"], "split is 'all'"),
        (["evaluate", "reconstruction", "--model", "nothing"], "Unknown model"),
        (["info", "nothing"], "Unknown model"),
        (["replay"], "FILE is missing"),
        (["replay", "none.mp4"], "does not exist"),
        (["doctor", "now"], "Unexpected argument"),
    ],
)
def test_refusals_of_other_verbs(
    place: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert message in refused(capsys, *args)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("verb", [[], *[[verb] for verb in VERBS], ["evaluate", "alignment"]])
def test_help(capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    assert run(*verb, "--help") == 0
    out, err = capsys.readouterr()
    assert "usage: openhunyuan" in out
    assert err == ""


def test_help_shows_every_field_of_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    from openhunyuan.infer.request import Request

    run("generate", "--help")
    out = capsys.readouterr().out
    for name in Request.model_fields:
        if name != "rewritten":  # A result, not something to ask for.
            assert f"--{name.replace('_', '-')}" in out


def test_generate_replay_and_info(place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path) -> None:
    common = ("--prompt", PROMPT, "--seed", "1", "--model", micro_model_folder, "--device", "cpu")
    assert run("generate", *common, "--output-path", "out.mp4") == 0
    assert capsys.readouterr().out == "out.mp4\n"
    assert sorted(path.name for path in place.iterdir()) == ["out.json", "out.mp4"]
    with av.open("out.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames, float(stream.average_rate)) == (32, 32, 5, 8.0)

    assert run("replay", "out.mp4", "--output-path", "again.mp4") == 0
    assert np.array_equal(read_video("out.mp4")[0], read_video("again.mp4")[0])
    assert read_metadata("again.mp4")["output_path"] == "again.mp4"
    assert run("replay", "out.mp4") == 0
    assert capsys.readouterr().out == "again.mp4\nout-replay.mp4\n"

    assert run("generate", *common, "--num_frames", "1", "--output-path", "out.png") == 0
    assert run("replay", "out.png", "--output-path", "again.png") == 0
    assert np.array_equal(read_video("out.png")[0], read_video("again.png")[0])

    capsys.readouterr()
    assert run("info", micro_model_folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "micro"
    assert told["parameters"]["dit"] > 0
    assert run("info", micro_model_folder) == 0
    assert "transformer" in capsys.readouterr().out


def test_saved_latents_are_decoded_by_replay(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, micro_model_folder: Path
) -> None:
    from openhunyuan.infer.pipeline import Pipeline

    def fail(*_: object) -> None:
        raise MemoryError

    command = ("generate", "--prompt", PROMPT, "--seed", "1", "--model", micro_model_folder, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "decode", fail)
        assert run(*command, "--output-path", "out.mp4") == 1
    err = capsys.readouterr().err
    assert "memory" in err
    assert "out.latents.safetensors" in err
    assert run("replay", "out.latents.safetensors") == 0
    assert run(*command, "--output-path", "whole.mp4") == 0
    assert np.array_equal(read_video("out.mp4")[0], read_video("whole.mp4")[0])


def test_replay_says_when_the_weights_changed(
    place: Path, capsys: pytest.CaptureFixture[str], micro_model_folder: Path
) -> None:
    model = Path(shutil.copytree(micro_model_folder, place / "model"))
    assert run("generate", "--prompt", PROMPT, "--model", model, "--output-path", "out.png") == 0
    spec = json.loads((model / "model.json").read_text())
    spec["sha256"]["dit/model.safetensors"] = "0" * 64
    (model / "model.json").write_text(json.dumps(spec))
    capsys.readouterr()
    assert run("replay", "out.png") == 0
    assert "the frames will differ" in capsys.readouterr().err


def test_doctor_looks_at_everything(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run("doctor", "--json")
    report = json.loads(capsys.readouterr().out)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["h264"]["ok"] is True
    assert "GFLOP/s" in findings["cpu speed"]["text"]
    assert {"python", "torch", "cpu", "gpu", "memory", "disk here", "model tiny"} <= set(findings)
    assert code == (0 if report["ok"] else 1)


def command_line(*args: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run it in a process of its own: the outcome, and its processor seconds (a busy machine does not count)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-m", "openhunyuan", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        timeout=120,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "args", [("generate", "--prompt", ""), ("generate", "--prompt", "a", "--model", "tinny"), ("nonsense",)]
)
def test_refusals_of_a_real_process(tmp_path: Path, args: tuple[str, ...]) -> None:
    done, seconds = command_line(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert seconds < 3
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom openhunyuan.cli.main import main\n"
        "try: main(['generate', '--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        check=True,
    )
    assert done.stdout.strip().endswith("False")
