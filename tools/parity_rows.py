"""Every comparison with diffusers and transformers, as a row: what is compared, how far it may be off, the measurement.

All rows run in float32 on small random models of the released structure (``tools.tiny_release``). Where diffusers
departs from the released program (release fact J.44), it is set right for the comparison and the row says how.
Rows of files and LoRAs are in ``tools.parity_formats``. The tests assert every row, and
``python -m tools.parity_table`` writes them all into docs/results/parity.md.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openhunyuan.base.device import make_generator, noise
from openhunyuan.base.sizes import VideoSize
from openhunyuan.convert.load import open_dit, open_vae
from openhunyuan.diffusion.guidance import embedded_guidance
from openhunyuan.diffusion.schedule import sigmas, timesteps
from openhunyuan.infer.conditions import STABILITY, fit_image, image_latents
from openhunyuan.infer.numerics import OFFICIAL
from openhunyuan.infer.pipeline import Pipeline
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.layout import ImageCondition
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.text.llava import ImageEncoder
from openhunyuan.models.vae.tiling import TilingConfig, tiled_decode, tiled_encode
from openhunyuan.ops.rope import rope_freqs
from tools.tiny_release import (
    NEGATIVE,
    PROMPT,
    diffusers_pipeline,
    image_processor,
    official_tiles,
    random_image,
    seeded,
)

SIZE = VideoSize(21, 32, 32)
STEPS = 3
SEED = 7
GUIDANCE = 6.0

GUIDANCE_FIX = "guidance 6.016: in float32 diffusers does not round 6.0 as bfloat16 weights do (release fact B.3)"
TILES_FIX = "VAE tiles of 64 frames, stride 48: diffusers cuts 16 and 12 (release fact C.5)"
PICTURE_FIX = "the picture has the video's size: diffusers stretches, the release crops"
NOISE_FIX = "the same float32 noise is given to both: the release draws in float16"
MIX_FIX = "noise from which the mixing is taken out beforehand: diffusers always mixes 0.001 of the picture"
BETWEEN_FIX = (
    "a loop around its transformer that keeps latents and times in float32: its own rounds both to the transformer's "
    "format between steps (release fact E.1)"
)
NEGATIVE_FIX = "negative features with every 4th image token: diffusers keeps every 2nd for the negative prompt alone"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        part: what of the system.
        what: what is compared with what.
        tolerance: largest absolute difference that is allowed.
        measure: gives the largest absolute difference.
        corrected: how diffusers was set right, "" where it agrees by itself.
        unit: of tolerance and measurement: "" is a difference of values, "tensors" how many are not equal.
    """

    part: str
    what: str
    tolerance: float
    measure: Callable[[], float]
    corrected: str = ""
    unit: Literal["", "tensors"] = ""

    @property
    def name(self) -> str:
        return f"{self.part}: {self.what}"

    @property
    def notes(self) -> list[str]:
        """How diffusers was set right, one by one."""
        return [note for note in self.corrected.split("; ") if note]

    def shown(self, value: float) -> str:
        """A tolerance or a measurement as the page has it."""
        return f"{value:.0f} tensors" if self.unit else f"{value:.1e}"


def far(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """Largest absolute difference; an empty or all-zero comparison is an error, not a success."""
    theirs = torch.as_tensor(theirs).detach()
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    if not float(theirs.abs().max()) > 0.05:
        raise AssertionError("there is nothing to compare: all values are near zero")
    return float((ours.detach().double() - theirs.double()).abs().max())


class Bench:
    """One kind of released model in both programs: the pipeline of diffusers, and ours opened from its saved folder."""

    fields: Mapping[str, Any] = {}

    def __init__(self, kind: ImageCondition | None) -> None:
        self.kind = kind
        self._temporary = tempfile.TemporaryDirectory()
        self.root = Path(self._temporary.name)
        self.picture_path = self.root / "picture.png"
        self.picture.save(self.picture_path)

    @cached_property
    def picture(self) -> Image.Image:
        return random_image(SIZE.height, SIZE.width, seed=1)

    @cached_property
    def theirs(self) -> Any:
        return self.make_theirs()

    @cached_property
    def folder(self) -> Path:
        return self.make_folder()

    @cached_property
    def ours(self) -> Pipeline:
        return self.make_ours()

    def make_theirs(self) -> Any:
        """The pipeline of diffusers."""
        return diffusers_pipeline(self.root / "parts", self.kind)

    def make_folder(self) -> Path:
        """The model on disk, as diffusers writes it."""
        self.theirs.save_pretrained(str(self.root / "model"))
        return self.root / "model"

    def make_ours(self) -> Pipeline:
        """Our pipeline, opened by the folder's path."""
        return Pipeline.from_pretrained(str(self.folder), device="cpu", dtype="float32")

    @cached_property
    def start(self) -> Tensor:
        """Noise [1, 16, T, h, w], as ours draws it."""
        latent = SIZE.latent
        return noise((16, latent.frames, latent.height, latent.width), [SEED])

    @lru_cache(maxsize=8)  # noqa: B019  (benches live as long as the process)
    def run_ours(self, cfg: float = 1.0, stability: bool = False) -> tuple[Tensor, Tensor]:
        """Latents after every step [N, C, T, h, w] and pixels [T, H, W, 3] in 0..1."""
        steps: list[Tensor] = []
        fields: dict[str, Any] = {"image": str(self.picture_path), "i2v_stability": stability} if self.kind else {}
        request = self.ours.resolve(
            _request(
                self.kind,
                num_inference_steps=STEPS,
                true_cfg_scale=cfg,
                negative_prompt=NEGATIVE if cfg > 1 else None,
                numerics="ours",
                **fields,
                **self.fields,
            )
        )
        latents = self.ours.sample(request, lambda done, total, now: steps.append(now.clone()[0]))
        pixels = (self.ours.decode_pixels(latents)[0] / 2 + 0.5).clamp(0, 1)
        return torch.stack(steps), pixels.permute(1, 2, 3, 0)

    @lru_cache(maxsize=8)  # noqa: B019
    def run_theirs(self, cfg: float = 1.0, stability: bool = False, without: str = "") -> tuple[Tensor, Tensor]:
        """The same of diffusers, set right as the constants above say, all of them or ``without`` one."""
        steps: list[Tensor] = []

        def after(pipe: Any, index: int, time: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            steps.append(values["latents"].clone()[0])
            return values

        fields: dict[str, Any] = {}
        latents = self.start
        if self.kind:
            fields["image"] = self.picture
            if not stability and without != MIX_FIX:
                pixels = self.theirs.video_processor.preprocess(self.picture, SIZE.height, SIZE.width)
                given = self.theirs.vae.encode(pixels[:, :, None]).latent_dist.mode() * 0.476986
                latents = (latents - STABILITY * given) / (1 - STABILITY)
        if cfg > 1 and self.kind and without != NEGATIVE_FIX:
            states, pooled, mask = self.theirs.encode_prompt(
                image=Image.new("RGB", self.picture.size),
                prompt=NEGATIVE,
                image_embed_interleave=4 if self.kind == "token_replace" else 2,
            )
            fields |= {
                "negative_prompt_embeds": states,
                "negative_pooled_prompt_embeds": pooled,
                "negative_prompt_attention_mask": mask,
            }
        elif cfg > 1:
            fields["negative_prompt"] = NEGATIVE
        guidance = GUIDANCE if without == GUIDANCE_FIX else float(embedded_guidance(GUIDANCE)[0]) / 1000
        if without == TILES_FIX:
            self.theirs.vae.tile_sample_min_num_frames, self.theirs.vae.tile_sample_stride_num_frames = 16, 12
        out = self.theirs(
            prompt=PROMPT,
            height=SIZE.height,
            width=SIZE.width,
            num_frames=SIZE.num_frames,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            true_cfg_scale=cfg,
            latents=latents,
            output_type="np",
            callback_on_step_end=after,
            **fields,
        )
        official_tiles(self.theirs.vae)
        return torch.stack(steps), torch.from_numpy(out.frames[0])


def _request(kind: str | None, **fields: Any) -> Any:
    from openhunyuan.infer.request import Request

    return Request(
        prompt=PROMPT,
        seed=SEED,
        height=SIZE.height,
        width=SIZE.width,
        num_frames=SIZE.num_frames,
        guidance_scale=None if kind == "latent_concat" else GUIDANCE,
        flow_shift=7.0,
        fps=8,
        **fields,
    )


@lru_cache(maxsize=3)
def bench(kind: ImageCondition | None) -> Bench:
    """The bench of one kind, built once a process."""
    return Bench(kind)


# -- parts -----------------------------------------------------------------------------------------------------------


def schedule() -> float:
    from diffusers import FlowMatchEulerDiscreteScheduler

    worst = 0.0
    for steps, shift in ((50, 7.0), (5, 7.0), (50, 17.0), (30, 1.0)):
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1].tolist())
        levels = sigmas(steps, shift)
        worst = max(worst, far(levels, scheduler.sigmas), far(timesteps(levels), scheduler.timesteps) / 1000)
    return worst


def rope() -> float:
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed

    theirs = HunyuanVideoRotaryPosEmbed(1, 1, [16, 56, 56], theta=256.0)(torch.zeros(1, 16, 3, 4, 5))
    return max(far(a, b) for a, b in zip(rope_freqs((3, 4, 5)), theirs, strict=True))


def official_noise() -> float:
    """The release draws in float16 with a generator a sample."""
    shape = (16, 3, 4, 4)
    drawn = [torch.randn(shape, generator=make_generator(seed), dtype=torch.float16) for seed in (1, 2)]
    return far(OFFICIAL.round_noise(noise(shape, [1, 2])), torch.stack(drawn).float())


@torch.no_grad()
def velocities(ours: DiT, theirs: Any, kind: ImageCondition | None) -> float:
    """Both transformers on two samples with texts of different length."""
    config = ours.config
    rng = seeded(2)
    mask = torch.arange(9) < torch.tensor([[5], [8]])
    latents = torch.randn(2, config.in_channels, 3, 4, 6, generator=rng)
    states, pooled = torch.randn(2, 9, config.text_dim, generator=rng), torch.randn(2, 32, generator=rng)
    time = torch.tensor([994.083, 125.0])
    guidance = embedded_guidance(GUIDANCE, 2) if config.guidance_embed else None
    clean = torch.tensor([[True, False, False]] * 2) if kind == "token_replace" else None
    mine = ours(latents, time, states, mask, pooled, guidance, clean_frames=clean)
    return far(mine, theirs(latents, time, states, mask.long(), pooled, guidance, return_dict=False)[0])


def transformer(kind: ImageCondition | None) -> float:
    both = bench(kind)
    return velocities(open_dit(both.folder / "transformer"), both.theirs.transformer, kind)


@torch.no_grad()
def vae_encode() -> float:
    both = bench(None)
    video = torch.rand(1, 3, 9, 32, 48, generator=seeded(1)) * 2 - 1
    posterior = both.theirs.vae.encode(video).latent_dist
    return far(open_vae(both.folder / "vae").encode(video).mode(), posterior.mode())


@torch.no_grad()
def vae_decode() -> float:
    both = bench(None)
    latents = torch.randn(1, 16, 3, 4, 6, generator=seeded(2))
    return far(open_vae(both.folder / "vae").decode(latents), both.theirs.vae.decode(latents).sample)


@torch.no_grad()
def vae_tiled(decode: bool) -> float:
    """Tiles of 32 pixels and 16 frames instead of 256 and 64: the arithmetic is the same, the video small."""
    both = bench(None)
    ours, theirs = open_vae(both.folder / "vae"), both.theirs.vae
    tiling = TilingConfig(tile_size=32, tile_stride=24, tile_frames=16, tile_frame_stride=12)
    theirs.enable_tiling(32, 32, 16, 24, 24, 12)
    try:
        if decode:
            latents = torch.randn(1, 16, 7, 6, 7, generator=seeded(3))
            return far(tiled_decode(ours, latents, tiling), theirs.decode(latents).sample)
        video = torch.rand(1, 3, 25, 48, 56, generator=seeded(4)) * 2 - 1
        moments = theirs.encode(video).latent_dist.parameters
        return far(tiled_encode(ours, video, tiling), moments)
    finally:
        theirs.disable_tiling()
        theirs.tile_sample_min_height = theirs.tile_sample_min_width = 256
        theirs.tile_sample_stride_height = theirs.tile_sample_stride_width = 192
        official_tiles(theirs)


def _text(kind: ImageCondition | None) -> TextEncoder:
    folder = bench(kind).folder
    return TextEncoder.from_folder(folder / "text_encoder", folder / "text_encoder_2")


def text_states(pooled: bool, prompts: tuple[str, ...] = (PROMPT, NEGATIVE, "")) -> float:
    theirs, pool, mask = bench(None).theirs.encode_prompt(prompt=list(prompts), max_sequence_length=256)
    ours = _text(None).encode(list(prompts))
    return far(ours.pooled, pool) if pooled else _states(ours.states, ours.mask, theirs, mask)


def llava_states(subsample: int, prompts: tuple[str, ...] = (PROMPT, NEGATIVE)) -> float:
    both = bench("token_replace")
    theirs, _, mask = both.theirs.encode_prompt(
        image=[both.picture] * len(prompts), prompt=list(prompts), image_embed_interleave=subsample
    )
    ours = _text("token_replace").encode(list(prompts), images=[both.picture] * len(prompts), subsample=subsample)
    return _states(ours.states, ours.mask, theirs, mask)


def _states(ours: Tensor, mask: Tensor, theirs: Tensor, their_mask: Tensor) -> float:
    """Valid states row by row; the rows must be equally long, and diffusers pads to the full budget."""
    return max(
        far(row[valid], other[other_valid.bool()])
        for row, valid, other, other_valid in zip(ours, mask, theirs, their_mask, strict=True)
    )


def picture_for_llava() -> float:
    encoder = ImageEncoder.from_folder(bench("token_replace").folder / "text_encoder")
    processor = image_processor()
    worst = 0.0
    for height, width in ((32, 32), (61, 97), (150, 70), (40, 300)):
        image = random_image(height, width, seed=height)
        theirs = processor(image, return_tensors="pt").pixel_values[0]
        worst = max(worst, far(encoder.preparation(image), theirs))
    return worst


@torch.no_grad()
def picture_latents() -> float:
    both = bench("token_replace")
    pixels = both.theirs.video_processor.preprocess(both.picture, SIZE.height, SIZE.width)
    theirs = both.theirs.vae.encode(pixels[:, :, None]).latent_dist.mode() * 0.476986
    ours = image_latents(open_vae(both.folder / "vae"), fit_image(both.picture, SIZE.height, SIZE.width)[None])
    return far(ours, theirs)


# -- pipelines -------------------------------------------------------------------------------------------------------


def pipeline(kind: ImageCondition | None, which: int, cfg: float = 1.0, stability: bool = False) -> float:
    """Prompt to frames: the latents after every step (which = 0) or the frames (1)."""
    ours, theirs = (run(cfg, stability)[which] for run in (bench(kind).run_ours, bench(kind).run_theirs))
    return far(ours, theirs)


@torch.no_grad()
def half_precision(rounded: bool = False) -> float:
    """Latents where the transformer computes in bfloat16; ``rounded`` is what diffusers does between steps.

    Both transformers read our text features, so that nothing but the loop is compared. They add in another order, and
    where a sum is rounded the other way, that grows from step to step: the first half of the steps is compared.
    """
    count = 8
    from diffusers import FlowMatchEulerDiscreteScheduler

    both, steps = bench(None), []
    pipe = Pipeline.from_pretrained(str(both.folder), device="cpu", dtype="bfloat16")
    request = pipe.resolve(_request(None, num_inference_steps=count, true_cfg_scale=1.0, numerics="ours"))
    pipe.sample(request, lambda done, total, now: steps.append(now.clone()[0]))

    text = pipe.model.text.encode([PROMPT]).to("cpu", torch.bfloat16)
    transformer = copy.deepcopy(both.theirs.transformer).to(torch.bfloat16)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, count + 1)[:-1].tolist())
    guidance = torch.tensor([GUIDANCE], dtype=torch.bfloat16) * 1000
    between = torch.bfloat16 if rounded else torch.float32
    latents, expected = both.start.to(between), []
    for index, time in enumerate(scheduler.timesteps[: count // 2]):
        inputs = latents.to(torch.bfloat16), time[None].to(between), text.states, text.mask.long(), text.pooled
        velocity = transformer(*inputs, guidance, return_dict=False)[0]
        change = (scheduler.sigmas[index + 1] - scheduler.sigmas[index]) * velocity.float()
        latents = (latents.float() + change).to(between)
        expected.append(latents.float()[0])
    return far(torch.stack(steps[: count // 2]), torch.stack(expected))


def uncorrected(fix: str) -> float:
    """How far the results are apart without one correction, in the pipeline where it counts: frames, or latents."""
    if fix == BETWEEN_FIX:
        return half_precision(rounded=True)
    kind: ImageCondition | None = None if fix in (GUIDANCE_FIX, TILES_FIX) else "token_replace"
    cfg = 3.0 if fix == NEGATIVE_FIX else 1.0
    both = bench(kind)
    return far(both.run_ours(cfg)[1], both.run_theirs(cfg, without=fix)[1])


MEASURED_FIXES = (GUIDANCE_FIX, TILES_FIX, MIX_FIX, NEGATIVE_FIX, BETWEEN_FIX)


def _pipeline_rows() -> list[Row]:
    rows: list[Row] = []
    kinds: tuple[tuple[ImageCondition | None, str], ...] = (
        (None, "T2V pipeline"),
        ("token_replace", "I2V pipeline, token replace"),
        ("latent_concat", "I2V pipeline, latent concat"),
    )
    for kind, title in kinds:
        for cfg, stability, name in (
            (1.0, False, ""),
            (1.0, True, ", stability mixing"),
            (3.0, False, ", true guidance 3"),
        ):
            if stability and kind is None:
                continue
            fixes = [NOISE_FIX, TILES_FIX]
            fixes += [GUIDANCE_FIX] if kind != "latent_concat" else []
            fixes += [PICTURE_FIX] if kind else []
            fixes += [MIX_FIX] if kind and not stability else []
            fixes += [NEGATIVE_FIX] if kind == "token_replace" and cfg > 1 else []
            for which, what in enumerate((f"latents after each of {STEPS} steps", "frames in 0..1")):
                rows.append(
                    Row(
                        title,
                        what + name,
                        2e-5,
                        lambda kind=kind, which=which, cfg=cfg, stability=stability: pipeline(
                            kind, which, cfg, stability
                        ),
                        "; ".join(fixes),
                    )
                )
    return rows


LONG = "a very large red circle moves right and a small green star moves left " * 40

PIPELINE_ROWS: list[Row] = [
    Row("Schedule", "sigmas, and timesteps / 1000, of four (steps, shift)", 1e-6, schedule),
    Row("Schedule", "official noise: float16 draws of two seeds", 0.0, official_noise),
    Row("Transformer", "rotary cosines and sines", 1e-6, rope),
    Row("Transformer", "velocity, text-to-video with guidance", 1e-5, lambda: transformer(None)),
    Row("Transformer", "velocity, token replace", 1e-5, lambda: transformer("token_replace")),
    Row("Transformer", "velocity, latent concat (33 channels)", 1e-5, lambda: transformer("latent_concat")),
    Row("VAE", "posterior mode", 1e-5, vae_encode),
    Row("VAE", "decoded video", 2e-5, vae_decode),
    Row("VAE", "moments, tiled in space and time", 2e-5, lambda: vae_tiled(False)),
    Row("VAE", "decoded video, tiled in space and time", 2e-5, lambda: vae_tiled(True)),
    Row("Text", "states of layer -3 after the crop, three prompts", 1e-5, lambda: text_states(False)),
    Row("Text", "states of a prompt that is too long", 1e-5, lambda: text_states(False, (LONG,))),
    Row("Text", "CLIP's pooled vector, three prompts", 1e-5, lambda: text_states(True)),
    Row("LLaVA", "prepared pictures of four shapes", 1e-6, picture_for_llava),
    Row("LLaVA", "144 image and text states, two prompts", 1e-5, lambda: llava_states(4)),
    Row("LLaVA", "288 image and text states, two prompts", 1e-5, lambda: llava_states(2)),
    Row("LLaVA", "states of a prompt that is too long", 1e-5, lambda: llava_states(4, (LONG,))),
    Row("I2V", "latent of the picture", 1e-5, picture_latents, PICTURE_FIX),
    *_pipeline_rows(),
    Row(
        "T2V pipeline, bfloat16",
        "latents after each of the first 4 of 8 steps, transformer in bfloat16",
        3e-3,
        half_precision,
        f"{NOISE_FIX}; {BETWEEN_FIX}",
    ),
]
