"""A job under torchrun's elastic agent that loses a process, and whose process hangs, ends as an undisturbed one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openhunyuan.latents.shards import LatentSample, ShardWriter
from openhunyuan.train import checkpoint
from openhunyuan.train.heartbeat import read_beats

ROOT = Path(__file__).parents[2]
STALL = 120.0
"""Seconds; longer than any start or step on a busy machine."""


def torchrun(data: Path, run_dir: Path, faulty: bool) -> str:
    agent = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "--monitor-interval", "0.5"]
    program = ["-m", "tests.parallel.elastic", str(data), str(run_dir), str(faulty), str(STALL)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *agent, *program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


def curve(run_dir: Path) -> list[dict]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "grad_norm", "val/")
    return [{k: v for k, v in record.items() if k.startswith(kept)} for record in records]


@pytest.mark.slow  # eight starts of a process, and the time that a hanging one is given
def test_a_process_that_is_killed_and_one_that_hangs_leave_the_same_curve(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    with ShardWriter(tmp_path / "data") as writer:
        for i in range(18):
            shape = (2, 1, 4, 4) if i % 3 else (2, 3, 2, 4)
            latents, states = torch.randn(shape, generator=g), torch.randn(1 + i % 4, 4, generator=g)
            writer.add(LatentSample(latents, states, torch.randn(4, generator=g), str(i)))
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    torchrun(tmp_path / "data", undisturbed, False)
    torchrun(tmp_path / "data", disturbed, True)
    assert [(beat.rank, beat.restarts, beat.doing) for beat in read_beats(disturbed)] == [
        (0, 2, "ended"),
        (1, 2, "ended"),
    ]
    wanted, found = curve(undisturbed), curve(disturbed)
    assert [record["step"] for record in wanted if "loss" in record] == [1, 2, 3, 4]
    assert found == wanted
    states = [checkpoint.load(checkpoint.checkpoints(run)[-1][1]) for run in (undisturbed, disturbed)]
    for name, value in states[0]["modules"]["model"].items():
        assert torch.equal(value, states[1]["modules"]["model"][name]), name
