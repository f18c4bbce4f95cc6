"""Each measure on pictures whose answer is known, and on pictures that must not fool it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from openhunyuan.base.video import write_video
from openhunyuan.curate.analyse import AnalyseJob, Work, analyse
from openhunyuan.curate.measures.border import Border, without_bars
from openhunyuan.curate.measures.clarity import Clarity, edge_width
from openhunyuan.curate.measures.clear_start import ClearStart
from openhunyuan.curate.measures.fingerprint import Fingerprint, thumbs_of
from openhunyuan.curate.measures.lasting import blobs
from openhunyuan.curate.measures.measure import ClipSpan, Measure, View
from openhunyuan.curate.measures.motion import Motion, vector_lengths
from openhunyuan.curate.measures.overlay import Overlay
from openhunyuan.curate.measures.quality import Quality, blockiness, colourfulness, histogram, noise, quantiles
from openhunyuan.curate.measures.strip import Strip
from openhunyuan.curate.measures.text import Text, without_posts

HEIGHT, WIDTH = 144, 256


class Shown:
    """Stands in for a decoded frame."""

    def __init__(self, number: int, pixels: np.ndarray) -> None:
        self.number, self.pixels = number, pixels

    def rgb(self, side: int | None = None) -> np.ndarray:
        return self.pixels

    def opencv_gray(self) -> np.ndarray:
        return cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY)


def measured(measure: Measure, frames: np.ndarray, fps: float = 24.0) -> dict[str, Any]:
    """The row of a measure for frames [T, H, W, 3]."""
    clip = ClipSpan("x", 5, 5 + len(frames), fps)
    reader = measure.begin(clip)
    for number, frame in enumerate(frames):
        if clip.wants(number) or reader.wants(number):
            reader.add(View(Shown(5 + number, frame), clip))  # type: ignore[arg-type]
    return reader.finish()


def texture(seed: int, height: int = HEIGHT + 80, width: int = WIDTH + 160) -> np.ndarray:
    """A soft coloured texture, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 210, (height // 12, width // 12, 3)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def moving(seed: int, count: int, step: float = 1.0) -> np.ndarray:
    """A texture under a camera that pans by `step` pixels a frame."""
    picture = texture(seed)
    frames = []
    for t in range(count):
        shift = np.array([[1, 0, -step * t], [0, 1, 0]], np.float32)
        frames.append(cv2.warpAffine(picture, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR))
    return np.stack(frames)


def write(frames: np.ndarray, text: str, x: int, y: int, scale: float = 0.6) -> np.ndarray:
    """Frames with white, black-edged text on them."""
    result = frames.copy()
    for frame in result:
        cv2.putText(frame, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(frame, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return result


def dots(count: int) -> np.ndarray:
    """A pattern of dots that stands still: lasting edges everywhere, and no overlay."""
    frame = np.full((HEIGHT, WIDTH, 3), (20, 28, 104), np.uint8)
    for y in range(20, HEIGHT, 36):
        for x in range(14, WIDTH, 36):
            cv2.circle(frame, (x, y), 10, (44, 58, 150), -1, cv2.LINE_AA)
    return np.repeat(frame[None], count, axis=0)


def test_bars_are_found_to_the_pixel_and_dark_scenes_have_none() -> None:
    frames = moving(1, 24)
    boxed = frames.copy()
    boxed[:, :18] = boxed[:, -18:] = 0
    row = measured(Border(), boxed)
    assert row["box"] == pytest.approx([0, 18 / HEIGHT, 1, 1 - 18 / HEIGHT])
    assert row["share"] == pytest.approx(0.25)
    pillars = frames.copy()
    pillars[:, :, :40] = pillars[:, :, -40:] = 0
    assert measured(Border(), pillars)["box"] == pytest.approx([40 / WIDTH, 0, 1 - 40 / WIDTH, 1])
    night = np.zeros_like(frames)
    night[:, 60:80, 100:140] = 200
    assert measured(Border(), frames)["share"] == measured(Border(), night)["share"] == 0
    one_sided = frames.copy()
    one_sided[:, :30] = 0
    assert measured(Border(), one_sided)["share"] == 0
    dim = np.zeros_like(frames)  # dark stripes, most of them no brighter than a bar may be
    dim[:, 20:-20] = np.where(np.arange(WIDTH) % 8 < 5, 9, 40)[:, None]
    assert measured(Border(), dim)["box"] == pytest.approx([0, 20 / HEIGHT, 1, 1 - 20 / HEIGHT])


def test_frames_without_bars_are_what_lies_between_those_that_border_finds() -> None:
    frames = moving(1, 8)
    boxed = frames.copy()
    boxed[:, :18] = boxed[:, -18:] = 0
    assert np.array_equal(without_bars(boxed), frames[:, 18:-18])
    one_sided = frames.copy()
    one_sided[:, :30] = 0
    assert without_bars(one_sided).shape == frames.shape, "a dark edge is no pair of bars"


def test_blur_widens_edges_and_contrast_does_not() -> None:
    sharp = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    cv2.rectangle(sharp, (80, 40), (160, 110), (200, 40, 40), -1)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3.6)
    pale = (112 + 0.3 * (sharp.astype(float) - 112)).astype(np.uint8)
    widths = [edge_width(picture) for picture in (sharp, pale, blurred)]
    assert widths[0] == pytest.approx(widths[1], rel=0.15)
    assert widths[2] > 3 * widths[0]  # type: ignore[operator]
    assert edge_width(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)) is None
    assert measured(Clarity(), np.repeat(blurred[None], 8, axis=0))["edge_width"] == pytest.approx(widths[2])


def test_red_on_grey_of_the_same_lightness_has_edges() -> None:
    picture = np.full((HEIGHT, WIDTH, 3), 86, np.uint8)
    cv2.rectangle(picture, (80, 40), (160, 110), (232, 24, 32), -1)
    assert float(np.ptp(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))) < 4
    width = edge_width(picture)
    assert width is not None
    assert width < 2.0


def test_a_clip_starts_where_it_is_clear() -> None:
    frames = moving(2, 96, step=0.3)
    frames = write(frames, "detail", 60, 80, 1.2)
    for t in range(4):
        frames[t] = cv2.GaussianBlur(frames[t], (0, 0), 6)
    assert measured(ClearStart(), frames)["offset"] == 4
    assert measured(ClearStart(), frames[10:])["offset"] == 0


def test_subtitles_are_found_where_they_are() -> None:
    frames = write(moving(3, 48), "Wait for me here", 40, 132)
    row = measured(Text(), frames)
    assert 110 / HEIGHT < row["subtitle_top"] < 122 / HEIGHT
    assert row["other_share"] == 0
    title = measured(Text(), write(moving(3, 48), "Chapter one", 70, 60))
    assert title["other_share"] > 0.02
    assert title["subtitle_top"] == 1.0


def test_subtitles_that_change_are_found_in_both_halves() -> None:
    frames = moving(3, 48)
    frames[:24] = write(frames[:24], "First line of it", 40, 132)
    frames[24:] = write(frames[24:], "and then another", 40, 132)
    row = measured(Text(), frames)
    assert row["subtitle_top"] < 0.86
    assert len(row["boxes"]) >= 8


@pytest.mark.parametrize("top", [84, 100])
def test_what_runs_into_a_subtitle_from_above_is_no_part_of_it(top: int) -> None:
    """The sides of a thing that sinks behind the letters stand still, and touch them."""
    frames = moving(3, 48)
    for t, frame in enumerate(frames):
        frame[top + t // 4 :, 118:130] = (250, 40, 40)
    plain, crossed = (measured(Text(), write(f, "Wait for me here", 40, 132)) for f in (moving(3, 48), frames))
    assert crossed["subtitle_top"] == pytest.approx(plain["subtitle_top"], abs=1.01 / HEIGHT)


def test_letters_that_reach_out_of_a_line_stay_part_of_it() -> None:
    mask = np.zeros((40, 120), bool)
    mask[20:30, 10:110:2] = True  # the small letters
    mask[15:20, 50:52] = True  # one tall letter among them
    mask[30:34, 80:82] = True
    (line,) = blobs(mask, reach_x=2, reach_y=1)
    assert without_posts(line, mask) == line
    mask[4:20, 90] = True
    (crossed,) = blobs(mask, reach_x=2, reach_y=1)
    found = without_posts(crossed, mask)
    assert crossed.top == 4
    assert (found.left, found.top, found.right, found.bottom) == (line.left, line.top, line.right, line.bottom)


@pytest.mark.parametrize("measure, column", [(Text(), "share"), (Overlay(), "strength")], ids=["text", "overlay"])
def test_no_overlay_is_seen_in_what_moves_or_repeats(measure: Measure, column: str) -> None:
    for frames in (moving(4, 36), dots(36), np.repeat(moving(5, 1), 36, axis=0)):
        assert measured(measure, frames)[column] == 0


@pytest.mark.parametrize("x, y", [(8, 8), (222, 8), (8, 112), (222, 112)])
@pytest.mark.parametrize("ground", ["moving", "dots"])
def test_a_logo_is_found_in_every_corner(x: int, y: int, ground: str) -> None:
    frames = moving(6, 36) if ground == "moving" else dots(36)
    for frame in frames:
        cv2.circle(frame, (x + 12, y + 12), 11, (206, 20, 96), -1, cv2.LINE_AA)
        cv2.circle(frame, (x + 12, y + 12), 7, (248, 248, 248), 2, cv2.LINE_AA)
    row = measured(Overlay(), frames)
    assert row["strength"] > 0
    left, top, right, bottom = row["box"]
    assert (left * WIDTH + right * WIDTH) / 2 == pytest.approx(x + 12, abs=4)
    assert (top * HEIGHT + bottom * HEIGHT) / 2 == pytest.approx(y + 12, abs=4)


def test_a_pan_is_the_cameras_and_a_walker_is_not() -> None:
    diagonal = float(np.hypot(HEIGHT, WIDTH))
    pan = measured(Motion(), moving(7, 36, step=1.0))
    assert pan["camera_speed"] == pytest.approx(100 * 24 / diagonal, rel=0.1)
    assert pan["subject_speed"] < 0.3 * pan["camera_speed"]
    walker = np.repeat(moving(8, 1), 36, axis=0)
    patch = texture(9)[:50, :50]
    for t, frame in enumerate(walker):
        frame[40:90, 20 + 2 * t : 70 + 2 * t] = patch
    row = measured(Motion(), walker)
    assert row["camera_speed"] < 0.5
    assert row["subject_speed"] == pytest.approx(100 * 48 / diagonal, rel=0.3)
    assert row["speed"] == pytest.approx(row["subject_speed"], rel=0.05)
    still = measured(Motion(), np.repeat(moving(8, 1), 36, axis=0))
    assert still["speed"] < 0.05
    assert measured(Motion(), moving(8, 1))["speed"] is None


def test_speed_does_not_depend_on_the_frame_rate() -> None:
    slow = measured(Motion(), moving(7, 36, step=1.0), fps=24.0)
    fast = measured(Motion(), moving(7, 72, step=0.5), fps=48.0)
    assert fast["speed"] == pytest.approx(slow["speed"], rel=0.1)


def test_the_published_scorer_measures_pixels_in_half_a_second() -> None:
    row = measured(Motion(method="farneback"), moving(10, 49, step=0.25))
    assert row["speed"] == pytest.approx(0.25 * 12, rel=0.15)


def test_the_codecs_own_vectors_grow_with_speed(tmp_path: Path) -> None:
    lengths = []
    for step in (0.0, 1.0, 3.0):
        write_video(tmp_path / f"{step}.mp4", moving(10, 25, step), 24.0)
        work = Work(ClipSpan("x", 0, 25, 24.0), (Motion(method="h264"),))
        ((_, outcome),) = analyse(AnalyseJob(str(tmp_path / f"{step}.mp4"), (work,)))
        assert outcome.rows[0]["slowest_patch"] <= outcome.rows[0]["speed"] + 1e-9
        lengths.append(outcome.rows[0]["speed"] * (HEIGHT + WIDTH))
    assert lengths[0] < 0.1 < 0.5 < lengths[1] < lengths[2]


def test_motion_vectors_are_painted_over_their_blocks() -> None:
    names = ("w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
    vectors = np.zeros(2, dtype=[(name, np.int32) for name in names])
    vectors[0] = (16, 16, 8, 8, 12, 16, 4)  # 3 and 4 pixels: 5 long
    vectors[1] = (8, 8, 20, 4, 4, 0, 4)
    lengths = vector_lengths(vectors, 32, 32)
    assert lengths[:16, :16].tolist() == np.full((16, 16), 5.0).tolist()
    assert lengths[:8, 16:24].tolist() == np.full((8, 8), 1.0).tolist()
    assert lengths.sum() == 16 * 16 * 5 + 64


def test_plain_numbers_about_pictures() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((HEIGHT, WIDTH), 120.0)
    noisy = (grey + rng.normal(0, 6, grey.shape)).clip(0, 255).astype(np.uint8)
    assert noise(noisy) == pytest.approx(6, rel=0.1)
    assert noise(grey.astype(np.uint8)) == 0
    blocks = np.kron(rng.uniform(80, 160, (18, 32)), np.ones((8, 8))).astype(np.uint8)
    assert blockiness(blocks) > 20 > 2 > blockiness(noisy)
    assert colourfulness(np.repeat(noisy[..., None], 3, axis=2)) < 1
    assert colourfulness(texture(1)) > 20


def test_frozen_frames_and_palettes() -> None:
    frames = np.concatenate([moving(11, 24), np.repeat(moving(11, 1), 24, axis=0)])
    row = measured(Quality(), frames)
    assert 0.3 < row["frozen_share"] < 0.6
    halves = np.zeros((8, HEIGHT, WIDTH, 3), np.uint8)
    halves[:, :, : WIDTH // 4] = (255, 0, 0)
    palette = np.reshape(measured(Quality(), halves)["palette"], (-1, 4))
    assert palette.tolist() == [[0, 0, 0, 0.75], [255, 0, 0, 0.25]]
    assert measured(Quality(), halves)["contrast"] == 255


def test_bars_do_not_change_a_fingerprint() -> None:
    frames = moving(12, 48)
    boxed = np.zeros((48, HEIGHT + 40, WIDTH, 3), np.uint8)
    boxed[:, 20:-20] = frames
    one, other = (thumbs_of(measured(Fingerprint(), f)) for f in (frames, boxed))
    assert np.abs(one - other).mean() < 1.5
    assert np.abs(one - thumbs_of(measured(Fingerprint(), moving(13, 48)))).mean() > 8
    assert np.linalg.norm(measured(Fingerprint(), frames)["appearance"]) == pytest.approx(1, abs=1e-5)


def test_a_strip_is_a_jpeg_of_four_moments() -> None:
    jpeg = measured(Strip(), moving(14, 48))["jpeg"]
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (72, 4 * 128, 3)
    assert measured(Strip(), moving(14, 1))["jpeg"]


def test_quantiles_from_a_histogram_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(4)
    for size in ((1, 1), (2, 3), (45, 80)):
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        for channel in range(3):
            levels = histogram(picture, channel)
            assert levels.sum() == size[0] * size[1]
            wanted = np.quantile(picture[..., channel], (0.005, 0.3, 0.995))
            assert np.allclose(quantiles(levels, (0.005, 0.3, 0.995)), wanted)
