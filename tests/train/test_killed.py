"""A run that ends without warning, wherever it stands, records in the end what an undisturbed one records."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openhunyuan.train.loop import Trainer
from openhunyuan.train.metrics import read_metrics
from openhunyuan.train.running import Running
from tests.train.killed import CONFIG
from tests.train.test_loop import Regression

ROOT = Path(__file__).parents[2]
TIMES = ("time", "seconds_per_step", "data_wait", "save_stall")


def start(run_dir: Path, what: str, step: int) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "t"}
    return subprocess.run(
        [sys.executable, "-m", "tests.train.killed", str(run_dir), what, str(step)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


def finish(run_dir: Path) -> Regression:
    task = Regression()
    Trainer(CONFIG, task, task, run_dir, running=Running(log=())).run()
    return task


def recorded(run_dir: Path) -> list[dict]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def test_killed_and_hung_it_ends_bit_equal(tmp_path: Path) -> None:
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    wanted = finish(undisturbed)
    killed = start(broken, "kill", 17)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    hung = start(broken, "hang", 43)  # goes on from what the killed one left, and then does not end
    assert hung.returncode == 1 and "Timeout" in hung.stderr and "in batch" in hung.stderr  # and says where it hung
    found = finish(broken)
    assert torch.equal(found.net.weight, wanted.net.weight) and torch.equal(found.net.bias, wanted.net.bias)
    assert recorded(broken) == recorded(undisturbed)
    assert [record["step"] for record in recorded(broken) if "loss" in record] == list(range(4, 61, 4))
    before = recorded(broken)
    finish(broken)  # a run that has ended, started again, adds nothing
    assert recorded(broken) == before


@pytest.mark.parametrize("place", ["validate", "sample", "save"])
def test_what_a_crash_kept_from_being_validated_is_made_up_for(tmp_path: Path, place: str) -> None:
    class Lost(Exception):
        pass

    class Crashing(Regression):
        def validate(self, context):
            if place == "validate" and context.step == 20:
                raise Lost
            return super().validate(context)

        def sample(self, folder, context):
            super().sample(folder, context)
            if place == "sample" and context.step == 20:
                raise Lost

        def state_dict(self):
            raise Lost

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    task = Crashing()
    trainer = Trainer(CONFIG, task, task, broken, running=Running(log=()))
    if place == "save":
        saved = trainer.state_dict
        trainer.state_dict = lambda: task.state_dict() if trainer.step == 20 else saved()
    with pytest.raises(Lost):
        trainer.run()
    finish(broken)
    assert recorded(broken) == recorded(whole)
    slopes = {path.parent.name: path.read_text() for path in broken.glob("samples/step_*/slope.txt")}
    assert slopes == {path.parent.name: path.read_text() for path in whole.glob("samples/step_*/slope.txt")}
    assert len(slopes) == 3
