import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_metadata, read_video, write_video
from openhunyuan.infer.output import (
    MADE_BY,
    check_folder,
    check_output,
    generate_files,
    latents_path,
    load_latents,
    output_paths,
    preview_path,
    read_request,
    save_latents,
    sidecar_path,
    slug,
)
from openhunyuan.infer.pipeline import Pipeline
from openhunyuan.infer.request import Request

RED = "a large red circle moves right on a black background"


@pytest.fixture(scope="module")
def pipe(micro_model_folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(str(micro_model_folder), device="cpu")


def make(pipe: Pipeline, **fields) -> list[Path]:
    request = pipe.resolve(Request(prompt=RED, seed=1, model=str(pipe.model.folder), **fields))
    return list(generate_files(pipe, request, output_paths(request)))


def test_the_request_is_inside_and_beside(pipe: Pipeline, tmp_path: Path) -> None:
    (path,) = make(pipe, output_path=str(tmp_path / "new" / "out.mp4"))
    assert sorted(item.name for item in path.parent.iterdir()) == ["out.json", "out.mp4"]
    inside = read_metadata(path)
    assert inside == json.loads((path.parent / "out.json").read_text())
    assert inside["prompt"] == RED
    assert (inside["seed"], inside["num_frames"], inside["num_inference_steps"]) == (1, 5, 3)
    assert inside[MADE_BY]["dtype"] == "float32"
    request, made_by = read_request(path)
    open_fields = {name for name in Request.model_fields if getattr(request, name) is None}
    assert open_fields == {
        "image",
        "last_image",
        "i2v_resolution",
        "linear_schedule_end",
        "enhance_weight",
        "rewritten",
    }
    assert made_by["weights"] == pipe.model.spec.sha256


def test_the_stored_request_makes_the_same_bits(pipe: Pipeline, tmp_path: Path) -> None:
    (path,) = make(pipe, output_path=str(tmp_path / "out.mp4"))
    request, _ = read_request(path)
    again = request.replace(output_path=str(tmp_path / "again.mp4"))
    (other,) = generate_files(pipe, again, [tmp_path / "again.mp4"])
    assert np.array_equal(read_video(path)[0], read_video(other)[0])


def test_the_video_shows_the_frames(pipe: Pipeline, tmp_path: Path) -> None:
    (path,) = make(pipe, output_path=str(tmp_path / "out.mp4"))
    frames, fps = read_video(path)
    assert (frames.shape, fps) == ((5, 32, 32, 3), 8.0)
    made = pipe(prompt=RED, seed=1).frames[0]
    # Random weights make noise, the worst case for 4:2:0 colour; brightness (BT.709) is kept at full size.
    luma = np.array([0.2126, 0.7152, 0.0722])
    written, expected = (frames @ luma).ravel(), (made @ luma).ravel()
    assert np.corrcoef(written, expected)[0, 1] > 0.95
    assert np.corrcoef((frames[:, ::-1] @ luma).ravel(), expected)[0, 1] < 0.5


def test_png_is_exact(pipe: Pipeline, tmp_path: Path) -> None:
    (path,) = make(pipe, output_path=str(tmp_path / "out.png"))
    assert np.array_equal(read_video(path)[0], pipe(prompt=RED, seed=1, num_frames=1).frames[0])
    assert read_request(path)[0].num_frames == 1


def test_several_videos_are_numbered_and_each_stands_alone(pipe: Pipeline, tmp_path: Path) -> None:
    paths = make(pipe, output_path=str(tmp_path / "out.png"), num_videos=2)
    assert [path.name for path in paths] == ["out-1.png", "out-2.png"]
    request, _ = read_request(paths[1])
    assert (request.seed, request.num_videos, request.output_path) == (2, 1, str(paths[1]))
    assert np.array_equal(read_video(paths[1])[0], pipe(prompt=RED, seed=2, num_frames=1).frames[0])


def test_default_names_are_new(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (first,) = make(pipe, num_frames=1)
    (second,) = make(pipe, num_frames=1)
    assert first.parent == Path("outputs")
    assert first.name.startswith("a-large-red-circle")
    assert "seed1" in first.name
    assert first != second
    assert first.exists()
    assert second.exists()


@pytest.mark.parametrize(
    "prompt, name",
    [
        ('A cat: "run"\n<now>/../?*|', "a-cat-run-now"),
        ("Café Ünïcode", "cafe-unicode"),
        ("一只猫在草地上走" * 30, "video"),
        ("CON", "video"),
        ("com1", "video"),
        ("...", "video"),
        ("x" * 300, "x" * 60),
        ("trailing dot. ", "trailing-dot"),
    ],
)
def test_names_are_safe_on_every_system(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_names_too_long_for_a_file_system_are_refused_early(tmp_path: Path) -> None:
    check_output(tmp_path / ("x" * 220 + ".mp4"))
    with pytest.raises(UserError, match="too long"):
        check_output(tmp_path / ("猫" * 80 + ".mp4"))
    assert list(tmp_path.iterdir()) == []


def test_the_preview_lies_beside_the_file(pipe: Pipeline, tmp_path: Path) -> None:
    (path,) = make(pipe, output_path=str(tmp_path / "out.mp4"), preview=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.json", "out.mp4", "out.preview.mp4"]
    frames, fps = read_video(preview_path(path))
    assert (frames.shape, fps) == ((2, 256, 256, 3), 2.0)
    assert read_metadata(preview_path(path))["step"] == 3
    (image,) = make(pipe, output_path=str(tmp_path / "one.png"), preview=True)
    assert read_video(preview_path(image))[0].shape == (1, 256, 256, 3)
    plain = make(pipe, output_path=str(tmp_path / "plain.mp4"))[0]
    assert np.array_equal(read_video(plain)[0], read_video(path)[0])


def test_a_preview_replaces_no_foreign_file(tmp_path: Path) -> None:
    write_video(tmp_path / "out.preview.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    check_output(tmp_path / "out.mp4")
    with pytest.raises(UserError, match=r"out.preview.mp4 exists and was not made"):
        check_output(tmp_path / "out.mp4", preview=True)


def test_video_and_image_of_one_name_keep_their_json(pipe: Pipeline, tmp_path: Path) -> None:
    (video,) = make(pipe, output_path=str(tmp_path / "out.mp4"))
    (image,) = make(pipe, output_path=str(tmp_path / "out.png"))
    assert json.loads((tmp_path / "out.json").read_text())["num_frames"] == 5
    assert json.loads((tmp_path / "out.png.json").read_text())["num_frames"] == 1
    assert sidecar_path(video).name == "out.json"
    assert sidecar_path(image).name == "out.png.json"


def test_only_our_own_files_are_replaced(pipe: Pipeline, tmp_path: Path) -> None:
    (path,) = make(pipe, output_path=str(tmp_path / "out.mp4"))
    check_output(path)
    write_video(tmp_path / "holiday.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    with pytest.raises(UserError, match="not made by openhunyuan"):
        check_output(tmp_path / "holiday.mp4")
    for name in ("notes.json", "notes.mp4.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="would be replaced"):
        check_output(tmp_path / "notes.mp4")


def test_unwritable_places_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "file" / "deeper")
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        check_folder(Path("/proc/nowhere"))
    check_folder(tmp_path / "can" / "be" / "made")
    assert sorted(tmp_path.rglob("*")) == before


def test_latents_survive_a_failed_decoding(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = tmp_path / "out.mp4"
    monkeypatch.setattr(pipe, "decode", fail)
    with pytest.raises(MemoryError):
        make(pipe, output_path=str(path))
    assert [item.name for item in tmp_path.iterdir()] == ["out.latents.safetensors"]
    monkeypatch.undo()
    kept = latents_path(path)
    expected = pipe(prompt=RED, seed=1)
    assert torch.equal(load_latents(kept), expected.latents)
    assert np.array_equal(pipe.decode(load_latents(kept))[0], expected.frames[0])
    request, _ = read_request(kept)
    assert (request.prompt, request.seed) == (RED, 1)


def test_other_files_are_not_replayed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8, {"prompt": "x", "no_field": 1})
    with pytest.raises(UserError, match="cannot be used"):
        read_request(tmp_path / "a.mp4")
    save_latents(tmp_path / "a.latents.safetensors", torch.zeros(1), {"seed": 1})
    with pytest.raises(UserError, match="prompt is missing"):
        read_request(tmp_path / "a.latents.safetensors")
