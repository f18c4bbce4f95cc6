from pathlib import Path

import av
import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import cropped_native, iter_video, read_metadata, read_video, write_image, write_video

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128), (255, 255, 0)]


def clip(frames: int = 9, height: int = 48, width: int = 96) -> np.ndarray:
    """Colour bars, with a white square that moves right."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    for index, color in enumerate(PALETTE):
        video[:, :, index * 16 : (index + 1) * 16] = color
    for index in range(frames):
        video[index, 2:10, 2 + 4 * index : 10 + 4 * index] = 255
    return video


def test_mp4_is_what_players_want(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.mp4"
    write_video(path, clip(), fps=12.5, metadata={"prompt": "caf\u00e9 \u96ea"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 96, 48)
        assert (stream.frames, float(stream.average_rate)) == (9, 12.5)
    # The index stands before the pictures, so that a browser can start before the end has arrived.
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")
    assert read_metadata(path) == {"prompt": "caf\u00e9 \u96ea"}
    assert [item.name for item in path.parent.iterdir()] == ["a.mp4"]


def test_colours_and_motion_come_back(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(), fps=8)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.shape == (9, 48, 96, 3)
    assert fps == 8
    for index, color in enumerate(PALETTE):
        middle = frames[4, 30, index * 16 + 8].astype(int)
        assert np.abs(middle - color).max() <= 4, color
    centres = [np.argmax(frame[5].sum(-1).astype(int) > 700) for frame in frames]
    assert centres[0] < centres[4]


def test_the_same_frames_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, clip(), fps=8, metadata={"n": 1})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_streaming_equals_reading_and_max_frames_stops(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(), fps=8)
    whole, _ = read_video(tmp_path / "a.mp4")
    assert np.array_equal(np.stack(list(iter_video(tmp_path / "a.mp4"))), whole)
    assert np.array_equal(read_video(tmp_path / "a.mp4", max_frames=3)[0], whole[:3])


def test_a_part_of_a_frame_keeps_every_sample() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (90 * 3 // 2, 134), np.uint8)
    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    part = cropped_native(frame, 6, 20, 100, 88)
    assert (part.width, part.height, part.format.name) == (94, 68, "yuv420p")
    blue, red = planes[90:].reshape(2, 45, 67)[:, 10:44, 3:50]
    wanted = np.concatenate([planes[20:88, 6:100].ravel(), blue.ravel(), red.ravel()])
    np.testing.assert_array_equal(part.to_ndarray().ravel(), wanted)


def test_png_is_lossless_and_carries_metadata(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", frame, {"seed": 7, "prompt": "\u00e9"})
    frames, _ = read_video(tmp_path / "a.png")
    assert np.array_equal(frames[0], frame)
    assert read_metadata(tmp_path / "a.png") == {"seed": 7, "prompt": "\u00e9"}


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        read_video(tmp_path / "text.mp4")
    with pytest.raises(UserError, match="does not exist"):
        read_video(tmp_path / "none.mp4")
    write_video(tmp_path / "plain.mp4", clip(), fps=8)
    with pytest.raises(UserError, match="carries no request"):
        read_metadata(tmp_path / "plain.mp4")


@pytest.mark.parametrize(
    "frames, fps, message",
    [
        (np.zeros((2, 8, 8, 3), np.float32), 8, "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), 8, "uint8"),
        (np.zeros((2, 9, 8, 3), np.uint8), 8, "even"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "fps"),
    ],
)
def test_bad_frames_write_nothing(tmp_path: Path, frames: np.ndarray, fps: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / "a.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []
