"""The causal 3D VAE: video <-> latents with 4x fewer frames, 8x fewer rows and columns (release facts C.1-C.4, C.7).

Read top-down: `CausalVAE` -> `Encoder`/`Decoder` -> stages -> blocks -> `CausalConv3d`. State-dict names are those of
the released checkpoint. Every tensor is [batch, channels, frames, height, width] unless said otherwise.

"Causal" is a property of the convolutions and of the middle attention only: group norms take their statistics over time
too, so a later frame does change an earlier one (release fact C.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, VAEConfig
from openhunyuan.models.vae.tiling import TilingConfig, tiled_decode, tiled_encode

NORM_EPS = 1e-6
# Without gradients a large convolution runs a few frames at a time, on at most about this many input values: its padded
# copy, and the copy in the layout the convolution library wants, then stay small beside the activations themselves.
CHUNK_VALUES = 2**24


@dataclass(frozen=True)
class Posterior:
    """The encoder's diagonal Gaussian: `mean` and `logvar`, both [B, C, T, h, w], logvar within [-30, 20]."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Splits [B, 2*C, T, h, w] into mean and log variance and clamps the latter (release fact C.2)."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean=mean, logvar=logvar.clamp(-30.0, 20.0))

    def mode(self) -> Tensor:
        """The most likely latent, which is the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise; the noise is drawn on the generator's own device, so a CPU seed holds everywhere."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device, self.mean.dtype)

    def kl(self) -> Tensor:
        """Divergence from the standard normal, [B], nats, summed over channels, frames and positions."""
        per_element = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * per_element.flatten(1).sum(dim=1)


class CausalVAE(nn.Module):
    """The 4x8x8 causal VAE; see `VAEConfig` for its sizes."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        moments = 2 * config.latent_channels
        self.quant_conv = nn.Conv3d(moments, moments, kernel_size=1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, kernel_size=1)

    def muon_parameters(self) -> list[Tensor]:
        """The kernels an orthogonalising optimizer may take: every 3x3x3 one between two hidden layers."""
        return [
            module.conv.weight
            for name, module in self.named_modules()
            if isinstance(module, CausalConv3d)
            and module.conv.kernel_size[0] == 3
            and not name.endswith((".conv_in", ".conv_out"))
        ]

    def encode(self, video: Tensor, tiling: TilingConfig | None = None) -> Posterior:
        """Distribution of the latent of a video.

        Args:
            video: [B, 3, F, H, W] in [-1, 1]; F = 4n+1, H and W multiples of 8.
            tiling: None encodes the whole video at once; otherwise tile by tile.

        Raises:
            UserError: a shape the VAE cannot compress.
        """
        _check_shape("video", video, self.config.in_channels)
        frames, height, width = video.shape[2:]
        if (frames - 1) % TEMPORAL_COMPRESSION or height % SPATIAL_COMPRESSION or width % SPATIAL_COMPRESSION:
            raise UserError(
                f"The video is {frames}x{height}x{width} (frames x height x width); "
                "the VAE needs 4n+1 frames and sides that are multiples of 8."
            )
        moments = self.encode_moments(video) if tiling is None else tiled_encode(self, video, tiling)
        return Posterior.from_moments(moments)

    def decode(self, latents: Tensor, tiling: TilingConfig | None = None) -> Tensor:
        """Video of a latent.

        Args:
            latents: [B, C, T, h, w] in the VAE's own units (see `decode_latents` for those of diffusion).
            tiling: None decodes the whole latent at once; otherwise tile by tile.

        Returns:
            [B, 3, 4*(T-1)+1, 8*h, 8*w], about [-1, 1], not clamped.

        Raises:
            UserError: a shape that is not a latent of this VAE.
        """
        _check_shape("latent", latents, self.config.latent_channels)
        return self.decode_video(latents) if tiling is None else tiled_decode(self, latents, tiling)

    def encode_latents(self, video: Tensor, tiling: TilingConfig | None = None) -> Tensor:
        """The latent that diffusion works on: scaling_factor * mode of the posterior."""
        return self.encode(video, tiling).mode() * self.config.scaling_factor

    def decode_latents(self, latents: Tensor, tiling: TilingConfig | None = None) -> Tensor:
        """Inverse of `encode_latents`: divides by scaling_factor, then decodes."""
        return self.decode(latents / self.config.scaling_factor, tiling)

    def encode_moments(self, video: Tensor) -> Tensor:
        """Untiled: [B, 3, F, H, W] -> mean and log variance [B, 2*C, (F-1)//4+1, H/8, W/8], before clamping."""
        return self.quant_conv(self.encoder(video))

    def decode_video(self, latents: Tensor) -> Tensor:
        """Untiled: [B, C, T, h, w] -> [B, 3, 4*(T-1)+1, 8*h, 8*w]."""
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, video: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Posterior]:
        """Reconstruction through a sampled latent, and its posterior: what one training step needs."""
        posterior = self.encode(video)
        return self.decode(posterior.sample(generator)), posterior


def _check_shape(name: str, x: Tensor, channels: int) -> None:
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise UserError(
            f"A {name} must be [batch, {channels}, frames, height, width] and not empty; got {list(x.shape)}."
        )


def _stage_factors(stage: int) -> tuple[int, int, int]:
    """Encoder stride and decoder upsampling (T, H, W) after stage 0..3 (release facts C.2, C.3)."""
    return ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1))[stage]


class Encoder(nn.Module):
    """[B, 3, F, H, W] -> [B, 2*latent, (F-1)//4+1, H/8, W/8]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = CausalConv3d(config.in_channels, channels[0])
        self.down_blocks = nn.ModuleList(
            DownStage(
                channels[max(i - 1, 0)], channels[i], config.layers_per_block, config.norm_num_groups, _stage_factors(i)
            )
            for i in range(4)
        )
        self.mid_block = MidBlock(channels[-1], config.norm_num_groups, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=NORM_EPS)
        self.conv_out = CausalConv3d(channels[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        x = self.mid_block(x)
        return self.conv_out(_silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """[B, latent, T, h, w] -> [B, 3, 4*(T-1)+1, 8*h, 8*w]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], config.norm_num_groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpStage(
                channels[max(i - 1, 0)],
                channels[i],
                config.layers_per_block + 1,
                config.norm_num_groups,
                _stage_factors(i),
            )
            for i in range(4)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=NORM_EPS)
        self.conv_out = CausalConv3d(channels[-1], config.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(_silu(self.conv_norm_out(x)))


class DownStage(nn.Module):
    """Residual blocks, then a strided convolution unless the stride is 1 everywhere."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else channels, channels, groups) for i in range(layers)
        )
        resample = [Downsample(channels, stride)] if max(stride) > 1 else []
        self.downsamplers = nn.ModuleList(resample)

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
        return x


class UpStage(nn.Module):
    """Residual blocks, then nearest upsampling and a convolution unless the factor is 1 everywhere."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int, factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else channels, channels, groups) for i in range(layers)
        )
        resample = [Upsample(channels, factor)] if max(factor) > 1 else []
        self.upsamplers = nn.ModuleList(resample)

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x


class MidBlock(nn.Module):
    """Residual block, frame-causal attention (optional), residual block."""

    def __init__(self, channels: int, groups: int, add_attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([FrameCausalAttention(channels, groups)] if add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class ResnetBlock(nn.Module):
    """Twice (group norm, SiLU, causal convolution), added to the input or, if channels change, to a 1x1x1 map of it."""

    def __init__(self, in_channels: int, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = CausalConv3d(in_channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.conv2 = CausalConv3d(channels, channels)
        self.conv_shortcut = CausalConv3d(in_channels, channels, kernel_size=1) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_silu(self.norm1(x)))
        h = self.conv2(_silu(self.norm2(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return x + h


class FrameCausalAttention(nn.Module):
    """One-head self-attention over (t, h, w) tokens in which a token sees every token of its own and earlier frames."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        frames, height, width = x.shape[2:]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, T*h*w, C]
        q, k, v = (linear(tokens).unsqueeze(1) for linear in (self.to_q, self.to_k, self.to_v))  # [B, 1, T*h*w, C]
        out = self.to_out[0](frame_causal_attention(q, k, v, frames).squeeze(1))
        return x + out.transpose(1, 2).unflatten(2, (frames, height, width))


def frame_causal_attention(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Softmax attention where a query of frame f sees the keys of frames 0..f.

    A frame's queries all see the same prefix of keys, so one unmasked call per frame computes it: no N x N mask, and
    about half of the products that a masked call forms and discards (release quirk J.25).

    Args:
        q, k, v: [B, heads, frames*n, D], frame-major.
        frames: how many frames the tokens divide into.

    Returns:
        [B, heads, frames*n, D].
    """
    per_frame = q.shape[2] // frames
    outputs = [
        F.scaled_dot_product_attention(queries, k[:, :, : (f + 1) * per_frame], v[:, :, : (f + 1) * per_frame])
        for f, queries in enumerate(q.split(per_frame, dim=2))
    ]
    return outputs[0] if frames == 1 else torch.cat(outputs, dim=2)


class Downsample(nn.Module):
    """A causal convolution with a stride; T -> (T-1)//s+1."""

    def __init__(self, channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest upsampling by `factor` (T, 2, 2) and a causal convolution, computed as one map.

    Frame 0 is repeated in space only, later frames by the full factor, so T frames become ft*(T-1)+1 (release fact
    C.3).

    A repeated pixel meets several taps of the kernel, so those taps can be added up before they meet the pixel:
    doubling and a 3-tap convolution along one axis are one transposed convolution of stride 2 whose four taps are
    (w2, w1+w2, w0+w1, w0). Along time, even and odd output frames are told apart and each sees two input frames. That
    is 8 products per output value and input channel instead of 27, and the enlarged input is never formed.
    """

    def __init__(self, channels: int, factor: tuple[int, int, int]) -> None:
        super().__init__()
        if factor[0] not in (1, 2) or factor[1:] != (2, 2):
            raise ValueError(f"Upsample supports the factors (1, 2, 2) and (2, 2, 2), not {factor}.")
        self.factor = factor
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, length, height, width = x.shape
        w0, w1, w2 = self._spatial_kernel().unbind(2)  # each [C_in, C_out, 4, 4]
        # One frame of replicated border on each side, frames as the batch of 2D convolutions: [B, T, C, h+2, w+2].
        frames = pad_sides(x.transpose(1, 2).reshape(-1, channels, height, width), 1).unflatten(0, (batch, length))
        if length == 1:
            return self._taps(frames, (w0 + w1 + w2,))
        if self.factor[0] == 1:
            return self._taps(torch.cat((frames[:, :1], frames[:, :1], frames), dim=1), (w0, w1, w2))
        out = None
        past_frames = torch.cat((frames[:, :1], frames), dim=1)
        for first, source, kernels in ((0, past_frames, (w0, w1 + w2)), (1, frames, (w0 + w1, w2))):
            phase = self._taps(source, kernels)
            if out is None:
                out = phase.new_empty(batch, phase.shape[1], 2 * length - 1, 2 * height, 2 * width)
            out[:, :, first::2] = phase
        assert out is not None
        return out

    def _spatial_kernel(self) -> Tensor:
        """[C_out, C_in, 3, 3, 3] -> [C_in, C_out, 3, 4, 4], the taps of the strided transposed convolution."""
        kernel = self.conv.conv.weight.transpose(0, 1)
        for dim in (3, 4):
            first, second, third = kernel.split(1, dim)
            kernel = torch.cat((third, second + third, first + second, first), dim)
        return kernel

    def _taps(self, frames: Tensor, kernels: tuple[Tensor, ...]) -> Tensor:
        """Output frame t sums kernel i on frame t+i: [B, T+n-1, C, h+2, w+2] with n kernels -> [B, C, T, 2h, 2w]."""
        batch, length = frames.shape[0], frames.shape[1] - len(kernels) + 1
        total: Tensor | None = None
        for i, kernel in enumerate(kernels):
            source = frames[:, i : i + length].flatten(0, 1)
            if total is None:
                total = F.conv_transpose2d(source, kernel, self.conv.conv.bias, stride=2, padding=3)
            else:
                total += F.conv_transpose2d(source, kernel, stride=2, padding=3)
        assert total is not None
        return total.unflatten(0, (batch, length)).transpose(1, 2)


class CausalConv3d(nn.Module):
    """3D convolution padded with copies of the border: both sides of height and width, only the past of time.

    With kernel 3 the first frame appears three times to its own output, so frame t depends on frames t-2..t.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.kernel_size[0]
        if kernel == 1:
            return self.conv(x)
        if x.shape[2] == 1:
            return self._single_frame(x.squeeze(2), kernel // 2).unsqueeze(2)
        if not torch.is_grad_enabled() and x.numel() > CHUNK_VALUES:
            return self._few_frames_at_a_time(x)
        # The same as F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate"), whose backward pass takes twice as long on a CPU.
        x = pad_sides(x.flatten(1, 2), kernel // 2).unflatten(1, x.shape[1:3])
        x = torch.cat((*[x[:, :, :1]] * (kernel - 1), x), dim=2)
        return self._halves(x) if _has_slow_conv3d(x) else self.conv(x)

    def _few_frames_at_a_time(self, x: Tensor) -> Tensor:
        """The same map on `CHUNK_VALUES` inputs at a time (at least one output frame), for inference."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        side, past = kernel // 2, kernel - 1
        length = (x.shape[2] - 1) // stride + 1
        step = max(1, CHUNK_VALUES // (x[:, :, :1].numel() * stride))
        out: Tensor | None = None
        for start in range(0, length, step):
            stop = min(start + step, length)
            first = start * stride - past
            frames = x[:, :, max(first, 0) : (stop - 1) * stride + 1]
            chunk: Tensor = self.conv(F.pad(frames, (side, side, side, side, max(-first, 0), 0), mode="replicate"))
            if out is None:
                out = chunk.new_empty(*chunk.shape[:2], length, *chunk.shape[3:])
            out[:, :, start:stop] = chunk
        assert out is not None
        return out

    def _single_frame(self, image: Tensor, side: int) -> Tensor:
        """[B, C, H, W]: all taps in time see the same frame, so the kernel can be summed over time first."""
        weight = self.conv.weight.sum(dim=2)
        return F.conv2d(pad_sides(image, side), weight, self.conv.bias, stride=self.conv.stride[1:])

    def _halves(self, padded: Tensor) -> Tensor:
        """[1, C, T+k-1, ...]: the first and last half of the output frames as a batch of two."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        length = (padded.shape[2] - kernel) // stride + 1
        half = (length + 1) // 2
        span, start = (half - 1) * stride + kernel, (length - half) * stride
        first, last = self.conv(torch.cat((padded[:, :, :span], padded[:, :, start : start + span]))).split(1)
        return torch.cat((first, last[:, :, 2 * half - length :]), dim=2)


def pad_sides(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] with `side` copies of the border on every side of height and width."""
    return F.pad(x, (side, side, side, side), mode="replicate")


def _has_slow_conv3d(x: Tensor) -> bool:
    """Whether torch would run this 3D convolution without oneDNN, which is about five times slower.

    On a CPU it does so for float32 batches of one with at most 20,480 values in the first four dimensions.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[0] == 1 and x[..., 0].numel() <= 20480


def _silu(x: Tensor) -> Tensor:
    """SiLU; in place when nobody needs the input again, which saves the largest temporary of inference."""
    return F.silu(x, inplace=not (torch.is_grad_enabled() and x.requires_grad))
