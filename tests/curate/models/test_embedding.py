"""Towers from local folders: what a measure gives is what `transformers` gives for the same frames."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from openhunyuan.base.errors import UserError
from openhunyuan.curate.models.aesthetic import ClipAesthetic, Head
from openhunyuan.curate.models.embedding import Embedding, spread
from openhunyuan.curate.models.pictures import Preparation
from tests.curate.measures.test_measures import measured
from tests.curate.models import folders
from tests.curate.models.folders import frames


def unit(x: torch.Tensor) -> torch.Tensor:
    return functional.normalize(x, dim=-1)


def by_transformers(folder: Path, shown: list[np.ndarray]) -> torch.Tensor:
    """Image features as the library's own classes make them, processor and whole model."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(shown, return_tensors="pt")
    with torch.no_grad():
        found = model.get_image_features(**inputs)
    return found if isinstance(found, torch.Tensor) else found.pooler_output


@pytest.mark.parametrize("make", [folders.clip, folders.siglip, folders.siglip2])
def test_image_towers_agree_with_the_library(tmp_path: Path, make) -> None:
    folder = make(tmp_path / "tower")
    film = frames(20)
    row = measured(Embedding(path=str(folder), moments=5, batch=2, device="cpu"), film)
    wanted = unit(unit(by_transformers(folder, list(film[spread(20, 5)]))).mean(dim=0))
    assert row["tower"] == make.__name__
    np.testing.assert_allclose(row["vector"], wanted.numpy(), atol=2e-6)
    other = measured(Embedding(path=str(folder), moments=5, device="cpu"), frames(20, seed=3))
    assert float(np.dot(row["vector"], other["vector"])) < 0.999


@pytest.mark.parametrize("make", [folders.videomae, folders.vjepa2, folders.videoprism])
def test_video_towers_see_all_frames_at_once(tmp_path: Path, make) -> None:
    folder = make(tmp_path / "tower")
    film = frames(20)
    stage = Embedding(path=str(folder), device="cpu")
    row = measured(stage, film)
    pixels = Preparation.of(folder)(film[spread(20, 4)]).unsqueeze(0)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if make is folders.videoprism:
            features = model.get_video_features(pixel_values_videos=pixels).pooler_output[0, 0]
        elif make is folders.vjepa2:
            features = model.get_vision_features(pixels).mean(dim=1)[0]
        else:
            features = model(pixel_values=pixels).last_hidden_state.mean(dim=1)[0]
    np.testing.assert_allclose(row["vector"], unit(features).numpy(), atol=2e-6)
    backwards = measured(stage, film[::-1])["vector"]
    assert np.abs(np.subtract(backwards, row["vector"])).max() > 1e-4
    assert len(measured(stage, film[:2])["vector"]) == len(row["vector"])  # fewer frames than it looks at


def test_pictures_are_prepared_as_the_library_prepares_them(tmp_path: Path) -> None:
    shown = [frames(1, 45, 90)[0], frames(1, 90, 45)[0], frames(1, 20, 20)[0]]
    processors = (
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 36, "width": 28}),
        transformers.SiglipImageProcessorPil(size={"height": 24, "width": 40}),
        transformers.RTDetrImageProcessorPil(size={"height": 32, "width": 32}),
    )
    for number, processor in enumerate(processors):
        processor.save_pretrained(tmp_path / str(number))
        wanted = processor(shown, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(Preparation.of(tmp_path / str(number))(shown), wanted, atol=1e-5, rtol=0)


def test_the_aesthetic_head_sits_on_clips_unit_vectors(tmp_path: Path) -> None:
    folder, file = folders.clip(tmp_path / "clip"), tmp_path / "head.pth"
    torch.manual_seed(0)
    head = Head(24)
    state = head.state_dict()
    assert list(state)[::2] == [f"layers.{i}.weight" for i in (0, 2, 4, 6, 7)]
    torch.save(state, file)
    film = frames(12)
    row = measured(ClipAesthetic(path=str(folder), head=str(file), moments=3, device="cpu"), film)
    x = unit(by_transformers(folder, list(film[spread(12, 3)])))
    for i in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
    assert row["aesthetic"] == pytest.approx(float(x.mean()), abs=1e-5)
    assert row["aesthetic_min"] == pytest.approx(float(x.min()), abs=1e-5)
    one = {"weight": torch.randn(1, 24), "bias": torch.zeros(1)}
    torch.save(one, file)
    row = measured(ClipAesthetic(path=str(folder), head=str(file), moments=3, device="cpu"), film)
    by_hand = unit(by_transformers(folder, list(film[spread(12, 3)]))) @ one["weight"].T
    assert row["aesthetic"] == pytest.approx(float(by_hand.mean()), abs=1e-5)
    torch.save(Head(32).state_dict(), file)
    with pytest.raises(UserError, match=r"layers.0.weight has shape \[1024, 32\]"):
        ClipAesthetic(path=str(folder), head=str(file)).check()


def test_other_weights_are_another_stage_and_a_moved_folder_is_not(tmp_path: Path) -> None:
    one = Embedding(path=str(folders.siglip(tmp_path / "a")))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = Embedding(path=str(tmp_path / "b"), device="cpu", batch=3)
    assert (moved.key, moved.weights) == (one.key, one.weights)
    assert one.describe()["parameters"] == {"moments": 8}
    sent = pickle.loads(pickle.dumps(moved))  # to a worker
    assert (sent, sent.key, sent.device, sent.resources.gpus) == (moved, moved.key, "cpu", 0)
    (tmp_path / "b/preprocessor_config.json").write_text("{}")
    assert Embedding(path=str(tmp_path / "b")).key != one.key


def test_folders_that_are_no_tower_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no weights at"):
        Embedding(path=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        Embedding(path=str(tmp_path / "empty")).check()
    folder = folders.siglip(tmp_path / "tower")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors weights; pickle"):
        Embedding(path=str(folder)).check()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="Unknown model type bert"):
        Embedding(path=str(folder)).check()
    with pytest.raises(UserError, match="Unknown device 'tpu9'"):
        Embedding(path=str(folder), device="tpu9")
