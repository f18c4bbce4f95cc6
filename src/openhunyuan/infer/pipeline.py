"""From a request to frames: text, sigma grid, noise, denoising, decoding.

A video depends on its own request alone. Its noise comes from a CPU generator of its own, in float32, so a seed means
the same noise on any device; the videos of one request are made one after another, so that the same request gives the
same bits whether it is made alone or among others. ``generate_batch`` batches the transformer for throughput: same
noise, same video up to rounding.

Memory: the prompt is read first, and large text encoders are given back before the transformer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openhunyuan.base.device import noise
from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.record import unknown
from openhunyuan.base.sizes import VideoSize
from openhunyuan.convert.load import open_model
from openhunyuan.diffusion.denoise import denoise
from openhunyuan.diffusion.guidance import classifier_free, embedded_guidance
from openhunyuan.diffusion.schedule import linear_quadratic_sigmas, sigmas
from openhunyuan.infer.conditions import (
    DROPPED_FRAMES,
    SUBSAMPLE,
    FrameCondition,
    choose_bucket,
    fit_image,
    image_latents,
    load_image,
    nearest_resolution,
)
from openhunyuan.infer.lora import RequestLoRAs
from openhunyuan.infer.numerics import Numerics, pick_numerics
from openhunyuan.infer.request import Request
from openhunyuan.models.layout import ImageCondition
from openhunyuan.models.load import LoadedModel
from openhunyuan.models.text.encoder import TextFeatures
from openhunyuan.models.text.templates import released_negative_prompt
from openhunyuan.models.vae.tiling import TilingConfig
from openhunyuan.models.zoo import ModelDefaults, file_sha256
from openhunyuan.ops.rope import riflex_index

Progress = Callable[[int, int, Tensor], None]
"""(steps done, steps in all, latents after the step)."""

KEEP_TEXT_BYTES = 2**30
"""Smaller text encoders stay in memory: reading them again would cost more than they hold."""

_BLIND = "The language model sees no pictures; the released one is a whole LLaVA."

_log = get_logger("infer")


@dataclass(frozen=True)
class Result:
    """What a request gave.

    Attributes:
        frames: one uint8 array [T, H, W, 3] a video, RGB.
        latents: float32 [N, C, t, h, w] on the CPU, in the transformer's scale.
        request: the resolved request.
        record: what the request does not say: rounding, words that were not read, the pictures, notes.
    """

    frames: list[np.ndarray]
    latents: Tensor
    request: Request
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pictures:
    """What one video starts from, and perhaps ends on."""

    first: Image.Image
    last: Image.Image | None = None


@dataclass(frozen=True)
class _Asked:
    """What was to be encoded. It holds the pictures, so that none is mistaken for a later one."""

    texts: tuple[str, ...]
    data_type: str
    images: tuple[Image.Image, ...]

    def same(self, other: _Asked) -> bool:
        """Whether the features are the same."""
        mine, theirs = ([id(image) for image in asked.images] for asked in (self, other))
        return (self.texts, self.data_type, mine) == (other.texts, other.data_type, theirs)


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
        self.record: dict[str, Any] = {}
        """What the last sampled video's request does not say (see ``Result.record``)."""
        self._text: tuple[_Asked, TextFeatures] | None = None
        self._loras = RequestLoRAs(model)
        self._images: dict[str, Image.Image] = {}
        self._black_image: Image.Image | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str = "tiny",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        text_precision: str | None = None,
        strings: str | None = None,
    ) -> Self:
        """Open a model by name or folder; its parts are read when first used. ``UserError`` if it is not usable.

        Args:
            text_precision: float32, bfloat16, float16 or int8 for the text encoders (see ``LoadedModel``).
            strings: file of released templates and negative prompts that ``diffusers`` lacks.
        """
        opened = open_model(str(model), device, dtype)
        opened.text_precision, opened.strings = text_precision, strings
        return cls(opened)

    @property
    def defaults(self) -> ModelDefaults:
        """What this model fills in where a request says nothing."""
        return self.model.spec.defaults

    def check(self, request: Request) -> None:
        """``UserError`` where a LoRA or a picture of the request does not fit this model; no weights are read."""
        self._loras.check(request.lora)
        self._with_picture(request)

    def resolve(self, request: Request) -> Request:
        """The request with this model's defaults filled in; says what of it this model cannot use."""
        self._loras.check(request.lora)
        if request.rewrite != "none" and request.rewritten is None:
            _log.warning("The prompt is used as it is: infer.rewrite.rewriter.rewrite_request rewrites one.")
        request = self._with_picture(self._with_negative(request))
        resolved = request.resolve(self.defaults)
        if request.negative_prompt and resolved.true_cfg_scale == 1:
            _log.warning("negative_prompt is not used: it needs true_cfg_scale above 1.")
        return resolved

    @property
    def _released(self) -> bool:
        return self.model.spec.released

    @property
    def _image_condition(self) -> ImageCondition | None:
        """What the weights do with a picture."""
        return self.model.spec.image_condition_type

    def _with_negative(self, request: Request) -> Request:
        """The request with the released default negative prompt, where that is wanted and known."""
        scale = self.defaults.true_cfg_scale if request.true_cfg_scale is None else request.true_cfg_scale
        if not self._released or scale == 1 or request.negative_prompt is not None:
            return request
        kind = "image-to-video" if self.model.spec.image_condition_type else "text-to-video"
        found = released_negative_prompt(kind, self.model.strings)
        if found is None:
            _log.warning("The released default negative prompt was not found: the empty one serves.")
        return request if found is None else request.replace(negative_prompt=found)

    def _with_picture(self, request: Request) -> Request:
        """The request with the size that its picture asks for; ``UserError`` if picture and model do not fit."""
        spec = self.model.spec
        if request.image is None:
            if spec.image_condition_type and not spec.image_optional:
                raise UserError(f"The model {spec.name} starts from a picture; give image.")
            return request
        if not spec.image_condition_type:
            raise UserError(f"The model {spec.name} makes videos from text alone; leave image out.")
        if request.last_image is not None and not spec.last_image:
            raise UserError(f"The model {spec.name} reads no picture to end on; leave last_image out.")
        frames = self.defaults.num_frames if request.num_frames is None else request.num_frames
        if frames == 1:
            raise UserError("An image starts a video of 5 frames or more, not a single one; ask for more num_frames.")
        # The whole path: a video's record must find its picture again from any folder.
        paths = {name: getattr(request, name) for name in ("image", "last_image")}
        request = request.replace(
            **{name: path and str(Path(path).expanduser().absolute()) for name, path in paths.items()}
        )
        image = self._image(str(request.image))
        if request.last_image is not None:
            self._image(request.last_image)
        resolution = request.i2v_resolution
        if resolution is None and request.height is None and request.width is None:
            resolution = nearest_resolution(self.defaults.height, self.defaults.width)
        if resolution is None:
            return request
        height, width = choose_bucket(image.height, image.width, resolution)
        return request.replace(height=height, width=width)

    def _image(self, path: str) -> Image.Image:
        """A picture file, read once for all videos of a request."""
        file = Path(path)
        key = f"{path} {file.stat().st_mtime_ns}" if file.is_file() else path
        if key not in self._images:
            while len(self._images) > 1:
                self._images.pop(next(iter(self._images)))
            self._images[key] = load_image(path)
        return self._images[key]

    def _black(self, size: tuple[int, int]) -> Image.Image:
        """What the negative half of guidance looks at: black, as large as the picture (release fact D.4)."""
        if self._black_image is None or self._black_image.size != size:
            self._black_image = Image.new("RGB", size)
        return self._black_image

    def _pictures(self, request: Request) -> _Pictures | None:
        if request.image is None:
            return None
        return _Pictures(self._image(request.image), self._image(request.last_image) if request.last_image else None)

    def __call__(self, prompt: str, callback: Progress | None = None, **fields: Any) -> Result:
        """Make the video(s) of one prompt.

        Args:
            prompt: what to show.
            callback: called after every step with (steps done, steps in all, latents).
            fields: any other field of ``Request``: height, width, num_frames, num_inference_steps, guidance_scale,
                true_cfg_scale, negative_prompt, flow_shift, seed, fps, num_videos, image, ...
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
        frames = [self.decode(sample, request)[0] for sample in latents]
        return Result(frames, torch.cat(latents), request, self.record)

    def sample(self, request: Request, callback: Progress | None = None, estimate: Progress | None = None) -> Tensor:
        """Latents [1, C, t, h, w] of a resolved request for one video, float32 on the CPU.

        ``estimate`` is called like ``callback``, with what the step took the finished latents to be (for previews).
        """
        pictures = self._pictures(request)
        return self._sample(
            [request.prompt], request, request.seeds[:1], [pictures] if pictures else None, callback, estimate
        )

    def generate_batch(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        batch_size: int = 16,
        images: Sequence[np.ndarray] | None = None,
        **fields: Any,
    ) -> np.ndarray:
        """Many prompts of one size for measuring: uint8 [N, T, H, W, 3], one seed a prompt.

        Args:
            prompts: one text a video.
            seeds: one seed a video, as many as prompts.
            batch_size: videos that share a transformer call.
            images: one picture a video to start from, uint8 [H, W, 3]; cropped to the videos' size.
            fields: other fields of ``Request``, the same for all.
        """
        if len(prompts) != len(seeds):
            raise UserError(f"There are {len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt.")
        if not prompts:
            raise UserError("There is no prompt; give at least one.")
        if images is not None and len(images) != len(prompts):
            raise UserError(f"There are {len(prompts)} prompts but {len(images)} images; give one image a prompt.")
        if images is not None and self._image_condition is None:
            raise UserError(f"The model {self.model.spec.name} makes videos from text alone; leave images out.")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but it must be at least 1.")
        asked = [Request(prompt=prompt, seed=seed, **fields) for prompt, seed in zip(prompts, seeds, strict=True)]
        # With pictures in memory there is no file for the request to name.
        requests = [item.resolve(self.defaults) if images is not None else self.resolve(item) for item in asked]
        pictures = None if images is None else [_Pictures(Image.fromarray(image)) for image in images]
        out = []
        for start in range(0, len(requests), batch_size):
            part = requests[start : start + batch_size]
            if pictures is not None:
                given: list[_Pictures] | None = pictures[start : start + batch_size]
            else:
                one = self._pictures(part[0])
                given = None if one is None else [one] * len(part)
            latents = self._sample([item.prompt for item in part], part[0], [item.seeds[0] for item in part], given)
            # Decoded one by one: the VAE's activations, not the transformer's, are what fills memory.
            out += [self.decode(sample[None], part[0])[0] for sample in latents]
        return np.stack(out)

    @torch.inference_mode()
    def _sample(
        self,
        prompts: Sequence[str],
        request: Request,
        seeds: Sequence[int],
        pictures: Sequence[_Pictures] | None = None,
        callback: Progress | None = None,
        estimate: Progress | None = None,
    ) -> Tensor:
        """Latents [B, C, t, h, w] of prompts that share everything but text, seed and picture, float32 on the CPU."""
        model, size, batch = self.model, request.size, len(prompts)
        device, dtype = model.device, model.dtype
        scale, embedded = request.true_cfg_scale, request.guidance_scale
        assert scale is not None and embedded is not None
        guided = scale > 1
        numerics = pick_numerics(request.numerics, self._released)
        kind = self._image_condition if pictures else None

        # The negative prompt is encoded in the same call, so both halves are padded to one length.
        texts = ([request.negative_prompt or ""] if guided else []) + list(prompts)
        images = None
        if pictures:
            first = [picture.first for picture in pictures]
            images = ([self._black(first[0].size)] if guided else []) + first
        text = self._encode(texts, "image" if size.is_image else "video", images, kind).to(device, dtype)
        model.check_fit((text.states.shape[-1], text.pooled.shape[-1]))
        states, mask, pooled = text.states, text.mask, text.pooled
        if guided:
            rows = torch.tensor([0] * batch + list(range(1, batch + 1)), device=device)
            states, mask, pooled = states[rows], mask[rows], pooled[rows]

        dit, loras = model.dit, self._loras.apply(request.lora)
        if kind is None and dit.config.in_channels != dit.config.out_channels:
            raise UserError(f"The weights in {model.folder} read a picture (33 channels); name one to start from.")
        if embedded != self.defaults.guidance_scale and not dit.config.guidance_embed:
            _log.warning("guidance_scale is not used: this model has no guidance embedder; see true_cfg_scale.")
        guidance = embedded_guidance(embedded, len(states), device) if dit.config.guidance_embed else None
        condition = self._condition(kind, pictures, size) if kind and pictures else None
        both = condition.repeat(2) if condition and guided else condition
        riflex_k = riflex_index(size.num_frames, dit.config.rope_axes_dim[0]) if request.uses_riflex else None
        predict = partial(
            dit,
            riflex_k=riflex_k,
            enhance_weight=request.enhance_weight,
            clean_frames=both.clean_frames if both else None,
        )

        def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
            if guided:
                latents, timestep = torch.cat([latents, latents]), timestep.repeat(2)
            given = both.model_input(latents) if both else latents
            out = predict(given.to(dtype), timestep, states, mask, pooled, guidance).float()
            if guided:
                uncond, cond = out.chunk(2)
                out = classifier_free(uncond, cond, scale)
            return condition.held(out) if condition else out

        start = numerics.round_noise(noise((dit.config.out_channels, *_latent_shape(size)), seeds)).to(device)
        if condition:
            start = condition.start(start, request.i2v_stability)
        self.record = self._describe(request, numerics, text, None if guidance is None else float(guidance[0]), kind)
        if loras:
            self.record["lora"] = loras
        return denoise(velocity, start, _sigmas(request), callback, estimate).cpu()

    def _encode(
        self,
        texts: list[str],
        data_type: str,
        images: list[Image.Image] | None,
        kind: ImageCondition | None,
    ) -> TextFeatures:
        """Features of the texts; those of the last call are kept, for the next video of the same request."""
        asked = _Asked(tuple(texts), data_type, tuple(images or ()))
        if self._text is not None and self._text[0].same(asked):
            return self._text[1]
        encoder = self.model.text
        if images is not None and kind is not None and encoder.sees_images:
            features = encoder.encode(texts, data_type, images, SUBSAMPLE[kind])
        else:
            features = encoder.encode(texts, data_type)
            if images is not None and self._released:
                features = replace(features, notes=(*features.notes, _BLIND))
        self._text = (asked, features)
        if encoder.nbytes > KEEP_TEXT_BYTES:
            del encoder
            self.model.free_text()
        return features

    def _condition(self, kind: ImageCondition, pictures: Sequence[_Pictures], size: VideoSize) -> FrameCondition:
        """The given frames of a batch. A picture that several videos share is encoded once."""

        def encode(images: list[Image.Image]) -> Tensor:
            distinct = {id(image): image for image in images}
            latents = {
                key: image_latents(self.model.vae, fit_image(image, size.height, size.width)[None])
                for key, image in distinct.items()
            }
            return torch.cat([latents[id(image)] for image in images]).to(self.model.device)

        ends = [picture.last for picture in pictures if picture.last is not None]
        return FrameCondition.of_frames(
            kind, size.latent.frames, encode([picture.first for picture in pictures]), encode(ends) if ends else None
        )

    def _describe(
        self,
        request: Request,
        numerics: Numerics,
        text: TextFeatures,
        guidance: float | None,
        kind: ImageCondition | None,
    ) -> dict[str, Any]:
        """What a user may want to know of a video and what its request does not say. Plain JSON values."""
        tiling = TilingConfig.from_vae(self.model.vae.config)
        notes = list(text.notes)
        record: dict[str, Any] = {
            "numerics": numerics.record()
            | {
                "latents": "float32",
                "embedded_guidance": guidance,
                "tiles": [tiling.tile_size, tiling.tile_stride, tiling.tile_frames, tiling.tile_frame_stride],
            },
            "words_not_read": {
                "language_model": [words for words in text.truncated if words],
                "clip": [words for words in text.truncated_pooled if words],
            },
        }
        if kind is not None:
            record["image_condition"] = kind
            for name in ("image", "last_image"):
                if path := getattr(request, name):
                    record[f"{name}_sha256"] = file_sha256(Path(path))
            if DROPPED_FRAMES[kind]:
                notes.append(f"The first {DROPPED_FRAMES[kind]} frames are dropped, as the weights want it.")
        if self._released and request.true_cfg_scale != 1 and not request.negative_prompt:
            notes.append("The negative prompt is empty; the released default one was not found or not wanted.")
        return record | {"notes": notes}

    @torch.inference_mode()
    def decode(self, latents: Tensor, request: Request | None = None) -> list[np.ndarray]:
        """Frames uint8 [T, H, W, 3] of each latent of [B, C, t, h, w]; in tiles where the picture is large.

        ``request`` says how to round. The first four frames of latent-concat weights are dropped.
        """
        numerics = pick_numerics(request.numerics if request else "auto", self._released)
        videos = [numerics.to_uint8(video) for video in self.decode_pixels(latents)]
        return [video.permute(1, 2, 3, 0).cpu().contiguous().numpy() for video in videos]

    @torch.inference_mode()
    def decode_pixels(self, latents: Tensor) -> list[Tensor]:
        """Like ``decode``, before rounding: float32 [3, T, H, W], about -1..1, on the model's device."""
        vae, out = self.model.vae, []
        tiling = TilingConfig.from_vae(vae.config)
        kind = self._image_condition
        dropped = DROPPED_FRAMES[kind] if kind else 0
        for sample in latents.split(1):
            video = vae.decode_latents(sample.to(self.model.device, self.model.dtype), tiling)[0].float()
            out.append(video[:, dropped:])
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
