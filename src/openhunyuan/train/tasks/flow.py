"""Task ``flow``: the DiT by flow matching. Logit-normal t, straight path, velocity MSE, text dropout (report §4.5).

With ``image_share`` some steps give the first latent frame: without noise in its place (token replace, where one set of
weights then makes videos from text alone and from a picture with text), or beside the noise (latent concat).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from openhunyuan.base.sizes import SPACE_STRIDE, TIME_STRIDE, LatentSize
from openhunyuan.diffusion.flow import interpolate, model_time, sample_t, velocity_target
from openhunyuan.infer.conditions import FrameCondition, ImageCondition, first_frames
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.flops import dit_flops
from openhunyuan.train.config import OptimizerConfig, Strict
from openhunyuan.train.loop import Batch, StepContext, sample_generator, step_generator, to_device
from openhunyuan.train.window import Work

FIXED_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class FlowConfig(Strict):
    """How noise levels are drawn and how often the text is dropped."""

    t_mean: float = Field(default=0.0, description="mean of the logit of t")
    t_std: float = Field(default=1.0, gt=0)
    t_shift: float = Field(default=1.0, gt=0, description="shift of drawn times towards noise (as flow_shift)")
    text_dropout: float = Field(default=0.1, ge=0, lt=1, description="share of samples with the empty prompt")
    image_share: float = Field(
        default=0.0, ge=0, le=1, description="share of video steps whose first latent frame is given (image-to-video)"
    )


class EmptyText:
    """The encoded empty prompt: what dropped text becomes (and what true guidance runs against)."""

    def __init__(self, states_SD: Tensor, pooled_P: Tensor):
        self.states, self.pooled = states_SD, pooled_P

    def fill(self, batch: Batch, dropped_B: Tensor) -> Batch:
        """``batch`` with the text of the chosen samples replaced."""
        if not bool(dropped_B.any()):
            return batch
        device = batch["text_states"].device
        dropped_B = dropped_B.to(device)
        length = max(batch["text_states"].shape[1], len(self.states))
        pad = length - batch["text_states"].shape[1]
        states, mask = F.pad(batch["text_states"], (0, 0, 0, pad)), F.pad(batch["text_mask"], (0, pad))
        states[dropped_B] = F.pad(self.states, (0, 0, 0, length - len(self.states))).to(states)
        mask[dropped_B] = torch.arange(length, device=device) < len(self.states)
        pooled = batch["pooled"].clone()
        pooled[dropped_B] = self.pooled.to(pooled)
        return batch | {"text_states": states, "text_mask": mask, "pooled": pooled}


@dataclass(frozen=True)
class Drawn:
    """A batch at its noise levels: x_t [B, C, T, h, w] at t [B], and which frames are given without noise."""

    batch: Batch
    x_t: Tensor
    t: Tensor
    noise: Tensor
    condition: FrameCondition | None = None

    @property
    def from_image(self) -> bool:
        """Whether first frames are given."""
        return self.condition is not None and bool(self.condition.given.any())

    @property
    def guided(self) -> dict[str, Tensor | None]:
        """What the transformer is told of given frames."""
        return {"clean_frames": self.condition.clean_frames if self.condition else None}

    def mean(self, error: Tensor) -> Tensor:
        """Mean of an error [B, C, T, h, w] over the frames that are not given, fp32."""
        return self.condition.mean(error.float()) if self.condition else error.float().mean()

    def by_level(self, error: Tensor) -> Tensor:
        """Noise level and mean error (as ``mean``) of every sample, [B, 2]."""
        error = error.detach().float()
        if self.from_image and self.condition:  # as many frames are given in every sample
            error = error[:, :, ~self.condition.given[0]]
        return torch.stack((self.t.to(error), error.flatten(1).mean(1)), 1)


def draw(
    config: FlowConfig,
    empty: EmptyText,
    batch: Batch,
    context: StepContext,
    t: Tensor | None = None,
    condition: ImageCondition = "token_replace",
) -> Drawn:
    """Noise, times, text dropout and given frames of a batch.

    A batch with ``keys`` (int64 [B, 2]: sample, epoch) draws noise, time and dropout for every sample from its own
    stream, so that they do not depend on the batch or the process it came to, and from the step's own number whether
    first frames are given; any other draws all from the step's stream. t: the times, when they are not to be drawn.
    condition: how given frames come in.
    """
    data = batch["latents"]
    size = len(data)
    if "keys" in batch:
        drawn = [
            _draw_rows(config, 1, data.shape[1:], sample_generator(context.seed, sample, epoch))
            for sample, epoch in batch["keys"].tolist()
        ]
        times, noise, dropped = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        for_step = step_generator(context.seed, context.step)
    else:
        times, noise, dropped = _draw_rows(config, size, data.shape[1:], context.generator)
        for_step = context.generator
    times, noise = (times if t is None else t).to(data.device), noise.to(data.device)
    batch, x_t = empty.fill(batch, dropped), interpolate(data, noise, times)
    is_video = data.shape[2] > 1
    given = is_video and config.image_share and float(torch.rand((), generator=for_step)) < config.image_share
    return at_noise(batch, x_t, times, noise, condition, bool(given))


def at_noise(
    batch: Batch, x_t: Tensor, t: Tensor, noise: Tensor, condition: ImageCondition, first_given: bool
) -> Drawn:
    """A batch at x_t, its first frames given or not. What latent concat reads has 2C + 1 channels either way."""
    data = batch["latents"]
    if not first_given and condition == "token_replace":
        return Drawn(batch, x_t, t, noise)
    given = first_frames(len(data), data.shape[2]).to(data.device) & first_given
    frames = FrameCondition(condition, data, given)
    return Drawn(batch, frames.model_input(x_t), t, noise, frames)


def _draw_rows(
    config: FlowConfig, rows: int, shape: Sequence[int], g: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(times, noise, dropped) of ``rows`` samples from one stream."""
    times = sample_t(rows, g, config.t_mean, config.t_std, config.t_shift)
    noise = torch.randn(rows, *shape, generator=g)
    return times, noise, torch.rand(rows, generator=g) < config.text_dropout


def draw_uniform(batch: Batch, context: StepContext, purpose: str) -> Tensor:
    """A number in [0, 1) a sample, [B], for what else a task draws: keyed as ``draw`` keys its draws."""
    if "keys" not in batch:
        return torch.rand(len(batch["latents"]), generator=context.generator)
    streams = [sample_generator(context.seed, sample, epoch, purpose) for sample, epoch in batch["keys"].tolist()]
    return torch.cat([torch.rand(1, generator=g) for g in streams])


def transformer_flops(model: nn.Module, batch: Batch) -> int:
    """Operations of one forward of a ``DiT`` on a batch, with the text it came with; 0 for another network."""
    config = getattr(model, "config", None)
    if not isinstance(config, DiTConfig):
        return 0
    latent = LatentSize(*batch["latents"].shape[2:])
    return sum(dit_flops(config, latent, tokens) for tokens in batch["text_mask"].sum(1).tolist())


def bucket_of(batch: Batch) -> str:
    """The size of a batch's videos in pixels, as "33x64x64"."""
    frames, height, width = batch["latents"].shape[2:]
    return f"{(frames - 1) * TIME_STRIDE + 1}x{height * SPACE_STRIDE}x{width * SPACE_STRIDE}"


def text_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the transformer reads of the text: states, mask, pooled vector."""
    return batch["text_states"], batch["text_mask"], batch["pooled"]


class FlowTask:
    """Trains a DiT on batches of latents [B, C, T, h, w] with text states, mask and pooled vector."""

    phases = ("model",)

    def __init__(
        self,
        config: FlowConfig,
        dit: nn.Module,
        empty: EmptyText,
        validation: Mapping[str, Batch],
        render: Callable[[nn.Module, Path], None] | None = None,
        condition: ImageCondition = "token_replace",
        trained: nn.Module | None = None,
    ):
        """condition: how given frames come in, with ``image_share``; the transformer has to read it. trained: what is
        trained of the transformer, where that is not all of it (a LoRA's parameters)."""
        self.config, self.dit, self.empty = config, dit, empty
        self.validation, self.render = validation, render
        self.condition: ImageCondition = condition
        self.trained = dit if trained is None else trained

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.trained}

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        return None

    def active(self, phase: str, context: StepContext) -> bool:
        return True

    def _velocity(self, drawn: Drawn) -> Tensor:
        return self.dit(drawn.x_t, model_time(drawn.t), *text_of(drawn.batch), **drawn.guided)

    def _loss(self, drawn: Drawn) -> Tensor:
        return drawn.mean(self._error(drawn))

    def _error(self, drawn: Drawn) -> Tensor:
        velocity = self._velocity(drawn)
        target = velocity_target(drawn.batch["latents"], drawn.noise)
        return (velocity.float() - target.float()) ** 2

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        drawn = draw(self.config, self.empty, batch, context, condition=self.condition)
        error = self._error(drawn)
        loss = drawn.mean(error)
        name = "loss_image_to_video" if drawn.from_image else "loss"
        return loss, {name: loss.detach(), "by_level": drawn.by_level(error)}

    def work(self, phase: str, batch: Batch) -> Work:
        return Work(bucket_of(batch), transformer_flops(self.dit, batch))

    def validate(self, context: StepContext) -> dict[str, float]:
        """Loss at fixed noise levels and noise on held-out samples; ``empty_text`` shows what the text is worth."""
        values: dict[str, float] = {}
        device = next(self.dit.parameters()).device
        for name, held in self.validation.items():
            batch = to_device(held, device)
            data = batch["latents"]
            noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0)).to(device)
            bare = self.empty.fill(batch, torch.ones(len(data), dtype=torch.bool))
            for kind, given in (("", batch), ("_empty_text", bare)):
                total = 0.0
                for level in FIXED_TIMES:
                    t = torch.full((len(data),), level, device=device)
                    x_t = interpolate(data, noise, t)
                    loss = float(self._loss(at_noise(given, x_t, t, noise, self.condition, False)))
                    total += loss / len(FIXED_TIMES)
                    if not kind:
                        values[f"loss_{name}_t{level}"] = loss
                        if self.config.image_share and data.shape[2] > 1:
                            drawn = at_noise(batch, x_t, t, noise, self.condition, True)
                            values[f"loss_{name}_from_image_t{level}"] = float(self._loss(drawn))
                values[f"loss_{name}{kind}"] = total
        return values

    def sample(self, folder: Path, context: StepContext) -> None:
        if self.render:
            self.render(self.dit, folder)
