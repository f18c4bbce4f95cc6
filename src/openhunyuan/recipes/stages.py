"""The report's stages: each a function of the scale that returns a config.

The report (§4.1, §4.5, §5) gives the order, the losses, the VAE's 4 videos to an image, frame intervals of 1…8, mixed
scales in every global batch, images in every video stage, and guidance scales of 1…8. It gives no steps, batch sizes,
learning rates or image ratios for the DiT: those are ours. At paper scale the first image and the first video stage
read about the 740B and 928B tokens that its scaling laws give for 13B (§4.4). At tiny scale "256" is 32 pixels, "512"
and the highest are 64, and clips have 9 to 33 frames: the embedded model's sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic import Field

from openhunyuan.infer.conditions import ImageCondition
from openhunyuan.models.lora import TRAIN_TARGETS
from openhunyuan.recipes.registry import Scale
from openhunyuan.recipes.scales import SIZES
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, Strict, TrainConfig
from openhunyuan.train.tasks.autoencode import AutoencodeConfig
from openhunyuan.train.tasks.flow import FlowConfig
from openhunyuan.train.tasks.guidance import GuidanceConfig
from openhunyuan.train.tasks.steps import StepsConfig

T = TypeVar("T")


class VaeRecipe(Strict):
    """A stage of the VAE. ``linear_pyramid``: start from a linear fit instead of random weights (ours; for a CPU)."""

    train: TrainConfig
    loss: AutoencodeConfig
    linear_pyramid: bool = False


class LoraSize(Strict):
    """A LoRA to train."""

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=64.0, gt=0)
    targets: tuple[str, ...] = TRAIN_TARGETS


class LatentRecipe(Strict):
    """A stage of the DiT, on encoded latents.

    The shapes of its stages are the buckets; their ``batch_size`` is the largest micro-batch.
    """

    train: TrainConfig
    task: FlowConfig | GuidanceConfig | StepsConfig
    global_batch: int = Field(gt=0, description="samples of a step")
    images_to_videos: tuple[int, int] | None = Field(description="exact, in every step; None = as the data holds")
    image_scales: tuple[tuple[int, int], ...] = Field(
        default=(), description="(side, parts): the sides' parts of the images of every step; () = as the data holds"
    )
    condition: ImageCondition | None = Field(default=None, description="how given frames come in, where they do")
    lora: LoraSize | None = Field(default=None, description="only this is trained")


Made = VaeRecipe | LatentRecipe


def shortened(recipe: Made, steps: int) -> Made:
    """The recipe with about so many steps: every stage keeps its share, and one step at least.

    What is due at a step it does not reach any more (samples) is left out; what starts late starts in proportion.
    """
    train = recipe.train
    stages = tuple(
        stage.model_copy(update={"steps": max(1, steps * stage.steps // train.total_steps)}) for stage in train.stages
    )
    total = sum(stage.steps for stage in stages)
    changes: dict[str, object] = {
        "train": train.model_copy(
            update={
                "stages": stages,
                "sample_every": train.sample_every if train.sample_every <= total else 0,
                "optimizer": train.optimizer.model_copy(
                    update={"warmup_steps": min(train.optimizer.warmup_steps, total // 10)}
                ),
                "log_every": min(train.log_every, total),
            }
        )
    }
    if isinstance(recipe, VaeRecipe):
        start = recipe.loss.adversarial_start * total // train.total_steps
        changes["loss"] = recipe.loss.model_copy(update={"adversarial_start": start})
    return recipe.model_copy(update=changes)


# -- the VAE (§4.1) --------------------------------------------------------------------------------------------------


def vae(scale: Scale) -> VaeRecipe:
    """L1 + 0.1 perceptual + 0.05 adversarial + 1e-6 KL, four videos to an image, low and short to high and long,
    frame intervals of 1…8 (§4.1). Ours: sizes, steps, rates, and the discriminator's start after a third."""
    sizes = SIZES[scale]
    steps = _by(scale, 500, 20_000, 100_000)
    curriculum = sizes.vae_curriculum
    stages = tuple(_clips(scale, frames, side, steps) for frames, side in curriculum)
    train = _train("vae", scale, stages, _by(scale, 2e-4, 1e-4, 1e-4), _by(scale, 4e-3, 1e-3, 1e-3))
    loss = AutoencodeConfig(adversarial_start=steps * len(curriculum) // 3)
    return VaeRecipe(train=train, loss=loss, linear_pyramid=scale == "tiny")


def vae_tiling(scale: Scale) -> VaeRecipe:
    """Tiles switched on and off at random, so that both ways give the same picture (§4.1); half of the steps (ours),
    on the largest clips of the curriculum."""
    sizes = SIZES[scale]
    frames, side = sizes.vae_curriculum[-1]
    stages = (_clips(scale, frames, side, _by(scale, 200, 5_000, 20_000)),)
    train = _train("vae-tiling", scale, stages, _by(scale, 1e-4, 5e-5, 5e-5), _by(scale, 1e-3, 1e-3, 1e-3))
    return VaeRecipe(train=train, loss=AutoencodeConfig(tiling_prob=0.5, tiles=sizes.tiles))


def _clips(scale: Scale, frames: int, side: int, steps: int) -> Stage:
    """Clips and images of one size, four steps to one."""
    batch = max(1, min(16, SIZES[scale].pixels // (frames * side * side)))
    return Stage(
        name=f"{side}x{frames}",
        steps=steps,
        shapes=(
            BatchShape(batch_size=batch, num_frames=frames, height=side, width=side, share=4),
            BatchShape(batch_size=min(16, batch * frames), num_frames=1, height=side, width=side),
        ),
        camera_prob=0.2,
        frame_intervals=_by(scale, (1, 1, 1, 2), tuple(range(1, 9)), tuple(range(1, 9))),
    )


# -- flow matching (§4.5) --------------------------------------------------------------------------------------------


def flow_image_256(scale: Scale) -> LatentRecipe:
    """Image stage 1: from random weights, one scale, buckets of many aspects (§4.5). Paper scale: 740B tokens, steps of
    8,192 images of about 256 tokens."""
    sizes = SIZES[scale]
    stage = _stage("image-256", _by(scale, 1500, 100_000, 350_000), sizes.shapes(sizes.low, 1))
    return _flow("flow-image-256", scale, stage, _by(scale, 64, 2048, 8192), (1, 0), 1.0)


def flow_mix_256_512(scale: Scale) -> LatentRecipe:
    """Image stage 2: both scales in every global batch, the micro-batch chosen by scale (§4.5). One to one is ours."""
    sizes = SIZES[scale]
    shapes = sizes.shapes(sizes.low, 1) + sizes.shapes(sizes.mid, 1)
    stage = _stage("mix-256-512", _by(scale, 600, 40_000, 100_000), shapes)
    recipe = _flow("flow-mix-256-512", scale, stage, _by(scale, 64, 1024, 4096), (1, 0), 0.6)
    return recipe.model_copy(update={"image_scales": ((sizes.low, 1), (sizes.mid, 1))})


def flow_video_low_short(scale: Scale) -> LatentRecipe:
    """Joint stage 1: short videos at the low side, duration × aspect buckets, one image to four videos (the ratio is
    ours). Paper scale: 928B tokens, steps of 2,048 samples of about 2,600 tokens."""
    sizes = SIZES[scale]
    stage = _stage("video-low-short", _by(scale, 1000, 40_000, 170_000), sizes.shapes(sizes.low, 1, *sizes.short))
    return _flow("flow-video-low-short", scale, stage, _by(scale, 40, 512, 2048), (1, 4), 0.6)


def flow_video_low_long(scale: Scale) -> LatentRecipe:
    """Joint stage 2: long videos at the low side, one image to four videos (ours)."""
    sizes = SIZES[scale]
    stage = _stage("video-low-long", _by(scale, 1000, 30_000, 60_000), sizes.shapes(sizes.low, 1, *sizes.long))
    return _flow("flow-video-low-long", scale, stage, _by(scale, 30, 256, 1024), (1, 4), 0.6)


def flow_video_high_long(scale: Scale) -> LatentRecipe:
    """Joint stage 3: long videos at the highest side (paper scale: 720×1280×129), one image to nine videos (ours)."""
    sizes = SIZES[scale]
    stage = _stage("video-high-long", _by(scale, 3000, 20_000, 40_000), sizes.shapes(sizes.high, 1, *sizes.long))
    return _flow("flow-video-high-long", scale, stage, _by(scale, 20, 128, 512), (1, 9), 0.3)


def flow_sft(scale: Scale) -> LatentRecipe:
    """The last tuning, on hand-picked clips (§3.1: about a million; §4.7), small rates (ours). Which clips those are is
    a matter of --data; the synthetic world has none that are better."""
    sizes = SIZES[scale]
    stage = _stage("sft", _by(scale, 500, 3_000, 10_000), sizes.shapes(sizes.high, 1, *sizes.long))
    return _flow("flow-sft", scale, stage, _by(scale, 20, 64, 256), (1, 9), 0.1)


def image_to_video(scale: Scale) -> LatentRecipe:
    """The first latent frame given without noise, at time 0 (token replace; §7 of v6). In four steps of five (ours), so
    that the weights still make videos from text alone."""
    return _image_to_video("image-to-video", scale, "token_replace", 0.8)


def image_to_video_concat(scale: Scale) -> LatentRecipe:
    """The first latent frame, zeros after it and a mask beside the noise: 16 + 16 + 1 channels. The first convolution
    keeps its weights and starts the new ones at zero (§7 of v1)."""
    return _image_to_video("image-to-video-concat", scale, "latent_concat", 1.0)


def _image_to_video(name: str, scale: Scale, condition: ImageCondition, share: float) -> LatentRecipe:
    sizes = SIZES[scale]
    stage = _stage(name, _by(scale, 800, 10_000, 20_000), sizes.shapes(sizes.high, *sizes.long))
    recipe = _flow(name, scale, stage, _by(scale, 20, 64, 256), (0, 1), 0.3)
    return recipe.model_copy(
        update={"condition": condition, "task": recipe.task.model_copy(update={"image_share": share})}
    )


# -- distillation (§5) and LoRA --------------------------------------------------------------------------------------


def distill_guidance(scale: Scale) -> LatentRecipe:
    """The student starts as the teacher's copy with a guidance input, scales drawn from 1…8 (§5)."""
    sizes = SIZES[scale]
    stage = _stage("guidance", _by(scale, 800, 5_000, 20_000), sizes.shapes(sizes.high, 1, *sizes.long))
    recipe = _flow("distill-guidance", scale, stage, _by(scale, 20, 64, 256), (1, 9), 0.1)
    return recipe.model_copy(update={"task": GuidanceConfig(low=1.0, high=8.0)})


def distill_steps(scale: Scale) -> LatentRecipe:
    """Eight steps by consistency within phases (ours; ``train.tasks.steps`` says why). The shift of the grid is the
    report's for few steps, 17 (§5); at tiny scale 3, since small pictures need less."""
    sizes = SIZES[scale]
    stage = _stage("steps", _by(scale, 800, 2_000, 4_000), sizes.shapes(sizes.high, *sizes.long))
    recipe = _flow("distill-steps", scale, stage, _by(scale, 20, 64, 128), (0, 1), 0.1)
    task = StepsConfig(num_steps=8, flow_shift=_by(scale, 3.0, 17.0, 17.0), guidance_scale=_by(scale, 3.0, 6.0, 6.0))
    return recipe.model_copy(update={"task": task})


def lora(scale: Scale) -> LatentRecipe:
    """A LoRA on whatever sizes the data holds. Layers, rank = alpha = 64, rate 1e-4 and warm-up as the official
    image-to-video training (release fact F); at tiny scale rank 8 and 1e-3 (ours).

    It starts from guidance-distilled weights, not from step-distilled ones, whose few steps the loss would undo. What
    it makes is used on either."""
    sizes = SIZES[scale]
    stage = _stage("lora", _by(scale, 300, 1_000, 1_000), sizes.shapes(sizes.high, *sizes.long))
    recipe = _flow("lora", scale, stage, 8, None, 1.0)
    rank = _by(scale, 8, 64, 64)
    optimizer = OptimizerConfig(
        lr=_by(scale, 1e-3, 1e-4, 1e-4), warmup_steps=_by(scale, 20, 100, 100), schedule="constant"
    )
    train = recipe.train.model_copy(update={"optimizer": optimizer, "ema_decay": 0.99})
    return recipe.model_copy(update={"train": train, "lora": LoraSize(rank=rank, alpha=float(rank))})


# -- what they share -------------------------------------------------------------------------------------------------


def _by(scale: Scale, tiny: T, node: T, paper: T) -> T:
    return {"tiny": tiny, "node": node, "paper": paper}[scale]


def _stage(name: str, steps: int, shapes: tuple[BatchShape, ...]) -> Stage:
    return Stage(name=name, steps=steps, shapes=shapes)


def _flow(
    name: str, scale: Scale, stage: Stage, global_batch: int, ratio: tuple[int, int] | None, rate: float
) -> LatentRecipe:
    """``rate``: of the rates of training from nothing."""
    train = _train(name, scale, (stage,), rate * _by(scale, 1e-3, 2e-4, 1e-4), rate * 0.01)
    return LatentRecipe(train=train, task=FlowConfig(), global_batch=global_batch, images_to_videos=ratio)


def _train(name: str, scale: Scale, stages: tuple[Stage, ...], lr: float, muon_lr: float) -> TrainConfig:
    """AdamW with a constant rate; at tiny scale Muon with a decaying one, since a CPU has few steps."""
    total = sum(stage.steps for stage in stages)
    tiny = scale == "tiny"
    return TrainConfig(
        name=name,
        stages=stages,
        optimizer=OptimizerConfig(
            name="muon" if tiny else "adamw",
            lr=lr,
            muon_lr=muon_lr,
            betas=(0.9, 0.99) if tiny else (0.9, 0.95),
            weight_decay=0.0 if tiny else 0.01,
            warmup_steps=20 if tiny else 1000,
            schedule="linear" if tiny else "constant",
            final_lr_ratio=0.05,
        ),
        ema_decay=0.99 if tiny else 0.9995,
        autocast=SIZES[scale].autocast,
        checkpoint_every=_by(scale, 100, 500, 500),
        sample_every=_by(scale, 500, 0, 0),
        validate_every=max(1, min(500, total // 4)),
        log_every=20,
    )


STAGES: dict[str, Callable[[Scale], Made]] = {
    "vae": vae,
    "vae-tiling": vae_tiling,
    "flow-image-256": flow_image_256,
    "flow-mix-256-512": flow_mix_256_512,
    "flow-video-low-short": flow_video_low_short,
    "flow-video-low-long": flow_video_low_long,
    "flow-video-high-long": flow_video_high_long,
    "flow-sft": flow_sft,
    "image-to-video": image_to_video,
    "image-to-video-concat": image_to_video_concat,
    "distill-guidance": distill_guidance,
    "distill-steps": distill_steps,
    "lora": lora,
}
"""By the names of ``recipes.registry.STAGES``."""
