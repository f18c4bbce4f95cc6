"""Clips of one's own, encoded and trained on through the commands; which latents a folder stands for; stale ones."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import write_video
from openhunyuan.cli.main import main
from openhunyuan.curate.clip import CameraEvidence, CameraLabel, Clip, ClipCaption, clip_id
from openhunyuan.curate.run import read_clips, write_manifest
from openhunyuan.latents.plan import CostModel
from openhunyuan.latents.resample import CYCLE
from openhunyuan.latents.shards import INDEX_NAME, LatentSample, ShardDataset, write_index, write_shard
from openhunyuan.models.load import load_model
from openhunyuan.recipes import own_data
from openhunyuan.recipes.stage_data import data_record, latent_folders, read_latents
from openhunyuan.recipes.world_latents import LatentBatches
from openhunyuan.train.config import BatchShape, Stage
from openhunyuan.train.metrics import read_metrics
from openhunyuan.train.planned import PlannedBatches

SHAPE = BatchShape(batch_size=3, num_frames=5, height=32, width=32)


pytestmark = pytest.mark.usefixtures("micro_scale")


def caption(text: str, captioner: str = "vision", version: str = "1") -> ClipCaption:
    fields: dict[str, Any] = {
        "short": text,
        "dense": f"{text} moves over a black background",
        "style": "film",
        "camera": "static",
    }
    return ClipCaption(captioner=captioner, version=version, text=text, fields=fields)


def save_clips(data: Path, levels: Sequence[int]) -> None:
    """Grey clips of five frames at the micro model's rate, with captions, as curation and captioning leave them."""
    clips = []
    for level in levels:
        name = clip_id(str(level), 0, 5)
        write_video(data / f"clips/{name}.mp4", np.full((5, 32, 32, 3), level, np.uint8), 8.0)
        clips.append(
            Clip(
                id=name, source=f"{level}.mp4", source_sha256=str(level), start_frame=0, end_frame=5, fps=8.0,
                height=32, width=32, path=f"clips/{name}.mp4", captions=(caption(f"a circle of {level}"),),
            )
        )  # fmt: skip
    write_manifest(data, clips)


def encode(data: Path, model: Path, *more: str) -> None:
    assert main(["encode", str(data), "--model", str(model), "--device", "cpu", *more]) == 0


@pytest.fixture(scope="module")
def encoded(micro_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips, and their latents."""
    data = tmp_path_factory.mktemp("own") / "data"
    save_clips(data, [60, 120, 180])
    encode(data, micro_model_folder)
    return data


@pytest.fixture
def data(encoded: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(encoded, tmp_path / "data"))


def rewrite(data: Path, change) -> None:
    """Change the first clip of the manifest."""
    first, *rest = read_clips(data)
    write_manifest(data, [change(first), *rest])


def train_lora(data: Path, model: Path, *more: str) -> int:
    runs = ["--runs-dir", str(data.parent / "runs"), "--device", "cpu", "--steps", "2"]
    return main(["train", "lora", "--from", str(model), "--data", str(data), *runs, *more])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(said) == 1
    return said[0]


def moving(clip: Clip, gate: float) -> Clip:
    """The clip, its camera measured: it stands for the first two of the five frames that are encoded."""
    labels = tuple(CameraLabel(first=a, last=b, move=m, confidence=0.95) for a, b, m in MOVES)
    said = caption("a circle").model_copy(
        update={"camera": CameraEvidence(labels=labels, gate=gate, measure="camera@1")}
    )
    return clip.model_copy(update={"captions": (said,)})


MOVES = ((0, 2, "static"), (2, 5, "pan left"))


def test_another_gate_makes_latents_stale(
    data: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(data, lambda clip: moving(clip, 0.9))
    encode(data, micro_model_folder)
    (dataset,) = read_latents(data, load_model(str(micro_model_folder)))
    assert [dataset.metadata(row)["camera"] for row in range(3)] == [None, "static", "static"]
    for gate, label in ((0.5, "pan left"), (0.55, "pan left")):  # the second changes no label, and is told of
        rewrite(data, lambda clip, gate=gate: moving(clip, gate))
        said = refused(capsys, train_lora(data, micro_model_folder))
        assert "of 3 samples 1 have captions or camera labels that changed; encode again" in said
        encode(data, micro_model_folder)
        (dataset,) = read_latents(data, load_model(str(micro_model_folder)))
        assert dataset.metadata(0)["camera"] == dataset.metadata(0)["caption"]["camera"] == label


def test_latents_from_before_labels_were_those_of_the_encoded_frames_are_refused(
    data: Path, micro_model_folder: Path
) -> None:
    rewrite(data, lambda clip: clip.model_copy(update={"captions": (caption("a circle"),)}))  # as it was: "static"
    encode(data, micro_model_folder)
    rewrite(data, lambda clip: moving(clip, 0.9))
    with pytest.raises(UserError, match="1 have captions or camera labels that changed"):
        read_latents(data, load_model(str(micro_model_folder)))


def test_clips_become_latents_and_a_lora_and_other_data_is_not_gone_on_with(
    data: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_lora(data, micro_model_folder) == 0
    run = data.parent / "runs" / "lora"
    assert (run / "lora.safetensors").is_file()
    held = json.loads((run / "run.json").read_text())["data"]
    assert held["samples"] == 3 and held["folder"] == str(data)
    assert train_lora(data, micro_model_folder) == 0  # as it was
    rewrite(data, lambda clip: clip.model_copy(update={"captions": (caption("a red star"),)}))
    encode(data, micro_model_folder)
    said = refused(capsys, train_lora(data, micro_model_folder))
    assert f"holds a run on 3 samples of {data} ({held['sha256'][:12]}), but this one reads 3 samples" in said
    assert train_lora(data, micro_model_folder, "--name", "again") == 0


def test_a_model_further_trained_on_clips_notices_other_ones(data: Path, micro_model_folder: Path) -> None:
    def train() -> int:
        run = own_data.train(data, data.parent / "runs", 1, torch.device("cpu"), str(micro_model_folder))
        return sum("loss" in row for row in read_metrics(run / "metrics.jsonl"))

    steps = train()
    assert train() == steps  # nothing new to do
    rewrite(data, lambda clip: clip.model_copy(update={"captions": (caption("a red star"),)}))
    encode(data, micro_model_folder)
    with pytest.raises(UserError, match=r"holds a run on 3 samples of .*, but this one reads 3 samples .*--runs-dir"):
        train()


def test_latents_of_clips_that_were_dropped_or_captioned_anew_are_refused(
    data: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = read_clips(data)
    rewrite(data, lambda clip: clip.with_caption(caption("a star", version="2")))
    said = refused(capsys, train_lora(data, micro_model_folder))
    assert "of 3 samples 1 have captions or camera labels that changed; encode again" in said
    assert said.endswith(f"openhunyuan encode {data}.")
    write_manifest(data, [clip.drop("motion", "still") for clip in clips])
    assert "of 3 samples 3 are of clips that are no longer kept" in refused(
        capsys, train_lora(data, micro_model_folder)
    )
    with pytest.raises(UserError, match="3 are of clips that are no longer kept"):
        own_data.train(data, data.parent / "runs", 1, torch.device("cpu"), str(micro_model_folder))
    with pytest.raises(UserError, match="are no longer kept"):  # the dataset itself, beside the manifest
        read_latents(data / "latents", load_model(str(micro_model_folder)))
    assert not (data.parent / "runs").exists()
    # A dataset by itself is taken as it is, and so is one of a manifest that is as it was.
    alone = shutil.copytree(data / "latents", data.parent / "alone")
    assert len(read_latents(alone, load_model(str(micro_model_folder)))[0]) == 3
    write_manifest(data, clips)
    assert len(read_latents(data, load_model(str(micro_model_folder)))[0]) == 3


def test_newer_captions_of_another_captioner_are_said_or_refused_where_the_newest_were_asked_for(
    data: Path, micro_model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(str(micro_model_folder))
    rewrite(data, lambda clip: clip.with_caption(caption("a star", "person")))
    index = data / "latents" / INDEX_NAME
    held = json.loads(index.read_text())
    held["provenance"].pop("captioner", None)
    index.write_text(json.dumps(held))
    with caplog.at_level("WARNING", logger="openhunyuan"):
        assert len(read_latents(data, model)[0]) == 3
    assert "1 of 3 samples" in caplog.text and "newer ones of another captioner" in caplog.text
    held["provenance"]["captioner"] = None
    index.write_text(json.dumps(held))
    with pytest.raises(UserError, match="1 have captions or camera labels that changed"):
        read_latents(data, model)
    held["provenance"]["captioner"] = "vision"
    index.write_text(json.dumps(held))
    assert len(read_latents(data, model)[0]) == 3


def test_which_latents_a_folder_stands_for(encoded: Path, tmp_path: Path) -> None:
    latents = encoded / "latents"
    assert latent_folders(latents) == latent_folders(encoded) == [latents]
    with pytest.raises(UserError, match="holds no latents; make them with: openhunyuan encode"):
        latent_folders(tmp_path)
    low, mid = (shutil.copytree(latents, tmp_path / f"latents-{name}") for name in ("256p", "360p"))
    with pytest.raises(UserError, match=r"several sets of latents \(latents-256p, latents-360p\); name one: .*256p"):
        latent_folders(tmp_path)
    assert latent_folders(low) == [low]
    shutil.rmtree(mid)
    assert latent_folders(tmp_path) == [low]
    sizes = [shutil.copytree(latents, tmp_path / "latents" / name) for name in ("1x16x16", "5x32x32")]
    assert latent_folders(tmp_path) == latent_folders(tmp_path / "latents") == sizes
    with pytest.raises(UserError, match="several sets of latents"):
        own_data.check_latents(tmp_path)


def test_a_clip_s_draws_do_not_depend_on_the_clips_beside_it(
    encoded: Path, micro_model_folder: Path, tmp_path: Path
) -> None:
    save_clips(tmp_path, [30, 60, 120, 180])
    encode(tmp_path, micro_model_folder)
    few, more = ShardDataset(encoded / "latents"), ShardDataset(tmp_path / "latents")

    stage = Stage(name="s", steps=9, shapes=(SHAPE,))

    def keys(data: ShardDataset, planned: bool) -> dict[str, int]:
        source = PlannedBatches([data], CostModel(0, 1, 0), 3) if planned else LatentBatches([data], 0)
        batches = [source.batch(step, stage, SHAPE) for step in range(4)]
        parts = [part for batch in batches for _, part in batch["parts"]] if planned else batches
        drawn = torch.cat([part["keys"] for part in parts])
        names = {data.number(row, row): data.metadata(row)["clip"] for row in range(len(data))}
        return {names[number]: number for number in drawn[:, 0].tolist()}

    for planned in (False, True):
        before, after = keys(few, planned), keys(more, planned)
        assert len(before) == 3 and len(set(after.values())) == 4
        assert before == {name: after[name] for name in before}


@pytest.mark.parametrize("planned", [False, True])
def test_clips_come_by_the_weights_of_their_concepts(data: Path, micro_model_folder: Path, planned: bool) -> None:
    """In a cycle of `CYCLE` passes, a clip of weight 2 comes twice as often as one of weight 1, never drawn alike."""
    weights = (2.0, 0.75, 0.25)
    write_manifest(data, [c.model_copy(update={"weight": w}) for c, w in zip(read_clips(data), weights, strict=True)])
    model = load_model(str(micro_model_folder), device="cpu", dtype="float32")
    stage = Stage(name="s", steps=CYCLE, shapes=(SHAPE,))

    def drawn(datasets: list[ShardDataset]) -> list[tuple[int, int]]:
        source = PlannedBatches(datasets, CostModel(0, 1, 0), 3) if planned else LatentBatches(datasets, 0)
        batches = [source.batch(step, stage, SHAPE) for step in range(CYCLE)]
        parts = [part for batch in batches for _, part in batch["parts"]] if planned else batches
        return [(number, epoch) for part in parts for number, epoch in part["keys"].tolist()]

    (weighed,) = datasets = read_latents(data, model)
    keys = drawn(datasets)
    assert len(set(keys)) == len(keys) == 3 * CYCLE
    counts = Counter(number for number, _ in keys)
    assert weighed.weights is not None
    assert [counts[weighed.number(row, row)] for row in range(3)] == [round(CYCLE * w) for w in weighed.weights]
    assert sorted(weighed.weights) == sorted(weights)
    uniform = read_latents(data, model, uniform=True)
    assert set(Counter(number for number, _ in drawn(uniform)).values()) == {CYCLE}
    assert data_record(data, datasets)["sha256"] != data_record(data, uniform)["sha256"]


def test_weights_are_left_out_when_asked_and_refused_where_there_are_none(
    data: Path, micro_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(data, lambda clip: clip.model_copy(update={"weight": 3.0}))
    assert train_lora(data, micro_model_folder) == 0
    assert "holds a run on 3 samples" in refused(capsys, train_lora(data, micro_model_folder, "--uniform"))
    assert train_lora(data, micro_model_folder, "--uniform", "--name", "alike") == 0
    for recipe in ("lora", "tiny-image"):
        runs = ["--runs-dir", str(data.parent / "none")]
        assert "give them with --data" in refused(capsys, main(["train", recipe, "--uniform", *runs]))


def test_latents_are_drawn_when_asked_for(
    data: Path, micro_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[tuple[int, int]] = []
    real = LatentSample.drawn

    def watched(self: LatentSample, seed: int, number: int, epoch: int) -> LatentSample:
        drawn.append((number, epoch))
        return real(self, seed, number, epoch)

    monkeypatch.setattr(LatentSample, "drawn", watched)
    assert train_lora(data, micro_model_folder, "--name", "means") == 0 and not drawn
    assert train_lora(data, micro_model_folder, "--name", "draws", "--sample-latents") == 0
    assert len(set(drawn)) >= 3
    losses = [[row["loss"] for row in read_metrics(data.parent / f"runs/{name}/metrics.jsonl") if "loss" in row]
              for name in ("means", "draws")]  # fmt: skip
    assert losses[0] != losses[1]
    drawn.clear()
    run = own_data.train(
        data, data.parent / "more", 1, torch.device("cpu"), str(micro_model_folder), sample_latents=True
    )
    assert drawn and json.loads((run / "run.json").read_text())["sample_latents"]

    old = data.parent / "old"
    sample = LatentSample(torch.zeros(16, 2, 4, 4), torch.zeros(4, 32), torch.zeros(32), "a red circle")
    write_shard(old / "shard-00000.safetensors", [sample])
    write_index(old, ["shard-00000.safetensors"], {"model": load_model(str(micro_model_folder)).weights_name()})
    assert "holds no variances" in refused(capsys, train_lora(old, micro_model_folder, "--sample-latents"))
    for recipe, said in (("lora", "give them with --data"), ("tiny-image", "give them with --data")):
        assert said in refused(capsys, main(["train", recipe, "--sample-latents", "--runs-dir", str(old)]))
    vae = ["train", "vae", "--sample-latents", "--data", str(data), "--runs-dir", str(old)]
    assert "is for the stages on latents" in refused(capsys, main(vae))
