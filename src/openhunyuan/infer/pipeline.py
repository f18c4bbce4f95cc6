"""From a request to frames: text, sigma grid, noise, denoising, decoding.

A video depends on its own request alone. Its noise comes from a CPU generator of its own, in float32, so a seed means
the same noise on any device; the videos of one request are made one after another, so that the same request gives the
same bits whether it is made alone or among others. ``generate_batch`` batches the transformer for throughput: same
noise, same video up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from openhunyuan.base.device import noise
from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.record import unknown
from openhunyuan.base.sizes import VideoSize
from openhunyuan.diffusion.denoise import denoise
from openhunyuan.diffusion.guidance import classifier_free, embedded_guidance
from openhunyuan.diffusion.schedule import linear_quadratic_sigmas, sigmas
from openhunyuan.infer.request import Request
from openhunyuan.models.load import LoadedModel, load_model
from openhunyuan.models.vae.tiling import TilingConfig
from openhunyuan.models.zoo import ModelDefaults
from openhunyuan.ops.rope import riflex_index

Progress = Callable[[int, int, Tensor], None]
"""(steps done, steps in all, latents after the step)."""

_log = get_logger("infer")


@dataclass(frozen=True)
class Result:
    """What a request gave.

    Attributes:
        frames: one uint8 array [T, H, W, 3] a video, RGB.
        latents: float32 [N, C, t, h, w] on the CPU, in the transformer's scale.
        request: the resolved request.
    """

    frames: list[np.ndarray]
    latents: Tensor
    request: Request


class Pipeline:
    """A loaded model that turns requests into videos.

    Example:
        >>> pipe = Pipeline.from_pretrained("tiny")
        >>> result = pipe(prompt="a large red circle moves right on a black background", seed=1)
        >>> result.frames[0].shape
        (33, 64, 64, 3)
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        model: str = "tiny",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Open a model by name or folder; its parts are read when first used. ``UserError`` if it is not usable."""
        return cls(load_model(str(model), device, dtype))

    @property
    def defaults(self) -> ModelDefaults:
        """What this model fills in where a request says nothing."""
        return self.model.spec.defaults

    def resolve(self, request: Request) -> Request:
        """The request with this model's defaults filled in; says what of it this model cannot use."""
        asks_embedded = request.guidance_scale not in (None, self.defaults.guidance_scale)
        if asks_embedded and not self.model.dit.config.guidance_embed:
            _log.warning("guidance_scale is not used: this model has no guidance embedder; see true_cfg_scale.")
        if request.rewrite != "none" and request.rewritten is None:
            _log.warning("The prompt is used as it is: infer.rewrite.rewriter.rewrite_request rewrites one.")
        resolved = request.resolve(self.defaults)
        if request.negative_prompt and resolved.true_cfg_scale == 1:
            _log.warning("negative_prompt is not used: it needs true_cfg_scale above 1.")
        return resolved

    def __call__(self, prompt: str, callback: Progress | None = None, **fields: Any) -> Result:
        """Make the video(s) of one prompt.

        Args:
            prompt: what to show.
            callback: called after every step with (steps done, steps in all, latents).
            fields: any other field of ``Request``: height, width, num_frames, num_inference_steps, guidance_scale,
                true_cfg_scale, negative_prompt, flow_shift, seed, fps, num_videos.
        """
        if not isinstance(prompt, str):
            raise UserError("prompt must be one text; for many prompts use generate_batch.")
        for name in fields:
            if name not in Request.model_fields:
                raise UserError(unknown("field", name, Request.model_fields))
        return self.run(Request(prompt=prompt, **fields), callback)

    def run(self, request: Request, callback: Progress | None = None) -> Result:
        """Make the video(s) of a request, one after another."""
        request = self.resolve(request)
        latents = [self.sample(request.one(index), callback) for index in range(request.num_videos)]
        frames = [self.decode(sample)[0] for sample in latents]
        return Result(frames, torch.cat(latents), request)

    def sample(self, request: Request, callback: Progress | None = None, estimate: Progress | None = None) -> Tensor:
        """Latents [1, C, t, h, w] of a resolved request for one video, float32 on the CPU.

        ``estimate`` is called like ``callback``, with what the step took the finished latents to be (for previews).
        """
        return self._sample([request.prompt], request, request.seeds[:1], callback, estimate)

    def generate_batch(
        self, prompts: Sequence[str], seeds: Sequence[int], batch_size: int = 16, **fields: Any
    ) -> np.ndarray:
        """Many prompts of one size for measuring: uint8 [N, T, H, W, 3], one seed a prompt.

        Args:
            prompts: one text a video.
            seeds: one seed a video, as many as prompts.
            batch_size: videos that share a transformer call.
            fields: other fields of ``Request``, the same for all.
        """
        if len(prompts) != len(seeds):
            raise UserError(f"There are {len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt.")
        if not prompts:
            raise UserError("There is no prompt; give at least one.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but it must be at least 1.")
        requests = [
            self.resolve(Request(prompt=prompt, seed=seed, **fields))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        out = []
        for start in range(0, len(requests), batch_size):
            part = requests[start : start + batch_size]
            latents = self._sample([item.prompt for item in part], part[0], [item.seeds[0] for item in part], None)
            # Decoded one by one: the VAE's activations, not the transformer's, are what fills memory.
            out += [self.decode(sample[None])[0] for sample in latents]
        return np.stack(out)

    @torch.inference_mode()
    def _sample(
        self,
        prompts: Sequence[str],
        request: Request,
        seeds: Sequence[int],
        callback: Progress | None,
        estimate: Progress | None = None,
    ) -> Tensor:
        """Latents [B, C, t, h, w] of prompts that share everything but text and seed, float32 on the CPU."""
        model, size, batch = self.model, request.size, len(prompts)
        model.check_fit()
        dit, device, dtype = model.dit, model.device, model.dtype
        levels = _sigmas(request)
        riflex_k = riflex_index(size.num_frames, dit.config.rope_axes_dim[0]) if request.uses_riflex else None
        predict = partial(dit, riflex_k=riflex_k, enhance_weight=request.enhance_weight)
        scale, embedded = request.true_cfg_scale, request.guidance_scale
        assert scale is not None and embedded is not None

        guided = scale > 1
        # The negative prompt is encoded in the same call, so both halves are padded to one length.
        texts = ([request.negative_prompt or ""] if guided else []) + list(prompts)
        text = model.text.encode(texts, data_type="image" if size.is_image else "video").to(device, dtype)
        states, mask, pooled = text.states, text.mask, text.pooled
        if guided:
            rows = torch.tensor([0] * batch + list(range(1, batch + 1)), device=device)
            states, mask, pooled = states[rows], mask[rows], pooled[rows]
        guidance = embedded_guidance(embedded, len(states), device) if dit.config.guidance_embed else None

        def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
            if not guided:
                return predict(latents.to(dtype), timestep, states, mask, pooled, guidance).float()
            both = predict(torch.cat([latents, latents]).to(dtype), timestep.repeat(2), states, mask, pooled, guidance)
            uncond, cond = both.float().chunk(2)
            return classifier_free(uncond, cond, scale)

        start = noise((dit.config.in_channels, *_latent_shape(size)), seeds).to(device)
        return denoise(velocity, start, levels, callback, estimate).cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[np.ndarray]:
        """Frames uint8 [T, H, W, 3] of each latent of [B, C, t, h, w]; in tiles where the picture is large."""
        vae, out = self.model.vae, []
        tiling = TilingConfig.from_vae(vae.config)
        for sample in latents.split(1):
            video = vae.decode_latents(sample.to(self.model.device, self.model.dtype), tiling)[0].float()
            video = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            out.append(video.permute(1, 2, 3, 0).cpu().contiguous().numpy())
        return out


def _sigmas(request: Request) -> Tensor:
    """The noise levels of a resolved request [N + 1], fp32 on the CPU."""
    steps, shift = request.num_inference_steps, request.flow_shift
    assert steps is not None and shift is not None
    if request.schedule == "linear-quadratic":
        return linear_quadratic_sigmas(steps, request.linear_schedule_end)
    return sigmas(steps, shift)


def _latent_shape(size: VideoSize) -> tuple[int, int, int]:
    return size.latent.frames, size.latent.height, size.latent.width
