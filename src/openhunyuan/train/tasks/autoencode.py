"""Task ``autoencode``: the causal VAE. L1 + 0.1 perceptual + 0.05 adversarial + 1e-6 KL (report §4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from openhunyuan.base.sizes import VideoSize
from openhunyuan.base.video import write_image
from openhunyuan.models.flops import vae_decode_flops, vae_encode_flops
from openhunyuan.models.lpips import Lpips
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.models.vae.quality import psnr, seam_ratio, ssim
from openhunyuan.models.vae.tiling import TilingConfig, seam_mask
from openhunyuan.train.config import OptimizerConfig, Strict
from openhunyuan.train.loop import Batch, StepContext
from openhunyuan.train.perceptual import Features, perceptual_distance
from openhunyuan.train.window import Work


class TileSizes(Strict):
    """Tiles of the tiling fine-tune, pixels and frames; the defaults are the official ones."""

    tile_size: int = 256
    tile_stride: int = 192
    tile_frames: int = 64
    tile_frame_stride: int = 48

    @model_validator(mode="after")
    def _allowed(self) -> TileSizes:
        _ = self.tiling
        return self

    @property
    def tiling(self) -> TilingConfig:
        return TilingConfig(self.tile_size, self.tile_stride, self.tile_frames, self.tile_frame_stride)


class AutoencodeConfig(Strict):
    """Loss weights of the report; each term can be switched off with 0, and starts at its own step."""

    l1_weight: float = Field(default=1.0, ge=0)
    l2_weight: float = Field(default=0.0, ge=0, description="squared error: steadier colour early on")
    perceptual_weight: float = Field(default=0.1, ge=0)
    perceptual_start: int = Field(default=0, ge=0)
    perceptual_frames: int = Field(default=4, gt=0, description="frames a clip that the perceptual network sees")
    adversarial_weight: float = Field(default=0.05, ge=0)
    adversarial_start: int = Field(default=0, ge=0)
    kl_weight: float = Field(default=1e-6, ge=0)
    tiling_prob: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of steps that encode and decode in tiles, so that both ways give the same picture",
    )
    tiles: TileSizes = TileSizes()
    decoder_only: bool = Field(default=False, description="keep the encoder, and so every encoded latent")
    discriminator_width: int = Field(default=24, gt=0)
    discriminator: OptimizerConfig = OptimizerConfig(lr=4e-4, betas=(0.5, 0.9), warmup_steps=0, schedule="constant")


class PatchDiscriminator(nn.Module):
    """3D patch discriminator: [B, 3, T, H, W] → one score a patch of the clip. Works on one frame too."""

    def __init__(self, width: int):
        super().__init__()
        widths = (width, 2 * width, 2 * width)
        layers: list[nn.Module] = []
        channels = 3
        for i, out in enumerate(widths):
            stride = (1, 2, 2) if i == 0 else (2, 2, 2)
            layers += [nn.Conv3d(channels, out, (3, 4, 4), stride, (1, 1, 1), padding_mode="replicate")]
            layers += [nn.GroupNorm(4, out)] if i else []
            layers += [nn.LeakyReLU(0.2)]
            channels = out
        self.body = nn.Sequential(*layers, nn.Conv3d(channels, 1, 3, 1, 1, padding_mode="replicate"))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.body(x_BCTHW)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½·(mean max(0, 1 − real) + mean max(0, 1 + fake))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class AutoencodeTask:
    """Trains a ``CausalVAE`` on batches ``{"video": [B, 3, T, H, W] in [−1, 1]}``."""

    def __init__(
        self,
        config: AutoencodeConfig,
        vae: CausalVAE,
        features: Features | Lpips | None,
        validation: Mapping[str, Tensor],
    ):
        self.config, self.vae, self.features = config, vae, features
        self.validation = validation
        if config.decoder_only:
            for part in (vae.encoder, vae.quant_conv):
                part.requires_grad_(False)
        self.discriminator = PatchDiscriminator(config.discriminator_width) if config.adversarial_weight else None
        self.phases = ("model", "discriminator") if self.discriminator else ("model",)
        self._fake: Tensor | None = None

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.vae} | ({"discriminator": self.discriminator} if self.discriminator else {})

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        return self.config.discriminator if phase == "discriminator" else None

    def active(self, phase: str, context: StepContext) -> bool:
        return phase == "model" or context.step >= self.config.adversarial_start

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        video = batch["video"]
        if phase == "discriminator":
            assert self.discriminator is not None and self._fake is not None
            loss = hinge_discriminator_loss(self.discriminator(video), self.discriminator(self._fake))
            return loss, {"loss": loss.detach()}
        config = self.config
        tiled = config.tiling_prob and float(torch.rand((), generator=context.generator)) < config.tiling_prob
        tiling = config.tiles.tiling if tiled else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.decoder_only):
            posterior = self.vae.encode(video, tiling)
        decoded = self.vae.decode(posterior.sample(context.generator), tiling)
        l1 = (decoded - video).abs().mean()
        kl = posterior.kl().mean() / video[0].numel()  # both terms per pixel value, as in a sum over the clip
        loss = config.l1_weight * l1 + config.kl_weight * kl
        values: dict[str, Tensor | float] = {
            "l1": l1.detach(),
            "kl": kl.detach(),
            "psnr": psnr(decoded.detach(), video).mean(),
        }
        if tiling and bool(seam_mask(tiling, tuple(video.shape[2:])).any()):
            values["psnr_tiled"] = values["psnr"]
        if config.l2_weight:
            loss = loss + config.l2_weight * (decoded - video).square().mean()
        if self.features and config.perceptual_weight and context.step >= config.perceptual_start:
            frames = torch.randperm(video.shape[2], generator=context.generator)[: config.perceptual_frames].to(
                video.device
            )
            flat = [x[:, :, frames].transpose(1, 2).flatten(0, 1) for x in (video, decoded)]
            distance = perceptual_distance(self.features, *flat)
            loss = loss + config.perceptual_weight * distance
            values["perceptual"] = distance.detach()
        if self.discriminator and context.step >= config.adversarial_start:
            for p in self.discriminator.parameters():
                p.requires_grad_(False)
            adversarial = -self.discriminator(decoded).mean()
            for p in self.discriminator.parameters():
                p.requires_grad_(True)
            loss = loss + config.adversarial_weight * adversarial
            values["adversarial"] = adversarial.detach()
            self._fake = decoded.detach()
        return loss, values | {"loss": loss.detach(), "latent_std": posterior.mean.detach().std()}

    def work(self, phase: str, batch: Batch) -> Work | None:
        """Encoder and decoder in one tile; the perceptual network and the discriminator are not counted."""
        config = getattr(self.vae, "config", None)
        if phase != "model" or not isinstance(config, VAEConfig):
            return None
        size = VideoSize(*batch["video"].shape[2:])
        count = len(batch["video"])
        encode, decode = (flops(config, size.latent, count) for flops in (vae_encode_flops, vae_decode_flops))
        frozen = encode if self.config.decoder_only else 0
        return Work(str(size), encode + decode - frozen, frozen)

    def _reconstruct(self, video: Tensor, tiling: TilingConfig | None = None) -> Tensor:
        device = next(self.vae.parameters()).device
        clips = [self.vae.encode(v.to(device), tiling).mode() for v in video.split(4)]
        return torch.cat([self.vae.decode(latents, tiling).cpu() for latents in clips])

    def validate(self, context: StepContext) -> dict[str, float]:
        """PSNR, SSIM and, with a perceptual network, its distance; with the tiling fine-tune also of the tiled way, and
        how much its seams show (``seam``; ``seam_untiled`` is what the same places cost without tiles)."""
        values: dict[str, float] = {}
        for name, video in self.validation.items():
            decoded = self._reconstruct(video)
            values[f"psnr_{name}"] = float(psnr(decoded, video).mean())
            values[f"ssim_{name}"] = float(ssim(decoded, video).mean())
            if self.features:
                device = next(self.vae.parameters()).device
                picks = torch.linspace(0, video.shape[2] - 1, min(video.shape[2], self.config.perceptual_frames)).long()
                flat = [x[:, :, picks].transpose(1, 2).flatten(0, 1).to(device) for x in (video, decoded)]
                values[f"perceptual_{name}"] = float(perceptual_distance(self.features, *flat))
            tiling = self.config.tiles.tiling
            if self.config.tiling_prob and bool(seam_mask(tiling, tuple(video.shape[2:])).any()):
                tiled = self._reconstruct(video, tiling)
                values[f"psnr_{name}_tiled"] = float(psnr(tiled, video).mean())
                values[f"seam_{name}"] = seam_ratio(video, tiled, tiling)
                values[f"seam_{name}_untiled"] = seam_ratio(video, decoded, tiling)
        return values

    def sample(self, folder: Path, context: StepContext) -> None:
        """A sheet a validation set: first, middle and last frame, original above reconstruction."""
        for name, video in self.validation.items():
            video = video[:8]
            decoded = self._reconstruct(video)
            picks = sorted({0, video.shape[2] // 2, video.shape[2] - 1})
            rows = [torch.cat([x[:, :, t] for t in picks], 0) for x in (video, decoded)]
            sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
            write_image(folder / f"{name}.png", _to_uint8(sheet), {"step": context.step})


def _to_uint8(x_CHW: Tensor) -> np.ndarray:
    return ((x_CHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
