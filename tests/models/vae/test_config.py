"""The VAE's sizes: what is accepted, what is refused, and how published config files read."""

from __future__ import annotations

from typing import Any

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae.config import VAEConfig

PUBLISHED = {  # release fact A.4
    "_class_name": "AutoencoderKLCausal3D",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlockCausal3D"] * 4,
    "up_block_types": ["UpDecoderBlockCausal3D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 256,
    "sample_tsize": 64,
    "scaling_factor": 0.476986,
    "time_compression_ratio": 4,
    "mid_block_add_attention": True,
}


def test_the_published_config_is_the_default() -> None:
    assert VAEConfig.from_dict(PUBLISHED) == VAEConfig()


def test_a_config_survives_its_dictionary() -> None:
    config = VAEConfig(block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=4, scaling_factor=1.5)
    assert VAEConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent_chanels": 16}, "did you mean 'latent_channels'"),
        ({"time_compression_ratio": 8}, "time_compression_ratio=8 is not supported"),
        ({"block_out_channels": [8, 8, 8]}, "exactly four stages"),
        ({"block_out_channels": [8, 8, 8, 9], "norm_num_groups": 4}, "norm_num_groups=4 does not divide"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"sample_size": 100}, "multiple of 32"),
        ({"sample_tsize": 8}, "multiple of 16"),
    ],
)
def test_an_impossible_config_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VAEConfig.from_dict(values)
