"""Training the text models on a toy language: they learn, resume, and export folders that the encoder reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CLIPModel

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.tasks.text import (
    ClipSize,
    ClipTask,
    LabelledScene,
    LlamaSize,
    LlamaTask,
    TextData,
    TextTrainConfig,
    linear_probe,
    to_pixels,
    train_text,
)

COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


def _sample(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    name = list(COLORS)[int(rng.integers(3))]
    return name, np.broadcast_to(np.array(COLORS[name], np.uint8), (16, 16, 3)).copy()


def _labelled(rng: np.random.Generator, heldout: bool) -> LabelledScene:
    name, frame = _sample(rng)
    return LabelledScene(prompt=f"a {name} picture", frame=frame, labels={"color": name}, visible=("color",))


def _pairs(rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, list[str]]]:
    drawn = [_sample(rng) for _ in range(count)]
    return [(frame, [f"a {name} picture", f"everything is {name}"]) for name, frame in drawn]


def _prompts(rng: np.random.Generator) -> list[str]:
    name, _ = _sample(rng)
    return [f"a {name} picture", f"everything is {name}"]


DATA = TextData(sample_prompts=_prompts, sample_pairs=_pairs, labelled=_labelled)
FAST = OptimizerConfig(lr=5e-3, warmup_steps=3)
CONFIG = TextTrainConfig(
    tokenizer_samples=50,
    llm=LlamaSize(
        hidden_size=32,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
        vocab_size=320,
        max_tokens=40,
        answer_tokens=16,
        steps=25,
        batch_size=8,
        optimizer=FAST,
    ),
    clip=ClipSize(
        hidden_size=32,
        intermediate_size=32,
        num_heads=2,
        num_text_layers=1,
        num_vision_layers=1,
        projection_size=16,
        image_size=16,
        vocab_size=300,
        max_tokens=20,
        steps=25,
        batch_size=6,
        optimizer=FAST,
    ),
    probe_train=60,
    probe_heldout=30,
    checkpoint_every=10,
    log_every=5,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    train_text(CONFIG, DATA, folder)
    return folder


def _losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_both_losses_fall_and_the_report_knows_the_colour(trained: Path) -> None:
    for run in ("llm-run", "clip-run"):
        losses = _losses(trained / run)
        assert losses[-1] < 0.7 * losses[0], run
    report = json.loads((trained / "report.json").read_text())
    assert report["probe_mean"]["color"] == report["probe_pooled"]["color"] == 1.0
    assert report["clip_retrieval"]["color"] > 0.9
    assert report["prompt_tokens"]["max"] < 20


def test_the_folders_load_as_ordinary_models(trained: Path) -> None:
    encoder = TextEncoder.from_folder(trained / "text_encoder", trained / "text_encoder_2")
    features = encoder.encode(["a red picture", ""])
    assert features.states.shape[2] == 32
    assert torch.isfinite(features.states).all()
    assert features.mask.sum(1).tolist()[1] == 1
    llm = AutoModelForCausalLM.from_pretrained(str(trained / "text_encoder"))
    assert len(llm.model.layers) == 3
    assert llm.dtype == torch.float16 or llm.config.dtype == torch.float16
    clip = CLIPModel.from_pretrained(str(trained / "clip"))
    pixels = to_pixels([np.zeros((16, 16, 3), np.uint8)])
    assert clip.vision_model(pixels).last_hidden_state.shape == (1, 5, 32)
    assert pixels.min() == -1.0


def test_a_finished_run_is_only_loaded(trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.glob("*/model.safetensors")}
    assert len(before) == 3
    rows = _losses(trained / "llm-run")
    train_text(CONFIG, DATA, trained)
    assert {path: path.read_bytes() for path in before} == before
    assert _losses(trained / "llm-run") == rows


def test_a_stopped_run_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    # Stopped before the first checkpoint: the tokenizers are there, nothing else is.
    shutil.copytree(trained, tmp_path / "again")
    for path in (tmp_path / "again").glob("*/model.safetensors"):
        path.unlink()
    for path in (tmp_path / "again").glob("*-run/checkpoints"):
        shutil.rmtree(path)
    train_text(CONFIG, DATA, tmp_path / "again")
    for name in ("text_encoder", "text_encoder_2", "clip"):
        one, two = (load_file(folder / name / "model.safetensors") for folder in (trained, tmp_path / "again"))
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert torch.equal(value, two[key]), key


def test_another_config_in_the_same_folder_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="another run"):
        train_text(CONFIG.model_copy(update={"seed": 1}), DATA, trained)


def test_batches_depend_on_seed_and_step_alone(trained: Path) -> None:
    encoder = TextEncoder.from_folder(trained / "text_encoder", trained / "text_encoder_2")
    llm = LlamaTask(CONFIG, DATA, encoder.llm.tokenizer, encoder.templates.video)
    clip = ClipTask(CONFIG, DATA, encoder.clip.tokenizer)
    stage = llm.train_config.stages[0]
    for task, key in ((llm, "ids"), (clip, "pixels")):
        one, two, three = (task.batch(step, stage, stage.shapes[0])[key] for step in (7, 7, 8))
        assert torch.equal(one, two)
        assert one.shape != three.shape or not torch.equal(one, three)
    batch = llm.batch(0, stage, stage.shapes[0])
    crop = encoder.templates.video.crop_start
    assert (batch["labels"][:, :crop] == -100).all()
    assert torch.equal(batch["labels"][0, crop : crop + 5], batch["ids"][0, crop : crop + 5])


def test_the_probe_can_say_no() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 8, generator=generator)
    labels = ["ab"[int(i)] for i in torch.randint(2, (400,), generator=generator)]
    assert linear_probe(noise[:300], labels[:300], noise[300:], labels[300:]) < 0.7
    noise[:, 3] += torch.tensor([8.0 if label == "a" else 0.0 for label in labels])
    assert linear_probe(noise[:300], labels[:300], noise[300:], labels[300:]) > 0.97
