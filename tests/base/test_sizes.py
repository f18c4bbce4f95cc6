import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import LatentSize, VideoSize


@pytest.mark.parametrize(
    "size, latent, tokens",
    [
        (VideoSize(129, 720, 1280), LatentSize(33, 90, 160), 118_800),  # release fact E.5
        (VideoSize(129, 544, 960), LatentSize(33, 68, 120), 67_320),
        (VideoSize(33, 64, 64), LatentSize(9, 8, 8), 144),
        (VideoSize(1, 16, 16), LatentSize(1, 2, 2), 1),
    ],
)
def test_released_sizes(size: VideoSize, latent: LatentSize, tokens: int) -> None:
    assert size.latent == latent
    assert latent.video == size
    assert latent.tokens() == tokens


@pytest.mark.parametrize("frames, hint", [(16, "13 or 17"), (2, "1 or 5"), (0, "use 1"), (-3, "use 1")])
def test_wrong_frame_counts_name_the_nearest(frames: int, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        VideoSize(frames, 64, 64)


@pytest.mark.parametrize("height, width, hint", [(50, 64, "height is 50.*48 or 64"), (64, 8, "width is 8.*use 16")])
def test_wrong_sides_name_the_nearest(height: int, width: int, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        VideoSize(1, height, width)


def test_token_grid_refuses_what_the_patch_does_not_divide() -> None:
    with pytest.raises(UserError, match="height 3"):
        LatentSize(1, 3, 4).tokens()
