"""The official latent cache as its extraction writes it, with every fault that is known of it planted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.latents.encode import Encoders
from openhunyuan.latents.official import REPORT, import_cache, read_cache
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.vae.config import VAEConfig
from tests.latents.test_encode import LengthText, MeanVAE

CONFIG = VAEConfig()
ENCODERS = Encoders.of(MeanVAE(), LengthText(), "m")


def save(cache: Path, name: str, shape: tuple[int, ...] = (1, 16, 3, 4, 6), **changed: Any) -> np.ndarray:
    """A latent and its JSON as the extraction leaves them."""
    latent = np.random.default_rng(len(name)).normal(size=shape).astype(np.float16)
    (cache / "json_path").mkdir(parents=True, exist_ok=True)
    np.save(cache / f"{name}.npy", latent)
    values = {
        "video_id": name,
        "latent_shape": list(shape),
        "video_path": "/",
        "prompt": f"prompt of {name}",
        "npy_save_path": f"/elsewhere/{name}.npy",
    }
    text = json.dumps({**values, **changed}, ensure_ascii=False)
    (cache / f"json_path/{name}.json").write_text(text, encoding="utf-8")
    return latent


def listing(folder: Path, *inputs: tuple[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for i, (source, prompt) in enumerate(inputs):
        (folder / f"{i}.json").write_text(json.dumps({"video_path": source, "raw_caption": {"long caption": prompt}}))
    (folder / "meta_file.list").write_text("".join(f"/lost/place/{i}.json\n" for i in range(len(inputs))))
    return folder / "meta_file.list"


def test_latents_are_scaled_and_prompts_encoded(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    latent = save(cache, "a", video_path="/films/a.mp4")
    save(cache, "wide", shape=(1, 16, 1, 4, 8), video_path="/films/wide.mp4")
    report = import_cache(read_cache(cache), out, ENCODERS, CONFIG)
    assert (report.samples, report.repaired, report.problems) == (2, (), ())
    dataset = ShardDataset(out)
    assert dataset.shapes == [(16, 1, 4, 8), (16, 3, 4, 6)]
    sample = dataset[1]
    expected = torch.from_numpy(latent[0]).float() * CONFIG.scaling_factor
    assert torch.equal(sample.latents, expected.half())
    assert (sample.prompt, sample.metadata["source"], len(sample.states)) == ("prompt of a", "/films/a.mp4", 3)
    with pytest.raises(UserError, match="none can be drawn"):
        sample.drawn(0, 0, 0)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    import_cache(read_cache(cache), out, ENCODERS, CONFIG)
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_every_known_fault_is_repaired_or_named(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    for name in ("letter", "recaptioned", "shape", "twice", "cut", "huge", "nojson", "noprompt", "odd"):
        save(cache, name)
    save(cache, "shape", latent_shape=[1, 16, 9, 9, 9])
    save(cache, "noprompt", prompt="")
    save(cache, "odd", shape=(1, 16, 3, 5, 6))
    (cache / "json_path/nojson.json").unlink()
    save(cache, "neither")
    (cache / "json_path/neither.json").unlink()
    save(cache, "nolatent")
    (cache / "nolatent.npy").unlink()
    (cache / "cut.npy").write_bytes((cache / "cut.npy").read_bytes()[:300])
    (cache / "huge.npy").unlink()
    np.save(cache / "huge.npy", np.full((1, 16, 3, 4, 6), np.inf, np.float16))
    (cache / "json_path/broken.json").write_text("{")
    np.save(cache / "broken.npy", np.zeros((1, 16, 3, 4, 6), np.float16))
    meta = listing(
        tmp_path / "meta",
        ("/films/letter.mp4", "prompt of letter"),
        ("/films/recaptioned.mp4", "a better prompt"),
        ("/films/nojson.mp4", "found in the list"),
        ("/films/one/twice.mp4", "a"),
        ("/films/two/twice.mp4", "b"),
        ("/films/never.mp4", "dropped with an error"),
    )
    found = read_cache(cache, meta)
    assert {entry.id: entry.source for entry in found.entries} == {
        "letter": "/films/letter.mp4",
        "nojson": "/films/nojson.mp4",
        "recaptioned": "/films/recaptioned.mp4",
        "shape": None,
    }
    report = import_cache(found, out, ENCODERS, CONFIG)
    assert {sample.metadata["clip"]: sample.prompt for sample in ShardDataset(out).samples} == {
        "letter": "prompt of letter",
        "nojson": "found in the list",
        "recaptioned": "a better prompt",
        "shape": "prompt of shape",
    }
    repaired = {name: [what for n, what in report.repaired if n == name] for name, _ in report.repaired}
    assert "one letter" in repaired["letter"][0]
    assert "JSON file was lost" in repaired["nojson"][0]
    assert "not the list's" in repaired["recaptioned"][0]
    assert "source is unknown" in repaired["shape"][0] and "it is [1, 16, 3, 4, 6]" in repaired["shape"][1]
    for name, why in (
        ("twice", "2 videos of the list"), ("cut", "cut off"), ("huge", "not finite"), ("neither", "no JSON file"),
        ("nolatent", "no latent"), ("never", "was never encoded"), ("noprompt", "no prompt"), ("odd", "height"),
        ("broken", "cannot be read"),
    ):  # fmt: skip
        assert why in dict(found.left_out)[name], name
    written = json.loads((out / REPORT).read_text())
    assert (written["samples"], len(written["left_out"]), len(written["repaired"])) == (4, 9, 6)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_cache(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not an official latent cache"):
        read_cache(tmp_path / "empty")
    cache = tmp_path / "cache"
    save(cache, "a", prompt="")
    with pytest.raises(UserError, match=r"None of the 1 latents .* a has no prompt"):
        read_cache(cache)
    save(cache, "a", shape=(1, 8, 3, 4, 6))
    with pytest.raises(UserError, match="have 8 channels, those of the model's VAE 16"):
        import_cache(read_cache(cache), tmp_path / "out", ENCODERS, CONFIG)
    (tmp_path / "list").write_text("/nowhere/0.json\n")
    with pytest.raises(UserError, match=r"names /nowhere/0.json, which is not there"):
        read_cache(cache, tmp_path / "list")
    (tmp_path / "0.json").write_text('{"video_path": "a"}')
    with pytest.raises(UserError, match="long caption"):
        read_cache(cache, tmp_path / "list")
