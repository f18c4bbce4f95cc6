"""The VAE's names in the older latent-diffusion style, which ComfyUI keeps inside and may save."""

from __future__ import annotations

from openhunyuan.convert.names import NameMap, Rule, same

STAGES = 4


def _stage(ours: str, theirs: str) -> tuple[Rule, ...]:
    block, their_block = f"{ours}.resnets.{{j}}", f"{theirs}.block.{{j}}"
    return (
        *(same(f"{block}.{layer}", f"{their_block}.{layer}") for layer in ("norm1", "norm2")),
        *(same(f"{block}.{layer}.conv", f"{their_block}.{layer}.conv") for layer in ("conv1", "conv2")),
        same(f"{block}.conv_shortcut.conv", f"{their_block}.nin_shortcut.conv"),
    )


def _half(half: str) -> tuple[Rule, ...]:
    middle, theirs = f"{half}.mid_block", f"{half}.mid"
    attention, their_attention = f"{middle}.attentions.0", f"{theirs}.attn_1"
    return (
        same(f"{half}.conv_in.conv", f"{half}.conv_in.conv"),
        same(f"{half}.conv_out.conv", f"{half}.conv_out.conv"),
        same(f"{half}.conv_norm_out", f"{half}.norm_out"),
        *(
            same(f"{middle}.resnets.{n}.{layer}", f"{theirs}.block_{n + 1}.{layer}")
            for n in range(2)
            for layer in ("norm1", "norm2", "conv1.conv", "conv2.conv")
        ),
        same(f"{attention}.group_norm", f"{their_attention}.norm"),
        *(
            rule
            for ours, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))
            for rule in (
                Rule(f"{attention}.{ours}.weight", (f"{their_attention}.{name}.weight",), "pointwise"),
                same(f"{attention}.{ours}.bias", f"{their_attention}.{name}.bias"),
            )
        ),
    )


NAMES = NameMap(
    (
        same("quant_conv", "quant_conv"),
        same("post_quant_conv", "post_quant_conv"),
        *_half("encoder"),
        *_half("decoder"),
        *_stage("encoder.down_blocks.{i}", "encoder.down.{i}"),
        same("encoder.down_blocks.{i}.downsamplers.0.conv.conv", "encoder.down.{i}.downsample.conv.conv"),
        # Their decoder counts its stages from the finest.
        *(
            rule
            for n in range(STAGES)
            for rule in (
                *_stage(f"decoder.up_blocks.{n}", f"decoder.up.{STAGES - 1 - n}"),
                same(
                    f"decoder.up_blocks.{n}.upsamplers.0.conv.conv",
                    f"decoder.up.{STAGES - 1 - n}.upsample.conv.conv",
                ),
            )
        ),
    )
)
