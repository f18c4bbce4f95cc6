"""What the stages read: encoded shards of a folder, or the synthetic world, encoded at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.record import read_json
from openhunyuan.base.sizes import LatentSize
from openhunyuan.caption.camera import gate_of
from openhunyuan.caption.schema import Caption
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.run import MANIFEST, read_clips
from openhunyuan.latents import store
from openhunyuan.latents.captions import CAPTION
from openhunyuan.latents.encode import GATES, shown_caption
from openhunyuan.latents.shards import FORMAT, INDEX_NAME, LatentDraws, ShardDataset
from openhunyuan.models.load import LoadedModel
from openhunyuan.recipes.lineage import RUN
from openhunyuan.recipes.world_latents import Encoders, WorldBucket, encode_world
from openhunyuan.train.config import BatchShape
from openhunyuan.train.loop import Batch

LATENTS = "latents"
HELD_OUT = 16
"""Samples of a validation set, at most."""


def latent_folders(data: Path) -> list[Path]:
    """The latent datasets that a folder stands for: itself, its ``latents``, all folders in that (one for each size),
    or the only one there is.

    Raises:
        UserError: there is none, or several that nobody put together.
    """
    for place in (data, data / LATENTS):
        if _is_dataset(place):
            return [place]
    sizes = [
        place for place in sorted((data if data.name == LATENTS else data / LATENTS).glob("*")) if _is_dataset(place)
    ]
    found = sizes or [place for place in sorted(data.glob("*")) if _is_dataset(place)]
    if not found:
        raise UserError(f"{data} holds no latents; make them with: openhunyuan encode {data}.")
    if len(found) > 1 and not sizes:
        raise UserError(
            f"{data} holds several sets of latents ({', '.join(place.name for place in found)}); name one: {found[0]}."
        )
    return found


def _is_dataset(folder: Path) -> bool:
    try:
        return json.loads((folder / INDEX_NAME).read_text(encoding="utf-8")).get("format") in (FORMAT, store.FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


def read_latents(data: Path, model: LoadedModel, uniform: bool = False) -> list[ShardDataset]:
    """The datasets that a folder stands for, checked; with their clips' weights, where a manifest beside them has any
    and not ``uniform``.

    Raises:
        UserError: none, or several that nobody put together; a file that is cut off; latents of other weights than
            ``model``'s; a sample without a caption; samples that the manifest beside them no longer has like this.
    """
    datasets = [ShardDataset(folder) for folder in latent_folders(data)]
    ours = model.weights_name().removeprefix(f"{model.spec.name}-")
    for dataset in datasets:
        made_with = str((dataset.index.get("provenance") or {}).get("model"))
        if not made_with.endswith(f"-{ours}"):
            again = f"openhunyuan encode {data} --model {model.folder} --vae {model.files.vae}"
            raise UserError(
                f"The latents of {dataset.path} were made with another VAE or other text encoders than this run's, so "
                f"they mean nothing to it; encode again with: {again}."
            )
        for number in range(len(dataset)):
            fields = dataset.metadata(number).get(CAPTION)
            if not fields and not dataset.prompt(number).strip():
                raise UserError(f"Sample {number} of {dataset.path} has no caption; caption its clip and encode again.")
            if fields:
                _check_caption(fields, f"sample {number} of {dataset.path}")
        clips = _clips_beside(dataset)
        if clips is not None:
            _check_fresh(dataset, clips)
            if not uniform:
                dataset.weights = _weights(dataset, clips)
    return datasets


def _weights(dataset: ShardDataset, clips: dict[str, Clip]) -> tuple[float, ...] | None:
    """The weight of each sample's clip; None where no clip has one."""
    found = [clips[dataset.metadata(row)["clip"]].weight for row in range(len(dataset))]
    if all(weight is None for weight in found):
        return None
    weights = tuple(1.0 if weight is None else weight for weight in found)
    if len(set(weights)) > 1:
        get_logger("train").info(
            "%s: %d samples come by the weights of their clips' concepts, %.2f to %.2f (--uniform: all alike)",
            dataset.path, len(weights), min(weights), max(weights),
        )  # fmt: skip
    return weights


def _check_caption(fields: Any, where: str) -> None:
    try:
        Caption(**fields)
    except (UserError, TypeError) as error:
        raise UserError(
            f"The caption of {where} cannot be used ({error}); caption its clip and encode again."
        ) from None


def _home(dataset: ShardDataset) -> Path:
    """The data folder that a dataset lies in."""
    folder = dataset.path.absolute()
    return folder.parent.parent if folder.parent.name == LATENTS else folder.parent


def _clips_beside(dataset: ShardDataset) -> dict[str, Clip] | None:
    """The kept clips of the curation folder that holds a dataset; None for one that lies by itself."""
    home, made = _home(dataset), dataset.index.get("provenance") or {}
    if not (home / MANIFEST).is_file() or made.get("imported"):
        return None
    return {clip.id: clip for clip in read_clips(home) if not clip.dropped}


def _check_fresh(dataset: ShardDataset, clips: dict[str, Clip]) -> None:
    """Raise UserError where the curation folder that holds a dataset has dropped clips or changed captions since.

    Captions are compared with what encoding would take now, each with the camera label of the sample's frames: those of
    the captioner that was asked for; where the index does not say (``captioner``), those of the captioner that wrote
    them, and newer ones of another are said in the log.
    """
    home, made = _home(dataset), dataset.index.get("provenance") or {}
    gates = dataset.made.get(GATES)
    gone = changed = older = 0
    for number in range(len(dataset)):
        about = dataset.metadata(number)
        clip, written_by = clips.get(about.get("clip", "")), about.get("captioner", "")
        held = (about.get("first_frame", 0), written_by, dataset.prompt(number), about.get(CAPTION) or {})
        shown = LatentSize(*dataset.shapes[number][1:]).video.num_frames, about.get("fps")
        if clip is None:
            gone += 1
        elif held not in _captions(clip, made.get("captioner", written_by.partition("@")[0]), *shown, gates):
            changed += 1
        elif held not in _captions(clip, None, *shown, gates):
            older += 1
    if gone or changed:
        why = [f"{gone} are of clips that are no longer kept"] * bool(gone)
        why += [f"{changed} have captions or camera labels that changed"] * bool(changed)
        raise UserError(
            f"The latents of {dataset.path} are older than the {MANIFEST} beside them: of {len(dataset)} samples "
            f"{' and '.join(why)}; encode again, with the options of before: openhunyuan encode {home}."
        )
    if older:
        get_logger("train").warning(
            "%d of %d samples of %s have captions beside which there are newer ones of another captioner; to train on "
            "those: openhunyuan encode %s", older, len(dataset), dataset.path, home,
        )  # fmt: skip


def _captions(
    clip: Clip, captioner: str | None, num_frames: int, fps: float | None, gates: list[str] | None
) -> list[tuple[int, str, str, dict[str, Any]]]:
    """First frame, captioner, text and fields of the captions that encoding takes for samples of so many frames. gates:
    of the camera labels, where the dataset says them; captions of others are left out."""
    found = []
    for caption in clip.captions_of(captioner):
        first, gate = caption.window[0] if caption.window else 0, gate_of(caption)
        if first < clip.num_frames and (gates is None or gate is None or gate in gates):
            shown = shown_caption(clip, caption, fps, first, num_frames)
            found.append((first, shown.signature, shown.text, dict(shown.fields)))
    return found


def latent_draws(datasets: Sequence[ShardDataset], seed: int) -> LatentDraws:
    """What draws latents anew in every epoch. Raises UserError where only the mode was kept."""
    for dataset in datasets:
        if not dataset.has_variances:
            raise UserError(
                f"{dataset.path} holds no variances, so no latents can be drawn; leave --sample-latents out, or make "
                "latents from clips with: openhunyuan encode."
            )
    return LatentDraws(seed)


def data_record(data: Path, datasets: Sequence[ShardDataset]) -> dict[str, Any]:
    """For ``run.json``: the folder, how many samples, and a hash that changes when they or their weights do."""
    held: list[Any] = [d.files for d in datasets]
    held += [d.weights for d in datasets if d.weights]
    digest = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
    return {"folder": str(data), "samples": sum(len(d) for d in datasets), "sha256": digest}


def check_same_data(run_dir: Path, record: dict[str, Any]) -> None:
    """Raise ``UserError`` when the directory holds a run on other data. record: of ``data_record``."""
    path = run_dir / RUN
    held = read_json(path).get("data") if path.is_file() else record
    if held != record:
        raise UserError(
            f"{run_dir} holds a run on {_described(held)}, but this one reads {_described(record)}; choose another "
            "directory (--runs-dir; for stages also --name), or delete it to start again."
        )


def _described(record: Any) -> str:
    if not isinstance(record, dict) or "sha256" not in record:
        return "other data"
    return f"{record['samples']} samples of {record['folder']} ({record['sha256'][:12]})"


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
