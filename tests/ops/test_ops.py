"""Attention, rope and norms against their formulas."""

import math

import pytest
import torch
from torch import Tensor

from openhunyuan.ops.attention import attention
from openhunyuan.ops.norms import RMSNorm, gated_add, modulate
from openhunyuan.ops.rope import apply_rope, riflex_index, rope_freqs

TOKEN_37 = {
    (0, 2): (0.5403023, 0.8414710),
    (2, 4): (0.8775826, 0.4794255),
    (14, 16): (0.9999695, 0.0078124),
    (16, 18): (-0.9899925, 0.1411200),
    (71, 72): (0.9998980, 0.0142848),
    (72, 74): (-0.4161468, 0.9092974),
    (127, 128): (0.9999546, 0.0095234),
}
"""Columns → (cos, sin) of token (t1, h3, w2) in a 3×4×5 grid of the released sizes (release fact, appendix)."""


def test_rope_fixture() -> None:
    cos, sin = rope_freqs((3, 4, 5), (16, 56, 56), 256.0)
    assert cos.shape == sin.shape == (60, 128)
    for (first, last), (expected_cos, expected_sin) in TOKEN_37.items():
        torch.testing.assert_close(cos[37, first:last], torch.full((last - first,), expected_cos), atol=2e-7, rtol=0)
        torch.testing.assert_close(sin[37, first:last], torch.full((last - first,), expected_sin), atol=2e-7, rtol=0)


def test_rope_turns_pairs_as_complex_numbers() -> None:
    cos, sin = rope_freqs((2, 3, 2), (2, 4, 4))
    x = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    turns = torch.complex(cos[:, ::2], sin[:, ::2])
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns
    torch.testing.assert_close(apply_rope(x, cos, sin), torch.view_as_real(pairs).flatten(-2))


def test_rope_makes_scores_depend_on_distance_only() -> None:
    cos, sin = rope_freqs((1, 1, 8), (2, 2, 12))
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(1)).expand(2, 1, 8, 16)
    scores = apply_rope(q, cos, sin)[0] @ apply_rope(k, cos, sin)[0].T
    for distance in range(8):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert scores[0].diff().abs().max() > 1e-2


def test_rope_keeps_the_dtype_and_computes_in_fp32() -> None:
    cos, sin = rope_freqs((2, 2, 2), (4, 2, 2))
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    turned = apply_rope(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), cos, sin).bfloat16())


def test_rope_freqs_made_in_inference_mode_can_train() -> None:
    with torch.inference_mode():
        cos, sin = rope_freqs((1, 3, 5), (2, 2, 4))
    x = torch.randn(1, 1, 15, 8, requires_grad=True)
    apply_rope(x, cos, sin).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("grid", "axes"), [((0, 2, 2), (2, 2, 2)), ((2, 2), (2, 2, 2)), ((2, 2, 2), (2, 3, 2))])
def test_rope_freqs_refuses(grid: tuple[int, ...], axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rope needs"):
        rope_freqs(grid, axes)


@pytest.mark.parametrize(
    ("num_frames", "pair"), [(197, 4), (201, 4), (297, 5), (396, 5), (397, 6), (897, 8), (5001, 8), (17, 4)]
)
def test_riflex_index_is_the_official_rule(num_frames: int, pair: int) -> None:
    """k = clamp(2 + (F + 3) // 100, 4, 8), release fact B.6."""
    assert riflex_index(num_frames) == pair


def test_riflex_index_stays_on_a_narrow_time_axis() -> None:
    assert riflex_index(897, time_dim=4) == 2


def test_riflex_slows_one_pair_of_the_time_axis_alone() -> None:
    """Written out with complex numbers: pair k turns by 0.9 of a circle over the video, all others as before."""
    grid, axes, k = (51, 2, 3), (16, 4, 4), 4
    cos, sin = rope_freqs(grid, axes, 256.0, riflex_k=k)
    turns = torch.complex(cos, sin).reshape(*grid, 24)[..., ::2].to(torch.complex128)
    frames = torch.arange(51, dtype=torch.float64)
    for pair in range(8):
        rate = 0.9 * 2 * math.pi / 51 if pair == k - 1 else 256.0 ** (-2 * pair / 16)
        expected = torch.exp(1j * frames * rate)[:, None, None].expand(grid)
        torch.testing.assert_close(turns[..., pair], expected, atol=1e-5, rtol=0)
    plain_cos, plain_sin = rope_freqs(grid, axes, 256.0)
    assert torch.equal(cos[:, 16:], plain_cos[:, 16:])
    assert torch.equal(sin[:, 16:], plain_sin[:, 16:])
    # No two frames look alike to the slowed pair: that is what it is for.
    angles = turns[:, 0, 0, k - 1].angle() % (2 * math.pi)
    assert angles.diff().min() > 0


@pytest.mark.parametrize("pair", [0, 3])
def test_riflex_refuses_a_pair_that_is_not_there(pair: int) -> None:
    with pytest.raises(ValueError, match="pairs 1 to 2"):
        rope_freqs((2, 2, 2), (4, 2, 2), riflex_k=pair)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_attention(masked: bool) -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 8, generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(7) < torch.tensor([[4], [7]]))[:, None, None, :] if masked else None
    torch.testing.assert_close(attention(q, k, v, mask), _softmax_attention(q, k, v, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_training_is_that_of_inference_with_its_gradients(masked: bool) -> None:
    q, k, v, weight = torch.randn(4, 2, 3, 9, 8, generator=torch.Generator().manual_seed(1)).unbind()
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., 5:] = False
    mask = mask if masked else None
    fused = torch.nn.functional.scaled_dot_product_attention
    results = []
    for attend in (lambda *x: attention(*x, mask), lambda *x: fused(*x, attn_mask=mask)):
        leaves = [x.clone().requires_grad_(True) for x in (q, k, v)]
        out = attend(*leaves)
        (out * weight).sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_rms_norm_formula() -> None:
    norm = RMSNorm(6)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7.0))
        expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        torch.testing.assert_close(norm(x), expected)
        assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_modulate_and_gate_act_per_sample() -> None:
    x, branch = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(5))
    shift, scale = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale[:, None]) + shift[:, None])
    torch.testing.assert_close(gated_add(x, scale, branch), x + scale[:, None] * branch)
