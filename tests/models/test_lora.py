"""LoRA on the transformer, against weights to which the dense update was added by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.lora import TRAIN_TARGETS, Adapters, LoRA, LowRank, features, new_lora
from openhunyuan.models.text.int8 import Int8Linear
from openhunyuan.models.text.int8 import quantize as quantize_int8
from openhunyuan.ops.float8 import Float8Linear, dequantize, is_quantized
from openhunyuan.ops.float8 import quantize as quantize_fp8

CONFIG = DiTConfig(
    hidden_size=32,
    num_heads=2,
    num_double_blocks=1,
    num_single_blocks=1,
    num_refiner_blocks=1,
    rope_axes_dim=(4, 6, 6),
    text_dim=24,
    pooled_dim=12,
)


@pytest.fixture
def dit() -> DiT:
    torch.manual_seed(0)
    return DiT(CONFIG).double().eval().requires_grad_(False)


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "latents": torch.randn(2, 16, 1, 4, 4, generator=generator).to(dtype),
        "timestep": torch.tensor([300.0, 900.0]),
        "text_states": torch.randn(2, 5, 24, generator=generator).to(dtype),
        "text_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool(),
        "pooled": torch.randn(2, 12, generator=generator).to(dtype),
        "guidance": torch.full((2,), 6000.0),
    }


@torch.no_grad()
def run(model: DiT, dtype: torch.dtype = torch.float64) -> Tensor:
    return model(**inputs(dtype))


def lora_of(model: nn.Module, rank: int = 3, alpha: float = 2.0, seed: int = 1) -> LoRA:
    """A random LoRA on every linear layer; of each third layer only a middle part of the rows is changed."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for index, (name, module) in enumerate(model.named_modules()):
        if size := features(module):
            rows, start = (size[0] // 2, size[0] // 4) if index % 3 == 0 else (size[0], 0)
            down, up = torch.randn(rank, size[1], generator=generator), torch.randn(rows, rank, generator=generator)
            pairs[name] = (LowRank(down / size[1] ** 0.5, 0.3 * up, alpha, start),)
    return LoRA(pairs)


@torch.no_grad()
def dense(model: DiT, *weighted: tuple[LoRA, float]) -> DiT:
    """The reference: a copy of the model with alpha/rank · up @ down · strength added to its weights, in float64."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    for lora, strength in weighted:
        for name, pairs in lora.pairs.items():
            for pair in pairs:
                update = pair.up.double() @ pair.down.double() * (pair.alpha / pair.down.shape[0]) * strength
                parameters[f"{name}.weight"][pair.start : pair.start + len(pair.up)] += update
    return model


def test_an_update_beside_the_layer_is_the_dense_update(dit: DiT) -> None:
    lora, plain = lora_of(dit), run(dit)
    Adapters(dit).add("style", lora, strength=0.7)
    expected = run(dense(copy.deepcopy(dit), (lora, 0.7)))  # Its own LoRA is still on: so twice the update.
    once = run(dit)
    torch.testing.assert_close(once, run(dense(fresh(dit), (lora, 0.7))), rtol=1e-9, atol=1e-11)
    assert (once - plain).abs().max() > 0.01
    torch.testing.assert_close(expected, run(dense(fresh(dit), (lora, 1.4))), rtol=1e-9, atol=1e-11)


def fresh(dit: DiT) -> DiT:
    """A new model with the base weights of one that has LoRAs."""
    other = DiT(CONFIG).double().eval().requires_grad_(False)
    own = {name: value for name, value in dit.state_dict().items() if name in other.state_dict()}
    other.load_state_dict(own)
    return other


def test_gradients_enabled_gives_the_same_numbers(dit: DiT) -> None:
    """Without gradients the update is written into the layer's output; with them it is added."""
    Adapters(dit).add("style", lora_of(dit))
    torch.testing.assert_close(dit(**inputs()), run(dit), rtol=1e-12, atol=1e-13)


def test_several_with_weights_hot_swapped_and_taken_off(dit: DiT) -> None:
    plain, names = run(dit), list(dit.state_dict())
    first, second = lora_of(dit, seed=1), lora_of(dit, rank=2, alpha=5.0, seed=2)
    adapters = Adapters(dit)
    adapters.add("a", first, 0.5)
    adapters.add("b", second, -0.25)
    torch.testing.assert_close(run(dit), run(dense(fresh(dit), (first, 0.5), (second, -0.25))), rtol=1e-9, atol=1e-11)
    adapters.set_strengths({"a": 0.0, "b": 1.0})
    assert adapters.strengths == {"a": 0.0, "b": 1.0}
    torch.testing.assert_close(run(dit), run(dense(fresh(dit), (second, 1.0))), rtol=1e-9, atol=1e-11)
    adapters.remove("b")
    assert torch.equal(run(dit), plain)
    adapters.add("b", first, 1.0)
    torch.testing.assert_close(run(dit), run(dense(fresh(dit), (first, 1.0))), rtol=1e-9, atol=1e-11)
    adapters.remove("a")
    adapters.remove("b")
    assert torch.equal(run(dit), plain)
    assert list(dit.state_dict()) == names
    assert type(dit.final_layer.linear) is nn.Linear
    Adapters(dit).add("again", first)


def test_merge_follows_changes_and_unmerge_restores_every_bit() -> None:
    torch.manual_seed(0)
    dit = DiT(CONFIG).bfloat16().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in dit.state_dict().items()}
    plain = run(dit, torch.bfloat16)
    first, second = lora_of(dit, seed=1), lora_of(dit, seed=2)
    adapters = Adapters(dit)
    adapters.add("a", first, 0.5)
    adapters.merge()
    weight = "double_blocks.0.img_attn_qkv.weight"
    (pair,) = first.pairs["double_blocks.0.img_attn_qkv"]

    def added(strength: float) -> Tensor:
        wanted = before[weight].float()
        update = pair.up.bfloat16().float() @ pair.down.bfloat16().float() * (2 / 3) * strength
        wanted[pair.start : pair.start + len(pair.up)] += update
        return wanted

    torch.testing.assert_close(dit.state_dict()[weight].float(), added(0.5), rtol=2**-8, atol=1e-6)
    merged = run(dit, torch.bfloat16)
    assert not torch.equal(merged, plain)
    adapters.set_strengths({"a": -1.0})
    torch.testing.assert_close(dit.state_dict()[weight].float(), added(-1.0), rtol=2**-8, atol=1e-6)
    adapters.add("b", second)
    adapters.remove("b")
    adapters.set_strengths({"a": 0.5})
    assert torch.equal(run(dit, torch.bfloat16), merged)
    adapters.unmerge()
    assert all(torch.equal(dit.state_dict()[name], value) for name, value in before.items())
    assert not torch.equal(run(dit, torch.bfloat16), plain), "it is still on, beside the layers"
    adapters.remove("a")
    assert torch.equal(run(dit, torch.bfloat16), plain)


def test_merging_writes_into_no_shared_memory(dit: DiT) -> None:
    """Two models loaded from one file share its mapping; merging into one must not be seen in the other."""
    shared = dit.final_layer.linear.weight.detach()
    kept = shared.clone()
    adapters = Adapters(dit)
    adapters.add("a", lora_of(dit))
    adapters.merge()
    assert not torch.equal(dit.final_layer.linear.weight, kept)
    assert torch.equal(shared, kept)


def test_merged_and_beside_agree(dit: DiT) -> None:
    adapters = Adapters(dit)
    adapters.add("a", lora_of(dit), 0.8)
    beside = run(dit)
    adapters.merge()
    # The sum is formed in float32, whatever the weights are.
    torch.testing.assert_close(run(dit), beside, rtol=1e-4, atol=1e-5)


def quantized(dit: DiT, kind: str) -> tuple[DiT, DiT]:
    """(a model whose block linears are stored in eight bits, the same with the rounded weights in float64)."""
    stored, rounded = copy.deepcopy(dit), copy.deepcopy(dit)
    for name, module in list(dit.named_modules()):
        if not (isinstance(module, nn.Linear) and is_quantized(name)):
            continue
        if kind == "fp8":
            new: nn.Module = Float8Linear(module.in_features, module.out_features)
            new.weight.data, scale = quantize_fp8(module.weight)
            new.weight_scale.copy_(scale)
            values = dequantize(new.weight, new.weight_scale, torch.float64)
        else:
            new = Int8Linear(module.in_features, module.out_features, bias=True)
            new.weight, new.scale = quantize_int8(module.weight)
            values = (new.weight * new.scale).double()
        new.bias = copy.deepcopy(module.bias)
        parent, _, leaf = name.rpartition(".")
        setattr(stored.get_submodule(parent), leaf, new)
        rounded.get_submodule(name).weight.data = values
    return stored, rounded


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_quantized_layers_take_updates_without_merging(dit: DiT, kind: str) -> None:
    stored, rounded = quantized(dit, kind)
    kept = {name: value.clone() for name, value in stored.state_dict().items()}
    lora = lora_of(dit)
    torch.testing.assert_close(run(stored), run(rounded), rtol=1e-6, atol=1e-8)
    adapters = Adapters(stored)
    adapters.add("style", lora, 0.9)
    torch.testing.assert_close(run(stored), run(dense(rounded, (lora, 0.9))), rtol=1e-6, atol=1e-8)
    with pytest.raises(UserError, match=r"is quantized.*leave the LoRA unmerged"):
        adapters.merge()
    torch.testing.assert_close(run(stored), run(dense(rounded, (lora, 0.9))), rtol=1e-6, atol=1e-8)
    adapters.remove("style")
    now = stored.state_dict()
    assert list(now) == list(kept)
    assert all(torch.equal(now[name].view(torch.uint8), value.view(torch.uint8)) for name, value in kept.items())
    with pytest.raises(UserError, match=r"single_blocks.0.linear1.weight is quantized"):
        adapters.add("full", LoRA({}, {"single_blocks.0.linear1.weight": torch.zeros(96 + 128, 32)}))
    assert adapters.strengths == {}


def test_convolution_norm_and_bias_go_into_parameters_and_come_out_again(dit: DiT) -> None:
    plain, before = run(dit), {name: value.clone() for name, value in dit.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 64, generator=generator), torch.randn(32, 2, generator=generator)
    norm, bias = torch.randn(16, generator=generator), torch.randn(96, generator=generator)
    lora = LoRA(
        {"img_in.proj": (LowRank(down, up, 1.0),)},
        {"double_blocks.0.img_attn_q_norm.weight": norm, "double_blocks.0.img_attn_qkv.bias": bias},
    )
    adapters = Adapters(dit)
    adapters.add("look", lora, 0.5)
    reference = copy.deepcopy(fresh(dit))
    reference.load_state_dict(before)
    parameters = dict(reference.named_parameters())
    parameters["img_in.proj.weight"] += 0.5 * (0.5 * up.double() @ down.double()).reshape(32, 16, 1, 2, 2)
    parameters["double_blocks.0.img_attn_q_norm.weight"] += 0.5 * norm
    parameters["double_blocks.0.img_attn_qkv.bias"] += 0.5 * bias
    torch.testing.assert_close(run(dit), run(reference), rtol=1e-4, atol=1e-5)
    assert (run(dit) - plain).abs().max() > 0.01
    again = adapters.lora("look")
    assert torch.equal(again.pairs["img_in.proj"][0].down, down)
    assert torch.equal(again.dense["double_blocks.0.img_attn_qkv.bias"], bias)
    adapters.set_strengths({"look": 0.0})
    assert torch.equal(run(dit), plain)
    adapters.set_strengths({"look": 1.0})
    adapters.remove("look")
    assert all(torch.equal(dit.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_training_changes_the_update_and_nothing_else(init: str) -> None:
    torch.manual_seed(0)
    dit = DiT(CONFIG)
    dit.train()
    before = {name: value.clone() for name, value in dit.state_dict().items()}
    plain = run(dit, torch.float32)
    lora = new_lora(dit, rank=4, alpha=8, init=init, generator=torch.Generator().manual_seed(0))
    adapters = Adapters(dit)
    adapters.add("new", lora, trainable=True)
    assert torch.equal(run(dit, torch.float32), plain), "up is zero, so it starts as the base model"

    parameters = list(adapters.parameters("new"))
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in parameters)
    assert {id(p) for p in dit.parameters() if p.requires_grad} == {id(p) for p in parameters}
    assert len(parameters) == 2 * sum(
        1 for name, m in dit.named_modules() if features(m) and name.split(".")[-1] in TRAIN_TARGETS
    )
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    target = torch.randn(2, 16, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    losses = []
    for _ in range(6):
        loss = (dit(**inputs(torch.float32)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            ups = [p for n, p in dit.named_parameters() if n.endswith(".up")]
            downs = [p for n, p in dit.named_parameters() if n.endswith(".down")]
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ups)
            assert all(not p.grad.any() for p in downs if p.grad is not None), "up is zero: nothing reaches down yet"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(dit.state_dict()[name], value) for name, value in before.items())
    assert all(not pair.up.any() for pairs in lora.pairs.values() for pair in pairs), "the LoRA given is a value"

    trained = adapters.lora("new")
    after = run(dit, torch.float32)
    adapters.remove("new")
    assert torch.equal(run(dit, torch.float32), plain)
    adapters.add("trained", trained)
    assert torch.equal(run(dit, torch.float32), after)


def test_initial_values_are_the_ones_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(400, 300))
    generator = torch.Generator().manual_seed(0)
    uniform = new_lora(model, 32, targets=("0",), generator=generator).pairs["0"][0]
    assert uniform.alpha == 32 and uniform.scale == 1
    assert 0.0495 < uniform.down.abs().max() <= 0.05  # 1/√400
    gaussian = new_lora(model, 32, targets=("0",), init="gaussian", generator=generator).pairs["0"][0]
    assert gaussian.down.std().item() == pytest.approx(1 / 32, rel=0.05)
    assert not gaussian.up.any() and gaussian.up.shape == (300, 32)


def test_dropout_is_of_training_only(dit: DiT) -> None:
    lora = lora_of(dit)
    adapters = Adapters(dit)
    adapters.add("new", lora, trainable=True, dropout=0.5, dtype=torch.float64)
    assert torch.equal(run(dit), run(dit))
    torch.testing.assert_close(run(dit), run(dense(fresh(dit), (lora, 1.0))), rtol=1e-9, atol=1e-11)
    dit.train()
    assert not torch.equal(run(dit), run(dit))


def test_float32_updates_train_beside_bfloat16_layers() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(16, 8)).bfloat16()
    adapters = Adapters(layer)
    adapters.add("new", new_lora(layer, 2, targets=("0",)), trainable=True)
    out = layer(torch.randn(3, 16, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    down, up = adapters.parameters("new")
    assert up.dtype == torch.float32 and up.grad is not None and up.grad.dtype == torch.float32
    assert down.grad is not None


def test_a_compiled_model_notices(dit: DiT) -> None:
    """Compiled graphs must not go on without a LoRA that was added later, nor with one that was taken off."""
    torch.compiler.reset()
    block = dit.final_layer
    compiled = torch.compile(block, backend="eager")
    x, vec = torch.randn(1, 3, 32, dtype=torch.float64), torch.randn(1, 32, dtype=torch.float64)
    with torch.no_grad():
        plain = compiled(x, vec)
        adapters = Adapters(block)
        adapters.add("a", lora_of(block))
        with_a = compiled(x, vec)
        torch.testing.assert_close(with_a, block(x, vec))
        assert not torch.equal(with_a, plain)
        adapters.add("b", lora_of(block, seed=4))
        torch.testing.assert_close(compiled(x, vec), block(x, vec))
        adapters.set_strengths({"a": 0.3, "b": 0.0})
        torch.testing.assert_close(compiled(x, vec), block(x, vec))
        adapters.remove("a")
        adapters.remove("b")
        torch.testing.assert_close(compiled(x, vec), plain)
    torch.compiler.reset()


def test_a_copy_of_the_model_has_updates_of_its_own(dit: DiT) -> None:
    adapters = Adapters(dit)
    adapters.add("a", lora_of(dit))
    twin, with_a = copy.deepcopy(dit), run(dit)
    adapters.remove("a")
    assert torch.equal(run(twin), with_a)


def test_refusals(dit: DiT) -> None:
    lora, adapters = lora_of(dit), Adapters(dit)
    adapters.add("a", lora)
    with pytest.raises(UserError, match="already a LoRA a"):
        adapters.add("a", lora)
    for name in ("", "x.y", "keys", "a b"):
        with pytest.raises(UserError, match="cannot name a LoRA"):
            adapters.add(name, lora)
    with pytest.raises(UserError, match="finite"):
        adapters.add("b", lora, float("nan"))
    with pytest.raises(UserError, match="dropout"):
        adapters.add("b", lora, dropout=1.0)
    with pytest.raises(UserError, match="There is no LoRA c on the model; there are a"):
        adapters.set_strengths({"c": 1.0})
    with pytest.raises(UserError, match="does not have: nowhere"):
        adapters.add("b", LoRA({"nowhere": lora.pairs["final_layer.linear"]}))
    with pytest.raises(UserError, match=r"for another model.*\[64, 32\]"):
        adapters.add("b", LoRA({"final_layer.linear": (LowRank(torch.zeros(2, 48), torch.zeros(64, 2), 1.0),)}))
    with pytest.raises(UserError, match=r"for another model.*img_attn_qkv.bias"):
        adapters.add("b", LoRA({}, {"double_blocks.0.img_attn_qkv.bias": torch.zeros(9)}))
    with pytest.raises(UserError, match="Only updates of linear layers can be trained"):
        adapters.add("b", LoRA({}, {"double_blocks.0.img_attn_qkv.bias": torch.zeros(96)}), trainable=True)
    assert adapters.strengths == {"a": 1.0}
    with pytest.raises(ValueError, match="already has LoRAs"):
        Adapters(dit)
    for values, message in (
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "at most"),
        ({"rank": 2, "alpha": 0}, "alpha"),
        ({"rank": 2, "targets": ("qkv",)}, "No linear layer is called qkv"),
    ):
        with pytest.raises(UserError, match=message):
            new_lora(fresh(dit), **values)
