"""What a run starts from: a parent run's newest checkpoint, or a model. Checked before anything is made, recorded in
``run.json``, and compared when the run is started again.

A run keeps for those after it where the text encoders and the VAE are (``base``), its transformer's sizes (``dit``) and
how pictures come in. Weights are the averaged ones of the checkpoint, whose files are verified by their checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.layout import ImageCondition
from openhunyuan.models.zoo import component_files, file_sha256, find_model
from openhunyuan.recipes.registry import STAGES
from openhunyuan.train import checkpoint

RUN = "run.json"


@dataclass(frozen=True)
class Base:
    """What a transformer is used with: a model (name or path) whose text encoders it reads, and the VAE's folder, or a
    model's own (None)."""

    text: str
    vae: Path | None

    def record(self, run_dir: Path) -> dict[str, str | None]:
        """As it is kept in ``run.json``: the VAE's folder as seen from the run's."""
        return {"text": self.text, "vae": os.path.relpath(self.vae, run_dir) if self.vae else None}


@dataclass(frozen=True)
class Origin:
    """Where a run starts.

    Attributes:
        record: for ``run.json``: name, kind, checkpoint and its hash.
        base: text encoders and VAE; None before there are any.
        folder: the parent run's directory, or None.
        checkpoint: of the parent run, verified.
        model: name or path of the model it starts from, where it is no run.
        dit: the parent's transformer, where it has one.
        condition: how pictures come in, where they do; ``image_share``: in how many of the steps.
    """

    record: dict[str, Any]
    base: Base | None = None
    folder: Path | None = None
    checkpoint: Path | None = None
    model: str | None = None
    dit: DiTConfig | None = None
    condition: ImageCondition | None = None
    image_share: float = 0.0

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights of the parent run's model, fp32."""
        assert self.checkpoint is not None
        state = checkpoint.opened(self.checkpoint)
        return checkpoint.read(state["ema"]["shadow"] if state["ema"] else state["modules"]["model"])


NOTHING = Origin({"from": None})


def find_origin(recipe: str, source: str | None, runs_dir: Path) -> Origin:
    """What a recipe's run starts from: its parent's run below ``runs_dir``, or ``source``: another run, or a model.

    Raises:
        UserError: it is missing, not finished, damaged, or neither a run of these recipes nor a model.
    """
    parent = STAGES[recipe].parent
    if source is None:
        if parent is None:
            return NOTHING
        if not (runs_dir / parent / RUN).is_file():
            raise UserError(
                f"Recipe {recipe} starts from a run of {parent}, but there is none in {runs_dir}; run `openhunyuan "
                f"train {parent}` first, or name another run or a model with --from."
            )
        return _of_run(runs_dir / parent)
    for folder in (runs_dir / source, Path(source).expanduser()):
        if (folder / RUN).is_file():
            return _of_run(folder)
    return _of_model(source)


def _of_run(folder: Path) -> Origin:
    run = read_json(folder / RUN)
    if "lineage" not in run:
        raise UserError(
            f"{folder} is a run of another kind of recipe; start from the model it made: --from {folder / 'model'}."
        )
    if run["recipe"].get("lora"):
        raise UserError(f"{folder} made a LoRA, which nothing can start from; start from what it was trained on.")
    found = checkpoint.newest(folder)
    total = sum(stage["steps"] for stage in run["train"]["stages"])
    done = checkpoint.read_manifest(found)["step"] if found else 0
    if found is None or done < total:
        raise UserError(
            f"The run {folder} is not finished ({done} of {total} steps); go on with `openhunyuan train {run['name']}` "
            "first."
        )
    base = run["base"]
    return Origin(
        {
            "from": folder.name,
            "kind": "run",
            "checkpoint": found.name,
            "sha256": file_sha256(found / checkpoint.MANIFEST),
        },
        Base(base["text"], folder / base["vae"] if base["vae"] else None) if base else None,
        folder,
        found,
        dit=DiTConfig(**run["dit"]) if run.get("dit") else None,
        condition=run["condition"],
        image_share=run.get("image_share", 0.0),
    )


def _of_model(name: str) -> Origin:
    from openhunyuan.convert.dit_read import read_dit

    files = find_model(name)
    weights = read_dit(files.dit)
    hashes = [file_sha256(path) for path in component_files(files, "dit")]
    spec = files.spec
    return Origin(
        {"from": name, "kind": "model", "sha256": hashes[0] if len(hashes) == 1 else _together(hashes)},
        Base(name, None),
        model=name,
        dit=weights.config,
        condition=spec.image_condition_type or weights.image_condition_type,
        image_share=0.5 if spec.image_optional else 1.0,
    )


def _together(hashes: list[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def check_network(origin: Origin, wanted: nn.Module, recipe: str, scale: str) -> None:
    """Raise ``UserError`` unless the parent run's checkpoint is of the network that the recipe has at its scale.

    wanted: that network, on any device.
    """
    if origin.checkpoint is None:
        return
    held = checkpoint.read_manifest(origin.checkpoint)["about"]["modules"]["model"]
    ours = checkpoint.fingerprint(wanted)
    if held != ours:
        raise UserError(
            f"{recipe} at scale {scale} trains a {ours['type']} of {ours['parameters']:,} parameters, but "
            f"{origin.folder} made a {held['type']} of {held['parameters']:,}; choose its --scale or another --from."
        )


def check_sizes(origin: Origin, wanted: DiTConfig, recipe: str, scale: str) -> DiTConfig:
    """The parent's transformer sizes, which are ``wanted`` but for guidance. Raises ``UserError`` for any other."""
    held = origin.dit
    source = origin.folder or origin.record["from"]
    if held is None:
        raise UserError(f"{recipe} goes on with a transformer, but {source} has none; start from a run that made one.")
    if held.model_copy(update={"guidance_embed": wanted.guidance_embed}) != wanted:
        raise UserError(
            f"{recipe} at scale {scale} trains a transformer of {_sizes(wanted)}, but that of {source} has "
            f"{_sizes(held)}; choose its --scale or another --from."
        )
    if origin.checkpoint is not None:
        with torch.device("meta"):
            network = DiT(held)
        check_network(origin, network, recipe, scale)
    return held


def _sizes(config: DiTConfig) -> str:
    return (
        f"width {config.hidden_size}, {config.num_double_blocks}+{config.num_single_blocks} blocks and "
        f"{config.in_channels} input channels"
    )


def check_unchanged(run_dir: Path, record: dict[str, Any]) -> None:
    """Raise ``UserError`` when the directory holds a run that started from something else."""
    path = run_dir / RUN
    if not path.is_file():
        return
    held = read_json(path).get("lineage")
    if held != json.loads(json.dumps(record)):
        raise UserError(
            f"{run_dir} holds a run that started from {_named(held)}, but this one starts from {_named(record)}; "
            "choose another --name, or delete it to start again."
        )


def _named(record: dict[str, Any] | None) -> str:
    if not record or not record["from"]:
        return "nothing"
    where = f" {record['checkpoint']}" if "checkpoint" in record else ""
    return f"{record['from']}{where} ({record['sha256'][:12]})"
