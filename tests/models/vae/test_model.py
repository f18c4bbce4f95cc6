"""The VAE's fast paths against their plain definitions, its shapes, and the quirks of the release it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae import model
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalConv3d, CausalVAE, Posterior, Upsample, frame_causal_attention

SMALL = VAEConfig(block_out_channels=(8, 16, 24, 24), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    torch.manual_seed(0)
    return CausalVAE(SMALL).eval()


def plain_causal_conv(conv: CausalConv3d, x: Tensor) -> Tensor:
    """The definition: replicate 1 on each side in space and 2 in front in time, then convolve (release fact C.1)."""
    padded = F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")
    return F.conv3d(padded, conv.conv.weight, conv.conv.bias, stride=conv.conv.stride)


def plain_upsample(upsample: Upsample, x: Tensor) -> Tensor:
    """The definition: frame 0 nearest in space, the others by the full factor, then the convolution (release C.3)."""
    factor = tuple(float(f) for f in upsample.factor)
    first = F.interpolate(x[:, :, :1], scale_factor=(1.0, *factor[1:]), mode="nearest")
    if x.shape[2] > 1:
        first = torch.cat((first, F.interpolate(x[:, :, 1:], scale_factor=factor, mode="nearest")), dim=2)
    return plain_causal_conv(upsample.conv, first)


def assert_same_map_and_gradients(fast, plain, module: CausalConv3d | Upsample, x: Tensor) -> None:
    weight = module.conv.weight if isinstance(module, CausalConv3d) else module.conv.conv.weight
    results = []
    for function in (fast, plain):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        probe = torch.linspace(-1, 1, out.numel()).view(out.shape)
        results.append((out, *torch.autograd.grad((out * probe).sum(), (leaf, weight))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_causal_conv_equals_its_definition(frames: int, batch: int, stride: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    conv = CausalConv3d(5, 6, stride=stride)
    x = torch.randn(batch, 5, frames, 8, 6)
    assert conv(x).shape[2] == (frames - 1) // stride[0] + 1
    assert_same_map_and_gradients(conv, lambda t: plain_causal_conv(conv, t), conv, x)


def test_causal_conv_equals_its_definition_at_sizes_on_both_sides_of_the_cpu_threshold() -> None:
    torch.manual_seed(2)
    conv = CausalConv3d(64, 4)
    for frames in (9, 33):
        x = torch.randn(1, 64, frames, 10, 4)
        torch.testing.assert_close(conv(x), plain_causal_conv(conv, x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("frames_per_chunk", [0.5, 1, 3])
def test_causal_conv_in_chunks_equals_its_definition(
    monkeypatch: pytest.MonkeyPatch, frames_per_chunk: float, stride: tuple[int, int, int]
) -> None:
    torch.manual_seed(11)
    conv = CausalConv3d(5, 6, stride=stride)
    x = torch.randn(2, 5, 7, 8, 6)
    monkeypatch.setattr(model, "CHUNK_VALUES", int(x[:, :, :1].numel() * frames_per_chunk))
    torch.testing.assert_close(conv(x), plain_causal_conv(conv, x), atol=1e-5, rtol=1e-4)


def test_autocast_to_bfloat16_stays_near_float32(vae: CausalVAE) -> None:
    video = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(12)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        low = vae.decode(vae.encode(video).mode()).float()
    full = vae.decode(vae.encode(video).mode())
    assert (low - full).abs().mean() < 0.1 * full.abs().mean()
    low.mean().backward()
    vae.zero_grad(set_to_none=True)


def test_a_conv_output_frame_ignores_later_frames() -> None:
    torch.manual_seed(3)
    conv = CausalConv3d(3, 4)
    x = torch.randn(1, 3, 6, 5, 5)
    changed = x.clone()
    changed[:, :, 4] += 1.0
    difference = (conv(changed) - conv(x)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[:4].max() < 1e-5 < difference[4:].min()


@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_fused_upsampling_equals_nearest_then_convolution(
    batch: int, frames: int, factor: tuple[int, int, int]
) -> None:
    torch.manual_seed(4)
    upsample = Upsample(6, factor)
    x = torch.randn(batch, 6, frames, 5, 4)
    assert upsample(x).shape == (batch, 6, factor[0] * (frames - 1) + 1, 10, 8)
    assert_same_map_and_gradients(upsample, lambda t: plain_upsample(upsample, t), upsample, x)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frame_causal_attention_equals_the_dense_mask(frames: int) -> None:
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 2, 1, frames * 6, 8, generator=generator).unbind(0)
    frame = torch.arange(frames).repeat_interleave(6)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=frame[:, None] >= frame[None, :])
    torch.testing.assert_close(frame_causal_attention(q, k, v, frames), dense, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (5, 16, 32), (17, 24, 8), (33, 8, 8)])
def test_latent_and_video_sizes(vae: CausalVAE, frames: int, height: int, width: int) -> None:
    video = torch.zeros(1, 3, frames, height, width)
    latent = vae.encode(video).mode()
    assert latent.shape == (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    assert vae.decode(latent).shape == video.shape


@torch.no_grad()
def test_group_norm_over_time_lets_a_later_latent_change_the_first_frame(vae: CausalVAE) -> None:
    latents = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(6))
    changed = latents.clone()
    changed[:, :, 2] += 1.0
    assert (vae.decode(changed) - vae.decode(latents))[:, :, 0].abs().max() > 1e-3


@torch.no_grad()
def test_diffusion_latents_are_scaled_and_unscaled(vae: CausalVAE) -> None:
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1
    latents = vae.encode_latents(video)
    torch.testing.assert_close(latents, vae.encode(video).mean * 0.476986)
    assert torch.equal(vae.decode_latents(latents), vae.decode(latents / 0.476986))


def test_posterior_clamps_samples_and_measures_divergence() -> None:
    moments = torch.zeros(2, 4, 1, 1, 1)
    moments[0, 2:] = 100.0
    moments[1, 2:] = -100.0
    posterior = Posterior.from_moments(moments)
    assert posterior.logvar[0].max() == 20.0 and posterior.logvar[1].min() == -30.0
    mean, logvar = torch.tensor([[1.0, -2.0]]).view(1, 2, 1, 1, 1), torch.tensor([[0.5, -1.0]]).view(1, 2, 1, 1, 1)
    posterior = Posterior(mean, logvar)
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl(), expected)
    same = [posterior.sample(torch.Generator().manual_seed(8)) for _ in range(2)]
    assert torch.equal(same[0], same[1])
    wide = Posterior(mean.expand(1, 2, 1, 200, 200), logvar.expand(1, 2, 1, 200, 200)).sample(
        torch.Generator().manual_seed(9)
    )
    torch.testing.assert_close(wide.mean(dim=(0, 2, 3, 4)), mean.flatten(), atol=0.03, rtol=0)
    torch.testing.assert_close(wide.std(dim=(0, 2, 3, 4)), torch.exp(0.5 * logvar).flatten(), atol=0.03, rtol=0)


def test_every_parameter_gets_a_gradient_from_images_and_from_video(vae: CausalVAE) -> None:
    for frames in (1, 5):
        vae.zero_grad(set_to_none=True)
        reconstruction, posterior = vae(torch.rand(1, 3, frames, 16, 16), torch.Generator().manual_seed(10))
        (reconstruction.square().mean() + posterior.kl().mean()).backward()
        missing = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []
    vae.zero_grad(set_to_none=True)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16, 16), (1, 3, 5, 20, 16), (1, 4, 5, 16, 16), (3, 5, 16, 16)])
def test_an_uncompressible_video_is_refused(vae: CausalVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="video"):
        vae.encode(torch.zeros(shape))


def test_a_wrong_latent_is_refused(vae: CausalVAE) -> None:
    with pytest.raises(UserError, match="latent must be"):
        vae.decode(torch.zeros(1, 8, 1, 2, 2))


def test_only_hidden_kernels_are_offered_to_an_orthogonalising_optimizer(vae: CausalVAE) -> None:
    offered = {id(p) for p in vae.muon_parameters()}
    names = {name for name, p in vae.named_parameters() if id(p) in offered}
    assert len(names) == len(offered) > 10
    assert all(p.shape[2:] == (3, 3, 3) for p in vae.muon_parameters())
    assert not any("conv_in" in name or "conv_out" in name or "shortcut" in name for name in names)
    assert "decoder.up_blocks.0.upsamplers.0.conv.conv.weight" in names
