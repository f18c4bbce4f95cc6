"""Concepts: spherical k-means over what clips look like, and weights that make rare looks less rare.

The report clusters embeddings of a video model into about 10,000 concepts and resamples by them. By default the vectors
are those of `measures.fingerprint`, which know colours and edges only: the groups are looks, not subjects. With
`models.embedding` they are what a published tower makes of the clips.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from openhunyuan.base.record import Record

BLOCK = 1 << 22
"""Most products of vectors and centres that are held at once."""


class Concepts(Record):
    """How clips are grouped and weighted."""

    by: Literal["fingerprint", "embedding"] = Field(
        default="fingerprint", description="The measure whose rows are used."
    )
    count: int = Field(default=0, ge=0, description="Groups; 0: the square root of the number of clips.")
    alpha: float = Field(default=0.5, ge=0, le=1, description="A clip weighs (size of its group) ** -alpha.")
    rounds: int = Field(default=30, ge=1, description="Most rounds of k-means.")
    seed: int = Field(default=0, description="Of the first centres.")


def cluster(vectors: np.ndarray, config: Concepts) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [n, d] → (group of each: int [n], weight of each: float [n], mean 1). Same input, same output."""
    n = len(vectors)
    if n == 0:
        return np.zeros(0, int), np.zeros(0)
    groups = spherical_kmeans(vectors, min(n, config.count or max(1, round(n**0.5))), config.rounds, config.seed)
    weights = np.bincount(groups)[groups].astype(float) ** -config.alpha
    return groups, weights / weights.mean()


def spherical_kmeans(vectors: np.ndarray, count: int, rounds: int, seed: int) -> np.ndarray:
    """Group of each unit vector by the nearest of `count` centres (cosine). Groups are numbered by size, largest 0."""
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(vectors)))]
    near = vectors @ vectors[chosen[0]]
    while len(chosen) < count:  # k-means++: far from those that are there
        gap = np.maximum(1.0 - near, 0.0)
        if gap.sum() <= 1e-9:
            break
        chosen.append(int(rng.choice(len(vectors), p=gap / gap.sum())))
        near = np.maximum(near, vectors @ vectors[chosen[-1]])
    centres = vectors[chosen]
    groups = np.full(len(vectors), -1)
    for _ in range(rounds):
        nearest = _nearest(vectors, centres)
        if (nearest == groups).all():
            break
        groups = nearest
        by_group = np.argsort(groups, kind="stable")
        ends = np.cumsum(np.bincount(groups, minlength=len(centres)))
        for k, members in enumerate(np.split(by_group, ends[:-1])):
            total = vectors[members].sum(axis=0) if members.size else centres[k]
            centres[k] = total / max(float(np.linalg.norm(total)), 1e-9)
    sizes = np.bincount(groups, minlength=len(centres))
    rank = np.empty(len(centres), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(centres))
    return rank[groups]


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each vector, some vectors at a time: memory does not grow with both numbers."""
    step = max(1, BLOCK // len(centres))
    blocks = range(0, len(vectors), step)
    return np.concatenate([(vectors[i : i + step] @ centres.T).argmax(axis=1) for i in blocks])
