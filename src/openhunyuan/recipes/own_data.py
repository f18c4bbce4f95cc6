"""Fine-tuning on one's own data: the transformer of a model folder, on the latents that ``openhunyuan encode`` made."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from openhunyuan.base.errors import UserError
from openhunyuan.latents.captions import CAPTION, CaptionAssembly
from openhunyuan.latents.shards import INDEX_NAME, ShardDataset
from openhunyuan.models.load import load_model, save_model_folder
from openhunyuan.recipes.world_latents import LatentBatches
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask

NAME = "tiny-video-data"
BATCH_FRAMES = 256
"""Pixel frames of one batch, at most: 16 clips of 16 frames, or 7 of 33."""


def check_latents(data: Path) -> Path:
    """The latents of a data folder. Raises UserError when there are none; reads no tensor."""
    folder = data / "latents"
    if not (folder / INDEX_NAME).is_file():
        raise UserError(f"{data} holds no latents; make them with: openhunyuan encode {data}.")
    return folder


def config_for(dataset: ShardDataset, steps: int) -> TrainConfig:
    """A run of so many steps over the shapes of a dataset, each as often as it has samples."""
    shapes = []
    for (_, frames, height, width), rows in dataset.buckets().items():
        num_frames = (frames - 1) * 4 + 1
        batch = max(1, min(len(rows), BATCH_FRAMES // num_frames))
        shapes.append(
            BatchShape(batch_size=batch, num_frames=num_frames, height=height * 8, width=width * 8, share=len(rows))
        )
    return TrainConfig(
        name=NAME,
        stages=(Stage(name="data", steps=steps, shapes=tuple(shapes)),),
        # A tenth of the peak rates of training from nothing: what is there shall not be lost.
        optimizer=OptimizerConfig(lr=1e-4, warmup_steps=min(20, steps), schedule="constant"),
        ema_decay=0.99,
        checkpoint_every=100,
        sample_every=0,
        validate_every=0,
        log_every=10,
    )


def train(data: Path, runs_dir: Path, steps: int, device: torch.device, model_name: str = "tiny") -> Path:
    """Train a model's transformer on DATA/latents; leaves a complete model folder in the run's directory.

    Raises UserError when the latents were made with another model: they would mean nothing to this one.
    """
    folder = check_latents(data)
    model = load_model(model_name, device="cpu", dtype="float32")
    made_with = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["provenance"].get("model")
    if made_with != model.weights_name():
        raise UserError(
            f"The latents of {data} were made with other weights than those of {model_name}; "
            f"encode again with: openhunyuan encode {data} --model {model_name}."
        )
    dataset = ShardDataset(folder)
    config = config_for(dataset, steps)
    torch.manual_seed(config.seed)
    dit = model.dit.requires_grad_(True).train()
    empty = model.text.encode([""])
    task = FlowTask(FlowConfig(), dit, EmptyText(empty.states[0][empty.mask[0]], empty.pooled[0]), {})
    run_dir = runs_dir / config.name
    record = {"data": str(data), "model": model_name, "weights": made_with}
    said = any(CAPTION in dataset.metadata(row) for row in range(len(dataset)))
    captions = CaptionAssembly(model.text, config.seed) if said else None
    Trainer(config, task, LatentBatches([dataset], config.seed, captions), run_dir, record, device).run()
    spec = model.spec
    save_model_folder(
        run_dir / "model",
        dit,
        model.vae,
        model.files.text_encoder,
        model.files.text_encoder_2,
        spec.defaults,
        spec.name,
        description=f"{spec.name}, trained for {steps} more steps on {len(dataset)} clips of {data.name}.",
        licence=spec.licence,
        image_condition_type=spec.image_condition_type,
        image_optional=spec.image_optional,
    )
    return run_dir
