"""Both engines for the tests of curation; one Ray for all of them, because it takes seconds to start."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest

from openhunyuan.curate.engine import Engine, Processes

OpenEngine = Callable[..., Engine]
"""(workers, timeout) → an engine; close it."""


@pytest.fixture(scope="session")
def ray() -> Iterator[OpenEngine]:
    """Opens engines on a Ray that listens on this machine only."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with: pip install 'openhunyuan[ray]'")
    from openhunyuan.curate.ray_engine import RayEngine

    with RayEngine(workers=2):
        yield RayEngine


@pytest.fixture(params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def open_engine(request: pytest.FixtureRequest) -> OpenEngine:
    """Opens engines of both kinds, in turn."""
    return Processes if request.param == "processes" else request.getfixturevalue("ray")
