"""The batch plan: which samples every process trains on at every step, a pure function of (seed, step, world size).

Buckets are latent shapes: aspect × duration × scale. A global batch is a fixed number of samples, images and videos in
an exact ratio, buckets in proportion to what they hold, evenly spread, so that every batch is mixed. The samples do not
depend on how many processes there are; only their distribution does: the costliest first, each to the process that has
least to do by the cost model. A process's samples of one bucket become micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import nnls

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import LatentSize
from openhunyuan.latents.shards import apportion, epoch_shuffled
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.flops import dit_flops

LONGEST_DECK = 10_000
"""Up to so many samples of a kind, each comes exactly once before any comes again; above, shares are rounded to it."""


@dataclass(frozen=True)
class CostModel:
    """Predicted cost of a micro-batch: per_batch + samples · (per_token · tokens + per_square · tokens²).

    In any unit. ``fit`` takes measured times; ``flops`` counts operations without measuring.
    """

    per_batch: float
    per_token: float
    per_square: float

    def sample(self, tokens: int) -> float:
        return self.per_token * tokens + self.per_square * tokens**2

    def batch(self, tokens: int, samples: int) -> float:
        return self.per_batch + samples * self.sample(tokens)

    @classmethod
    def fit(cls, measured: Iterable[tuple[int, int, float]]) -> CostModel:
        """Non-negative least squares on (tokens of a sample, samples, seconds), errors relative to each time."""
        rows = [(1.0, size * tokens, size * tokens**2, seconds) for tokens, size, seconds in measured]
        if len(rows) < 3 or any(row[3] <= 0 for row in rows):
            raise UserError("A cost model needs at least three measured batches with positive times.")
        table = np.array(rows, dtype=np.float64)
        matrix = table[:, :3] / table[:, 3:]
        scale = matrix.max(axis=0)
        found, _ = nnls(matrix / scale, np.ones(len(matrix)))
        return cls(*(found / scale).tolist())

    @classmethod
    def flops(cls, config: DiTConfig, text_tokens: int) -> CostModel:
        """Operations of a forward pass of the transformer, exact in its tokens."""
        lengths = (1, 2, 3)
        width = config.patch_size[2]
        costs = [
            dit_flops(config, LatentSize(config.patch_size[0], config.patch_size[1], n * width), text_tokens)
            for n in lengths
        ]
        square = (costs[2] - 2 * costs[1] + costs[0]) / 2
        token = costs[1] - costs[0] - 3 * square
        return cls(0.0, token, square)


@dataclass(frozen=True)
class Bucket:
    """Samples of one latent shape (frames, height, width), by their numbers; ``largest``: of one micro-batch."""

    shape: tuple[int, int, int]
    samples: tuple[int, ...]
    largest: int

    @property
    def is_image(self) -> bool:
        return self.shape[0] == 1

    @property
    def tokens(self) -> int:
        return LatentSize(*self.shape).tokens()

    def __str__(self) -> str:
        return str(LatentSize(*self.shape).video)


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one bucket, each with its epoch. weight: its tokens ÷ those of the whole global batch, so that the sum
    of weight · mean loss over all micro-batches of all processes is the loss per token."""

    bucket: Bucket
    keys: tuple[tuple[int, int], ...]
    weight: float


@dataclass(frozen=True)
class PlannedStep:
    """One global batch: the micro-batches of every process and their predicted costs."""

    ranks: tuple[tuple[MicroBatch, ...], ...]
    costs: tuple[float, ...]

    @property
    def imbalance(self) -> float:
        """Cost of the process that all others wait for ÷ mean cost: 1 is perfect."""
        return max(self.costs) * len(self.costs) / sum(self.costs)


class BatchPlan:
    """``plan.step(n)`` is step n's global batch over ``world_size`` processes."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        largest: Mapping[tuple[int, int, int], int],
        cost: CostModel,
        global_batch: int,
        images_to_videos: tuple[int, int] | None = None,
        max_cost: float | None = None,
        world_size: int = 1,
        seed: int = 0,
        image_scales: Sequence[tuple[int, int]] = (),
    ) -> None:
        """
        Args:
            shapes: latent shape of every sample; a sample's number is its place here.
            largest: the buckets: shape → samples of one micro-batch at most.
            images_to_videos: for instance (1, 4); None takes what the data holds.
            max_cost: a sample that costs more fits nowhere.
            image_scales: (side in pixels, parts) of the images, for instance ((256, 1), (512, 1)): a bucket belongs to
                the side nearest its own (the square root of its pixels), and every batch holds images of each side in
                this ratio. Empty takes what the data holds.

        Raises:
            UserError: no sample lies in a bucket; a ratio or scales that the data cannot give; fewer samples than
                processes.
        """
        if global_batch < world_size:
            raise UserError(
                f"A global batch of {global_batch} leaves some of the {world_size} processes without a sample; "
                "make it at least as large as their number."
            )
        self.cost, self.global_batch, self.world_size, self.seed = cost, global_batch, world_size, seed
        held: dict[tuple[int, int, int], list[int]] = {}
        for number, shape in enumerate(shapes):
            held.setdefault(shape, []).append(number)
        self.refused: dict[str, int] = {}
        """reason → how many samples are left out for it"""
        self.buckets: list[Bucket] = []
        for shape, numbers in held.items():
            bucket = Bucket(shape, tuple(numbers), largest.get(shape, 0))
            if shape not in largest:
                self._refuse(f"{bucket} lies in no bucket", len(numbers))
            elif max_cost is not None and cost.batch(bucket.tokens, 1) > max_cost:
                price = cost.batch(bucket.tokens, 1)
                self._refuse(f"one sample of {bucket} costs {price:.4g}, more than {max_cost:.4g}", len(numbers))
            else:
                self.buckets.append(bucket)
        if not self.buckets:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in self.refused.items())
            known = ", ".join(str(LatentSize(*shape).video) for shape in largest)
            raise UserError(f"No sample can be trained on: {reasons or 'there are none'}; the buckets are {known}.")
        kinds = [[b for b in self.buckets if b.is_image is image] for image in (True, False)]
        if images_to_videos is None:
            images_to_videos = (sum(len(b.samples) for b in kinds[0]), sum(len(b.samples) for b in kinds[1]))
        for wanted, found, name in zip(images_to_videos, kinds, ("images", "videos"), strict=True):
            if wanted < 0 or (wanted and not found):
                raise UserError(f"The ratio {images_to_videos[0]}:{images_to_videos[1]} needs {name}; there are none.")
            if not wanted and found:
                for bucket in found:
                    self._refuse(f"{bucket}: the ratio takes no {name}", len(bucket.samples))
        self.ratio = images_to_videos
        self.image_scales = tuple(image_scales) if images_to_videos[0] else ()
        images = _Scales(kinds[0], self.image_scales) if self.image_scales else _Deck(kinds[0])
        self._decks = (images, _Deck(kinds[1]))

    def _refuse(self, reason: str, count: int) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + count

    def drawn(self, slot: int) -> tuple[Bucket, int, int]:
        """(bucket, sample, epoch) of a place in the endless stream of samples, the same for any number of processes."""
        images, every = self.ratio[0], sum(self.ratio)
        before = slot * images // every
        is_image = (slot + 1) * images // every > before
        bucket, turn = self._decks[0 if is_image else 1].at(before if is_image else slot - before)
        (place,) = epoch_shuffled(len(bucket.samples), (turn,), self.seed, *bucket.shape)
        return bucket, bucket.samples[place], turn // len(bucket.samples)

    def step(self, number: int) -> PlannedStep:
        """The global batch of step ``number``."""
        slots = range(number * self.global_batch, (number + 1) * self.global_batch)
        drawn = sorted((self.drawn(slot) for slot in slots), key=lambda item: -item[0].tokens)  # stable: by slot within
        every = sum(bucket.tokens for bucket, _, _ in drawn)
        loads = [0.0] * self.world_size
        given: list[dict[Bucket, list[tuple[int, int]]]] = [{} for _ in loads]
        for bucket, sample, epoch in drawn:
            rank = loads.index(min(loads))
            loads[rank] += self.cost.sample(bucket.tokens)
            given[rank].setdefault(bucket, []).append((sample, epoch))
        ranks = tuple(tuple(self._cut(held, every)) for held in given)
        costs = tuple(sum(self.cost.batch(m.bucket.tokens, len(m.keys)) for m in rank) for rank in ranks)
        return PlannedStep(ranks, costs)

    def _cut(self, held: dict[Bucket, list[tuple[int, int]]], every: int) -> Iterable[MicroBatch]:
        for bucket, keys in held.items():
            count = -(-len(keys) // bucket.largest)
            for part in range(count):
                # Parts as equal as can be: a last part of one sample would cost a whole launch.
                cut = keys[part * len(keys) // count : (part + 1) * len(keys) // count]
                yield MicroBatch(bucket, tuple(cut), len(cut) * bucket.tokens / every)

    def report(self, steps: int = 100) -> list[str]:
        """What is trained on and what is not, and how well the first steps are balanced."""
        total = sum(len(bucket.samples) for bucket in self.buckets)
        lines = [
            f"{bucket}: {len(bucket.samples)} of {total} samples, {bucket.tokens} tokens, micro-batches of at most "
            f"{bucket.largest}, cost {self.cost.batch(bucket.tokens, 1):.4g}"
            for bucket in self.buckets
        ]
        lines += [f"left out: {count} samples, {reason}" for reason, count in self.refused.items()]
        images, videos = self.ratio
        for side, parts in self.image_scales:
            lines.append(f"images at {side} pixels: {parts} of {sum(p for _, p in self.image_scales)} parts")
        worst = [self.step(n).imbalance for n in range(steps)]
        lines.append(
            f"images:videos {images}:{videos}, {self.global_batch} samples a step, {self.world_size} processes"
        )
        lines.append(f"slowest process ÷ mean, by the cost model: {np.mean(worst):.3f} ({max(worst):.3f} at worst)")
        return lines


class _Deck:
    """The turns of the buckets of one kind: in proportion to their samples, each evenly spread."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = buckets
        sizes = [len(bucket.samples) for bucket in buckets]
        self.length = min(sum(sizes), LONGEST_DECK)
        self.counts = apportion(sizes, self.length)

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """(bucket of every turn, how often it came before)."""
        numbers = np.repeat(np.arange(len(self.counts)), self.counts)
        within = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((within + 0.5) / self.counts[numbers], kind="stable")
        return numbers[order], within[order]

    def at(self, turn: int) -> tuple[Bucket, int]:
        """The bucket of a turn, and how often it came before."""
        period, place = divmod(turn, self.length)
        numbers, before = self._order
        number = int(numbers[place])
        return self.buckets[number], period * int(self.counts[number]) + int(before[place])


class _Scales:
    """The turns of images of several sides in an exact ratio, each side a deck of its own."""

    def __init__(self, buckets: Sequence[Bucket], scales: Sequence[tuple[int, int]]) -> None:
        def distance(bucket: Bucket, side: int) -> float:
            size = LatentSize(*bucket.shape).video
            return abs(math.log(size.height * size.width / side**2))

        held: list[list[Bucket]] = [[] for _ in scales]
        for bucket in buckets:
            held[min(range(len(scales)), key=lambda n: distance(bucket, scales[n][0]))].append(bucket)
        for (side, _), found in zip(scales, held, strict=True):
            if not found:
                raise UserError(f"Every batch needs images of about {side}x{side} pixels; there are none.")
        self.decks = [_Deck(found) for found in held]
        self.parts = [parts for _, parts in scales]
        self.order = [
            n for _, n in sorted(((i + 0.5) / count, n) for n, count in enumerate(self.parts) for i in range(count))
        ]

    def at(self, turn: int) -> tuple[Bucket, int]:
        """As ``_Deck.at``."""
        period, place = divmod(turn, len(self.order))
        number = self.order[place]
        return self.decks[number].at(period * self.parts[number] + self.order[:place].count(number))
