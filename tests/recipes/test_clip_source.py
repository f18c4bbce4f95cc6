"""Windows of curated clips as the VAE's training data."""

from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import write_video
from openhunyuan.curate.clip import Clip
from openhunyuan.recipes.clip_source import CuratedClips
from openhunyuan.train.config import BatchShape, Stage


@pytest.fixture
def source(tmp_path: Path) -> CuratedClips:
    """One clip of 20 frames, each 10 levels lighter than the one before."""
    frames = np.repeat(np.arange(20, dtype=np.uint8) * 10, 32 * 48 * 3).reshape(20, 32, 48, 3)
    write_video(tmp_path / "a.mp4", frames, 8.0)
    clip = Clip(
        id="a", source="a", source_sha256="0", start_frame=0, end_frame=20, fps=8.0, height=32, width=48, path="a.mp4"
    )
    return CuratedClips([clip], tmp_path, seed=3)


def stage(num_frames: int, intervals: tuple[int, ...]) -> tuple[Stage, BatchShape]:
    shape = BatchShape(batch_size=2, num_frames=num_frames, height=16, width=16)
    return Stage(name="s", steps=4, shapes=(shape,), frame_intervals=intervals), shape


def test_a_window_has_the_interval_of_the_stage_as_far_as_the_clip_allows(source: CuratedClips):
    made, shape = stage(5, (4, 8))
    video = source.batch(1, made, shape)["video"]
    assert video.shape == (2, 3, 5, 16, 16)
    levels = (video.mean((1, 3, 4)) + 1) * 127.5
    np.testing.assert_allclose(levels.diff(dim=1).numpy(), 40, atol=4)  # 8 would need 33 frames
    assert (source.batch(1, made, shape)["video"] == video).all()
    assert (source.batch(2, made, shape)["video"] != video).any()


def test_images_are_single_frames_and_longer_shapes_are_refused(source: CuratedClips):
    made, shape = stage(1, (1, 2))
    assert source.batch(0, made, shape)["video"].shape == (2, 3, 1, 16, 16)
    source.check([made])
    with pytest.raises(UserError, match=r"needs clips of 33 frames, but the longest in .* has 20"):
        source.check([stage(33, (1,))[0]])
