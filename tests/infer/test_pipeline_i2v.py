"""Image-to-video through the pipeline: what is refused, what the first frame is, batches, rounding, memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.infer import pipeline as pipeline_module
from openhunyuan.infer.conditions import fit_image, image_latents, load_image
from openhunyuan.infer.numerics import OFFICIAL, OURS, pick_numerics
from openhunyuan.infer.output import generate_files, read_request
from openhunyuan.infer.pipeline import Pipeline
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import save_dit
from openhunyuan.models.text.templates import NEGATIVE_PROMPTS
from tools.tiny_release import random_image

RED = "a large red circle moves right on a black background"
BLUE = "a small blue star moves up on a gray background"


def _folder(source: Path, target: Path, **spec: Any) -> Path:
    """A copy of a model folder that says more of itself in its model.json."""
    shutil.copytree(source, target)
    values = json.loads((target / "model.json").read_text())
    (target / "model.json").write_text(json.dumps(values | spec))
    return target


@pytest.fixture(scope="module")
def folders(micro_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("i2v")
    replace = _folder(
        micro_model_folder, root / "replace", image_condition_type="token_replace", image_optional=True, last_image=True
    )
    concat = _folder(micro_model_folder, root / "concat", image_condition_type="latent_concat", sha256={})
    config = Pipeline.from_pretrained(str(micro_model_folder), device="cpu").model.dit.config
    torch.manual_seed(0)
    shutil.rmtree(concat / "dit")
    save_dit(concat / "dit", DiT(config.model_copy(update={"in_channels": 33})))
    for name, size in (("one", (40, 60)), ("two", (32, 32))):
        random_image(*size, seed=len(name) + size[0]).save(root / f"{name}.png")
    return {"replace": replace, "concat": concat, "root": root}


@pytest.fixture(scope="module")
def pipe(folders: dict[str, Path]) -> Pipeline:
    return Pipeline.from_pretrained(str(folders["replace"]), device="cpu")


@pytest.fixture(scope="module")
def image(folders: dict[str, Path]) -> str:
    return str(folders["root"] / "one.png")


def test_the_first_latent_frame_is_the_picture_at_every_step(pipe: Pipeline, image: str) -> None:
    seen: list[torch.Tensor] = []
    result = pipe(prompt=RED, image=image, seed=1, callback=lambda done, total, now: seen.append(now.clone()))
    expected = image_latents(pipe.model.vae, fit_image(load_image(image), 32, 32)[None])
    for latents in (*seen, result.latents):
        torch.testing.assert_close(latents[:, :, :1], expected)
    assert result.frames[0].shape == (5, 32, 32, 3)
    assert result.request.image == image
    assert result.record["image_condition"] == "token_replace"
    assert len(result.record["image_sha256"]) == 64
    without = pipe(prompt=RED, seed=1)
    assert "image_condition" not in without.record
    assert not torch.allclose(without.latents[:, :, 1:], result.latents[:, :, 1:], atol=1e-3)


def test_first_and_last_frame(pipe: Pipeline, folders: dict[str, Path], image: str) -> None:
    last = str(folders["root"] / "two.png")
    result = pipe(prompt=RED, image=image, last_image=last, seed=1, num_frames=13)
    for index, path in ((0, image), (-1, last)):
        expected = image_latents(pipe.model.vae, fit_image(load_image(path), 32, 32)[None])
        torch.testing.assert_close(result.latents[:, :, index], expected[:, :, 0])
    alone = pipe(prompt=RED, image=image, seed=1, num_frames=13)
    assert not torch.allclose(alone.latents[:, :, 1:-1], result.latents[:, :, 1:-1], atol=1e-3)


def test_a_batch_makes_the_videos_of_its_pictures(pipe: Pipeline, folders: dict[str, Path]) -> None:
    paths = [folders["root"] / "two.png", folders["root"] / "one.png"]
    images = [np.asarray(load_image(path)) for path in paths]
    batch = pipe.generate_batch([RED, BLUE], [1, 2], images=images)
    for prompt, seed, path, frames in zip((RED, BLUE), (1, 2), paths, batch, strict=True):
        alone = pipe(prompt=prompt, seed=seed, image=str(path)).frames[0]
        assert np.abs(alone.astype(int) - frames).max() <= 1
    assert pipe.generate_batch([RED, BLUE], [1, 2], image=str(paths[0])).shape == (2, 5, 32, 32, 3)
    with pytest.raises(UserError, match="one image a prompt"):
        pipe.generate_batch([RED, BLUE], [1, 2], images=images[:1])


def test_several_videos_of_one_picture_are_single_ones(pipe: Pipeline, image: str) -> None:
    three = pipe(prompt=RED, image=image, seed=3, num_videos=3)
    alone = pipe(prompt=RED, image=image, seed=4)
    assert torch.equal(three.latents[1:2], alone.latents)


def test_stability_changes_a_little(pipe: Pipeline, image: str) -> None:
    plain, stable = (pipe(prompt=RED, image=image, seed=1, i2v_stability=on).latents for on in (False, True))
    assert 0 < float((plain - stable).abs().max()) < 0.05


def test_latent_concat_drops_four_frames(folders: dict[str, Path], image: str) -> None:
    pipe = Pipeline.from_pretrained(str(folders["concat"]), device="cpu")
    result = pipe(prompt=RED, image=image, seed=1, num_frames=13)
    assert result.latents.shape == (1, 16, 4, 4, 4)
    assert result.frames[0].shape == (9, 32, 32, 3)
    assert any("4 frames are dropped" in note for note in result.record["notes"])
    other = pipe(prompt=RED, image=str(folders["root"] / "two.png"), seed=1, num_frames=13)
    assert not torch.allclose(result.latents, other.latents, atol=1e-3)
    with pytest.raises(UserError, match="starts from a picture"):
        pipe(prompt=RED, seed=1)


def test_what_does_not_fit_is_refused_before_any_work(
    pipe: Pipeline, micro_model_folder: Path, folders: dict[str, Path], image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_only = Pipeline.from_pretrained(str(micro_model_folder), device="cpu")
    with pytest.raises(UserError, match="from text alone"):
        text_only(prompt=RED, image=image)
    assert "dit" not in text_only.model.__dict__
    with pytest.raises(UserError, match="5 frames or more"):
        pipe(prompt=RED, image=image, num_frames=1)
    with pytest.raises(UserError, match="does not exist"):
        pipe(prompt=RED, image=image + ".none")
    (folders["root"] / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="not an image"):
        pipe(prompt=RED, image=str(folders["root"] / "text.png"))
    first_only = Pipeline.from_pretrained(
        str(_folder(folders["replace"], folders["root"] / "first-only", last_image=False)), device="cpu"
    )
    with pytest.raises(UserError, match="end on"):
        first_only(prompt=RED, image=image, last_image=image)


def test_the_picture_decides_the_size_where_asked(pipe: Pipeline, image: str) -> None:
    request = pipe.resolve(pipeline_module.Request(prompt=RED, image=image, i2v_resolution="360p"))
    assert (request.height, request.width) == (384, 576)
    again = pipe.resolve(request)
    assert (again.height, again.width, again.image) == (384, 576, request.image)
    own = pipe.resolve(pipeline_module.Request(prompt=RED, image=image))
    assert (own.height, own.width) == (32, 32)


def test_a_changed_picture_is_read_again(pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    random_image(32, 32, 1).save(path)
    first = pipe(prompt=RED, image=str(path), seed=1).latents
    random_image(32, 32, 2).save(path)
    assert not torch.equal(pipe(prompt=RED, image=str(path), seed=1).latents, first)


def test_the_record_is_in_the_file(pipe: Pipeline, image: str, tmp_path: Path) -> None:
    request = pipe.resolve(pipeline_module.Request(prompt="very " * 100 + RED, image=image, seed=1))
    (path,) = generate_files(pipe, request, [tmp_path / "out.mp4"])
    stored, made_by = read_request(path)
    assert stored.image == image
    assert made_by["numerics"]["name"] == "ours"
    assert made_by["image_condition"] == "token_replace"
    assert made_by["words_not_read"]["language_model"][0].endswith("black background")


def test_numerics_are_what_they_say(pipe: Pipeline) -> None:
    assert pick_numerics("auto", released=True) == pick_numerics("official", released=False) == OFFICIAL
    assert pick_numerics("auto", released=False) == pick_numerics("ours", released=True) == OURS
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 3.0])
    assert OFFICIAL.to_uint8(pixels).tolist() == [0, 0, 127, 254, 255]
    assert OURS.to_uint8(pixels).tolist() == [0, 0, 128, 255, 255]
    noise = torch.tensor([1.00012345])
    assert OFFICIAL.round_noise(noise).item() == 1.0
    assert OURS.round_noise(noise).item() == noise.item()
    ours, official = (pipe(prompt=RED, seed=1, numerics=name) for name in ("ours", "official"))
    assert 0 < float((ours.latents - official.latents).abs().max()) < 0.05
    assert (ours.record["numerics"]["noise"], official.record["numerics"]["noise"]) == ("float32", "float16")
    assert ours.record["numerics"]["tiles"] == [256, 192, 64, 48]


def test_large_text_encoders_are_given_back_and_the_prompt_is_read_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline.from_pretrained(str(folders["replace"]), device="cpu")
    wanted = pipe(prompt=RED, seed=1, num_videos=2).latents
    assert "text" in pipe.model.__dict__
    monkeypatch.setattr(pipeline_module, "KEEP_TEXT_BYTES", 0)
    pipe = Pipeline.from_pretrained(str(folders["replace"]), device="cpu")
    loads: list[bool] = []
    plain = type(pipe.model).text.func  # type: ignore[attr-defined]
    monkeypatch.setattr(type(pipe.model).text, "func", lambda model: loads.append("dit" in vars(model)) or plain(model))
    assert torch.equal(pipe(prompt=RED, seed=1, num_videos=2).latents, wanted)
    assert "text" not in pipe.model.__dict__
    assert loads == [False]  # once, before the transformer was there
    pipe(prompt=BLUE, seed=1)
    assert len(loads) == 2


def test_the_released_negative_prompt_serves_where_it_is_known(
    pipe: Pipeline, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    request = pipeline_module.Request(prompt=RED, image=image, seed=1)
    assert pipe.resolve(request).negative_prompt == ""
    monkeypatch.setattr(Pipeline, "_released", True)
    monkeypatch.setitem(NEGATIVE_PROMPTS, "image-to-video", hashlib.sha256(b"bad hands").hexdigest())
    (tmp_path / "constants.py").write_text("NEGATIVE = 'bad hands'")
    monkeypatch.setattr(pipe.model, "strings", str(tmp_path / "constants.py"))
    assert pipe.resolve(request).negative_prompt == "bad hands"
    assert pipe.resolve(request.replace(negative_prompt="")).negative_prompt == ""
    assert pipe.resolve(request.replace(true_cfg_scale=1.0)).negative_prompt == ""
