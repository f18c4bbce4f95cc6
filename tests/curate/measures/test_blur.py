"""How wide blur is, by the small network."""

import cv2
import numpy as np
import pytest

from openhunyuan.curate.measures.blur import Blur, blur_of, network_input, tiles
from openhunyuan.tiny.blurs import blurred, kernel_of
from openhunyuan.tiny.world import render, sample_scene
from tests.curate.measures.test_measures import measured


def scene(seed: int, height: int = 180, width: int = 320) -> np.ndarray:
    """A frame of the world that stripes or checks fill."""
    rng = np.random.default_rng(seed)
    while True:
        drawn = sample_scene(rng, "heldout")
        if drawn.material in ("striped", "checkered"):
            return render(drawn, num_frames=1, height=height, width=width)[0]


def still(picture: np.ndarray, count: int = 8) -> np.ndarray:
    return np.repeat(picture[None], count, axis=0)


@pytest.mark.parametrize("kind", ["gaussian", "defocus", "motion"])
def test_wider_blur_is_said_to_be_wider(kind: str) -> None:
    scenes = [scene(number) for number in range(6)]
    sharp = np.median([measured(Blur(), still(picture, 1))["width"] for picture in scenes])
    widths = [
        np.median(
            [measured(Blur(), still(blurred(picture, kernel_of(kind, width, 0.6)), 1))["width"] for picture in scenes]
        )
        for width in (2.0, 6.0, 14.0)
    ]
    assert sharp < widths[1] < widths[2]
    assert widths[0] < 3.2 < widths[2]


def test_contrast_hardly_changes_the_width() -> None:
    picture = scene(4)
    soft = blurred(picture, kernel_of("gaussian", 8.0))
    pale = (110 + 0.4 * (soft.astype(np.float32) - 110)).astype(np.uint8)
    one, other = (measured(Blur(), still(p))["width"] for p in (soft, pale))
    assert other == pytest.approx(one, rel=0.25)


def test_an_even_picture_has_no_width() -> None:
    cells = np.zeros((3, 4, 4), np.float32)
    cells[1] = 1.0
    assert blur_of(cells, 100, clearest=0.25, unsure=0.6) is None


def test_the_clear_part_decides_and_unsure_cells_do_not() -> None:
    cells = np.zeros((3, 4, 4), np.float32)
    cells[0], cells[1] = np.log(12.0), -3.0
    cells[0, :2, :3] = np.log(2.0)
    assert blur_of(cells, 200, clearest=0.25, unsure=0.6) == pytest.approx(1.0)
    cells[1, :2, :3] = 2.0  # the network does not know what it sees there
    assert blur_of(cells, 200, clearest=0.25, unsure=0.6) == pytest.approx(6.0)


@pytest.mark.parametrize("height, width, count", [(144, 256, 3 * 4), (180, 320, 3 * 5), (40, 100, 2), (64, 64, 1)])
def test_tiles_cover_the_picture(height: int, width: int, count: int) -> None:
    picture = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3)
    found = tiles(picture)
    assert {tile.shape for tile in found} == {(64, 64, 3)}
    assert len(found) == count
    assert np.array_equal(np.unique(np.stack(found)), np.arange(picture.size))


def test_the_input_has_no_mean_and_noise_is_not_blown_up() -> None:
    rng = np.random.default_rng(0)
    x = network_input(rng.integers(0, 256, (40, 60, 3), np.uint8))
    assert x.shape == (3, 40, 60)
    assert float(np.abs(x.mean(axis=(1, 2))).max()) < 1e-4
    assert float(x.std()) == pytest.approx(1.0, abs=0.01)
    wall = (128 + rng.integers(0, 2, (40, 60, 3))).astype(np.uint8)
    assert float(network_input(wall).std()) < 0.1


def test_a_large_picture_is_looked_at_smaller() -> None:
    small = blurred(scene(5), kernel_of("gaussian", 8.0))
    large = cv2.resize(small, (640, 360), interpolation=cv2.INTER_CUBIC)
    one, other = (measured(Blur(), still(p))["width"] for p in (small, large))
    assert other == pytest.approx(one, rel=0.35)
