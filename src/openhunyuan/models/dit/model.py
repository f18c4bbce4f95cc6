"""The dual-to-single-stream diffusion transformer (report section 4.1, release facts B.1-B.11).

Read from the bottom: `DiT.forward` → `_core` → blocks → functions. Parameter names are those of the official
checkpoint (release fact B.2). Letters: B batch, L tokens, S text tokens, C hidden size, H heads, D head channels.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.ops.attention import Mask, attention
from openhunyuan.ops.enhance import Enhance, Enhancer
from openhunyuan.ops.norms import EPS, RMSNorm, gated_add, layer_norm, modulate
from openhunyuan.ops.rope import apply_rope, rope_freqs

SINUSOID_DIM = 256

ZERO_INIT = ("_mod.linear", ".modulation.linear", "adaLN_modulation.1", "final_layer.linear")
"""Endings of the modules that start at zero."""


def sinusoid(x: Tensor, dim: int = SINUSOID_DIM, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of x at dim/2 geometric frequencies, fp32. x: [B] (0..1000 for time) → [B, dim]."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=x.device) * (-math.log(max_period) / half))
    angles = x.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class ScalarEmbedder(nn.Module):
    """A number per sample (time, or the embedded guidance) → [B, C]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_DIM, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        dtype: torch.dtype = self.mlp[0].weight.dtype  # pyright: ignore[reportAssignmentType]
        return self.mlp(sinusoid(x).to(dtype))


class PooledEmbedder(nn.Module):
    """The pooled CLIP text vector [B, P] → [B, C]."""

    def __init__(self, pooled_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(pooled_dim, hidden_size)
        self.out_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class TextMeanEmbedder(nn.Module):
    """The mean of the text states [B, text_dim] → [B, C]."""

    def __init__(self, text_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(text_dim, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class PatchEmbedder(nn.Module):
    """Latent patches → tokens. The weight has a convolution's shape; as patches do not overlap it acts as a linear."""

    def __init__(self, in_channels: int, patch_size: tuple[int, int, int], hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """patches: [B, L, c·pt·ph·pw], channel-major → [B, L, C]."""
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class MLP(nn.Module):
    """Linear → activation → linear: tanh-GELU in the transformer blocks, SiLU in the refiner."""

    def __init__(self, size: int, mlp_size: int, silu: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, mlp_size)
        self.fc2 = nn.Linear(mlp_size, size)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(F.silu(x) if self.silu else gelu(x))


class Modulation(nn.Module):
    """The activated conditioning vector [B, C] → `chunks` vectors [B, C] of shifts, scales and gates."""

    def __init__(self, hidden_size: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(hidden_size, chunks * hidden_size)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.linear(vec).chunk(self.chunks, dim=-1)


class RefinerBlock(nn.Module):
    """Self-attention over text with gated residuals; no shift, no rope, no query-key norm (release fact B.4)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(size, eps=EPS)
        self.self_attn_qkv = nn.Linear(size, 3 * size)
        self.self_attn_proj = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size, eps=EPS)
        self.mlp = MLP(size, config.refiner_mlp_size, silu=True)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(size, 2 * size))

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B, S, C]; c: [B, C]; mask: keys [B, 1, 1, S] → [B, S, C]."""
        gate_attn, gate_mlp = self.adaLN_modulation(c).chunk(2, dim=-1)
        qkv = self.self_attn_qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)
        out = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = gated_add(x, gate_attn, self.self_attn_proj(out))
        return gated_add(x, gate_mlp, self.mlp(self.norm2(x)))


class RefinerBlocks(nn.Module):
    """The refiner's stack; a module of its own because the official key names have this level."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(config) for _ in range(config.num_refiner_blocks))

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, c, mask)
        return x


class TokenRefiner(nn.Module):
    """Bidirectional attention over the causal language model's states, told the time (release fact B.4)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(config.text_dim, config.hidden_size)
        self.t_embedder = ScalarEmbedder(config.hidden_size)
        self.c_embedder = TextMeanEmbedder(config.text_dim, config.hidden_size)
        self.individual_token_refiner = RefinerBlocks(config)

    def forward(self, states: Tensor, timestep: Tensor, mask: Tensor | None) -> Tensor:
        """states: [B, S, text_dim]; timestep: [B] 0..1000; mask: valid tokens [B, S] → [B, S, C].

        Masking keys alone is enough: valid rows then see exactly the valid tokens, and what the rows of padding
        hold is never read, because the blocks mask them as keys too.
        """
        if mask is None:
            mean, keys = states.float().mean(dim=1), None
        else:
            weights = mask.float().unsqueeze(-1)
            mean = (states.float() * weights).sum(dim=1) / weights.sum(dim=1)
            keys = mask[:, None, None, :]
        dtype = self.input_embedder.weight.dtype
        c = self.t_embedder(timestep) + self.c_embedder(mean.to(dtype))
        return self.individual_token_refiner(self.input_embedder(states.to(dtype)), c, keys)


class DoubleBlock(nn.Module):
    """Image and text keep their own weights and meet in one attention (release fact B.8)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size, self.num_heads = config.hidden_size, config.num_heads
        self.img_mod = Modulation(size, 6)
        self.img_attn_qkv = nn.Linear(size, 3 * size)
        self.img_attn_q_norm = RMSNorm(config.head_dim)
        self.img_attn_k_norm = RMSNorm(config.head_dim)
        self.img_attn_proj = nn.Linear(size, size)
        self.img_mlp = MLP(size, config.mlp_size)
        self.txt_mod = Modulation(size, 6)
        self.txt_attn_qkv = nn.Linear(size, 3 * size)
        self.txt_attn_q_norm = RMSNorm(config.head_dim)
        self.txt_attn_k_norm = RMSNorm(config.head_dim)
        self.txt_attn_proj = nn.Linear(size, size)
        self.txt_mlp = MLP(size, config.mlp_size)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask,
        enhance: Enhancer | None = None,
        frame_vec: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """img: [B, L, C]; txt: [B, S, C]; vec: [B, C]; cos, sin: [L + S, 1, D]; mask: keys [B, 1, 1, L + S].

        frame_vec: [B, T, C], the vectors of image tokens where latent frames differ; None: `vec` is everybody's.
        """
        img_vec = vec if frame_vec is None else frame_vec
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(img_vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)

        img_out, txt_out = self._attend(
            modulate(layer_norm(img), img_shift1, img_scale1),
            modulate(layer_norm(txt), txt_shift1, txt_scale1),
            cos,
            sin,
            mask,
            enhance,
        )
        img = gated_add(img, img_gate1, self.img_attn_proj(img_out))
        img = gated_add(img, img_gate2, self.img_mlp(modulate(layer_norm(img), img_shift2, img_scale2)))
        txt = gated_add(txt, txt_gate1, self.txt_attn_proj(txt_out))
        txt = gated_add(txt, txt_gate2, self.txt_mlp(modulate(layer_norm(txt), txt_shift2, txt_scale2)))
        return img, txt

    def _attend(
        self, img: Tensor, txt: Tensor, cos: Tensor, sin: Tensor, mask: Mask, enhance: Enhancer | None
    ) -> tuple[Tensor, Tensor]:
        """Attention over [image, text]. A method of its own so that queries, keys and values die before the MLP."""
        qkv = self.img_attn_qkv(img)
        img_q, img_k, img_v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        qkv = self.txt_attn_qkv(txt)
        txt_q, txt_k, txt_v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q = torch.cat((self.img_attn_q_norm(img_q), self.txt_attn_q_norm(txt_q)), dim=1)
        k = torch.cat((self.img_attn_k_norm(img_k), self.txt_attn_k_norm(txt_k)), dim=1)
        out = attend(q, k, torch.cat((img_v, txt_v), dim=1), cos, sin, mask, enhance)
        img_out, txt_out = out.split((img_q.shape[1], txt_q.shape[1]), dim=1)
        return img_out, txt_out


class SingleBlock(nn.Module):
    """One stream for all tokens, attention and feed-forward side by side (release fact B.9)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size, self.num_heads = config.hidden_size, config.num_heads
        self.modulation = Modulation(size, 3)
        self.linear1 = nn.Linear(size, 3 * size + config.mlp_size)
        self.linear2 = nn.Linear(size + config.mlp_size, size)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)

    def forward(
        self,
        x: Tensor,
        vec: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask,
        enhance: Enhancer | None = None,
        frame_vec: Tensor | None = None,
        num_image: int = 0,
    ) -> Tensor:
        """x: [B, L + S, C], image first (num_image = L); the rest as in `DoubleBlock`."""
        size = self.num_heads * self.q_norm.weight.shape[0]
        shift, scale, gate = self.modulation(vec)
        normed = layer_norm(x)
        if frame_vec is None:
            modulated = modulate(normed, shift, scale)
        else:
            img_shift, img_scale, img_gate = self.modulation(frame_vec)
            img, txt = normed.split((num_image, x.shape[1] - num_image), dim=1)
            modulated = torch.cat((modulate(img, img_shift, img_scale), modulate(txt, shift, scale)), dim=1)
        y = self.linear1(modulated)
        qkv, mlp = y.split((3 * size, y.shape[-1] - 3 * size), dim=-1)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        out = attend(self.q_norm(q), self.k_norm(k), v, cos, sin, mask, enhance)
        mlp = gelu(mlp)
        if torch.is_grad_enabled():
            branch = self.linear2(torch.cat((out, mlp), dim=-1))
        else:
            # v is spent and lies just before mlp, which was activated in place: with the attention's result written
            # over v, the last columns of y are the concatenation, without the copy or its memory.
            v.flatten(2).copy_(out)
            branch = self.linear2(y[..., 2 * size :])
        if frame_vec is None:
            return gated_add(x, gate, branch)
        img, txt = (
            gated_add(*parts)
            for parts in zip(
                x.split((num_image, x.shape[1] - num_image), dim=1),
                (img_gate, gate),
                branch.split((num_image, x.shape[1] - num_image), dim=1),
                strict=True,
            )
        )
        return torch.cat((img, txt), dim=1)


def gelu(x: Tensor) -> Tensor:
    """tanh-GELU of a tensor that is not used again: in place where no gradient will ask for the input."""
    return F.gelu(x, approximate="tanh") if torch.is_grad_enabled() else torch.ops.aten.gelu_(x, approximate="tanh")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Mask,
    enhance: Enhancer | None = None,
) -> Tensor:
    """Turn queries and keys by their positions and attend. q, k, v: [B, L, H, D] → [B, L, H·D]."""
    q, k = apply_rope(q, cos, sin).to(v.dtype), apply_rope(k, cos, sin).to(v.dtype)
    out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2).flatten(2)
    return out if enhance is None else enhance(out, q, k)


class FinalLayer(nn.Module):
    """Modulated norm and projection of image tokens to latent patches (release fact B.11)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.out_channels * math.prod(config.patch_size))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden_size, 2 * config.hidden_size))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """x: [B, L, C]; vec: [B, C], not yet activated → [B, L, out_channels·patch volume]."""
        shift, scale = self.adaLN_modulation(vec).chunk(2, dim=-1)
        return self.linear(modulate(layer_norm(x), shift, scale))


class DiT(nn.Module):
    """Predicts the velocity of a noisy latent from time, text and (for distilled weights) the guidance scale."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.img_in = PatchEmbedder(config.in_channels, config.patch_size, size)
        self.txt_in = TokenRefiner(config)
        self.time_in = ScalarEmbedder(size)
        self.vector_in = PooledEmbedder(config.pooled_dim, size)
        self.guidance_in = ScalarEmbedder(size) if config.guidance_embed else None
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_blocks))
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
        riflex_k: int | None = None,
        enhance_weight: float | None = None,
        clean_frames: Tensor | None = None,
    ) -> Tensor:
        """Velocity (noise − data) of `latents`.

        latents: [B, in_channels, T, Y, X], sizes multiples of the patch. timestep: [B], 0 (data) .. 1000 (noise).
        text_states: [B, S, text_dim], valid tokens first. text_mask: [B, S], True where valid, at least one per
        sample. pooled: [B, pooled_dim]. guidance: [B], the embedded scale × 1000 (`diffusion.guidance`), given
        exactly when the model has a guidance embedder. riflex_k, enhance_weight: see `ops.rope` and `ops.enhance`;
        None is off. clean_frames: [B, T] bool, True at latent frames that are given without noise (token replace);
        None: none are. Returns [B, out_channels, T, Y, X].
        Raises ValueError for a text mask that is empty or padded elsewhere than on the right, latents that the
        patch does not divide, or a guidance or clean frames that do not fit.

        The tokens of clean frames are modulated as at time 0 and without guidance, in every block; text, refiner and
        final layer are told the real time (release fact I.1). There are no parameters for it: whether weights know
        clean frames is a matter of their training.

        Padding never reaches the blocks where lengths allow: text is cut to the longest valid length first, and a
        key mask is used only if lengths differ. This function is the eager part (it looks at values); `_core`
        is static and can be compiled.
        """
        if (guidance is None) != (self.guidance_in is None):
            need = "needs" if guidance is None else "does not take"
            raise ValueError(f"this model {need} an embedded guidance (guidance_embed={self.config.guidance_embed})")
        grid = [size // patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True)]
        if any(size % patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True)):
            raise ValueError(f"latent size {tuple(latents.shape[2:])} must be a multiple of {self.config.patch_size}")
        if clean_frames is not None and clean_frames.shape != (len(latents), grid[0]):
            raise ValueError(f"clean_frames must have shape {(len(latents), grid[0])}, not {tuple(clean_frames.shape)}")
        text_states, mask = trim_text(text_states, text_mask)
        cos, sin = rope_freqs(grid, self.config.rope_axes_dim, self.config.rope_theta, latents.device, riflex_k)
        enhance = None if enhance_weight is None else Enhance(enhance_weight, (grid[0], grid[1], grid[2]))
        return self._core(latents, timestep, text_states, mask, pooled, guidance, cos, sin, enhance, clean_frames)

    def _core(
        self,
        latents: Tensor,
        timestep: Tensor,
        text_states: Tensor,
        text_mask: Tensor | None,
        pooled: Tensor,
        guidance: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        enhance: Enhance | None = None,
        clean_frames: Tensor | None = None,
    ) -> Tensor:
        """`forward` after trimming: no value-dependent control flow. text_mask None: every text token is valid."""
        pooled_vec = self.vector_in(pooled.to(self.vector_in.in_layer.weight.dtype))
        vec = self.time_in(timestep) + pooled_vec
        if self.guidance_in is not None and guidance is not None:
            vec = vec + self.guidance_in(guidance)
        txt = self.txt_in(text_states, timestep, text_mask)
        patches = self._patchify(latents)
        num_image, num_text = patches.shape[1], txt.shape[1]

        mask = None if text_mask is None else F.pad(text_mask, (num_image, 0), value=True)[:, None, None, :]
        # Text has no position; a turn by zero lets image and text be turned together without cutting them apart.
        cos = F.pad(cos, (0, 0, 0, num_text), value=1.0).unsqueeze(1)
        sin = F.pad(sin, (0, 0, 0, num_text), value=0.0).unsqueeze(1)
        frame_vec = None
        if clean_frames is not None:
            at_zero = F.silu(self.time_in(torch.zeros_like(timestep)) + pooled_vec)
            frame_vec = torch.where(clean_frames[..., None], at_zero[:, None], F.silu(vec)[:, None])
        patches = self.through_blocks(patches, txt, vec, cos, sin, mask, enhance, frame_vec)
        return self._unpatchify(patches, latents.shape)

    def through_blocks(
        self,
        patches: Tensor,
        txt: Tensor,
        vec: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask,
        enhance: Enhancer | None = None,
        frame_vec: Tensor | None = None,
    ) -> Tensor:
        """Latent patches [B, L, in_channels·pt·ph·pw] → [B, L, out_channels·pt·ph·pw]; the rest as in `DoubleBlock`.

        vec is not activated yet, frame_vec is. Only attention makes image tokens meet here: where several processes
        share a video, this runs on each one's own tokens, and `parallel.context` stands in its place.
        """
        img, active, num_image = self.img_in(patches), F.silu(vec), patches.shape[1]
        for block in self.double_blocks:
            img, txt = block(img, txt, active, cos, sin, mask, enhance, frame_vec)
        x = torch.cat((img, txt), dim=1)
        for block in self.single_blocks:
            x = block(x, active, cos, sin, mask, enhance, frame_vec, num_image)
        return self.final_layer(x[:, :num_image], vec)

    def _patchify(self, latents: Tensor) -> Tensor:
        """[B, c, T, Y, X] → [B, L, c·pt·ph·pw], token index (t·Y' + y)·X' + x (release fact B.5)."""
        batch, channels, frames, height, width = latents.shape
        pt, ph, pw = self.config.patch_size
        x = latents.reshape(batch, channels, frames // pt, pt, height // ph, ph, width // pw, pw)
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def _unpatchify(self, x: Tensor, latent_shape: torch.Size) -> Tensor:
        """[B, L, c·pt·ph·pw] → [B, c, T, Y, X]; features are channel-major (release fact B.5)."""
        batch, _, frames, height, width = latent_shape
        pt, ph, pw = self.config.patch_size
        x = x.reshape(batch, frames // pt, height // ph, width // pw, -1, pt, ph, pw)
        return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, -1, frames, height, width)

    def muon_parameters(self) -> Iterator[nn.Parameter]:
        """The hidden matrices of the blocks: projections and feed-forwards, not modulation, norms or embedders."""
        for name, parameter in self.named_parameters():
            if "_blocks." in name and parameter.ndim == 2 and "mod" not in name.split(".")[2]:
                yield parameter

    def compile_core(self, **options: Any) -> None:
        """Replace the static part by its `torch.compile`d form; call it after copies (an EMA) have been made."""
        self._core = torch.compile(self._core, **options)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill the parameters for training from scratch.

        Every modulation and the output projection start at zero, so that each block is the identity and the first
        prediction is zero; other linears are Xavier-uniform with zero bias, embedders of scalars N(0, 0.02²).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]  (all of them have a bias)
                if name.endswith(ZERO_INIT):
                    nn.init.zeros_(module.weight)
                elif ".mlp." in name and name.split(".")[-3] in ("time_in", "t_embedder", "guidance_in"):
                    nn.init.normal_(module.weight, std=0.02, generator=generator)
                else:
                    # A convolution over patches is a linear over their values: its fan-in is the whole patch.
                    nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            elif isinstance(module, nn.LayerNorm | RMSNorm):
                nn.init.ones_(module.weight)
                if isinstance(module, nn.LayerNorm):
                    nn.init.zeros_(module.bias)


def trim_text(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut text to the longest valid length, and say whether a mask is still needed.

    states: [B, S, C]; mask: [B, S]. Returns states [B, max length, C] and either the cut mask or, if all samples
    are equally long, None. One device sync. Raises ValueError unless every row is valid tokens first, padding after.
    """
    if mask.device.type == "meta":
        return states, None
    mask = mask.bool()
    lengths = mask.sum(dim=1)
    prefixes = mask.long().cumprod(dim=1).sum(dim=1)
    shortest, longest, well_formed = torch.stack(
        (lengths.min(), lengths.max(), (lengths == prefixes).all().long())
    ).tolist()
    if shortest == 0 or not well_formed:
        raise ValueError("each row of the text mask must be valid tokens (at least one), then padding on the right")
    return states[:, :longest], None if shortest == longest else mask[:, :longest]
