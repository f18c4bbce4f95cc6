"""Bad input of training, through the command: one clear sentence, and the last good checkpoint stays as it was."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from openhunyuan.cli.main import main
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.run import write_manifest
from openhunyuan.latents.shards import LatentSample, ShardWriter
from openhunyuan.models.load import load_model
from openhunyuan.parallel.world import World
from openhunyuan.train import checkpoint
from openhunyuan.train.tasks.flow import FlowTask
from tests.parallel.launch import launch

STAGE = "flow-image-256"


def shards(folder: Path, model: Path, shape=(16, 1, 2, 2), prompt: str = "a red circle") -> Path:
    made = {"model": load_model(str(model)).weights_name()}
    with ShardWriter(folder / "latents", provenance=made) as writer:
        for _ in range(3):
            writer.add(LatentSample(torch.randn(shape), torch.randn(4, 32), torch.randn(32), prompt))
    return folder


@pytest.fixture(scope="module")
def made(micro_scale, micro_model_folder, tmp_path_factory) -> Path:
    """A run on latents that has ended, with two checkpoints: ``runs`` and ``data``."""
    folder = tmp_path_factory.mktemp("made")
    shards(folder / "data", micro_model_folder)
    assert start(folder, micro_model_folder) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "here"))


def start(folder: Path, model: Path, *more: str, steps: int = 2) -> int:
    fixed = ["--runs-dir", "runs", "--data", "data", "--from", str(model), "--device", "cpu", "--steps", str(steps)]
    with contextlib.chdir(folder):  # a run says what it read, and goes on where a copy of both lies
        return main(["train", STAGE, *fixed, *more])


def content(run: Path) -> dict[str, str]:
    """Every file of the checkpoints, by its hash."""
    files = [path for path in sorted((run / "checkpoints").rglob("*")) if path.is_file()]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def one_sentence(capsys: pytest.CaptureFixture[str], code: int, wanted: int = 2) -> str:
    err = capsys.readouterr().err
    assert code == wanted, err
    errors = [line for line in err.strip().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    return errors[0]


def no_bucket(folder: Path, model: Path) -> None:
    shutil.rmtree(folder / "data")
    shards(folder / "data", model, (16, 9, 2, 2))


def cut_off(folder: Path, model: Path) -> None:
    file = next((folder / "data" / "latents").glob("shard-*"))
    file.write_bytes(file.read_bytes()[:-40])


def no_caption(folder: Path, model: Path) -> None:
    shutil.rmtree(folder / "data")
    shards(folder / "data", model, prompt=" ")


def other_model(folder: Path, model: Path) -> None:
    """The run's checkpoints are those of a linear."""
    about = {"run": "r", "modules": {"model": checkpoint.fingerprint(nn.Linear(2, 3))}}
    shutil.rmtree(folder / "runs" / STAGE / "checkpoints")
    checkpoint.save(folder / "runs" / STAGE, 1, {"step": 1, "modules": {"w": torch.ones(3)}}, keep=1, about=about)


@pytest.mark.parametrize(
    ("harm", "options", "message"),
    [
        (no_bucket, [], "No sample can be trained on: 33x16x16 lies in no bucket (3); the buckets are 1x16x16"),
        (cut_off, [], "cut off"),
        (no_caption, [], "Sample 0 of"),
        (other_model, [], "is a checkpoint of another model: its model is a Linear of 9 parameters, this run's a DiT"),
        (None, ["--memory", "0.001"], "One sample of 1x16x16 does not fit into 0.001 GB"),
        (None, ["--steps", "3"], "holds another run (different: train)"),
    ],
)
def test_a_run_that_cannot_go_on_says_why_and_keeps_its_checkpoints(
    here: Path,
    micro_model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path, Path], None] | None,
    options: list[str],
    message: str,
) -> None:
    if harm:
        harm(here, micro_model_folder)
    run = here / "runs" / STAGE
    before = content(run)
    capsys.readouterr()
    assert message in one_sentence(capsys, start(here, micro_model_folder, *options))
    newest = checkpoint.newest(run)
    assert newest is not None and checkpoint.damage(newest) is None
    assert content(run) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tensor", "2"], "3 processes cannot work on the same samples in groups of 2 (tensor 2 × ulysses 1 × ring"),
        (["--replicas", "2"], "3 processes cannot make 2 equal replicas; choose a divisor of 3"),
    ],
)
def test_a_world_size_that_does_not_divide(here, micro_model_folder, capsys, monkeypatch, options, message) -> None:
    monkeypatch.setattr(World, "join", classmethod(lambda cls, device: cls(0, 3)))
    before = content(here / "runs" / STAGE)
    capsys.readouterr()
    assert message in one_sentence(capsys, start(here, micro_model_folder, *options))
    assert content(here / "runs" / STAGE) == before


@pytest.mark.slow  # two processes
def test_every_process_of_a_world_that_does_not_divide_ends_with_the_sentence(made, micro_model_folder) -> None:
    fixed = ("--runs-dir", made / "runs", "--data", made / "data", "--from", micro_model_folder, "--device", "cpu")
    said = launch("tests.recipes.micro_scale", 2, "train", STAGE, *fixed, "--steps", "2", "--tensor", "4", code=2)
    assert all("error: 2 processes cannot work on the same samples in groups of 4" in words for words in said)
    assert not any("Traceback" in words for words in said)


def test_clips_that_are_too_short_or_were_all_dropped(micro_scale, tmp_path, capsys) -> None:
    def clip(frames: int) -> Clip:
        fields = {
            "id": "a",
            "source": "a",
            "source_sha256": "0",
            "fps": 8.0,
            "height": 32,
            "width": 48,
            "path": "a.mp4",
        }
        return Clip(start_frame=0, end_frame=frames, **fields)

    def attempt() -> str:
        capsys.readouterr()
        runs = ["--runs-dir", str(tmp_path / "runs"), "--device", "cpu", "--steps", "2"]
        return one_sentence(capsys, main(["train", "vae", "--data", str(tmp_path / "data"), *runs]))

    (tmp_path / "data").mkdir()
    write_manifest(tmp_path / "data", [clip(4)])
    assert "needs clips of 5 frames, but the longest in" in attempt()
    write_manifest(tmp_path / "data", [])
    assert "has 0" in attempt()
    assert not (tmp_path / "runs" / "vae").exists()


def at_step(number: int, error: BaseException) -> Callable:
    """``FlowTask.loss``, which fails at a step."""
    loss = FlowTask.loss

    def failing(self, phase, batch, context):
        if context.step == number:
            raise error
        return loss(self, phase, batch, context)

    return failing


def test_memory_that_runs_out_in_a_step_costs_that_step(
    made, micro_model_folder, tmp_path, capsys, monkeypatch
) -> None:
    """Where nothing was probed: the machine is at fault (exit code 1), and the run can be started again."""
    folder = tmp_path / "here"
    shutil.copytree(made / "data", folder / "data")
    with monkeypatch.context() as patch:
        patch.setattr(FlowTask, "loss", at_step(1, torch.OutOfMemoryError("CUDA out of memory.")))
        code = start(folder, micro_model_folder)
    assert "The memory does not suffice; the stages find micro-batches that fit with --memory" in one_sentence(
        capsys, code, 1
    )
    (_, held), *more = checkpoint.checkpoints(folder / "runs" / STAGE)
    assert held.name == "step_00000000" and checkpoint.damage(held) is None and not more
    assert start(folder, micro_model_folder) == 0
    assert ended(folder) == ended(made)


def test_a_disk_that_is_full_during_a_save(made, micro_model_folder, tmp_path, capsys, monkeypatch) -> None:
    """The machine is at fault (exit code 1); with room the run goes on to the same weights."""
    folder, written = tmp_path / "here", checkpoint.write_safetensors
    shutil.copytree(made / "data", folder / "data")

    def full(path: Path, *rest: object) -> None:
        if "step_00000002" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device", str(path))
        written(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_safetensors", full)
        code = start(folder, micro_model_folder)
    said = one_sentence(capsys, code, 1)
    assert "The checkpoint of step 2 cannot be written to" in said and "the last good one is step_00000000" in said
    (_, held), *more = checkpoint.checkpoints(folder / "runs" / STAGE)
    assert held.name == "step_00000000" and checkpoint.damage(held) is None and not more
    assert start(folder, micro_model_folder) == 0
    assert ended(folder) == ended(made)


def ended(folder: Path) -> dict[str, str]:
    """The tensors of the last checkpoint, by their hash."""
    files = content(folder / "runs" / STAGE)
    return {name: value for name, value in files.items() if "step_00000002" in name and "safetensors" in name}
