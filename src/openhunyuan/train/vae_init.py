"""Transparent initialisation: a causal VAE that starts as the best linear pyramid of its data instead of noise.

A convolutional VAE with GroupNorm learns absolute colour last: normalisation removes the means, and at small budgets a
whole chroma axis can stay lost. Here the first weights already carry it:

* every residual branch starts at zero, so that the skip path is the network;
* each downsampler is the principal component projection of the block it covers, fitted on real clips, so that the
  latents start as (nearly) the leading principal components of 4×8×8 pixel blocks;
* each upsampler is the ridge regression from its nearest-upsampled input to the components of the finer blocks;
* ``SiLU(x) − SiLU(−x) = x``: before both output convolutions a signal is held with its negative, and a constant
  "anchor" channel a group makes the GroupNorm between them a fixed scaling.

Training then learns what a linear map cannot do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae.model import CausalVAE

ANCHOR = 8.0
_ROWS = 32_000  # regression rows a level


def _blocks(x_BCTHW: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, C·prod(stride), T', H', W']: the pixels each strided causal position owns; frame 0 stands alone, repeated."""
    st, sh, sw = stride
    x = torch.cat([x_BCTHW[:, :, :1].expand(-1, -1, st - 1, -1, -1), x_BCTHW], 2)
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t // st, st, h // sh, sh, w // sw, sw)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * st * sh * sw, t // st, h // sh, w // sw)


def _principal(x_BCTHW: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k leading directions [k, C] about zero (constant colour must survive) and their root mean squares [k]."""
    rows = x_BCTHW.permute(0, 2, 3, 4, 1).reshape(-1, x_BCTHW.shape[1]).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    k = min(k, len(values))
    return vectors.flip(1)[:, :k].T.float(), values.flip(0)[:k].clamp_min(1e-8).sqrt().float()


def _identity_skip(block: Any) -> None:
    """Zero residual branch; a channel-changing skip copies the channels that both sides have."""
    nn.init.zeros_(block.conv2.conv.weight)
    nn.init.zeros_(block.conv2.conv.bias)
    if block.conv_shortcut is not None:
        conv = block.conv_shortcut.conv
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        for channel in range(min(conv.weight.shape[:2])):
            conv.weight[channel, channel] = 1.0


def _project_down(conv: nn.Conv3d, directions_KD: Tensor, in_channels: int, stride: tuple[int, int, int]) -> None:
    """Write block directions into the taps of a strided causal 3³ convolution that lie on its own block."""
    k = len(directions_KD)
    st, sh, sw = stride
    assert conv.bias is not None
    conv.weight[:k] = 0
    nn.init.zeros_(conv.bias)
    taps = directions_KD.reshape(k, in_channels, st, sh, sw)
    # causal in time: the block is the last taps; centred in space with stride 2: the block is taps 1 and 2
    conv.weight[:k, :in_channels, 3 - st :, 3 - sh :, 3 - sw :] = taps
    conv.weight[k:] *= 0.3


def _neighbourhoods(x_BCTHW: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """[n, C·27] causal 3³ neighbourhoods of sampled positions (b, t, h, w)."""
    padded = F.pad(x_BCTHW, (1, 1, 1, 1, 2, 0), mode="replicate")
    view = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    b, t, h, w = index
    return view[b, :, t, h, w].reshape(len(b), -1)


def _regress(conv: nn.Conv3d, x_BCTHW: Tensor, target_BKTHW: Tensor, generator: torch.Generator) -> Tensor:
    """Fit the first K outputs of a causal 3³ convolution to ``target`` by ridge regression; returns its output."""
    b, k, t, h, w = target_BKTHW.shape
    flat = torch.randint(0, b * t * h * w, (_ROWS,), generator=generator)
    index = torch.unravel_index(flat, (b, t, h, w))
    rows = _neighbourhoods(x_BCTHW, index).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
    i, j, m, n = index
    wanted = target_BKTHW[i, :, j, m, n].double()
    gram = rows.T @ rows / len(rows)
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram + ridge, rows.T @ wanted / len(rows)).float()
    assert conv.bias is not None
    conv.weight[:k] = solution[:-1].T.reshape(k, *conv.weight.shape[1:])
    conv.bias[:k] = solution[-1]
    conv.weight[k:] *= 0.3
    return conv(F.pad(x_BCTHW, (1, 1, 1, 1, 2, 0), mode="replicate"))


def _upsample(x_BCTHW: Tensor, temporal: bool) -> Tensor:
    """Nearest; frame 0 is repeated in space only."""
    x = x_BCTHW.repeat_interleave(2, 3).repeat_interleave(2, 4)
    return torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, 2)], 2) if temporal else x


def _anchored_norm(norm: nn.GroupNorm, anchor_channels: dict[int, int], spread: dict[int, float]) -> None:
    """Make GroupNorm the identity on groups that hold an anchor: γ, β undo the anchor's mean and spread.

    The anchor itself leaves as 0: a large constant input would multiply every weight update behind it.
    """
    size = norm.num_channels // norm.num_groups
    for group, anchor in anchor_channels.items():
        first = group * size
        norm.weight[first : first + size] = spread[group]
        norm.bias[first : first + size] = ANCHOR / size
        norm.weight[first + anchor] = 0
        norm.bias[first + anchor] = 0


@torch.no_grad()
def fit_linear_pyramid(vae: CausalVAE, clips_BCTHW: Tensor, seed: int = 0, latent_power: float = 0.5) -> None:
    """Initialise a ``CausalVAE`` in place from clips [B, 3, 4n+1, H, W] in [−1, 1]; see the module's text.

    ``latent_power``: how far latent channels are equalised; 0 keeps the principal components' own spread, 1 whitens.
    The mean over channels of the latents' root mean square is 1 either way.
    """
    config = vae.config
    widths, groups = config.block_out_channels, config.norm_num_groups
    z = config.latent_channels
    size0, size3 = widths[0] // groups, widths[3] // groups
    pairs = -(-z // groups)
    if len(set(widths)) != 4 or sorted(widths) != list(widths) or size3 < 2 * pairs + 1 or size0 < 3 or groups < 3:
        raise UserError(
            f"the linear-pyramid start needs four rising widths with room for {z} signal pairs and anchors, "
            f"but got {widths} in {groups} groups; widen the VAE or initialise it at random"
        )
    generator = torch.Generator().manual_seed(seed)
    # Any: a ModuleList hides what its items are
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    for part in (encoder, decoder):
        for block in [r for b in (encoder.down_blocks if part is encoder else decoder.up_blocks) for r in b.resnets]:
            _identity_skip(block)
        for block in part.mid_block.resnets:
            _identity_skip(block)
        for attention in part.mid_block.attentions:
            nn.init.zeros_(attention.to_out[0].weight)
            nn.init.zeros_(attention.to_out[0].bias)

    # encoder: principal components level by level
    conv = encoder.conv_in.conv
    conv.weight[:3] = 0
    nn.init.zeros_(conv.bias)
    for c in range(3):
        conv.weight[c, c, 2, 1, 1] = 1.0
    x = clips_BCTHW
    for level, stride in enumerate(((1, 2, 2), (2, 2, 2), (2, 2, 2))):
        blocks = _blocks(x, stride)
        directions, spread = _principal(blocks, widths[level])
        _project_down(encoder.down_blocks[level].downsamplers[0].conv.conv, directions, x.shape[1], stride)
        x = torch.einsum("kc,bcthw->bkthw", directions, blocks)
    scale = spread[:z] ** (1 - latent_power)
    scale = scale / scale.mean() / spread[:z]
    shortcut = encoder.down_blocks[3].resnets[0].conv_shortcut.conv
    nn.init.zeros_(shortcut.weight)
    out = encoder.conv_out.conv
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    out.bias[z:] = -6.0  # posterior standard deviation 0.05
    extra, rms = z, (scale * spread[:z]).square()
    anchors: dict[int, int] = {}
    spreads: dict[int, float] = {}
    for group in range(groups):
        first = group * size3
        held = [k for k in range(group * pairs, (group + 1) * pairs) if k < z]
        for place, k in enumerate(held):
            shortcut.weight[first + 2 * place, k] = scale[k]
            shortcut.weight[first + 2 * place + 1, k] = -scale[k]
            out.weight[k, first + 2 * place, 2, 1, 1] = 1.0
            out.weight[k, first + 2 * place + 1, 2, 1, 1] = -1.0
        used = 2 * len(held)
        shortcut.bias[first : first + size3] = 0
        shortcut.bias[first + used] = ANCHOR
        for channel in range(first + used + 1, first + size3):
            if extra < len(spread):
                shortcut.weight[channel, extra] = 0.3 / spread[extra]
                extra += 1
        variance = ANCHOR**2 * (size3 - 1) / size3**2 + float(sum(2 * rms[k] for k in held)) / size3
        anchors[group], spreads[group] = used, variance**0.5
    middle = [encoder.mid_block.attentions[0].group_norm] if config.mid_block_add_attention else []
    seen = [r.norm1 for r in [*list(encoder.down_blocks[3].resnets)[1:], *encoder.mid_block.resnets]]
    for norm in [*seen, *middle, encoder.conv_norm_out]:
        _anchored_norm(norm, anchors, spreads)
    for layer, width in ((vae.quant_conv, 2 * z), (vae.post_quant_conv, z)):
        assert layer.bias is not None
        layer.weight.copy_(torch.eye(width).reshape(width, width, 1, 1, 1))
        nn.init.zeros_(layer.bias)

    # decoder: regress each finer level
    latents = scale.view(1, -1, 1, 1, 1) * x[:, :z]
    conv = decoder.conv_in.conv
    conv.weight[:z] = 0
    nn.init.zeros_(conv.bias)
    for c in range(z):
        conv.weight[c, c, 2, 1, 1] = 1.0
    x = conv(F.pad(latents, (1, 1, 1, 1, 2, 0), mode="replicate"))
    outputs = tuple(reversed(widths))
    for level, (block, temporal) in enumerate((((4, 4, 4), False), ((2, 2, 2), True), ((1, 1, 1), True))):
        x = x[:, : outputs[level]]
        up = decoder.up_blocks[level].upsamplers[0].conv.conv
        pixels = _blocks(clips_BCTHW, block)
        directions, _ = _principal(pixels, min(outputs[level], pixels.shape[1]))
        target = pixels if level == 2 else torch.einsum("kc,bcthw->bkthw", directions, pixels)
        x = _regress(up, _upsample(x, temporal), target, generator)
    shortcut = decoder.up_blocks[3].resnets[0].conv_shortcut.conv
    nn.init.zeros_(shortcut.weight)
    nn.init.zeros_(shortcut.bias)
    out = decoder.conv_out.conv
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    power = clips_BCTHW.square().mean((0, 2, 3, 4))
    anchors, spreads = {}, {}
    for group in range(groups):
        first = group * size0
        if group < 3:
            shortcut.weight[first, group], shortcut.weight[first + 1, group] = 1.0, -1.0
            shortcut.bias[first + 2] = ANCHOR
            out.weight[group, first, 2, 1, 1], out.weight[group, first + 1, 2, 1, 1] = 1.0, -1.0
            variance = ANCHOR**2 * (size0 - 1) / size0**2 + 2 * float(power[group]) / size0
            anchors[group], spreads[group] = 2, variance**0.5
        for channel in range(first + (3 if group < 3 else 0), first + size0):
            source = 3 + (channel - 9) % max(1, outputs[2] - 3)
            shortcut.weight[channel, source] = 0.5
    for norm in [*[r.norm1 for r in list(decoder.up_blocks[3].resnets)[1:]], decoder.conv_norm_out]:
        _anchored_norm(norm, anchors, spreads)
