"""i. Balanced batches: cost-balanced, token-weighted global batches against a random bucket for every process.

Four processes are played by one: the micro-batches of each are timed one after another, and a step takes as long as its
slowest process. The losses are those of real training with the gradients that the four would have added up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common import (
    Page,
    Study,
    all_below,
    bars,
    begin,
    figure,
    finish,
    judged,
    mean,
    spoken,
    spread,
    write_page,
)
from experiments.networks import (
    SMALL,
    as_batches,
    config,
    curve,
    empty_text,
    encoded,
    flow,
    held_out,
    new_dit,
    shape,
    world,
)
from openhunyuan.base.sizes import LatentSize
from openhunyuan.latents.plan import CostModel
from openhunyuan.latents.shards import ShardDataset, collate, epoch_shuffled
from openhunyuan.train.config import BatchShape, Stage, Strict
from openhunyuan.train.loop import Batch, StepContext, step_generator
from openhunyuan.train.planned import PlannedBatches
from openhunyuan.train.tasks.flow import FlowConfig, FlowTask

RANDOM, BALANCED = "random buckets", "balanced"
FRAMES = (1, 9, 17)


class Sizes(Strict):
    processes: int = 4
    counts: tuple[int, ...] = (2000, 960, 480)
    tokens: int = 1024
    steps: int = 80
    timed_steps: int = 10
    validate_every: int = 10


QUICK = Sizes(processes=2, counts=(8, 8, 8), tokens=96, steps=2, timed_steps=1, validate_every=1)


class RandomBuckets:
    """Source: in every step each process takes a full micro-batch of a bucket drawn at random, in proportion to how
    many such batches the buckets hold (report §4.5); the loss is the mean of the processes' means."""

    at_hand = True

    def __init__(self, datasets: Sequence[ShardDataset], largest: Sequence[int], processes: int, seed: int) -> None:
        self.datasets, self.largest, self.processes, self.seed = datasets, largest, processes, seed
        batches = np.array([len(d) / n for d, n in zip(datasets, largest, strict=True)])
        self.shares = batches / batches.sum()
        self.first = np.cumsum([0, *(len(d) for d in datasets)]).tolist()

    @property
    def samples(self) -> float:
        """Expected samples of a step."""
        return float(self.processes * (self.shares * np.array(self.largest)).sum())

    def drawn(self, step: int) -> list[int]:
        """The bucket of every process at a step."""
        rng = np.random.default_rng((self.seed, step))
        return rng.choice(len(self.datasets), self.processes, p=self.shares).tolist()

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        parts = []
        for process, bucket in enumerate(self.drawn(step)):
            dataset, count = self.datasets[bucket], self.largest[bucket]
            turn = step * self.processes + process
            places = range(turn * count, (turn + 1) * count)
            rows = epoch_shuffled(len(dataset), places, self.seed, bucket)
            keys = [(self.first[bucket] + row, place // len(dataset)) for row, place in zip(rows, places, strict=True)]
            made = collate([dataset[row] for row in rows]) | {"keys": torch.tensor(keys)}
            parts.append((1 / self.processes, made))
        return {"parts": parts}


def run(study: Study) -> Page:
    sizes = QUICK if study.quick else Sizes()
    found: dict[str, list[dict[str, Any]]] = {RANDOM: [], BALANCED: []}
    for seed in study.seeds:
        for arm in found:
            found[arm].append(study.measured(arm, seed, sizes, _arm, study, sizes, seed, arm))
    return _page(sizes, found)


def _arm(folder: Path, study: Study, sizes: Sizes, seed: int, arm: str) -> dict[str, Any]:
    specs = [(115, 1), (41, 9), (31, 17)]  # the sets of the other experiments
    sets = [
        encoded(study.work, world(n, frames, 64, seed=key))
        for n, (key, frames) in zip(sizes.counts, specs, strict=True)
    ]
    shapes = []
    for frames in FRAMES:
        tokens = ((frames - 1) // 4 + 1) * 16
        shapes.append(shape(max(1, sizes.tokens // tokens), frames, 64))
    largest = [s.batch_size for s in shapes]
    random = RandomBuckets(sets, largest, sizes.processes, seed)
    train = config("run", sizes.steps, shapes, seed, validate_every=sizes.validate_every)
    dit = new_dit(SMALL, seed)
    task = FlowTask(FlowConfig(), dit, empty_text(), {})
    if arm == RANDOM:
        steps = [[[part] for part in _parts(random, step, train.stages[0])] for step in range(sizes.timed_steps)]
        source: Any = random
    else:
        cost = fitted(task, sets, largest)
        total = round(random.samples)
        made = [
            PlannedBatches(sets, cost, total, seed=seed, rank=rank, world_size=sizes.processes)
            for rank in range(sizes.processes)
        ]
        steps = [[_parts(source, step, train.stages[0]) for source in made] for step in range(sizes.timed_steps)]
        source = PlannedBatches(sets, cost, total, seed=seed)
    times = [[sum(seconds(task, part) for _, part in parts) for parts in ranks] for ranks in steps]
    held = {
        str(frames): as_batches(encoded(study.work, held_out(min(48, n), frames, 64, seed=key + 1)))
        for n, (key, frames) in zip(sizes.counts, specs, strict=True)
    }
    flow(train, dit, sets, held, folder / "run", source=source)
    # What a process repeats with weight 0 takes its time and teaches nothing.
    real = [part["latents"] for ranks in steps for parts in ranks for weight, part in parts if weight]
    return {
        "times": times,
        "tokens": sum(_tokens(latents) * len(latents) for latents in real),
        "samples": sum(len(latents) for latents in real),
        "curves": {str(frames): curve(folder / "run", f"loss_{frames}") for frames in FRAMES},
    }


def _parts(source: Any, step: int, stage: Stage) -> list[tuple[float, Batch]]:
    return source.batch(step, stage, stage.shapes[0])["parts"]


def _tokens(latents: Tensor) -> int:
    """Tokens of one sample."""
    return LatentSize(*latents.shape[2:]).tokens()


def seconds(task: FlowTask, batch: Batch) -> float:
    """CPU time of a forward and a backward pass of a micro-batch."""
    stage = Stage(name="timed", steps=1, shapes=(shape(1, 1, 64),))
    context = StepContext(0, 1, stage, step_generator(0, 0))
    started = time.process_time()
    loss, _ = task.loss("model", batch, context)
    loss.backward()
    return time.process_time() - started


def fitted(task: FlowTask, sets: Sequence[ShardDataset], largest: Sequence[int]) -> CostModel:
    """The cost model from measured times: every bucket, a full and a quarter micro-batch, the least of three."""
    measured = []
    for dataset, most in zip(sets, largest, strict=True):
        for count in sorted({most, max(1, most // 4)}):
            batch = dataset.batch(range(min(count, len(dataset))))
            seconds(task, batch)
            tokens = _tokens(batch["latents"])
            measured.append((tokens, len(batch["latents"]), min(seconds(task, batch) for _ in range(3))))
    return CostModel.fit(measured)


def _page(sizes: Sizes, found: dict[str, list[dict[str, Any]]]) -> Page:
    def slowest(one: dict[str, Any]) -> float:
        return sum(max(ranks) for ranks in one["times"])

    def waiting(one: dict[str, Any]) -> float:
        """Share of the processes' time that is spent waiting for the slowest."""
        busy = sum(sum(ranks) for ranks in one["times"])
        return 1 - busy / (sizes.processes * slowest(one))

    def losses(arm: str, frames: int) -> list[float]:
        return [one["curves"][str(frames)][-1][1] for one in found[arm]]

    def whole(arm: str) -> list[float]:
        return [mean(values) for values in zip(*(losses(arm, frames) for frames in FRAMES), strict=True)]

    rate = {arm: [one["tokens"] / slowest(one) for one in group] for arm, group in found.items()}
    idle = {arm: [waiting(one) for one in group] for arm, group in found.items()}
    step = {arm: [slowest(one) / len(one["times"]) for one in group] for arm, group in found.items()}
    heads = [f"loss {frames}×64×64" for frames in FRAMES]
    rows = [["batches", "tokens a second", "waiting", "seconds a step", "samples a step", *heads]]
    for arm, group in found.items():
        samples = [one["samples"] / sizes.timed_steps for one in group]
        cells = [spread(rate[arm], 0), spread(idle[arm], 3), spread(step[arm], 3), spread(samples, 0)]
        rows.append([arm, *cells, *(spread(losses(arm, frames), 4) for frames in FRAMES)])
    faster = all_below(rate[RANDOM], rate[BALANCED])
    no_worse = mean(whole(BALANCED)) <= mean(whole(RANDOM))
    picture = figure(2)
    axes = picture.add_subplot(1, 2, 1)
    bars(axes, list(found), [rate[arm] for arm in found])
    finish(axes, "throughput", "", "latent tokens a second", legend=False)
    axes = picture.add_subplot(1, 2, 2)
    for number, (arm, group) in enumerate(found.items()):
        for seed, one in enumerate(group):
            curves = [one["curves"][str(frames)] for frames in FRAMES]
            x = [point[0] * step[arm][seed] for point in curves[0]]
            y = [mean([c[i][1] for c in curves]) for i in range(len(x))]
            axes.plot(x, y, color=f"C{number}", linewidth=1, label=None if seed else arm)
    finish(axes, "mean held-out loss", "seconds of the slowest process", "loss")
    gain = mean([b / a for a, b in zip(rate[RANDOM], rate[BALANCED], strict=True)])
    return Page(
        title="i. Balanced batches",
        claim="global batches balanced by cost, with the loss a token, train faster than a random bucket for every "
        "process, and no worse (ours; the report draws buckets at random, §4.5).",
        setup=[
            f"Buckets 1, 9 and 17 × 64×64 ({', '.join(map(str, sizes.counts))} samples), micro-batches of at most "
            f"{sizes.tokens} latent tokens; {sizes.processes} processes, played one after another. Time: CPU seconds "
            f"of forward and backward passes of {sizes.timed_steps} steps in fp32; a step takes as long as its slowest "
            "process. Sums of gradients and optimizer are left out.",
            "Random: each process a full micro-batch of a random bucket, the mean of their mean losses. Balanced: "
            "`latents.plan.BatchPlan` with a cost model fitted to measured times, as many samples a step as the other "
            "has on average; a process that needs fewer micro-batches than another repeats one, which is timed and not "
            "counted.",
            f"Loss: {sizes.steps} steps of the small transformer, Muon, averaged weights; held-out samples of each "
            "bucket.",
        ],
        rule="(1) At every seed balanced batches pass more latent tokens a second of the slowest process. (2) Averaged "
        "over buckets and seeds, the held-out loss after the same number of steps is not higher.",
        rows=rows,
        verdict=judged(faster, no_worse),
        found=[
            f"Throughput {gain:.2f} times that of random buckets; processes wait {100 * mean(idle[BALANCED]):.1f} % of "
            f"the time instead of {100 * mean(idle[RANDOM]):.1f} %. Part 1 holds: {spoken(faster)}.",
            f"Mean held-out loss {spread(whole(BALANCED), 4)} against {spread(whole(RANDOM), 4)}. Part 2 holds: "
            f"{spoken(no_worse)}.",
        ],
        scale="How much processes wait when full micro-batches of different buckets meet, and whether weighting by "
        "tokens costs quality. Micro-batches of equal tokens differ little in cost where attention is cheap and texts "
        "are as long as images; with the release's lengths, where attention is most of the cost, they differ more. "
        "Balanced steps come in more and smaller micro-batches; whether these eat the gain was not measured. Nothing "
        "is measured of networks and collectives.",
        figure=picture,
        caption="Left: throughput, dots are seeds. Right: mean held-out loss over the time of the slowest process.",
    )


def main(argv: list[str] | None = None) -> None:
    study = begin("i", "balance", __doc__, argv)
    write_page(study, run(study))


if __name__ == "__main__":
    main()
