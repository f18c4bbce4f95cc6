import pytest
import torch

from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.train.latent_scale import channel_statistics, fold_normalisation


@torch.no_grad()
def test_latents_become_standard_and_the_picture_stays():
    torch.manual_seed(0)
    vae = CausalVAE(
        VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0)
    )
    clips = [torch.rand(2, 3, 5, 32, 32) * 2 - 1, torch.rand(3, 3, 1, 32, 32) * 2 - 1]
    before, posterior = vae.decode(vae.encode(clips[0]).mode()), vae.encode(clips[0])
    mean, std = channel_statistics(vae, clips)
    fold_normalisation(vae, mean, std)
    after = channel_statistics(vae, clips)
    assert torch.allclose(after[0], torch.zeros(16), atol=1e-4) and torch.allclose(after[1], torch.ones(16), atol=1e-4)
    assert torch.allclose(vae.decode(vae.encode(clips[0]).mode()), before, atol=1e-4)
    scale = std.view(1, -1, 1, 1, 1)
    assert torch.allclose(vae.encode(clips[0]).logvar, posterior.logvar - 2 * scale.log(), atol=1e-3)


def test_a_vae_with_a_scaling_factor_is_refused():
    vae = CausalVAE(VAEConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=4))
    with pytest.raises(ValueError, match="already scaled"):
        fold_normalisation(vae, torch.zeros(16), torch.ones(16))
