import pytest
import torch
from torch.nn import functional as F

from openhunyuan.ops import attention as module
from openhunyuan.ops.attention import attention, explicit_attention


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 8, generator=generator).to(dtype) for length in (5, 7, 7)]


@pytest.mark.parametrize("masked", [False, True])
def test_explicit_attention_is_the_fused_one_with_its_gradients(masked):
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None, :] if masked else None
    results = []
    for function in (explicit_attention, lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m)):
        leaves = [tensor.requires_grad_() for tensor in inputs()]
        out = function(*leaves, mask)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("autocast", "gradients", "length", "expected"),
    [(True, True, 1024, True), (False, True, 1024, False), (True, False, 1024, False), (True, True, 6, False)],
)
def test_only_short_training_in_autocast_forms_the_weights(monkeypatch, autocast, gradients, length, expected):
    formed = []
    monkeypatch.setattr(module, "EXPLICIT_LENGTH", length)
    monkeypatch.setattr(module, "explicit_attention", lambda *args: formed.append(True) or explicit_attention(*args))
    q, k, v = inputs(torch.bfloat16 if autocast else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert attention(q.requires_grad_(gradients), k, v).shape == q.shape
    assert bool(formed) is expected
