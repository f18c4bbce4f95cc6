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
    centres = vectors[[int(rng.integers(len(vectors)))]]
    while len(centres) < count:  # k-means++: far from those that are there
        gap = np.maximum(1.0 - (vectors @ centres.T).max(axis=1), 0.0)
        if gap.sum() <= 1e-9:
            break
        centres = np.concatenate([centres, vectors[[int(rng.choice(len(vectors), p=gap / gap.sum()))]]])
    groups = np.full(len(vectors), -1)
    for _ in range(rounds):
        nearest = (vectors @ centres.T).argmax(axis=1)
        if (nearest == groups).all():
            break
        groups = nearest
        for k in range(len(centres)):
            total = vectors[groups == k].sum(axis=0) if (groups == k).any() else centres[k]
            centres[k] = total / max(float(np.linalg.norm(total)), 1e-9)
    sizes = np.bincount(groups, minlength=len(centres))
    rank = np.empty(len(centres), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(centres))
    return rank[groups]
