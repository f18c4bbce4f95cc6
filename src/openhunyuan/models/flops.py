"""Floating-point operations of one forward pass, from sizes alone; a multiply-add counts as two.

Matrix products, convolutions and attention scores are counted; norms, activations and other pointwise work, a few
per cent at most, are not. A training step costs about three times the forward.
"""

import math

from openhunyuan.base.sizes import LatentSize
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import SINUSOID_DIM
from openhunyuan.models.vae.config import VAEConfig


def attention_flops(queries: int, keys: int, size: int) -> int:
    """Scores and weighted values over all heads; size = heads × head channels."""
    return 4 * queries * keys * size


def dit_flops(
    config: DiTConfig,
    latent: LatentSize,
    text_tokens: int,
    batch: int = 1,
    tensor: int = 1,
    ulysses: int = 1,
    ring: int = 1,
) -> int:
    """Forward of `DiT` on a batch of equal samples. text_tokens: valid ones (padding never reaches the blocks).

    tensor, ulysses, ring: of one of so many processes that share the batch (``parallel.apply``). Each has its heads,
    its channels of the blocks' linears and its run of the image tokens, padding included. Modulation, embedders and,
    but for tensor, the text of the blocks are computed by all of them: their sum is more than one process's alone.
    """
    size, mlp = config.hidden_size, config.mlp_size
    every = latent.tokens(config.patch_size)
    image = -(-every // (ulysses * ring))
    joint = image + text_tokens
    patch = math.prod(config.patch_size)
    scalar = SINUSOID_DIM * size + size * size  # weights of a timestep or guidance embedder

    embed = scalar * (2 if config.guidance_embed else 1) + config.pooled_dim * size + size * size
    embed += image * config.in_channels * patch * size
    refiner = scalar + config.text_dim * size + size * size + text_tokens * config.text_dim * size
    refiner_block = text_tokens * (4 * size * size + 2 * size * config.refiner_mlp_size) // tensor + 2 * size * size
    refiner += config.num_refiner_blocks * refiner_block
    linears = joint * (4 * size * size + 2 * size * mlp) // tensor
    double, single = 12 * size * size + linears, 3 * size * size + linears
    final = 2 * size * size + image * size * config.out_channels * patch
    products = embed + refiner + config.num_double_blocks * double + config.num_single_blocks * single + final

    # A process of Ulysses has its heads of its group's tokens.
    heads = size // (tensor * ulysses)
    scores = attention_flops(ulysses * image + text_tokens, every + text_tokens, heads)
    attention = (config.num_double_blocks + config.num_single_blocks) * scores
    attention += config.num_refiner_blocks * attention_flops(text_tokens, text_tokens, size // tensor)
    return batch * (2 * products + attention)


def vae_decode_flops(config: VAEConfig, latent: LatentSize, batch: int = 1) -> int:
    """Decoding one latent in one tile, every convolution at its nominal cost."""
    channels = tuple(reversed(config.block_out_channels))
    shape = (latent.frames, latent.height, latent.width)
    total = _conv(config.latent_channels, config.latent_channels, shape, kernel=1)
    total += _conv(config.latent_channels, channels[0], shape) + _middle(channels[0], shape, config)
    before = channels[0]
    for stage, after in enumerate(channels):
        total += _resnet(before, after, shape) + config.layers_per_block * _resnet(after, after, shape)
        if stage < len(channels) - 1:
            frames = shape[0] if stage == 0 else 2 * shape[0] - 1
            shape = (frames, 2 * shape[1], 2 * shape[2])
            total += _conv(after, after, shape)
        before = after
    return batch * (total + _conv(before, config.out_channels, shape))


def vae_encode_flops(config: VAEConfig, latent: LatentSize, batch: int = 1) -> int:
    """Encoding the video of one latent in one tile, every convolution at its nominal cost."""
    video = latent.video
    channels = config.block_out_channels
    shape = (video.num_frames, video.height, video.width)
    total = _conv(config.in_channels, channels[0], shape)
    before = channels[0]
    for stage, after in enumerate(channels):
        total += _resnet(before, after, shape) + (config.layers_per_block - 1) * _resnet(after, after, shape)
        if stage < len(channels) - 1:
            frames = shape[0] if stage == 0 else (shape[0] - 1) // 2 + 1
            shape = (frames, shape[1] // 2, shape[2] // 2)
            total += _conv(after, after, shape)
        before = after
    moments = 2 * config.latent_channels
    total += _middle(before, shape, config) + _conv(before, moments, shape) + _conv(moments, moments, shape, kernel=1)
    return batch * total


Shape = tuple[int, int, int]


def _conv(before: int, after: int, shape: Shape, kernel: int = 3) -> int:
    return 2 * before * after * kernel**3 * math.prod(shape)


def _resnet(before: int, after: int, shape: Shape) -> int:
    shortcut = _conv(before, after, shape, kernel=1) if before != after else 0
    return _conv(before, after, shape) + _conv(after, after, shape) + shortcut


def _middle(channels: int, shape: Shape, config: VAEConfig) -> int:
    total = 2 * _resnet(channels, channels, shape)
    if not config.mid_block_add_attention:
        return total
    frames, per_frame = shape[0], shape[1] * shape[2]
    total += 4 * _conv(channels, channels, shape, kernel=1)
    # A query of frame f sees the keys of frames 0..f only.
    return total + sum(attention_flops(per_frame, (frame + 1) * per_frame, channels) for frame in range(frames))
