import errno
import json
import resource

import pytest
import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.train import checkpoint

STATE = {
    "step": 7,
    "modules": {"model": {"a.weight": torch.arange(6.0).view(2, 3).T, "flag": torch.tensor(True)}},
    "optimizers": {"model": [{"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"betas": (0.9, 0.99)}]}]},
    "ema": None,
    "third": 1 / 3,
    "low": torch.ones(3, dtype=torch.bfloat16) / 3,
}


def about(module: nn.Module, run: str = "r") -> dict:
    return {"run": run, "modules": {"model": checkpoint.fingerprint(module)}}


def test_a_state_comes_back_as_it_was(tmp_path):
    path = checkpoint.save(tmp_path, 7, STATE, keep=2)
    back = checkpoint.load(path)
    assert checkpoint.damage(path) is None and checkpoint.newest(tmp_path) == path
    assert list(back) == list(STATE) and back["third"] == 1 / 3 and back["ema"] is None
    assert torch.equal(back["modules"]["model"]["a.weight"], STATE["modules"]["model"]["a.weight"])
    assert back["modules"]["model"]["flag"].dtype == torch.bool and torch.equal(back["low"], STATE["low"])
    optimizer = back["optimizers"]["model"][0]
    assert optimizer["groups"][0]["betas"] == (0.9, 0.99) and optimizer["state"][0]["step"].shape == ()


def test_the_last_few_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert [n for n, _ in checkpoint.checkpoints(tmp_path)] == [3, 4]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_what_a_crash_left_half_written_is_no_checkpoint_and_goes(tmp_path):
    checkpoint.save(tmp_path, 5, {"step": 5}, keep=2)
    half = tmp_path / "checkpoints" / "step_00000006.partial"
    half.mkdir()
    (half / "manifest.json").write_text("{}")
    assert [n for n, _ in checkpoint.checkpoints(tmp_path)] == [5]
    checkpoint.save(tmp_path, 7, {"step": 7}, keep=2)
    assert not half.exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["modules.safetensors", "optimizers.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", [cut, flip, lambda path: path.unlink()])
def test_any_harm_to_any_file_is_noticed_and_the_one_before_is_used(tmp_path, name, harm):
    good = checkpoint.save(tmp_path, 1, STATE, keep=3)
    bad = checkpoint.save(tmp_path, 2, STATE, keep=3)
    harm(bad / name)
    assert checkpoint.newest(tmp_path) == good
    assert checkpoint.newest(tmp_path) == good  # and again, now that the other one is set aside


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    flip(checkpoint.save(tmp_path, 1, STATE, keep=3) / "state.json")
    with pytest.raises(UserError, match=r"step_00000001: the checksum of state.json"):
        checkpoint.newest(tmp_path)


def test_a_file_too_large_for_its_place_leaves_the_checkpoint_before(tmp_path):
    """A real write error, from the system: no file of the process may grow beyond 64 KiB."""
    checkpoint.save(tmp_path, 1, STATE, keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(OSError, match=r"step 2 cannot be written .*the last good one is step_00000001") as error:
            checkpoint.save(tmp_path, 2, {"modules": {"model": {"w": torch.zeros(50_000)}}}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert checkpoint.damage(tmp_path / "checkpoints" / "step_00000001") is None


def test_another_models_or_runs_checkpoint_is_refused_in_one_sentence(tmp_path):
    small, large = nn.Linear(2, 3), nn.Linear(2, 30)
    path = checkpoint.save(tmp_path, 1, {"step": 1}, keep=1, about=about(small))
    checkpoint.check_same(path, about(nn.Linear(2, 3)))
    with pytest.raises(UserError, match=r"its model is a Linear of 9 parameters, this run's a Linear of 90"):
        checkpoint.check_same(path, about(large))
    with pytest.raises(UserError, match="another model"):
        checkpoint.check_same(path, about(nn.Linear(2, 3).half()))
    with pytest.raises(UserError, match="another run of the same model"):
        checkpoint.check_same(path, about(small, run="s"))


def test_nothing_in_a_checkpoint_can_run_code(tmp_path):
    path = checkpoint.save(tmp_path, 1, STATE, keep=1)
    assert {p.suffix for p in path.iterdir()} == {".json", ".safetensors"}
    with pytest.raises(TypeError, match="cannot hold a function"):
        checkpoint.save(tmp_path, 2, {"f": lambda: 0}, keep=1)
    (path / "modules.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=r"pickle|truncated|safetensors"):
        checkpoint.load(path)


def test_the_manifest_names_every_file(tmp_path):
    path = checkpoint.save(tmp_path, 1, STATE, keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) | {"manifest.json"} == {p.name for p in path.iterdir()}
    assert manifest["step"] == 1
