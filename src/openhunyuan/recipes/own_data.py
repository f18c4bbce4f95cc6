"""Fine-tuning on one's own data: the transformer of a model folder, on the latents that ``openhunyuan encode`` made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from openhunyuan.base.errors import UserError
from openhunyuan.latents.captions import CAPTION, CaptionAssembly
from openhunyuan.latents.resample import places
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.load import load_model, save_model_folder
from openhunyuan.recipes.stage_data import check_same_data, data_record, latent_draws, latent_folders, read_latents
from openhunyuan.recipes.world_latents import LatentBatches
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import Trainer
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask

NAME = "tiny-video-data"
BATCH_FRAMES = 256
"""Pixel frames of one batch, at most: 16 clips of 16 frames, or 7 of 33."""


def check_latents(data: Path) -> Path:
    """The one latent dataset of a folder. Raises UserError when there is none or more; reads no tensor."""
    first, *more = latent_folders(data)
    if more:
        names = ", ".join(folder.name for folder in (first, *more))
        raise UserError(f"{data} holds several sets of latents ({names}); name one: {first}.")
    return first


def config_for(datasets: Sequence[ShardDataset], steps: int) -> TrainConfig:
    """A run of so many steps over the shapes of datasets, each as often as its samples weigh."""
    shapes = []
    held = Counter(shape for dataset in datasets for shape in dataset.shapes)
    weighed = Counter(place.dataset.shapes[place.row] for place in places(datasets))
    for shape, share in weighed.items():
        _, frames, height, width = shape
        num_frames = (frames - 1) * 4 + 1
        batch = max(1, min(held[shape], BATCH_FRAMES // num_frames))
        shapes.append(
            BatchShape(batch_size=batch, num_frames=num_frames, height=height * 8, width=width * 8, share=share)
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


def train(
    data: Path,
    runs_dir: Path,
    steps: int,
    device: torch.device,
    model_name: str = "tiny",
    sample_latents: bool = False,
    uniform: bool = False,
) -> Path:
    """Train a model's transformer on a folder's latents; leaves a complete model folder in the run's directory.

    sample_latents: drawn anew in every epoch, in place of their mean. uniform: all clips come equally often, whatever
    weight their concept gives them.

    Raises UserError where `read_latents` does, and when the directory holds a run on other data.
    """
    model = load_model(model_name, device="cpu", dtype="float32")
    datasets = read_latents(data, model, uniform)
    run_dir = runs_dir / NAME
    record = {"data": data_record(data, datasets), "model": model_name, "weights": model.weights_name()}
    check_same_data(run_dir, record["data"])
    if sample_latents:
        record["sample_latents"] = True
    config = config_for(datasets, steps)
    torch.manual_seed(config.seed)
    dit = model.dit.requires_grad_(True).train()
    empty = model.text.encode([""])
    task = FlowTask(FlowConfig(), dit, EmptyText(empty.states[0][empty.mask[0]], empty.pooled[0]), {})
    said = any(CAPTION in dataset.metadata(row) for dataset in datasets for row in range(len(dataset)))
    captions = CaptionAssembly(model.text, config.seed) if said else None
    draws = latent_draws(datasets, config.seed) if sample_latents else None
    Trainer(config, task, LatentBatches(datasets, config.seed, captions, draws), run_dir, record, device).run()
    spec = model.spec
    save_model_folder(
        run_dir / "model",
        dit,
        model.vae,
        model.files.text_encoder,
        model.files.text_encoder_2,
        spec.defaults,
        spec.name,
        description=f"{spec.name}, trained for {steps} more steps on {record['data']['samples']} clips of {data.name}.",
        licence=spec.licence,
        image_condition_type=spec.image_condition_type,
        image_optional=spec.image_optional,
    )
    return run_dir
