"""Eight-bit weights against the arithmetic of release fact A.3."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.ops.float8 import FLOAT8, Float8Linear, dequantize, is_quantized, quantize, quantize_linears


def test_the_released_model_has_320_such_modules() -> None:
    with torch.device("meta"):
        model = DiT(DiTConfig())
    names = [name for name, module in model.named_modules() if is_quantized(name)]
    assert len(names) == 320
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in names)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "_blocks." in n}
    assert linears == set(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scale_and_rounding(dtype: torch.dtype) -> None:
    weight = (torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    stored, scale = quantize(weight)
    assert stored.dtype == FLOAT8
    assert scale.shape == (1,)
    assert torch.equal(scale, (weight.float().abs().max() / 448).reshape(1))
    assert stored.float().abs().max() == 448
    back = dequantize(stored, scale, torch.float32)
    # e4m3 has three mantissa bits: half a unit in the last place is 1/16 of the value, or half the smallest step.
    allowed = (weight.float().abs() / 16).clamp_min(2**-10 * scale.item())
    assert ((back - weight.float()).abs() <= allowed * 1.001).all()


def test_zeros_and_values_that_are_not_finite() -> None:
    stored, scale = quantize(torch.zeros(3, 4))
    assert torch.equal(dequantize(stored, scale, torch.float32), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.tensor([[1.0, float("inf")]]))


def test_linear_multiplies_by_the_scale() -> None:
    """The other direction would be wrong by scale², a factor of a million here."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 6, generator=generator) * 0.01, torch.randn(8, generator=generator)
    layer = Float8Linear(6, 8)
    layer.weight.data, layer.weight_scale = quantize(weight)
    layer.bias = torch.nn.Parameter(bias)
    x = torch.randn(3, 6, generator=generator)
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias), atol=0.01, rtol=0)
    assert torch.equal(layer(x), F.linear(x, layer.weight.float() * layer.weight_scale, bias))
    half = layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    torch.testing.assert_close(half.float(), layer(x.bfloat16()).float())


def test_quantize_linears_halves_the_blocks_and_keeps_the_rest() -> None:
    model = DiT(
        DiTConfig(
            hidden_size=32,
            num_heads=2,
            num_double_blocks=1,
            num_single_blocks=1,
            num_refiner_blocks=1,
            rope_axes_dim=(4, 6, 6),
            text_dim=8,
            pooled_dim=8,
        )
    )
    before = model.state_dict()
    after = quantize_linears(model).state_dict()
    changed = {name for name in after if name not in before or after[name].dtype != before[name].dtype}
    assert len([name for name in changed if name.endswith(".weight")]) == 13
    assert len([name for name in changed if name.endswith(".weight_scale")]) == 13
    assert torch.equal(after["final_layer.linear.weight"], before["final_layer.linear.weight"])
