"""What the stages cost, for ``--dry-run``, at every scale: nothing is computed and no data is needed.

Operations of the transformer come from its sizes (``models.flops``). Bytes kept for the backward pass are measured on
the meta device with no block and with one block of each kind at three short lengths; their parts that are constant and
linear in the tokens carry over to any length, and the quadratic part, which fused attention never keeps, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from openhunyuan.base.sizes import LatentSize, VideoSize
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.flops import dit_flops
from openhunyuan.models.lora import Adapters, new_lora
from openhunyuan.parallel.apply import Layout
from openhunyuan.parallel.tensor import split_alone
from openhunyuan.recipes.networks import Updates
from openhunyuan.recipes.run_stage import Options
from openhunyuan.recipes.scales import SIZES
from openhunyuan.recipes.stages import LatentRecipe, VaeRecipe
from openhunyuan.recipes.tiny_vae import vae_workload
from openhunyuan.train.config import BatchShape, Stage
from openhunyuan.train.estimate import Forward, Workload, count_forward
from openhunyuan.train.tasks.flow import FlowConfig
from openhunyuan.train.tasks.guidance import GuidanceConfig


def workloads(stage: str, options: Options) -> list[Workload]:
    """A stage's run, as it is planned where every bucket holds as many samples."""
    recipe, sizes = options.recipe(stage), SIZES[options.scale]
    if isinstance(recipe, VaeRecipe):
        alone = "The stages of the VAE run in one process; leave --processes out."
        return [replace(vae_workload(sizes.vae, recipe.train, recipe.loss), alone=alone)]
    config = _transformer(recipe, sizes.dit)
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"model": DiT(config)}
        if recipe.lora:
            changed = DiT(config)
            made = new_lora(changed, recipe.lora.rank, recipe.lora.alpha, recipe.lora.targets)
            Adapters(changed).add("lora", made, trainable=True)
            trained = {name: p for name, p in changed.named_parameters() if p.requires_grad}
            modules = {"lora": Updates(trained), "model": modules["model"].requires_grad_(False)}
    if not isinstance(recipe.task, FlowConfig):
        with torch.device("meta"):
            modules["teacher"] = DiT(config).requires_grad_(False)

    def tokens(shape: BatchShape) -> int:
        return _latent(shape).tokens(config.patch_size)

    def count(shape: BatchShape, layout: Layout) -> Forward:
        degrees = layout.tensor, layout.ulysses, layout.ring
        sample = config, _latent(shape), sizes.text_tokens, shape.batch_size
        split = layout.tensor, layout.sequence
        kept = measure_activations(config, sizes.text_tokens, *split)  # pyright: ignore[reportArgumentType] (frozen, so it hashes)
        run = math.ceil(tokens(shape) / (layout.ulysses * layout.ring))
        whole, recomputed = (kept.bytes(config, run, shape.batch_size, again) for again in (False, True))
        return Forward(dit_flops(*sample, *degrees), whole, recomputed, dit_flops(*sample))

    own, teacher = _without_gradient(recipe)
    notes = ["a micro-batch is one data rank's"]
    if options.data or recipe.lora:
        notes.append("buckets are those of the recipe, each with as many samples; the data has its own")
    return [
        Workload(
            recipe.train,
            modules,
            lambda shape: None,
            tokens,
            note="; ".join(notes),
            count=count,
            micro_batches=lambda stage: _micro_batches(recipe, stage),
            without_gradient=own,
            teacher=teacher,
            global_batch=recipe.global_batch,
            recompute=sizes.recompute and recipe.lora is None,
            alone="A LoRA is trained in one process; leave --processes out." if recipe.lora else "",
        )
    ]


def _transformer(recipe: LatentRecipe, config: DiTConfig) -> DiTConfig:
    """What is trained: with the channels or the guidance embedder that the stage adds, or its parents have added."""
    if recipe.condition == "latent_concat":
        return config.model_copy(update={"in_channels": 2 * config.out_channels + 1})
    return config.model_copy(
        update={"guidance_embed": not isinstance(recipe.task, FlowConfig) or recipe.lora is not None}
    )


def _without_gradient(recipe: LatentRecipe) -> tuple[int, int]:
    """Forwards of the network and of a teacher. Two passes of the teacher for guidance; one of the teacher and one of
    the student for steps; the network as it was at two scales for a LoRA on distilled weights."""
    if isinstance(recipe.task, FlowConfig):
        return (2, 0) if recipe.lora else (0, 0)
    return (0, 2) if isinstance(recipe.task, GuidanceConfig) else (1, 1)


def _latent(shape: BatchShape) -> LatentSize:
    return VideoSize(shape.num_frames, shape.height, shape.width).latent


def _micro_batches(recipe: LatentRecipe, stage: Stage) -> Mapping[BatchShape, int]:
    """Largest micro-batches of each bucket in all steps, where the buckets of a kind hold as many samples."""
    samples = stage.steps * recipe.global_batch
    images = [shape for shape in stage.shapes if shape.num_frames == 1]
    videos = [shape for shape in stage.shapes if shape.num_frames > 1]
    ratio = recipe.images_to_videos or (len(images), len(videos))
    found: dict[BatchShape, int] = {}
    groups: list[tuple[float, list[BatchShape]]] = [(ratio[1], videos)]
    if recipe.image_scales:
        every = sum(parts for _, parts in recipe.image_scales)
        for side, parts in recipe.image_scales:
            of_side = [shape for shape in images if _nearest(shape, [s for s, _ in recipe.image_scales]) == side]
            groups.append((ratio[0] * parts / every, of_side))
    else:
        groups.append((ratio[0], images))
    for parts, shapes in groups:
        for shape in shapes:
            share = samples * parts / sum(ratio) / len(shapes)
            if share:
                found[shape] = max(1, round(share / shape.batch_size))
    return found


def _nearest(shape: BatchShape, sides: list[int]) -> int:
    area = shape.height * shape.width
    return min(sides, key=lambda side: max(area / side**2, side**2 / area))


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass of one sample (fp32), as (constant, per image token), without any block and of
    one block of each kind; in one process, which has 1/``handed`` of the tokens from block to block."""

    outside: tuple[float, float]
    double: tuple[float, float]
    single: tuple[float, float]
    text_tokens: int
    handed: int = 1

    def bytes(self, config: DiTConfig, tokens: int, samples: int, recompute: bool) -> int:
        """Of a micro-batch, tokens a sample; with recomputation the blocks' inputs, and one block at a time."""
        outside, double, single = (
            constant + slope * tokens for constant, slope in (self.outside, self.double, self.single)
        )
        if recompute:
            doubles = config.num_double_blocks * (tokens / self.handed + self.text_tokens)
            singles = config.num_single_blocks * (tokens + self.text_tokens) / self.handed
            inside = 4 * config.hidden_size * (doubles + singles) + max(double, single)
        else:
            inside = config.num_double_blocks * double + config.num_single_blocks * single
        return round(samples * (outside + inside))


@cache
def measure_activations(config: DiTConfig, text_tokens: int, tensor: int = 1, sequence: bool = True) -> Activations:
    """On the meta device: seconds, whatever the size. tensor, sequence: see ``parallel.apply.Layout``."""
    numbers = ((0, 0), (1, 0), (0, 1))
    outside, *measured = [_line(config, *blocks, text_tokens, tensor, sequence) for blocks in numbers]
    double, single = ((one[0] - outside[0], one[1] - outside[1]) for one in measured)
    return Activations(outside, double, single, text_tokens, tensor if sequence else 1)


def _line(
    config: DiTConfig, doubles: int, singles: int, text_tokens: int, tensor: int, sequence: bool
) -> tuple[float, float]:
    """(constant, per token) of the bytes kept by a transformer of so many blocks."""
    small = config.model_copy(update={"num_double_blocks": doubles, "num_single_blocks": singles})
    with torch.device("meta"):
        dit = DiT(small)
    if tensor > 1:
        split_alone(dit, tensor, sequence)
    patch = config.patch_size
    lengths, kept = tuple(tensor * n for n in (16, 32, 48)), []
    for length in lengths:
        with torch.device("meta"):
            inputs = (
                torch.empty(1, config.in_channels, patch[0], patch[1], length * patch[2]),
                torch.empty(1),
                torch.empty(1, text_tokens, config.text_dim),
                torch.ones(1, text_tokens, dtype=torch.bool),
                torch.empty(1, config.pooled_dim),
                torch.empty(1) if config.guidance_embed else None,
            )
            kept.append(count_forward(lambda inputs=inputs: dit(*inputs), [dit]).kept)
    step = lengths[1] - lengths[0]
    square = (kept[2] - 2 * kept[1] + kept[0]) / (2 * step**2)
    slope = (kept[1] - kept[0]) / step - square * (lengths[0] + lengths[1])
    # Text tokens take part in the joint attention: of its square, (length + text)², the text's share is dropped too.
    slope -= 2 * square * text_tokens
    return kept[0] - (slope + 2 * square * text_tokens) * lengths[0] - square * (
        lengths[0] ** 2 + text_tokens**2
    ), slope
