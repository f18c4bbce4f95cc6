"""Footage as it comes in: damaged, turned, uneven, wrongly named. Nothing stops a run, and nothing vanishes from it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_video
from openhunyuan.cli.main import main
from openhunyuan.curate import tables
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.engine import Processes
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.run import Curation, Plan, curate, read_clips
from openhunyuan.curate.split import Split, split_video
from openhunyuan.curate.tone import WHITE, compressed
from tests.curate.films import CLOCKWISE, edit_tkhd, encode, encode_hdr, save, shot, write_sound

PLAN = Plan(split=Split(min_seconds=0.3), measures=(Quality(),))


def halves(count: int, left: int = 40, right: int = 210) -> np.ndarray:
    """Frames [count, 32, 48, 3], dark on the left and bright on the right."""
    frames = np.full((count, 32, 48, 3), left, np.float32)
    frames[:, :, 24:] = right
    return frames


def level(value: int, count: int = 12) -> np.ndarray:
    return np.full((count, 32, 48, 3), value, np.float32)


def write_hostile(raw: Path) -> None:
    """One of each."""
    good = save(raw / "good.mp4", shot(1, 12, side=32))
    (raw / "empty.mp4").write_bytes(b"")
    (raw / "zeros.mp4").write_bytes(bytes(20_000))
    (raw / "text.mp4").write_text("not a video")
    content = save(raw / "truncated.mp4", shot(2, 12, side=32)).read_bytes()
    (raw / "truncated.mp4").write_bytes(content[: len(content) // 2])
    content = encode(raw / "truncated.mkv", level(90, 100) + shot(2, 100, side=32).mean(axis=2, keepdims=True))
    content = content.read_bytes()
    (raw / "truncated.mkv").write_bytes(content[: len(content) // 2])
    write_sound(raw / "sound.mp4")
    save(raw / "one frame.mp4", shot(3, 1, side=32))
    edit_tkhd(encode(raw / "turned.mp4", halves(12)), CLOCKWISE)
    encode(raw / "uneven.mp4", level(60, 8), pts=[0, 40, 80, 200, 240, 280, 400, 440])
    encode(raw / "wide pixels.mp4", level(70), sar=Fraction(4, 3))
    encode(raw / "ten bits.mp4", level(80), pixel_format="yuv420p10le")
    encode_hdr(raw / "hdr.mp4", np.full(12, 203.0), "pq", 16)
    encode(raw / "tmp.mkv", level(100)).rename(raw / "is matroska.mp4")
    encode(raw / "tmp.mp4", level(110)).rename(raw / "film.dat")
    encode(raw / "a/same.mp4", level(120))
    encode(raw / "b/same.mp4", level(130))
    encode(raw / "b/映画 ü 😀.mp4", level(140))
    shutil.copy(good, raw / "b/copy.mp4")
    damaged = bytearray(encode(raw / "damaged.mp4", shot(4, 12, side=32)).read_bytes())
    place = damaged.index(b"mdat")
    for offset in range(200, 1200, 7):
        damaged[place + offset] ^= 0xA5
    (raw / "damaged.mp4").write_bytes(damaged)
    os.mkfifo(raw / "pipe.mp4")
    (raw / "gone.mp4").symlink_to(raw / "nowhere")
    (raw / "b/round").symlink_to(raw)


QUARANTINED = {
    "empty.mp4": "cannot be read as a video",
    "zeros.mp4": "cannot be read as a video",
    "text.mp4": "cannot be read as a video",
    "truncated.mp4": "",
    "truncated.mkv": "is cut off",
    "sound.mp4": "holds no video stream",
    "pipe.mp4": "is no regular file",
    "gone.mp4": "No such file",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Curation]:
    """(footage, data, result) of a run over one of each."""
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile(folder / "raw")
    return folder / "raw", folder / "data", curate(folder / "raw", folder / "data", PLAN)


def clip_named(result: Curation, name: str) -> Clip:
    (clip,) = [c for c in result.clips if Path(c.source).name == name]
    return clip


def test_nothing_stops_the_run_and_nothing_vanishes(hostile: tuple[Path, Path, Curation]) -> None:
    raw, data, result = hostile
    failed = {Path(f.source).name: f.error for f in result.failures}
    failed.pop("damaged.mp4", None)  # some decoders conceal it
    assert set(failed) == set(QUARANTINED)
    for name, why in QUARANTINED.items():
        assert why in failed[name]
    files = {str(p) for p in raw.rglob("*.*") if not p.is_dir() and "round" not in p.parts}
    spoken_of = Counter({c.source for c in result.clips} | {f.source for f in result.failures})
    assert files - set(spoken_of) == {str(raw / "good.mp4")}, "which has the bytes of b/copy.mp4"
    assert result.repeated == 1
    lines = [json.loads(line) for line in (data / "quarantine.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [f.source for f in result.failures]
    one = clip_named(result, "one frame.mp4").dropped
    assert one is not None
    assert one.stage == "split"


def test_what_can_be_read_is_read_as_it_was_meant(hostile: tuple[Path, Path, Curation]) -> None:
    _, data, result = hostile

    def frames(name: str) -> np.ndarray:
        clip = clip_named(result, name)
        assert clip.dropped is None
        return read_video(data / str(clip.path))[0].astype(float)

    turned = frames("turned.mp4")
    assert turned.shape[1:3] == (48, 32)
    assert turned[:, :20].mean() == pytest.approx(40, abs=6)
    assert turned[:, 28:].mean() == pytest.approx(210, abs=6), "what was on the right is below"
    assert frames("wide pixels.mp4").shape[1:3] == (32, 64)
    for name, value in (("ten bits.mp4", 80), ("is matroska.mp4", 100), ("film.dat", 110), ("映画 ü 😀.mp4", 140)):
        assert frames(name).mean() == pytest.approx(value, abs=4)
    white = 255 * (float(compressed(np.array(203.0))) / WHITE) ** (1 / 2.4)
    assert frames("hdr.mp4").mean() == pytest.approx(white, abs=4)
    assert "hdr" in clip_named(result, "hdr.mp4").tags
    assert "variable frame rate" in clip_named(result, "uneven.mp4").tags
    same = [c for c in result.kept if Path(c.source).name == "same.mp4"]
    assert [Path(c.source).parent.name for c in same] == ["a", "b"]
    assert len({c.sha256 for c in same}) == 2


def test_processes_give_the_same(hostile: tuple[Path, Path, Curation], tmp_path: Path) -> None:
    raw, data, _ = hostile
    same_views(raw, data, tmp_path, Processes(1))


@pytest.mark.slow
def test_ray_gives_the_same(hostile: tuple[Path, Path, Curation], tmp_path: Path, ray: Any) -> None:
    raw, data, _ = hostile
    same_views(raw, data, tmp_path, ray(2, 600.0))


def same_views(raw: Path, data: Path, other: Path, engine: Any) -> None:
    with engine:
        curate(raw, other, PLAN, engine=engine)
    for name in ("manifest.jsonl", "quarantine.jsonl", "funnel.json", "run.json"):
        assert (other / name).read_bytes() == (data / name).read_bytes()
    for folder in sorted(data.glob("tables/*/*")):
        assert tables.read_rows(other / folder.relative_to(data)) == tables.read_rows(folder)
    assert {p.name for p in other.glob("store/*/*")} == {p.name for p in data.glob("store/*/*")}


def test_eight_thousand_pixels(tmp_path: Path) -> None:
    frames = np.full((2, 4320, 7680, 3), 90, np.uint8)
    frames[:, :, 3840:] = 160
    encode(tmp_path / "raw/8k.mp4", frames, rate=2, codec="mpeg4")
    (clip,) = curate(tmp_path / "raw", tmp_path / "data", PLAN).kept
    assert (clip.height, clip.width, clip.num_frames) == (4320, 7680, 2)
    assert "2160p" in clip.tags
    assert clip.scores["quality.brightness"] == pytest.approx(125, abs=5)


def test_times_are_exact_fractions(tmp_path: Path) -> None:
    rate = Fraction(24000, 1001)
    frames = np.concatenate([shot(1, 30, side=32), 255 - shot(2, 25, side=32)])
    for name in ("a.mp4", "a.mkv"):
        first, second = split_video(encode(tmp_path / name, frames, rate=rate))
        assert second.start_frame == 30
        assert second.start_pts is not None
        assert first.end_pts == second.start_pts
        time = second.start_pts * Fraction(str(second.time_base))
        if name == "a.mp4":
            assert (first.rate, time) == ("24000/1001", 30 / rate)
            assert second.end_pts is not None
            assert second.end_pts * Fraction(str(second.time_base)) == 55 / rate
        else:
            assert abs(time - 30 / rate) <= Fraction(1, 1000), "Matroska's clock counts milliseconds"


def test_a_file_that_may_not_be_read_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "raw/a.mp4", shot(1, 12, side=32))
    save(tmp_path / "raw/locked.mp4", shot(2, 12, side=32))
    real = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "locked.mp4":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    result = curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert [(Path(f.source).name, f.stage) for f in result.failures] == [("locked.mp4", "sources")]
    assert "Permission denied" in result.failures[0].error
    monkeypatch.undo()
    assert len(curate(tmp_path / "raw", tmp_path / "data", PLAN).kept) == 2, "what could not be hashed is tried again"


def test_a_file_that_changes_while_it_is_read_leaves_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the new bytes under the hash of the old ones would be wrong for ever."""
    from openhunyuan.curate import run

    path = save(tmp_path / "raw/a.mp4", shot(1, 12, side=32))
    save(tmp_path / "raw/b.mp4", shot(2, 12, side=32))
    real = run._find_shots

    def replaced(*args: Any) -> Any:
        shots = real(*args)
        if Path(args[-1][1]).name == "a.mp4":
            save(path, shot(3, 20, side=32))
        return shots

    monkeypatch.setattr(run, "_find_shots", replaced)
    result = curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert [(Path(f.source).name, f.error) for f in result.failures] == [("a.mp4", run.CHANGED["error"])]
    monkeypatch.undo()
    again = curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert again.failures == ()
    assert [c.num_frames for c in again.kept] == [20, 12]


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    save(tmp_path / "raw/a.mp4", shot(1, 12, side=32))
    (tmp_path / "data").mkdir()
    with tables.alone(tmp_path / "data"), pytest.raises(UserError, match="Another run"):
        curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert len(curate(tmp_path / "raw", tmp_path / "data", PLAN).kept) == 1


def test_a_disk_that_fills_up_while_a_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it happens: no input is blamed, the run stops, and with room again it ends as if nothing had been."""
    save(tmp_path / "raw/a.mp4", shot(1, 12, side=32))
    save(tmp_path / "raw/b.mp4", shot(2, 12, side=32))
    curate(tmp_path / "raw", tmp_path / "unbroken", PLAN)
    wanted = (tmp_path / "unbroken/manifest.jsonl").read_bytes()
    real = tables.write_atomic
    room = 0

    def write(path: Path, content: bytes) -> None:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        room -= 1
        real(path, content)

    monkeypatch.setattr(tables, "write_atomic", write)
    for _ in range(3):
        room = 3
        with pytest.raises(OSError, match="No space left"):
            curate(tmp_path / "raw", tmp_path / "data", PLAN)
    room = 1000
    curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == wanted
    assert (tmp_path / "data/quarantine.jsonl").read_bytes() == b""


def test_a_disk_that_fills_up_while_a_clip_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FFmpeg itself meets a device without room."""
    import av

    save(tmp_path / "raw/a.mp4", shot(1, 30, side=80))
    real = av.open

    def full(file: str, mode: str = "r", **kwargs: Any) -> Any:
        return real("/dev/full" if mode == "w" else file, mode, **kwargs)

    loose = ["--threshold", "blur.width<=90", "--without", "overlay", "--workers", "0"]
    command = ["curate", str(tmp_path / "raw"), "--output", str(tmp_path / "data"), *loose]
    monkeypatch.setattr(av, "open", full)
    assert main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("data/store/*/*"))
    monkeypatch.undo()
    assert main(command) == 0
    assert len([c for c in read_clips(tmp_path / "data") if not c.dropped]) == 1
