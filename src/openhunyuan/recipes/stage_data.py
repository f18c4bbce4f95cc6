"""What the stages read: encoded shards of a folder, or the synthetic world, encoded at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.caption.schema import Caption
from openhunyuan.latents.captions import CAPTION
from openhunyuan.latents.shards import FORMAT, INDEX_NAME, ShardDataset
from openhunyuan.models.load import LoadedModel
from openhunyuan.recipes.world_latents import Encoders, WorldBucket, encode_world
from openhunyuan.train.config import BatchShape
from openhunyuan.train.loop import Batch

HELD_OUT = 16
"""Samples of a validation set, at most."""


def latent_folders(data: Path) -> list[Path]:
    """The latent datasets of a folder: itself, its ``latents``, or folders in either (one for each size).

    Raises:
        UserError: there are none.
    """
    places = [data, *sorted(data.glob("*")), *sorted(data.glob("latents/*"))]
    found = [place for place in places if _is_dataset(place / INDEX_NAME)]
    if not found:
        raise UserError(f"{data} holds no latents; make them with: openhunyuan encode {data}.")
    return found


def _is_dataset(index: Path) -> bool:
    try:
        return json.loads(index.read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_latents(data: Path, model: LoadedModel) -> list[ShardDataset]:
    """All datasets of a folder, checked.

    Raises:
        UserError: a shard that is cut off, latents of other weights than ``model``'s, a sample without a caption.
    """
    datasets = [ShardDataset(folder) for folder in latent_folders(data)]
    ours = model.weights_name().removeprefix(f"{model.spec.name}-")
    for dataset in datasets:
        made_with = str(dataset.index["provenance"].get("model"))
        if not made_with.endswith(f"-{ours}"):
            again = f"openhunyuan encode {data} --model {model.folder} --vae {model.files.vae}"
            raise UserError(
                f"The latents of {dataset.path} were made with another VAE or other text encoders than this run's, so "
                f"they mean nothing to it; encode again with: {again}."
            )
        for number in range(len(dataset)):
            fields = dataset.metadata(number).get(CAPTION)
            if not fields and not dataset[number].prompt.strip():
                raise UserError(f"Sample {number} of {dataset.path} has no caption; caption its clip and encode again.")
            if fields:
                _check_caption(fields, f"sample {number} of {dataset.path}")
    return datasets


def _check_caption(fields: Any, where: str) -> None:
    try:
        Caption(**fields)
    except (UserError, TypeError) as error:
        raise UserError(
            f"The caption of {where} cannot be used ({error}); caption its clip and encode again."
        ) from None


def data_record(data: Path, datasets: Sequence[ShardDataset]) -> dict[str, Any]:
    """For ``run.json``: the folder, how many samples, and a hash that changes when they do."""
    digest = hashlib.sha256(json.dumps([d.index["shards"] for d in datasets], sort_keys=True).encode()).hexdigest()
    return {"folder": str(data), "samples": sum(len(d) for d in datasets), "sha256": digest}


def encode_buckets(
    folder: Path, shapes: Sequence[BatchShape], clips: int, model: LoadedModel, camera_prob: float | None = None
) -> None:
    """Encode ``clips`` scenes of the world for each shape, and held-out ones for the largest image and video.

    ``camera_prob``: in what share of the training scenes the camera moves; None = the world's own.
    """
    for spec, place in _buckets(folder, shapes, clips, camera_prob):
        encode_world(place, spec, _encoders(model), model.device, os.cpu_count() or 1)


def read_buckets(
    folder: Path, shapes: Sequence[BatchShape], clips: int, camera_prob: float | None = None
) -> tuple[list[ShardDataset], dict[str, Batch]]:
    """What ``encode_buckets`` wrote: training sets, and validation batches by name."""
    train: list[ShardDataset] = []
    held: dict[str, Batch] = {}
    for spec, place in _buckets(folder, shapes, clips, camera_prob):
        dataset = ShardDataset(place)
        if spec.split == "train":
            train.append(dataset)
        else:
            held["image" if spec.num_frames == 1 else "video"] = dataset.batch(range(len(dataset)))
    return train, held


def _buckets(
    folder: Path, shapes: Sequence[BatchShape], clips: int, camera_prob: float | None
) -> list[tuple[WorldBucket, Path]]:
    found: dict[Path, WorldBucket] = {}
    kind = "" if camera_prob is None else f"-camera{camera_prob:g}"
    for shape in shapes:
        name = f"{shape.num_frames}x{shape.height}x{shape.width}"
        # Every set has scenes of its own.
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        spec = WorldBucket(count=clips, num_frames=shape.num_frames, size=shape.height, width=shape.width, seed=seed)
        if camera_prob is not None:
            spec = spec.model_copy(update={"camera_prob": camera_prob})
        found[folder / f"{name}-{clips}{kind}"] = spec
    for still in (True, False):
        of_kind = [s for s in shapes if (s.num_frames == 1) is still]
        if of_kind:
            largest = max(of_kind, key=lambda s: (s.num_frames * s.height * s.width, -abs(s.height - s.width)))
            spec = WorldBucket(
                count=min(HELD_OUT, clips), num_frames=largest.num_frames, size=largest.height, width=largest.width,
                split="heldout", seed=1,
            )  # fmt: skip
            found[folder / f"heldout-{spec.num_frames}x{spec.size}x{spec.width}-{spec.count}"] = spec
    return [(spec, place) for place, spec in found.items()]


def _encoders(model: LoadedModel) -> Encoders:
    files = model.files
    if files.layout != "openhunyuan":
        raise UserError("The synthetic world is encoded with a model folder of this package only; give --data.")
    return Encoders(files.vae, files.text_encoder, files.text_encoder_2)
