"""How wide blur is, by the small network."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from openhunyuan.base.video import write_video
from openhunyuan.curate.measures.blur import LAGS, Blur, network_input, tiles, widths_of
from openhunyuan.curate.models.small_forward import DIRECTIONS, SEEN
from openhunyuan.curate.run import curate
from openhunyuan.recipes.curate import PLAN
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
    assert widths[0] < 2.2 < widths[2]


def test_motion_blur_has_a_direction_and_other_blur_none() -> None:
    scenes = [scene(number) for number in range(6)]
    smeared, soft = (
        np.median([measured(Blur(), still(blurred(p, kernel_of(kind, 12.0, 0.6)), 1))["motion"] for p in scenes])
        for kind in ("motion", "gaussian")
    )
    assert smeared > 1.15 * soft


def test_contrast_hardly_changes_the_width() -> None:
    picture = scene(4)
    soft = blurred(picture, kernel_of("gaussian", 8.0))
    pale = (110 + 0.4 * (soft.astype(np.float32) - 110)).astype(np.uint8)
    one, other = (measured(Blur(), still(p))["width"] for p in (soft, pale))
    assert other == pytest.approx(one, rel=0.25)


def cells_of(width: float, log_variance: float) -> np.ndarray:
    """What the network says where every cell says the same in every direction."""
    cells = np.full((2 * DIRECTIONS, 4, 4), np.log(width), np.float32)
    cells[DIRECTIONS:] = log_variance
    return cells


def test_an_even_picture_has_no_width() -> None:
    assert np.isnan(widths_of(cells_of(1.0, 1.0), clearest=0.25, unsure=0.6)).all()
    assert measured(Blur(), still(np.full((72, 128, 3), 90, np.uint8))) == {"width": None, "motion": None}


def test_the_clear_part_decides_and_unsure_cells_do_not() -> None:
    cells = cells_of(12.0, -3.0)
    cells[:DIRECTIONS, :2, :3] = np.log(2.0)
    assert widths_of(cells, clearest=0.25, unsure=0.6) == pytest.approx(2.0)
    cells[DIRECTIONS:, :2, :3] = 2.0  # the network does not know what it sees there
    assert widths_of(cells, clearest=0.25, unsure=0.6) == pytest.approx(12.0)


def test_each_direction_is_asked_alone_and_odd_cells_of_one_do_not_count() -> None:
    cells = cells_of(2.0, -3.0)
    cells[1] = np.log(12.0)
    assert widths_of(cells, clearest=0.25, unsure=0.6) == pytest.approx([2.0, 12.0, 2.0, 2.0])
    cells[DIRECTIONS + 1].flat[1:] = 2.0  # only one cell knows
    found = widths_of(cells, clearest=0.25, unsure=0.6)
    assert np.isnan(found[1]) and found[[0, 2, 3]] == pytest.approx(2.0)


@pytest.mark.parametrize("height, width, count", [(18, 32, 3 * 4), (23, 40, 3 * 5), (5, 13, 2), (8, 8, 1)])
def test_tiles_cover_the_picture(height: int, width: int, count: int) -> None:
    seen = np.arange(2 * height * width).reshape(2, height, width)
    found = tiles(seen)
    assert {tile.shape for tile in found} == {(2, 8, 8)}
    assert len(found) == count
    assert np.array_equal(np.unique(np.stack(found)), np.arange(seen.size))


@pytest.mark.parametrize("direction", range(DIRECTIONS))
def test_what_the_network_sees_is_largest_across_the_edges_and_grows_with_the_distance(direction: int) -> None:
    y, x = np.mgrid[:96, :128]
    towards = np.pi * direction / DIRECTIONS
    wave = np.sin((x * np.cos(towards) + y * np.sin(towards)) / 10)
    red = np.stack([128 + 90 * wave, 120 - 30 * wave, 90 - 0 * wave], axis=-1).astype(np.uint8)
    seen = network_input(red).reshape(DIRECTIONS, len(LAGS), 2, 12, 16)
    inside = seen[..., 2:-2, 2:-2].mean(axis=(2, 3, 4))
    assert inside[:, 2].argmax() == direction
    assert inside[(direction + 2) % DIRECTIONS].max() < 1.5  # along the edges there is next to nothing
    assert (np.diff(inside[direction]) > 0).all()


def test_noise_on_a_wall_is_next_to_nothing_and_sides_need_no_multiples() -> None:
    wall = (128 + np.random.default_rng(0).integers(0, 2, (43, 61, 3))).astype(np.uint8)
    seen = network_input(wall)
    assert seen.shape == (SEEN, 6, 8)
    assert seen.min() >= 0 and seen.max() < 0.7


def test_a_large_picture_is_looked_at_smaller() -> None:
    small = blurred(scene(5), kernel_of("gaussian", 8.0))
    large = cv2.resize(small, (640, 360), interpolation=cv2.INTER_CUBIC)
    one, other = (measured(Blur(), still(p))["width"] for p in (small, large))
    assert other == pytest.approx(one, rel=0.35)


def test_the_default_plan_drops_motion_blur_and_keeps_fast_motion(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    drawn = next(s for s in iter(lambda: sample_scene(rng, "heldout"), None) if s.motion not in ("still", "orbits"))
    sharp = render(drawn, num_frames=25, height=144, width=256)
    smeared = np.stack([blurred(frame, kernel_of("motion", 12.0, 2.0)) for frame in sharp])
    for name, frames in (("sharp", sharp), ("smeared", smeared)):
        write_video(tmp_path / "raw" / f"{name}.mp4", frames, 24.0)
    clips = {Path(c.source).stem: c for c in curate(tmp_path / "raw", tmp_path / "data", PLAN).clips}
    assert clips["sharp"].scores["motion.speed"] > 6
    assert clips["sharp"].dropped is None
    assert clips["smeared"].dropped and clips["smeared"].dropped.reason.startswith("is blurred")
