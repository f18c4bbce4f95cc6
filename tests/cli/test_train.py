"""``openhunyuan train``: what it prints and what it refuses."""

from pathlib import Path

import pytest

from openhunyuan.cli.main import main
from tests.train.test_heartbeat import beat


def test_a_dry_run_prints_the_costs_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny-image", "--dry-run", "--runs-dir", str(tmp_path / "runs"), "--utilization", "0.5"]) == 0
    out = capsys.readouterr().out
    for word in ("parameters  model: 3,", "1500 steps of 64 x 1x64x64", "tokens", "FLOP", "memory", "time  "):
        assert word in out
    assert "50% of the fp32 matrix products" in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_counts_processes_and_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--processes", "4", "--replicas", "2", "--recompute", "--price-per-gpu-hour", "2.5"]
    assert main(["train", "tiny-image", "--dry-run", "--runs-dir", str(tmp_path), *words]) == 0
    out = capsys.readouterr().out
    assert "4 processes, 2 x 2: each holds 1/2 of the state, blocks are computed again" in out
    assert "of gathered blocks" in out and "device hours at 2.5" in out


def test_a_dry_run_counts_tensor_and_context_parallelism(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scale", "paper", "--processes", "16", "--tensor", "4", "--ulysses", "2", "--tflops", "9000"]
    assert main(["train", "flow-video-high-long", "--dry-run", *words]) == 0
    out = capsys.readouterr().out
    assert "16 processes, 1 x 16: each holds 1/4 of the state (of blocks 1/4 of that), blocks are computed again" in out
    assert "8 processes work on the same samples (tensor 4 x ulysses 2 x ring 1)" in out


def test_watch_shows_the_processes_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "tiny-image"
    (run / "heartbeats").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    for rank in range(2):
        said = beat(rank, step=7, total_steps=40, data_wait=1.5 if rank else 0.1)
        (run / "heartbeats" / f"rank_{rank:05d}.json").write_text(said.model_dump_json())
    assert main(["train", "tiny-image", "--watch", "--runs-dir", str(tmp_path)]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if "7/40" in line]
    assert "silent" in first and "slowest" not in first and "silent, slowest: data" in second


@pytest.mark.parametrize(
    "args, message",
    [
        (["tiny-imag"], "did you mean tiny-image"),
        (["tiny-image", "--dryrun"], "did you mean --dry-run"),
        (["tiny-image", "--dry-run", "--utilization", "2"], "utilization is 2.0, but it must be at most 1.0"),
        (["tiny-image", "--dry-run", "--processes", "4", "--replicas", "3"], "cannot make 3 equal replicas"),
        (["tiny-image", "--price-per-gpu-hour", "2"], "--price-per-gpu-hour is for --dry-run"),
        (["tiny-image", "--recompute"], "--recompute is for --dry-run"),
        (["tiny-image", "--ring", "2"], "takes no --ring; the stages do"),
        (["tiny-image", "--memory", "2"], "takes no --memory; the stages do"),
        (["flow-sft", "--dry-run", "--ring", "2"], "1 process cannot work on the same samples in groups of 2"),
        (["flow-sft", "--dry-run", "--processes", "5", "--tensor", "5"], "tensor is 5, but has to divide the model's"),
        (["lora", "--dry-run", "--processes", "2"], "A LoRA is trained in one process; leave --processes out"),
        (["vae", "--dry-run", "--processes", "2"], "The stages of the VAE run in one process"),
        (["flow-sft", "--processes", "2"], "--processes is for --dry-run"),
        (["vae", "--ring", "2", "--runs-dir", "nowhere"], "vae trains a VAE in one process"),
        (["tiny-image", "--log", "wand"], "'wandb'"),
        (["tiny-image", "--watch", "--runs-dir", "nowhere"], "no run in nowhere/tiny-image"),
        (["tiny-image", "--report", "--runs-dir", "nowhere"], "no run in nowhere/tiny-image"),
        (["tiny-video", "--runs-dir", "nowhere"], "needs tiny-text and tiny-vae and tiny-image"),
    ],
)
def test_refusals_are_one_sentence(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *args]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1


def test_a_report_of_every_run_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("llm-run", "clip-run"):
        (tmp_path / "tiny-text" / run).mkdir(parents=True)
        (tmp_path / "tiny-text" / run / "run.json").write_text('{"train": {"name": "n", "stages": [{"steps": 3}]}}')
    assert main(["train", "tiny-text", "--report", "--runs-dir", str(tmp_path)]) == 0
    pages = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [page.parent.name for page in pages] == ["clip-run", "llm-run"]
    assert all("0 of 3 steps" in page.read_text() for page in pages)
