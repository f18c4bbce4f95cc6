"""The name maps against diffusers' classes and ComfyUI's replacements, at the released sizes, on the meta device."""

from __future__ import annotations

import pytest
import torch

from openhunyuan.convert import dit_comfyui, dit_diffusers, vae_ldm
from openhunyuan.convert.lazy import Lazy, from_tensor
from openhunyuan.convert.names import NameMap
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from tools.tiny_files import comfyui_name


def shapes(state) -> dict[str, tuple[int, ...]]:  # noqa: ANN001
    return {name: tuple(value.shape) for name, value in state.items()}


def meta_dit(config: DiTConfig) -> dict[str, Lazy]:
    with torch.device("meta"):
        return {name: from_tensor(value) for name, value in DiT(config).state_dict().items()}


@pytest.mark.parametrize(
    ("condition", "in_channels", "guidance", "ours", "theirs"),
    [
        (None, 16, True, 856, 1264),
        (None, 16, False, 852, 1260),
        ("token_replace", 16, True, 856, 1264),
        ("latent_concat", 33, False, 852, 1260),
    ],
)
def test_released_transformers_have_diffusers_names_and_shapes(
    condition: str | None, in_channels: int, guidance: bool, ours: int, theirs: int
) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    state = meta_dit(DiTConfig(in_channels=in_channels, guidance_embed=guidance))
    with torch.device("meta"):
        published = HunyuanVideoTransformer3DModel(
            in_channels=in_channels, out_channels=16, guidance_embeds=guidance, image_condition_type=condition
        )
    converted = dit_diffusers.NAMES.to_theirs(state, 3072)
    assert shapes(converted) == shapes(published.state_dict())
    assert shapes(dit_diffusers.NAMES.to_ours(converted)) == shapes(state)
    assert (len(state), len(converted)) == (ours, theirs)
    config, found = dit_diffusers.read_config(dict(published.config), "config.json")
    assert DiTConfig(**config) == DiTConfig(in_channels=in_channels, guidance_embed=guidance)
    assert found == condition
    written = dit_diffusers.write_config(DiTConfig(**config), found)
    published_config = {key: list(v) if isinstance(v, tuple) else v for key, v in published.config.items()}
    del published_config["_use_default_values"], written["_class_name"]
    assert written == published_config


def test_released_vae_has_diffusers_names_and_shapes() -> None:
    from diffusers import AutoencoderKLHunyuanVideo

    with torch.device("meta"):
        ours, theirs = CausalVAE(VAEConfig()), AutoencoderKLHunyuanVideo()
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    assert len(ours.state_dict()) == 248
    assert VAEConfig.from_dict(dict(theirs.config)) == VAEConfig()


def test_official_keys_of_the_fact_sheet() -> None:
    """Release fact B.2, key by key."""
    d, f = 3072, 12288
    linears = {
        "time_in.mlp.0": (d, 256),
        "time_in.mlp.2": (d, d),
        "vector_in.in_layer": (d, 768),
        "vector_in.out_layer": (d, d),
        "guidance_in.mlp.0": (d, 256),
        "guidance_in.mlp.2": (d, d),
        "txt_in.input_embedder": (d, 4096),
        "txt_in.t_embedder.mlp.0": (d, 256),
        "txt_in.t_embedder.mlp.2": (d, d),
        "txt_in.c_embedder.linear_1": (d, 4096),
        "txt_in.c_embedder.linear_2": (d, d),
        "final_layer.linear": (64, d),
        "final_layer.adaLN_modulation.1": (2 * d, d),
    }
    weights = {"img_in.proj": (d, 16, 1, 2, 2), **linears}
    gains: dict[str, tuple[int, ...]] = {}
    for i in range(2):
        block = f"txt_in.individual_token_refiner.blocks.{i}"
        weights |= {f"{block}.norm1": (d,), f"{block}.norm2": (d,)}
        weights |= {f"{block}.self_attn_qkv": (3 * d, d), f"{block}.self_attn_proj": (d, d)}
        weights |= {f"{block}.mlp.fc1": (f, d), f"{block}.mlp.fc2": (d, f), f"{block}.adaLN_modulation.1": (2 * d, d)}
    for i in range(20):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            weights |= {f"{block}_mod.linear": (6 * d, d), f"{block}_attn_qkv": (3 * d, d)}
            weights |= {f"{block}_attn_proj": (d, d), f"{block}_mlp.fc1": (f, d), f"{block}_mlp.fc2": (d, f)}
            gains |= {f"{block}_attn_q_norm.weight": (128,), f"{block}_attn_k_norm.weight": (128,)}
    for i in range(40):
        block = f"single_blocks.{i}"
        weights |= {f"{block}.linear1": (3 * d + f, d), f"{block}.linear2": (d, d + f)}
        weights |= {f"{block}.modulation.linear": (3 * d, d)}
        gains |= {f"{block}.q_norm.weight": (128,), f"{block}.k_norm.weight": (128,)}
    expected = gains | {f"{name}.weight": shape for name, shape in weights.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    assert shapes(meta_dit(DiTConfig())) == expected


def test_comfyui_names_are_those_of_its_own_replacements() -> None:
    state = meta_dit(DiTConfig())
    converted = dit_comfyui.NAMES.to_theirs(state)
    assert list(converted) == [comfyui_name(name) for name in state]
    assert shapes(dit_comfyui.NAMES.to_ours(converted)) == shapes(state)


def test_ldm_names_of_the_vae_lead_back() -> None:
    with torch.device("meta"):
        state = {name: from_tensor(value) for name, value in CausalVAE(VAEConfig()).state_dict().items()}
    converted = vae_ldm.NAMES.to_theirs(state)
    assert len(converted) == 248
    assert {"decoder.up.3.block.0.conv1.conv.weight", "encoder.mid.attn_1.proj_out.bias"} <= set(converted)
    assert converted["decoder.up.0.block.0.nin_shortcut.conv.weight"].shape[:2] == (128, 256)
    assert converted["decoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1, 1)
    assert shapes(vae_ldm.NAMES.to_ours(converted)) == shapes(state)


@pytest.mark.parametrize("names", [dit_diffusers.NAMES, dit_comfyui.NAMES, vae_ldm.NAMES])
def test_no_name_is_given_twice(names: NameMap) -> None:
    ours = [rule.ours for rule in names.rules]
    theirs = [name for rule in names.rules for name in rule.theirs]
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError, match="triple_blocks"):
        dit_diffusers.NAMES.to_theirs({"triple_blocks.0.linear.weight": from_tensor(torch.zeros(1))})
    with pytest.raises(KeyError, match="to_x"):
        dit_diffusers.NAMES.find_back("transformer_blocks.0.attn.to_x.weight")


def test_values_survive_split_join_and_swap() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "double_blocks.3.img_attn_qkv.weight": torch.randn(12, 4, generator=generator),
        "single_blocks.7.linear1.bias": torch.randn(28, generator=generator),
        "final_layer.adaLN_modulation.1.weight": torch.randn(8, 4, generator=generator),
    }
    theirs = dit_diffusers.NAMES.to_theirs({name: from_tensor(value) for name, value in state.items()}, hidden_size=4)
    assert torch.equal(
        theirs["transformer_blocks.3.attn.to_k.weight"].read(), state["double_blocks.3.img_attn_qkv.weight"][4:8]
    )
    assert torch.equal(
        theirs["single_transformer_blocks.7.proj_mlp.bias"].read(), state["single_blocks.7.linear1.bias"][12:]
    )
    final = state["final_layer.adaLN_modulation.1.weight"]
    assert torch.equal(theirs["norm_out.linear.weight"].read(), torch.cat((final[4:], final[:4])))
    back = dit_diffusers.NAMES.to_ours(theirs)
    assert all(torch.equal(back[name].read(), value) for name, value in state.items())
