"""The Gaussian of NIQE from the clips of a data folder, by the command."""

from pathlib import Path

import numpy as np
import pytest

from openhunyuan.cli.main import main
from openhunyuan.curate.measures.niqe import Niqe
from openhunyuan.curate.run import read_clips
from tests.curate.films import save
from tests.curate.measures.test_niqe import textured


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    pictures = [textured(seed, 200, 300) for seed in range(2)]
    shots = [[np.roll(picture, 2 * t, axis=1) for t in range(24)] for picture in pictures]
    frames = np.repeat(np.array([frame for shot in shots for frame in shot])[..., None], 3, axis=3)
    frames[24:, ..., 2] //= 2
    (tmp_path / "raw").mkdir()
    save(tmp_path / "raw/a.mp4", frames)
    return tmp_path / "raw"


def test_fitted_to_clips_and_used(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, file = tmp_path / "data", tmp_path / "mine.safetensors"
    loose = ["--without", "text", "--without", "overlay", "--without", "clarity", "--without", "contrast"]
    run = ["curate", str(raw), "--output", str(data), "--workers", "0", *loose]
    assert main(run) == 0
    before = [clip.scores["niqe.distance"] for clip in read_clips(data) if not clip.dropped]
    assert len(before) == 2, [clip.dropped for clip in read_clips(data)]
    fitted = ["curate", "fit-niqe", str(data), "--output", str(file)]
    assert main([*fitted, "--frames", "1"]) == 2
    assert "at least 72" in capsys.readouterr().err and not file.exists()
    assert main([*fitted, "--frames", "20"]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    assert Niqe(file=str(file)).model().covariance.shape == (36, 36)
    assert main([*run, "--niqe-weights", str(file)]) == 0
    after = [clip.scores["niqe.distance"] for clip in read_clips(data) if not clip.dropped]
    assert max(after) < min(before)


def test_refusals(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "fit-niqe", str(tmp_path), "--output", str(tmp_path / "x.bin")]) == 2
    assert ".safetensors" in capsys.readouterr().err
    assert main(["curate", "fit-niqe", str(tmp_path)]) == 2
    assert main(["curate", str(raw), "--output", str(tmp_path / "d"), "--niqe-weights", str(tmp_path / "no")]) == 2
    assert "no weights at" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
