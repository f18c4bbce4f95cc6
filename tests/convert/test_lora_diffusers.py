"""LoRA files against diffusers and PEFT as independent readers and writers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from openhunyuan.convert.dit_diffusers import to_diffusers
from openhunyuan.convert.lora import lora_state, read_lora, write_lora
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.lora import Adapters, LoRA, LowRank, features

pytest.importorskip("peft", reason="peft is not installed (pip install 'openhunyuan[dev]')")

CONFIG = DiTConfig(
    hidden_size=32,
    num_heads=2,
    num_double_blocks=1,
    num_single_blocks=2,
    num_refiner_blocks=1,
    rope_axes_dim=(4, 6, 6),
    text_dim=24,
    pooled_dim=12,
)


@pytest.fixture
def dit() -> DiT:
    torch.manual_seed(0)
    return DiT(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def transformer(dit: DiT) -> nn.Module:
    """The same network as diffusers builds it."""
    from diffusers import HunyuanVideoTransformer3DModel

    other = HunyuanVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=24,
        pooled_projection_dim=12,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=True,
    ).eval()
    other.load_state_dict(to_diffusers(dit.state_dict()), strict=True)
    return other.requires_grad_(False)


def run(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    latents, states = torch.randn(1, 16, 1, 4, 4, generator=generator), torch.randn(1, 5, 24, generator=generator)
    pooled, time, guidance = torch.randn(1, 12, generator=generator), torch.tensor([300.0]), torch.tensor([6000.0])
    mask = torch.ones(1, 5, dtype=torch.long)
    with torch.no_grad():
        if isinstance(model, DiT):
            return model(latents, time, states, mask.bool(), pooled, guidance)
        return model(
            hidden_states=latents,
            timestep=time,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            pooled_projections=pooled,
            guidance=guidance,
            return_dict=False,
        )[0]


def random_lora(model: nn.Module, *endings: str, mixed: bool = True) -> LoRA:
    """A LoRA on the linear layers with these endings (all without any), with mixed ranks and alphas if asked."""
    generator = torch.Generator().manual_seed(3)
    pairs = {}
    for index, (name, module) in enumerate(model.named_modules()):
        if (size := features(module)) and (not endings or name.endswith(endings)):
            rank = 2 + index % 2 if mixed else 2
            down, up = torch.randn(rank, size[1], generator=generator), torch.randn(size[0], rank, generator=generator)
            pairs[name] = (LowRank(0.2 * down, 0.2 * up, float(1 + index % 3) if mixed else 2.0),)
    return LoRA(pairs)


def assert_same_effect(dit: DiT, lora: LoRA, theirs: Tensor, strength: float = 1.0) -> None:
    plain = run(dit)
    Adapters(dit).add("lora", lora, strength)
    ours = run(dit)
    assert (ours - plain).abs().max() > 0.01, "the comparison would be empty"
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class PipelineWithTransformer:
    """diffusers' HunyuanVideo LoRA loader with nothing but a transformer below it."""

    def __new__(cls, transformer: nn.Module) -> "PipelineWithTransformer":
        from diffusers import HunyuanVideoPipeline
        from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

        return HunyuanVideoPipeline(  # pyright: ignore[reportReturnType]
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            text_encoder_2=None,
            tokenizer_2=None,
        )


@pytest.mark.parametrize("endings", [(), ("final_layer.linear", "adaLN_modulation.1"), ("img_attn_qkv", "linear1")])
def test_diffusers_reads_what_we_write(
    dit: DiT, transformer: nn.Module, tmp_path: Path, endings: tuple[str, ...]
) -> None:
    """Mixed ranks and alphas, split layers, swapped halves, and names that are the end of other names."""
    lora = random_lora(dit, *endings)
    write_lora(tmp_path / "lora.safetensors", lora, dit, "diffusers")
    pipe = PipelineWithTransformer(transformer)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="x")
    pipe.set_adapters(["x"], [0.6])
    assert_same_effect(dit, read_lora(tmp_path / "lora.safetensors", dit), run(transformer), 0.6)


def test_diffusers_reads_official_names_without_alpha(dit: DiT, transformer: nn.Module, tmp_path: Path) -> None:
    """Its converter knows single blocks of the 13B's width only, and no alpha: so double blocks, alpha = rank."""
    lora = random_lora(dit, "img_attn_qkv", "txt_attn_qkv", "attn_proj", "img_mlp.fc1", "_mod.linear", mixed=False)
    write_lora(tmp_path / "lora.safetensors", lora, dit, "diffusion-pipe")
    PipelineWithTransformer(transformer).load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert_same_effect(dit, lora, run(transformer))


def adapted(transformer: nn.Module, **config: object) -> nn.Module:
    """A PEFT adapter with random weights on diffusers' transformer: every split layer has a matrix A of its own."""
    from peft import LoraConfig

    targets = [
        "to_q",
        "to_k",
        "to_v",
        "add_q_proj",
        "add_v_proj",
        "to_out.0",
        "proj_mlp",
        "ff.net.0.proj",
        "norm_out.linear",
    ]
    transformer.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **config), "default")
    return transformer


CONFIGS = {
    "alpha": {"lora_alpha": 6},
    "patterns": {"lora_alpha": 2, "alpha_pattern": {"to_k": 9}, "rank_pattern": {"to_k": 3, "proj_mlp": 2}},
    "rank-stabilised": {"lora_alpha": 4, "use_rslora": True},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_we_read_what_diffusers_writes(dit: DiT, transformer: nn.Module, tmp_path: Path, config: dict) -> None:
    from diffusers import HunyuanVideoPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    torch.manual_seed(1)
    adapted(transformer, **config)
    HunyuanVideoPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        **_collate_lora_metadata({"transformer": transformer}),
    )
    assert_same_effect(dit, read_lora(tmp_path, dit), run(transformer))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_we_read_what_peft_writes_and_it_reads_ours(
    dit: DiT, transformer: nn.Module, tmp_path: Path, config: dict
) -> None:
    import copy

    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(1)
    plain = copy.deepcopy(transformer)
    targets = ["to_q", "to_k", "to_v", "to_add_out", "proj_mlp", "proj_out"]
    theirs = get_peft_model(transformer, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **config))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = run(theirs)
    lora = read_lora(tmp_path / "theirs", dit)
    write_lora(tmp_path / "ours", lora, dit, "peft")
    torch.testing.assert_close(run(PeftModel.from_pretrained(plain, tmp_path / "ours")), expected, rtol=1e-4, atol=1e-5)
    assert_same_effect(dit, lora, expected)


def test_the_weights_that_diffusers_fuses(dit: DiT, transformer: nn.Module, tmp_path: Path) -> None:
    """After its fuse_lora, its weights are ours after ``merge``, tensor by tensor."""
    lora = random_lora(dit)
    write_lora(tmp_path / "lora.safetensors", lora, dit, "diffusers")
    pipe = PipelineWithTransformer(transformer)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    pipe.fuse_lora(lora_scale=0.5)
    theirs = {name.replace(".base_layer", ""): value for name, value in transformer.state_dict().items()}
    adapters = Adapters(dit)
    adapters.add("lora", lora, 0.5)
    adapters.merge()
    ours = to_diffusers({name: value for name, value in dit.state_dict().items() if ".lora." not in name})
    assert ours.keys() == {name for name in theirs if ".lora_" not in name}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


def test_the_keys_that_diffusers_expects(dit: DiT, transformer: nn.Module) -> None:
    """Exported to diffusers, a LoRA on every linear layer names each of its linear layers once."""
    state, _ = lora_state(random_lora(dit), dit, "diffusers")
    wanted = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    ends = ("lora_A.weight", "lora_B.weight")
    assert state.keys() == {f"transformer.{name}.{end}" for name in wanted for end in ends}
