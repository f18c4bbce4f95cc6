import pytest

from openhunyuan.base.sizes import VideoSize
from openhunyuan.infer.resolutions import RESOLUTIONS, advice, nearest_sizes

RELEASED, TINY = VideoSize(129, 720, 1280), VideoSize(33, 64, 64)


def test_every_supported_size_can_be_made_and_comes_both_ways() -> None:
    for sizes in RESOLUTIONS.values():
        assert len(sizes) == len(set(sizes)) == 5
        for height, width in sizes:
            VideoSize(129, height, width)
            assert (width, height) in sizes


@pytest.mark.parametrize(
    "size, nearest",
    [
        ((1088, 1920), (720, 1280)),
        ((480, 848), (544, 960)),
        ((512, 512), (720, 720)),
        ((1280, 704), (1280, 720)),
        ((624, 832), (624, 832)),
        ((1024, 768), (1104, 832)),
    ],
)
def test_nearest_sizes(size: tuple[int, int], nearest: tuple[int, int]) -> None:
    assert nearest_sizes(*size)[0] == nearest


@pytest.mark.parametrize(
    "size, own, words",
    [
        (VideoSize(129, 720, 1280), RELEASED, None),
        (VideoSize(1, 832, 624), RELEASED, None),
        (VideoSize(129, 1088, 1920), RELEASED, "nearest are 720x1280"),
        (VideoSize(257, 720, 1280), RELEASED, "257 frames are more than the 129"),
        (VideoSize(33, 64, 64), TINY, None),
        (VideoSize(33, 48, 80), TINY, None),
        (VideoSize(33, 720, 1280), TINY, "far from what this model was made for, 33 frames of 64x64"),
        (VideoSize(129, 64, 64), TINY, "129 frames of 64x64 are far"),
    ],
)
def test_advice(size: VideoSize, own: VideoSize, words: str | None) -> None:
    said = advice(size, own)
    assert (said is None) if words is None else (said is not None and words in said)
