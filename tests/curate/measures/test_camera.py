"""The camera measure on footage whose camera is known, through the same decode as all measures."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from openhunyuan.base.video import write_video
from openhunyuan.caption.camera import camera_labels, gated_camera
from openhunyuan.curate.analyse import AnalyseJob, Work, analyse
from openhunyuan.curate.camera.primitives import MOVES, PRIMITIVES
from openhunyuan.curate.measures.camera import Camera
from openhunyuan.curate.measures.measure import ClipSpan

HEIGHT, WIDTH, FPS = 108, 192, 24


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.uniform(0, 255, (n, 2 * n)).astype(np.float32), (960, 480)) for n in (12, 40, 110)]
    return np.mean(layers, axis=0).clip(0, 255).astype(np.uint8)


def seen(kind: str, count: int, seed: int = 3) -> np.ndarray:
    """Frames [T, H, W, 3] of a flat picture far away, under a camera that stands, zooms in or turns right."""
    wide, focal = picture(seed), 1.4
    frames = []
    for i in range(count):
        time = i / FPS
        yaw = np.deg2rad(9.0) * time if kind == "turn" else 0.0
        f = focal * (np.exp(0.2 * time) if kind == "zoom" else 1.0) * WIDTH / 2
        lens = np.array([[f, 0, WIDTH / 2], [0, f, HEIGHT / 2], [0, 0, 1]])
        turn = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
        far = np.array([[focal * WIDTH / 2, 0, 480], [0, focal * WIDTH / 2, 240], [0, 0, 1]])
        matrix = lens @ turn @ np.linalg.inv(far)
        frames.append(cv2.warpPerspective(wide, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT))
    return np.repeat(np.stack(frames)[..., None], 3, axis=3)


def row_of(frames: np.ndarray, folder: Path) -> dict:
    write_video(folder / "a.mp4", frames, fps=FPS)
    clip = ClipSpan("x", 0, len(frames), FPS)
    ((_, outcome),) = analyse(AnalyseJob(str(folder / "a.mp4"), (Work(clip, (Camera(),)),)))
    assert outcome.error is None
    return outcome.rows[0]


@pytest.mark.parametrize("kind, move", [("stand", "static"), ("zoom", "zoom in"), ("turn", "tilt right")])
def test_a_known_move_is_named(kind: str, move: str, tmp_path: Path) -> None:
    row = row_of(seen(kind, 49), tmp_path)
    assert row["move"] == [move] and row["first"] == [0] and row["last"] == [49]
    assert 0 < row["confidence"][0] <= 1
    assert len(row["primitives"]) == len(PRIMITIVES)
    if kind == "stand":
        assert row["still"] > 0.5 > row["shake"]


def test_a_long_clip_is_labelled_piece_by_piece_as_captions_read_it(tmp_path: Path) -> None:
    row = row_of(np.concatenate([seen("stand", 96), seen("zoom", 96)]), tmp_path)
    assert row["first"][0] == 0 and row["last"][-1] == 192
    assert row["first"][1:] == row["last"][:-1]
    assert row["move"][0] == "static" and row["move"][-1] == "zoom in"
    labels = camera_labels(row)
    assert gated_camera(labels, 0, 60, gate=0.5) == "static"
    assert gated_camera(labels, 130, 192, gate=0.5) == "zoom in"
    assert gated_camera(labels, 0, 192, gate=0.9) is None  # no one move is the whole clip's


def test_captions_of_parts_of_a_clip_have_the_moves_of_these_parts(tmp_path: Path) -> None:
    turn, stand = seen("turn", 72), seen("stand", 72)
    row = row_of(np.concatenate([turn, stand]), tmp_path)
    seconds = [(second["first"], second["last"]) for second in row["seconds"]]
    assert seconds == [(24 * i, 24 * i + 24) for i in range(6)]
    labels = camera_labels(row)
    spans = [(0, 144), (0, 49), (95, 144), (48, 97)]
    assert [gated_camera(labels, *span) for span in spans] == [None, "tilt right", "static", None]
    (tmp_path / "short").mkdir()
    short = row_of(turn[:49], tmp_path / "short")
    assert gated_camera(camera_labels(short), 0, 49) == short["move"][0] == "tilt right"


def test_a_picture_without_anything_to_follow_has_no_label(tmp_path: Path) -> None:
    row = row_of(np.full((49, HEIGHT, WIDTH, 3), 90, np.uint8), tmp_path)
    assert row["move"] == row["seconds"] == [] and row["still"] is None
    assert camera_labels(row) == ()


def test_the_weights_are_part_of_the_key() -> None:
    described = Camera().describe()
    assert len(described["weights"]) == 64
    assert set(MOVES) >= {"static", "handheld"}
