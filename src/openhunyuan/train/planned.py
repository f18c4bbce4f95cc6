"""Source of planned batches: the buckets of a stage, filled by ``latents.plan`` for this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from openhunyuan.base.log import get_logger
from openhunyuan.base.sizes import VideoSize
from openhunyuan.latents.captions import CaptionAssembly
from openhunyuan.latents.plan import BatchPlan, CostModel
from openhunyuan.latents.resample import places
from openhunyuan.latents.shards import LatentDraws, LatentSample, ShardDataset, check_mix, collate
from openhunyuan.train.config import BatchShape, Stage
from openhunyuan.train.loop import Batch


class PlannedBatches:
    """Batches of several micro-batches each; a stage's shapes are its buckets, their ``batch_size`` the largest
    micro-batch. What each stage trains on and leaves out is logged when it begins."""

    def __init__(
        self,
        datasets: Sequence[ShardDataset],
        cost: CostModel,
        global_batch: int,
        images_to_videos: tuple[int, int] | None = None,
        max_cost: float | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        captions: CaptionAssembly | None = None,
        image_scales: Sequence[tuple[int, int]] = (),
        draws: LatentDraws | None = None,
    ) -> None:
        """captions: texts assembled anew at every epoch. draws: latents drawn anew, in place of the mode."""
        check_mix(datasets)
        self.places = places(datasets)
        self.shapes = [place.dataset.shapes[place.row][1:] for place in self.places]
        self.draws = draws
        self.cost, self.global_batch, self.ratio, self.max_cost = cost, global_batch, images_to_videos, max_cost
        self.seed, self.rank, self.world_size, self.captions = seed, rank, world_size, captions
        self.image_scales = image_scales
        self._plans: dict[Stage, BatchPlan] = {}

    @property
    def at_hand(self) -> bool:
        """Batches take a moment, unless their texts are encoded when they are made."""
        return self.captions is None

    def plan(self, stage: Stage) -> BatchPlan:
        """The plan of a stage."""
        if stage not in self._plans:
            largest = {}
            for shape in stage.shapes:
                latent = VideoSize(shape.num_frames, shape.height, shape.width).latent
                largest[latent.frames, latent.height, latent.width] = shape.batch_size
            self._plans[stage] = plan = BatchPlan(
                [(t, h, w) for t, h, w in self.shapes],
                largest,
                self.cost,
                self.global_batch,
                self.ratio,
                self.max_cost,
                self.world_size,
                self.seed,
                self.image_scales,
            )
            for line in plan.report() if self.rank == 0 else ():
                get_logger("train").info("%s: %s", stage.name, line)
        return self._plans[stage]

    def longest(self, shape: BatchShape, count: int) -> Batch:
        """A micro-batch for measuring memory: ``count`` empty samples of a bucket, with the longest text of the data as
        it was encoded."""
        every = (place.dataset[place.row] for place in self.places if not place.copy)
        sample: LatentSample = max(every, key=lambda sample: len(sample.states))
        latent = VideoSize(shape.num_frames, shape.height, shape.width).latent
        size = (len(sample.latents), latent.frames, latent.height, latent.width)
        empty = replace(sample, latents=torch.zeros(size, dtype=sample.latents.dtype), logvar=None)
        keys = {"keys": torch.tensor([(n, 0) for n in range(count)])}
        return {"parts": [(1.0, collate([empty] * count) | keys)]}

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        """The micro-batches of this process at a step of the run, with their weights.

        Sharded weights are gathered once a micro-batch, by all processes together, so that every process needs as many:
        one that has fewer repeats its smallest with weight 0.
        """
        ranks = self.plan(stage).step(step).ranks
        mine = list(ranks[self.rank])
        smallest = min(mine, key=lambda micro: len(micro.keys) * micro.bucket.tokens)
        mine += [replace(smallest, weight=0.0)] * (max(len(rank) for rank in ranks) - len(mine))
        parts = []
        for micro in mine:
            held = [(self.places[number], epoch) for number, epoch in micro.keys]
            keys = [place.key(epoch) for place, epoch in held]
            samples: list[LatentSample] = [place.dataset[place.row] for place, _ in held]
            for change in (self.draws, self.captions):
                samples = change.apply(samples, keys) if change else samples
            parts.append((micro.weight, collate(samples) | {"keys": torch.tensor(keys)}))
        return {"parts": parts}
