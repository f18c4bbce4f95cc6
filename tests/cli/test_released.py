"""What the owner of released weights does, by commands alone: a path, a video, a conversion, and the way back.

Each format is written by its own program or by hand (``tools.parity_formats``), small and random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openhunyuan.base.video import read_metadata, read_video
from openhunyuan.cli.main import main
from openhunyuan.convert.load import open_model
from openhunyuan.models.zoo import check_model, wrong_hashes
from tools.parity_formats import PUBLISHED, Published
from tools.tiny_files import differing, stored_tensors
from tools.tiny_release import PROMPT, random_image

SIZE = {"height": 32, "width": 32, "num-frames": 9, "num-inference-steps": 2, "seed": 1, "device": "cpu"}


def video(model: Path, out: Path, *options: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames and record of the mp4 that ``openhunyuan generate --model PATH`` makes."""
    fields = {"prompt": PROMPT, "model": model, "output-path": out, **SIZE}
    assert main(["generate", *(f"--{name}={value}" for name, value in fields.items()), *options]) == 0
    return read_video(out)[0], read_metadata(out)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.title)
def test_each_format_makes_a_video_and_goes_out_again_bit_for_bit(published: Published, tmp_path: Path) -> None:
    """No flag says what the path holds."""
    source, ours, back = published.write(tmp_path / "source"), tmp_path / "ours", tmp_path / "back"
    picture: list[str] = []
    if published.kind:
        random_image(40, 60).save(tmp_path / "picture.png")
        picture = ["--image", str(tmp_path / "picture.png")]
    frames, record = video(source, tmp_path / "first.mp4", *picture)
    assert frames.shape == (5 if published.kind == "latent_concat" else 9, 32, 32, 3)
    assert frames.std() > 1
    assert record["made_by"].get("image_condition") == published.kind
    assert record["made_by"]["numerics"]["name"] == "official"

    assert main(["convert", str(source), str(ours)]) == 0
    folder, spec = check_model(str(ours))
    assert wrong_hashes(folder, spec) == []
    assert np.array_equal(video(ours, tmp_path / "second.mp4", *picture)[0], frames)

    assert main(["convert", str(ours), str(back), "--to", published.to]) == 0
    assert differing(stored_tensors(source), stored_tensors(back)) == []
    assert np.array_equal(video(back, tmp_path / "third.mp4", *picture)[0], frames)
    for path in (source, ours, back):
        model = open_model(str(path), "cpu")
        assert (model.float8, model.spec.image_condition_type) == (published.fp8, published.kind)
    assert open_model(str(back), "cpu").files.layout == published.layout
