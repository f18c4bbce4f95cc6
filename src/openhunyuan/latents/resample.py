"""Resampling: samples whose clips weigh more come more often (report section 3.1: concepts are balanced).

Weights are kept by whole copies of samples in a cycle of `CYCLE` passes, so that an epoch stays a shuffled deck: in
such a cycle a sample of weight 1 comes `CYCLE` times, one of weight 0.5 half as often, and every sample at least once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from openhunyuan.latents.shards import ShardDataset, apportion

CYCLE = 8
"""Passes over which weights are kept: weights are rounded to an eighth."""


class Place(NamedTuple):
    """One copy of a sample in the deck. number: the sample's place in all datasets. copy, copies: which copy it is, and
    how many the commonest sample has."""

    dataset: ShardDataset
    row: int
    number: int
    copy: int = 0
    copies: int = 1

    def key(self, epoch: int) -> tuple[int, int]:
        """(sample, how often it may have come before): what text, noise and time are drawn from."""
        return self.dataset.number(self.row, self.number), epoch * self.copies + self.copy


def places(datasets: Sequence[ShardDataset]) -> list[Place]:
    """All samples of the datasets, as often as they weigh; each once where nothing has a weight."""
    rows = [(dataset, row) for dataset in datasets for row in range(len(dataset))]
    weights = [dataset.weights[row] if dataset.weights else 1.0 for dataset, row in rows]
    if len(set(weights)) <= 1:
        return [Place(dataset, row, number) for number, (dataset, row) in enumerate(rows)]
    counts = [int(count) for count in apportion(weights, CYCLE * len(rows))]
    return [
        Place(*rows[number], number, copy, max(counts)) for number, count in enumerate(counts) for copy in range(count)
    ]
