"""Data of the distributed runs."""

from pathlib import Path

import pytest
import torch

from openhunyuan.latents.shards import LatentSample, ShardWriter


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    g = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("data")
    with ShardWriter(folder) as writer:
        for i in range(18):
            shape = (2, 1, 4, 4) if i % 3 else (2, 3, 2, 4)
            latents, states = torch.randn(shape, generator=g), torch.randn(1 + i % 4, 4, generator=g)
            writer.add(LatentSample(latents, states, torch.randn(4, generator=g), str(i)))
    return folder
