"""Spherical k-means: the same groups whatever is held at once."""

import tracemalloc

import numpy as np
import pytest

from openhunyuan.curate import concepts


def vectors(count: int, width: int = 16) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(count, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_groups_do_not_depend_on_how_much_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = concepts.spherical_kmeans(vectors(300), 17, rounds=30, seed=0)
    assert groups.max() == 16
    assert (np.diff(np.bincount(groups)) <= 0).all(), "the largest group is 0"
    monkeypatch.setattr(concepts, "BLOCK", 100)
    assert (concepts.spherical_kmeans(vectors(300), 17, rounds=30, seed=0) == groups).all()


def test_no_matrix_of_all_vectors_and_centres_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concepts, "BLOCK", 20_000)
    many = vectors(4000)
    tracemalloc.start()
    concepts.spherical_kmeans(many, 300, rounds=2, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * 300 * 8 / 3


def test_equal_vectors_are_one_group() -> None:
    same = np.repeat(vectors(1), 20, axis=0)
    assert (concepts.spherical_kmeans(same, 5, rounds=3, seed=0) == 0).all()
