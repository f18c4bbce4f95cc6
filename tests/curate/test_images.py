"""Images go through curation without what needs time: files of every kind, single frames, sets of their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_video
from openhunyuan.curate.decide import Crop, Filter
from openhunyuan.curate.duplicates import Duplicates
from openhunyuan.curate.find import find_videos
from openhunyuan.curate.forget import forget
from openhunyuan.curate.ladder import Ladder, TrainingSet, read_sets, read_verdicts
from openhunyuan.curate.measures.border import Border
from openhunyuan.curate.measures.fingerprint import Fingerprint
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.measures.strip import Strip
from openhunyuan.curate.report import write_report
from openhunyuan.curate.run import Plan, curate, read_clips
from openhunyuan.curate.stills import Still, look_at, open_footage
from openhunyuan.curate.tables import read_rows
from tests.curate.films import save, shot


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [height, width, 3]: a coloured texture."""
    y, x = np.mgrid[0:height, 0:width] / 9.0
    rng = np.random.default_rng(seed)
    waves = [np.sin(x * rng.uniform(0.3, 2) + rng.uniform(0, 6)) * np.sin(y * rng.uniform(0.3, 2)) for _ in range(3)]
    return (128 + 100 * np.stack(waves, axis=2)).clip(0, 255).astype(np.uint8)


def keep(path: Path, pixels: np.ndarray, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


def rgb(path: Path) -> np.ndarray:
    with Still(path) as still:
        (frame,) = still.frames()
        return frame.rgb()


# --------------------------------------------------------------------------------------------------------------- files


def test_images_are_read_as_they_are_meant_to_be_seen(tmp_path: Path) -> None:
    pixels = picture(1)
    assert (rgb(keep(tmp_path / "a.png", pixels)) == pixels).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown a quarter turn clockwise
    turned = keep(tmp_path / "turned.png", pixels, exif=exif)
    assert (rgb(turned) == np.rot90(pixels, -1)).all()
    assert look_at(turned).media.height == 64
    half = np.dstack([pixels, np.full(pixels.shape[:2], 128, np.uint8)])
    half[:, :10, 3] = 0
    seen = rgb(keep(tmp_path / "alpha.png", half))
    assert (seen[:, :10] == 255).all(), "what is transparent lies on white"
    assert abs(int(seen[0, 20, 0]) - (int(pixels[0, 20, 0]) + 255) // 2) <= 2
    deep = (pixels[..., 0].astype(np.uint16) << 8) + 77
    assert (rgb(keep(tmp_path / "deep.png", deep))[..., 1] == pixels[..., 0]).all()
    assert (rgb(keep(tmp_path / "gray.webp", pixels[..., 0], lossless=True))[..., 2] == pixels[..., 0]).all()
    wrong = keep(tmp_path / "really.png", pixels).rename(tmp_path / "wrong.jpg")
    assert (rgb(wrong) == pixels).all(), "the bytes decide about the format, not the name"
    with open_footage(wrong) as footage:
        assert (footage.media.codec, footage.media.rate, footage.promised) == ("png", "1/1", 1)


def test_images_that_cannot_be_read_are_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = keep(tmp_path / "a.png", picture(1))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-900])
    Image.fromarray(picture(1)[..., 0].astype(np.float32)).save(tmp_path / "float.tiff")
    for name, said in (
        ("empty.png", "cannot be read as an image"),
        ("text.jpg", "cannot be read as an image"),
        ("cut.png", "is damaged"),
        ("float.tiff", "floating point"),
        ("none.png", "does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            Still(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="more pixels"):
        Still(whole)


# ----------------------------------------------------------------------------------------------------------------- run

MOVING = Filter(name="motion", score="motion.speed", at_least=0.5, reason="hardly moves")
SIZE = "clip.short_side"
LADDER = Ladder(
    sets=(
        TrainingSet(name="256p", filters=(MOVING,)),
        TrainingSet(name="360p", filters=(Filter(name="size", score=SIZE, at_least=60, reason="is too small"),)),
        TrainingSet(
            name="image-256", kind="image", filters=(Filter(name="s", score=SIZE, at_least=32, reason="small"),)
        ),
        TrainingSet(
            name="image-512", kind="image", filters=(Filter(name="s", score=SIZE, at_least=50, reason="small"),)
        ),
    )
)
PLAN = Plan(
    measures=(Border(), Motion(), Quality(), Fingerprint(), Strip()),
    crop=Crop(),
    duplicates=Duplicates(),
    ladder=LADDER,
    images="both",
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "raw"
    save(folder / "film.mp4", shot(1, 24), np.repeat(shot(2, 1), 18, axis=0))
    keep(folder / "small.jpg", picture(3, 20, 30), quality=95)
    keep(folder / "odd.png", picture(4, 49, 63))
    keep(folder / "large.png", picture(5, 60, 80))
    keep(folder / "twin.jpg", picture(5, 60, 80), quality=92)
    bars = np.zeros((80, 64, 3), np.uint8)
    bars[10:70] = picture(6, 60, 64)
    keep(folder / "bars.png", bars)
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def data(raw: Path) -> Path:
    curate(raw, raw.parent / "data", PLAN)
    return raw.parent / "data"


def test_files_and_frames_become_images_in_sets_of_their_own(raw: Path, data: Path) -> None:
    clips = read_clips(data)
    images = {(Path(c.source).name, c.start_frame): c for c in clips if c.kind == "image"}
    assert sorted(images) == [
        ("bars.png", 0), ("film.mp4", 12), ("film.mp4", 33), ("large.png", 0), ("odd.png", 0), ("small.jpg", 0),
        ("twin.jpg", 0),
    ]  # fmt: skip
    assert {key[0]: clip.sets for key, clip in images.items() if key[0] != "film.mp4"} == {
        "small.jpg": (),
        "odd.png": ("image-256",),
        "large.png": ("image-256", "image-512"),
        "twin.jpg": (),
        "bars.png": ("image-256", "image-512"),
    }
    twin, large = images["twin.jpg", 0], images["large.png", 0]
    assert (twin.dropped and twin.dropped.stage, twin.duplicate_of) == ("duplicate", large.id)
    # A shot that stands still is no video, but its frame is a picture like any other.
    films = [c for c in clips if c.kind == "video"]
    assert [c.sets for c in films] == [("256p", "360p"), ()]
    assert images["film.mp4", 33].sets == ("image-256", "image-512")
    for clip in images.values():
        assert "motion.speed" not in clip.scores and "clip.seconds" not in clip.scores
        assert clip.num_frames == 1
        if clip.sets:
            assert str(clip.path).endswith(".png")
            frames, fps = read_video(data / str(clip.path))
            assert (frames.shape, fps) == ((1, clip.height, clip.width, 3), 1.0)
    odd, _ = read_video(data / str(images["odd.png", 0].path))
    assert (odd[0] == picture(4, 49, 63)).all(), "images are not made even, and lose nothing"
    bars, _ = read_video(data / str(images["bars.png", 0].path))
    assert (bars[0] == picture(6, 60, 64)).all()
    failures = (data / "quarantine.jsonl").read_text()
    assert "text.png" in failures and "cannot be read as an image" in failures
    kinds = {report.name: (report.kind, report.pool) for report in read_sets(data)}
    assert kinds == {"256p": ("video", 2), "360p": ("video", 2), "image-256": ("image", 7), "image-512": ("image", 7)}
    assert "motion" not in {r["filter"] for r in read_verdicts(data) if r["set"].startswith("image")}


def test_the_bytes_decide_between_video_and_image_not_the_name(tmp_path: Path) -> None:
    save(tmp_path / "raw/film.mp4", shot(1, 24)).rename(tmp_path / "raw/film.jpg")
    keep(tmp_path / "raw/photo.png", picture(4, 48, 64)).rename(tmp_path / "raw/photo.mp4")
    for images, names in (("files", {"film.jpg": "video", "photo.mp4": "image"}), ("none", {"film.jpg": "video"})):
        done = curate(tmp_path / "raw", tmp_path / images, Plan(measures=(Border(),), images=images))  # type: ignore
        assert {Path(clip.source).name: clip.kind for clip in done.kept} == names
        said = [(Path(f.source).name, f.stage) for f in done.failures]
        assert said == ([] if images == "files" else [("photo.mp4", "find")])


def test_another_threshold_and_no_ladder_read_nothing_again(raw: Path, data: Path) -> None:
    before = sorted(data.glob("tables/*/*/*.parquet"))
    stamp = (data / "manifest.jsonl").read_bytes()
    higher = LADDER.model_copy(update={"calibrated": True})
    curate(raw, data, replace(PLAN, ladder=higher, duplicates=None))
    assert [p for p in sorted(data.glob("tables/*/*/*.parquet")) if p.parts[-3] != "cut"] == [
        p for p in before if p.parts[-3] != "cut"
    ]
    curate(raw, data, replace(PLAN, ladder=None))
    assert read_sets(data) == [] and not (data / "sets.parquet").exists()
    curate(raw, data, PLAN)
    assert (data / "manifest.jsonl").read_bytes() == stamp


def test_every_table_is_read_by_others(data: Path) -> None:
    folders = sorted(folder for folder in data.glob("tables/*/*") if any(folder.glob("*.parquet")))
    assert {"images", "split", "quality", "fingerprint", "cut"} <= {folder.parent.name for folder in folders}
    for folder in folders:
        whole = parquet.read_table(folder)
        for part in folder.glob("*.parquet"):
            assert parquet.read_schema(part).equals(whole.schema), part
        rows = read_rows(folder)
        assert sorted(whole["key"].to_pylist()) == sorted(key for key, found in rows.items() for _ in found)


def test_the_report_shows_both_kinds(data: Path) -> None:
    page = write_report(data).read_text()
    for said in (
        "Videos: a pool of 2 clips", "Images: a pool of 7 images", "Into 360p", "Not in 256p: motion",
        "Not in image-256: duplicate", "shows the same as", "In image-512, and in no higher set", "small.jpg",
        "wanted ≥ 32", "cannot be read as an image",
    ):  # fmt: skip
        assert said in page, said
    assert "<script" not in page and "http" not in page.replace("http-equiv", ""), "it stands alone"


def test_a_source_of_images_is_forgotten_with_its_file(raw: Path, data: Path) -> None:
    clips = {Path(c.source).name: c for c in read_clips(data) if c.kind == "image"}
    path = data / str(clips["odd.png"].path)
    assert path.is_file()
    receipt = forget(data, "odd.png")
    assert (receipt.files, receipt.clips, path.exists()) == (1, (clips["odd.png"].id,), False)
    assert clips["odd.png"].id not in {row["clip"] for row in read_verdicts(data)}
    frames = forget(data, "film.mp4")
    assert len(frames.clips) == 4, "two shots and a frame of each"


def test_images_are_taken_only_where_that_is_wanted(raw: Path) -> None:
    assert [p.name for p in find_videos(raw)] == ["film.mp4"]
    assert len(find_videos(raw, images=True)) == 7
    with pytest.raises(UserError, match="--images files"):
        find_videos(raw / "odd.png")
