"""Training the small networks of curation (`curate.models.small`): one task each, on pairs that are made once.

Pairs lie in memory and are drawn anew, turned and mirrored, at every step; nothing here knows where they come from.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from openhunyuan.base.weights import save_safetensors
from openhunyuan.curate.models.small import NETWORKS, SmallNet
from openhunyuan.curate.models.small_forward import DIRECTIONS
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, Strict, TrainConfig
from openhunyuan.train.estimate import Workload
from openhunyuan.train.loop import Batch, StepContext, Trainer

HARDEST = 3
"""Clear cells of a clip that are taken for a mark most, whose loss counts on its own."""

NARROWEST_VARIANCE = -6.0
"""Least log of a variance that a width is said with: about 5 %."""


class SmallTrainConfig(Strict):
    """Everything that decides a small network, but what its pairs are."""

    network: str
    size: int = Field(gt=0, multiple_of=16, description="side of a pair's picture, pixels")
    pairs: int = Field(gt=0, description="pairs that are made and drawn from")
    heldout: int = Field(default=256, gt=0, description="further pairs for the validation")
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-3, weight_decay=0.01, warmup_steps=50)
    checkpoint_every: int = Field(default=250, gt=0)
    log_every: int = Field(default=20, gt=0)


class SmallTask(ABC):
    """Task and source. pairs, heldout: (inputs [N, C, h, w], targets [N, K, h/8, w/8])."""

    phases: tuple[str, ...] = ("net",)
    at_hand = True

    def __init__(
        self,
        config: SmallTrainConfig,
        pairs: tuple[np.ndarray, np.ndarray],
        heldout: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self.config, self.pairs, self.heldout = config, pairs, heldout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: SmallNet = NETWORKS[config.network]()

    def modules(self) -> Mapping[str, nn.Module]:
        return {"net": self.model}

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        return None

    def active(self, phase: str, context: StepContext) -> bool:
        return True

    def inputs(self, drawn: np.ndarray) -> np.ndarray:
        """What the network is fed, from pairs as they are kept."""
        return drawn

    @abstractmethod
    def turned(self, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One pair, mirrored or turned."""

    @abstractmethod
    def score(self, out: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss, and what is reported of it."""

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        rng = np.random.default_rng([self.config.seed, 11, step])
        chosen = rng.integers(len(self.pairs[0]), size=shape.batch_size)
        drawn = [self.turned(rng, self.pairs[0][i], self.pairs[1][i]) for i in chosen]
        return self._tensors(np.stack([x for x, _ in drawn]), np.stack([y for _, y in drawn]))

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> Batch:
        return {
            "inputs": torch.from_numpy(np.ascontiguousarray(self.inputs(x))),
            "targets": torch.from_numpy(np.ascontiguousarray(y)).float(),
        }

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        return self.score(self.model(batch["inputs"]).float(), batch["targets"])

    @torch.no_grad()
    def validate(self, context: StepContext) -> dict[str, float]:
        """The same numbers on the held-out pairs."""
        out, wanted = [], []
        for start in range(0, len(self.heldout[0]), 64):
            part = self._tensors(self.heldout[0][start : start + 64], self.heldout[1][start : start + 64])
            out.append(self.model(part["inputs"]).float())
            wanted.append(part["targets"])
        _, values = self.score(torch.cat(out), torch.cat(wanted))
        return {f"heldout_{k}": float(v) for k, v in values.items()}

    def sample(self, folder: Path, context: StepContext) -> None:  # noqa: B027 (these tasks have nothing to render)
        """Nothing to render."""


class MarkTask(SmallTask):
    """Cells that a pasted mark covers. Inputs are kept as int8, 1 = 80; targets are [share covered, weight]."""

    def inputs(self, drawn: np.ndarray) -> np.ndarray:
        return drawn.astype(np.float32) / 80

    def turned(self, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mirrored left to right half the time; up and down are not alike (subtitles)."""
        if rng.random() < 0.5:
            x, y = x[..., ::-1].copy(), y[..., ::-1]
            x[4] = -x[4]  # the slope across
        return x, y

    def score(self, out: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        wanted, weight = targets[:, :1], targets[:, 1:]
        each = F.binary_cross_entropy_with_logits(out, wanted, reduction="none")
        # A mark of few cells counts as much as one of many: half of the loss is the mean over each clip's marked cells.
        marked = weight * (wanted > 0.5)
        inside = (each * marked).sum((1, 2, 3)) / marked.sum((1, 2, 3)).clamp(min=1)
        clear = weight * (wanted <= 0.5)
        outside = (each * clear).sum((1, 2, 3)) / clear.sum((1, 2, 3)).clamp(min=1)
        # What is said of a clip is what its likeliest cell says: the worst clear cells count on their own.
        worst = (each * clear).flatten(1).topk(HARDEST, dim=1).values.mean(1)
        loss = (inside + 2.0 * outside + 0.3 * worst).mean()
        with torch.no_grad():
            has = marked.flatten(1).amax(1) > 0
            peak = (out + (weight - 1) * 1e4).flatten(1).amax(1)
            values: dict[str, Tensor | float] = {
                "loss": loss.detach(),
                "found": (peak[has] > 0).float().mean(),
                "false": (peak[~has] > 0).float().mean(),
            }
        return loss, values


class BlurTask(SmallTask):
    """Width of blur by direction, a Gaussian over its log. Inputs are kept as float16; targets as `BlurPair`."""

    def inputs(self, drawn: np.ndarray) -> np.ndarray:
        return drawn.astype(np.float32)

    def turned(self, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Any of the eight ways to lay a square; directions turn with it."""
        turns = int(rng.integers(4))
        x, y = (np.rot90(cells, turns, axes=(1, 2)) for cells in (x, y))
        of = np.arange(DIRECTIONS) + turns * DIRECTIONS // 2
        if rng.random() < 0.5:
            x, y, of = x[..., ::-1], y[..., ::-1], -of
        of %= DIRECTIONS
        return x.reshape(DIRECTIONS, -1, *x.shape[1:])[of].reshape(x.shape), y[[*of, DIRECTIONS]]

    def score(self, out: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        log_width, counts = targets[:, :DIRECTIONS], targets[:, DIRECTIONS:].expand(-1, DIRECTIONS, -1, -1)
        mean, variance = out[:, :DIRECTIONS], out[:, DIRECTIONS:].clamp(NARROWEST_VARIANCE, 4.0)
        error = mean - log_width
        each = 0.5 * (error.square() * (-variance).exp() + variance)
        total = counts.sum().clamp(min=1)
        loss = (each * counts).sum() / total
        with torch.no_grad():
            sure = counts * (variance < 2 * np.log(0.6))
            values: dict[str, Tensor | float] = {
                "loss": loss.detach(),
                "sure": sure.sum() / total,
                "error": (error.abs() * sure).sum() / sure.sum().clamp(min=1),
            }
        return loss, values


TASKS: dict[str, type[SmallTask]] = {"watermark": MarkTask, "blur": BlurTask}


def small_loop(config: SmallTrainConfig) -> TrainConfig:
    """The run."""
    shape = BatchShape(batch_size=config.batch_size, num_frames=1, height=config.size, width=config.size)
    return TrainConfig(
        name=config.network,
        stages=(Stage(name="pairs", steps=config.steps, shapes=(shape,)),),
        optimizer=config.optimizer,
        seed=config.seed,
        ema_decay=0.995,
        autocast="auto",
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=1,
        sample_every=0,
        validate_every=config.checkpoint_every,
        log_every=config.log_every,
    )


def small_workloads(config: SmallTrainConfig) -> list[Workload]:
    """The run as the estimate sees it."""
    with torch.device("meta"):
        network = NETWORKS[config.network]()

    def forward(shape: BatchShape) -> Any:
        height, width = shape.height // network.pixels, shape.width // network.pixels
        return network(torch.empty(shape.batch_size, network.inputs, height, width, device="meta"))

    return [Workload(small_loop(config), {"net": network}, forward, lambda shape: shape.height * shape.width // 64)]


def train_small(
    config: SmallTrainConfig,
    pairs: tuple[np.ndarray, np.ndarray],
    heldout: tuple[np.ndarray, np.ndarray],
    output_dir: Path,
    device: torch.device | str = "cpu",
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Train, or go on; writes the averaged weights as ``<network>.safetensors`` and how they came about as
    ``<network>.json`` beside it. Returns the file of the weights."""
    task = TASKS[config.network](config, pairs, heldout)
    record = {"small": config.model_dump(mode="json"), **(about or {})}
    trainer = Trainer(small_loop(config), task, task, output_dir, record=record, device=device)
    if not (trainer.resume() and trainer.step == trainer.config.total_steps):
        trainer.run()
    model = task.model
    if trainer.ema:
        trainer.ema.swap(model)
    model.eval()
    context = trainer.context(config.steps - 1)
    measured = {name: round(value, 5) for name, value in task.validate(context).items()}
    path = output_dir / f"{config.network}.safetensors"
    save_safetensors(path, model.state_dict())
    parameters = sum(p.numel() for p in model.parameters())
    text = {"network": config.network, "parameters": parameters, "measured": measured, **record}
    path.with_suffix(".json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return path
