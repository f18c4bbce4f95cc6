import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.vae.quality import psnr
from openhunyuan.tiny import world
from openhunyuan.train.vae_init import fit_linear_pyramid


def clips(split: str, count: int, num_frames: int, size: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng, split) for _ in range(count)]
    return torch.stack(
        [
            torch.from_numpy(world.render(s, num_frames, size, size)).permute(3, 0, 1, 2).float() / 127.5 - 1
            for s in scenes
        ]
    )


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    torch.manual_seed(0)
    vae = CausalVAE(
        VAEConfig(block_out_channels=(12, 24, 40, 56), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0)
    )
    fit_linear_pyramid(vae, clips("train", 24, 9), seed=0)
    return vae


@pytest.mark.parametrize("num_frames", [1, 9])
@torch.inference_mode()
def test_the_start_already_reconstructs_unseen_clips(vae, num_frames):
    x = clips("heldout", 8, num_frames)
    y = vae.decode(vae.encode(x).mode())
    random = CausalVAE(vae.config)
    assert psnr(y, x).mean() > 19
    assert psnr(y, x).mean() > psnr(random.decode(random.encode(x).mode()), x).mean() + 8


@torch.inference_mode()
def test_colour_is_there_from_the_start(vae):
    """Flat pictures of far-apart colours come back as themselves: no chroma axis is missing."""
    colours = torch.tensor([[230, 25, 30], [25, 190, 50], [30, 80, 250], [160, 30, 210]]).float() / 127.5 - 1
    x = colours.view(4, 3, 1, 1, 1).expand(4, 3, 1, 32, 32).contiguous()
    y = vae.decode(vae.encode(x).mode())
    distance = torch.cdist(y.mean((2, 3, 4)), colours)
    assert torch.equal(distance.argmin(1), torch.arange(4))
    assert distance.diagonal().max() < 0.35


@torch.inference_mode()
def test_latents_have_unit_scale_and_gradients_reach_every_weight(vae):
    mean = vae.encode(clips("heldout", 8, 9)).mean
    assert 0.5 < mean.std() < 2
    with torch.inference_mode(False), torch.enable_grad():
        copy = CausalVAE(vae.config)
        copy.load_state_dict(vae.state_dict())
        x = clips("train", 1, 5)
        copy(x, torch.Generator().manual_seed(0))[0].square().mean().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in copy.parameters())


def test_widths_without_room_are_refused():
    with pytest.raises(UserError, match="widen"):
        fit_linear_pyramid(
            CausalVAE(VAEConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)), clips("train", 1, 5)
        )
