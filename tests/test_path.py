"""The whole path in one test: footage, shots, captions, latents, training, a prompt, an mp4, a measurement.

Everything is real but small: a micro model on 32×32 pixels, trained for a handful of steps. It shows no prompt; that
the rooms fit together is the claim.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import read_metadata, read_video
from openhunyuan.cli.main import main
from openhunyuan.curate.clip import Clip, ClipCaption, read_manifest
from openhunyuan.curate.run import Plan, curate
from openhunyuan.evals.run import run_alignment
from openhunyuan.latents.encode import Encoders, encode_clips, to_pixels
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import save_model_folder
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.recipes.tiny_text import TinyTextConfig, world_data
from openhunyuan.recipes.world_latents import LatentBatches
from openhunyuan.tiny.raw import RawTruth, write_raw_footage
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Batch, Trainer
from openhunyuan.train.tasks.autoencode import AutoencodeConfig, AutoencodeTask
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask
from openhunyuan.train.tasks.text import ClipSize, LlamaSize, TextTrainConfig, train_text

SIZE = VideoSize(9, 32, 32)
FPS = 6.0
PROMPT = "a large red circle moves right on a black background"


def caption_from_truth(clip: Clip, truth: RawTruth) -> Clip:
    """The clip with the caption and camera move of the shot it lies in."""
    middle = (clip.start_frame + clip.end_frame) // 2
    shot = next(s for s in truth.shots if s.start_frame <= middle < s.end_frame)
    words = ClipCaption(captioner="truth", text=shot.prompt, fields=shot.caption.model_dump(mode="json"))
    return clip.with_caption(words).model_copy(update={"camera": shot.camera})


class ClipFrames:
    """Source for the VAE: the curated clips' own frames."""

    def __init__(self, clips: list[Clip], folder: Path) -> None:
        videos = [read_video(folder / str(clip.path))[0][::4] for clip in clips]
        self.videos = [to_pixels(v[: SIZE.num_frames], SIZE.height, SIZE.width)[0] for v in videos]

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        picks = [(step * shape.batch_size + i) % len(self.videos) for i in range(shape.batch_size)]
        return {"video": torch.stack([self.videos[i] for i in picks])}


def run_config(name: str, steps: int, batch_size: int, lr: float) -> TrainConfig:
    shape = BatchShape(batch_size=batch_size, num_frames=SIZE.num_frames, height=SIZE.height, width=SIZE.width)
    return TrainConfig(
        name=name,
        stages=(Stage(name="only", steps=steps, shapes=(shape,)),),
        optimizer=OptimizerConfig(lr=lr, warmup_steps=2, schedule="constant"),
        ema_decay=0.5,
        checkpoint_every=1000,
        sample_every=0,
        validate_every=1000,
        log_every=1,
    )


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def train_micro_text(folder: Path) -> None:
    config = TextTrainConfig(
        tokenizer_samples=200,
        llm=LlamaSize(
            hidden_size=32, num_layers=3, num_heads=2, num_kv_heads=1, intermediate_size=48, vocab_size=400,
            steps=3, batch_size=4,
        ),
        clip=ClipSize(
            hidden_size=32, intermediate_size=48, num_heads=2, num_text_layers=1, num_vision_layers=1,
            projection_size=32, image_size=32, vocab_size=400, steps=3, batch_size=4,
        ),
        probe_train=40,
        probe_heldout=20,
    )  # fmt: skip
    train_text(config, world_data(TinyTextConfig(train=config)), folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Micro networks are slower on several threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_path(tmp_path: Path) -> None:
    torch.manual_seed(0)

    # Footage → clips with captions.
    raw, data, runs = tmp_path / "raw", tmp_path / "data", tmp_path / "runs"
    raw.mkdir()
    truth = write_raw_footage(raw / "a.mp4", seed=1, duration_s=16.0, fps=24.0, height=64, width=64, defects=())
    curated = curate(raw, data, Plan()).clips
    assert read_manifest(data / "manifest.jsonl") == list(curated)
    clips = [caption_from_truth(clip, truth) for clip in curated]
    assert [clip.captions[0].text for clip in clips] == [shot.prompt for shot in truth.shots]

    # A micro VAE on the clips; micro text encoders on the world's words.
    vae = CausalVAE(
        VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0)
    )
    only_l1 = AutoencodeConfig(perceptual_weight=0, adversarial_weight=0)
    task = AutoencodeTask(only_l1, vae, None, {})
    Trainer(run_config("vae", 12, 2, 3e-3), task, ClipFrames(clips, data), runs / "vae").run()
    vae.requires_grad_(False)
    assert np.mean(losses(runs / "vae")[-3:]) < np.mean(losses(runs / "vae")[:3])
    train_micro_text(runs / "text")
    text = TextEncoder.from_folder(runs / "text/text_encoder", runs / "text/text_encoder_2")

    # Clips → latents.
    report = encode_clips(clips, data, tmp_path / "latents", Encoders.of(vae, text, "micro"), SIZE, fps=FPS)
    dataset = ShardDataset(tmp_path / "latents")
    assert report.samples == len(dataset) == len(clips)
    assert dataset[0].latents.shape == (16, 3, 4, 4)

    # Latents → a few training steps → a model folder.
    dit = DiT(
        DiTConfig(
            hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1, num_refiner_blocks=1,
            rope_axes_dim=(4, 6, 6), text_dim=text.states_width, pooled_dim=text.pooled_width, guidance_embed=False,
        )
    )  # fmt: skip
    dit.init_weights()
    empty = text.encode([""])
    flow = FlowTask(FlowConfig(), dit, EmptyText(empty.states[0][empty.mask[0]], empty.pooled[0]), {})
    Trainer(run_config("dit", 6, 4, 1e-3), flow, LatentBatches([dataset], 0), runs / "dit").run()
    assert np.isfinite(losses(runs / "dit")).all()
    assert any(bool(p.abs().sum()) for p in dit.final_layer.linear.parameters()), "the zero output layer has not moved"
    defaults = {
        "height": SIZE.height, "width": SIZE.width, "num_frames": SIZE.num_frames, "num_inference_steps": 3,
        "true_cfg_scale": 2.0, "flow_shift": 2.0, "fps": FPS,
    }  # fmt: skip
    model = tmp_path / "model"
    save_model_folder(model, dit, vae, runs / "text/text_encoder", runs / "text/text_encoder_2", defaults, "micro")

    # A prompt → an mp4 that carries its request → the same frames again.
    out, again = tmp_path / "out.mp4", tmp_path / "again.mp4"
    assert main(["generate", "--model", str(model), "--prompt", PROMPT, "--seed", "1", "--output-path", str(out)]) == 0
    frames, fps = read_video(out)
    assert (frames.shape, fps) == ((9, 32, 32, 3), FPS)
    assert read_metadata(out)["prompt"] == PROMPT
    assert main(["replay", str(out), "--output-path", str(again)]) == 0
    assert np.array_equal(read_video(again)[0], frames)

    # A measurement that says what an untrained model deserves.
    measured = run_alignment(
        str(model),
        num_prompts=4,
        camera_prompts=0,
        output_dir=tmp_path / "eval",
        json_path=tmp_path / "report.json",
        show=False,
    )
    assert measured.num_prompts == 4
    assert json.loads((tmp_path / "report.json").read_text())["split"] == "heldout"
