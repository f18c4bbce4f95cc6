"""Task ``flow``: the DiT by flow matching. Logit-normal t, straight path, velocity MSE, text dropout (report §4.5).

With ``image_share`` some steps give the first latent frame without noise (token replace): one set of weights then makes
videos from text alone and from a picture with text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from openhunyuan.diffusion.flow import flow_loss, interpolate, model_time, sample_t, velocity_target
from openhunyuan.infer.conditions import FrameCondition, first_frames
from openhunyuan.train.config import OptimizerConfig, Strict
from openhunyuan.train.loop import Batch, StepContext, to_device

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
    ):
        self.config, self.dit, self.empty = config, dit, empty
        self.validation, self.render = validation, render

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.dit}

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        return None

    def active(self, phase: str, context: StepContext) -> bool:
        return True

    def _velocity(self, batch: Batch, x_t: Tensor, t: Tensor, clean_frames: Tensor | None = None) -> Tensor:
        text = batch["text_states"], batch["text_mask"], batch["pooled"]
        return self.dit(x_t, model_time(t), *text, clean_frames=clean_frames)

    def _image_loss(self, batch: Batch, noise: Tensor, t: Tensor) -> Tensor:
        """The loss with the first latent frame given, over the frames that are not."""
        data = batch["latents"]
        given = first_frames(len(data), data.shape[2]).to(data.device)
        condition = FrameCondition("token_replace", data, given)
        x_t = condition.model_input(interpolate(data, noise, t))
        velocity = self._velocity(batch, x_t, t, condition.clean_frames)
        return condition.mean((velocity.float() - velocity_target(data, noise).float()) ** 2)

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        config, g, data = self.config, context.generator, batch["latents"]
        t = sample_t(len(data), g, config.t_mean, config.t_std, config.t_shift).to(data.device)
        noise = torch.randn(data.shape, generator=g).to(data.device)
        dropped = torch.rand(len(data), generator=g) < config.text_dropout
        batch = self.empty.fill(batch, dropped)
        if data.shape[2] > 1 and config.image_share and float(torch.rand((), generator=g)) < config.image_share:
            loss = self._image_loss(batch, noise, t)
            return loss, {"loss_image_to_video": loss.detach()}
        velocity = self._velocity(batch, interpolate(data, noise, t), t)
        loss = flow_loss(velocity, data, noise)
        return loss, {"loss": loss.detach()}

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
                    loss = float(flow_loss(self._velocity(given, interpolate(data, noise, t), t), data, noise))
                    total += loss / len(FIXED_TIMES)
                    if not kind:
                        values[f"loss_{name}_t{level}"] = loss
                        if self.config.image_share and data.shape[2] > 1:
                            values[f"loss_{name}_from_image_t{level}"] = float(self._image_loss(batch, noise, t))
                values[f"loss_{name}{kind}"] = total
        return values

    def sample(self, folder: Path, context: StepContext) -> None:
        if self.render:
            self.render(self.dit, folder)
