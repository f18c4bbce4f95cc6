"""Enhance-A-Video against the definition, written out over every pair of frames."""

import pytest
import torch
from torch import Tensor

from openhunyuan.models.dit import model as dit_module
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.ops.enhance import Enhance
from openhunyuan.ops.rope import rope_freqs

GRID = (3, 2, 2)
TEXT = 5


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _definition(q: Tensor, k: Tensor, weight: float) -> float:
    """One sample, q and k [L, H, D]: the mean weight from a frame to another, times (frames + weight), at least 1."""
    frames, places = GRID[0], GRID[1] * GRID[2]
    found = []
    for head in range(q.shape[1]):
        for place in range(places):
            for a in range(frames):
                scores = [q[a * places + place, head] @ k[b * places + place, head] for b in range(frames)]
                weights = (torch.stack(scores) / q.shape[2] ** 0.5).softmax(0)
                found += [weights[b].item() for b in range(frames) if b != a]
    return max(1.0, sum(found) / len(found) * (frames + weight))


@pytest.mark.parametrize("weight", [0.0, 2.0, 5.5])
def test_factor_is_the_definition(weight: float) -> None:
    q, k = _randn(2, 2, 12 + TEXT, 4, 6)
    factor = Enhance(weight, GRID).factor(q, k)
    expected = [_definition(q[sample], k[sample], weight) for sample in range(2)]
    assert factor.tolist() == pytest.approx(expected, rel=1e-5)
    # A sample's factor is its own: it does not change with what shares the batch.
    torch.testing.assert_close(Enhance(weight, GRID).factor(q[:1], k[:1]), factor[:1])


def test_frames_that_see_only_themselves_are_left_alone() -> None:
    q = 50 * torch.eye(3).repeat_interleave(4, dim=0)[None, :, None, :]
    assert Enhance(1.0, GRID).factor(q, q).tolist() == [1.0]


def test_one_frame_is_left_alone() -> None:
    q, k = _randn(2, 1, 4, 2, 6, seed=1)
    assert Enhance(4.0, (1, 2, 2)).factor(q, k).tolist() == [1.0]


def test_text_is_left_alone() -> None:
    q, k = _randn(2, 2, 12 + TEXT, 4, 6, seed=2)
    out = _randn(2, 12 + TEXT, 8, seed=3)
    enhance = Enhance(3.0, GRID)
    scaled = enhance(out, q, k)
    assert torch.equal(scaled[:, 12:], out[:, 12:])
    torch.testing.assert_close(scaled[:, :12], out[:, :12] * enhance.factor(q, k)[:, None, None])
    assert (enhance.factor(q, k) > 1).all()


@pytest.fixture
def dit() -> DiT:
    config = DiTConfig(
        hidden_size=32, num_heads=2, num_double_blocks=2, num_single_blocks=2, num_refiner_blocks=1,
        rope_axes_dim=(4, 6, 6), text_dim=16, pooled_dim=8, guidance_embed=False, in_channels=4, out_channels=4,
    )  # fmt: skip
    net = DiT(config).requires_grad_(False)
    for index, parameter in enumerate(net.parameters()):
        parameter.copy_(0.2 * _randn(*parameter.shape, seed=index))
    return net


def _inputs() -> tuple[Tensor, ...]:
    return (
        _randn(1, 4, 3, 4, 4, seed=7),
        torch.tensor([500.0]),
        _randn(1, TEXT, 16, seed=8),
        torch.ones(1, TEXT, dtype=torch.bool),
        _randn(1, 8, seed=9),
    )


def test_the_transformer_enhances_every_block(dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of zero see all frames alike, so the factor is (T + weight) / T: put it in by hand and compare."""
    for name, parameter in dit.named_parameters():
        if name.endswith("q_norm.weight"):
            parameter.zero_()
    enhanced = dit(*_inputs(), enhance_weight=2.0)
    assert not torch.allclose(enhanced, dit(*_inputs()), atol=1e-3)
    plain, blocks = dit_module.attention, []

    def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = plain(q, k, v, mask)
        if q.shape[2] != 12 + TEXT:
            return out  # The refiner, which sees text alone.
        blocks.append(1)
        return torch.cat((out[:, :, :12] * (3 + 2) / 3, out[:, :, 12:]), dim=2)

    monkeypatch.setattr(dit_module, "attention", by_hand)
    torch.testing.assert_close(enhanced, dit(*_inputs()), atol=1e-5, rtol=1e-5)
    assert len(blocks) == 4


def test_the_transformer_turns_time_by_riflex(dit: DiT) -> None:
    latents, timestep, states, _, pooled = _inputs()
    cos, sin = rope_freqs((3, 2, 2), (4, 6, 6), dit.config.rope_theta, riflex_k=2)
    expected = dit._core(latents, timestep, states, None, pooled, None, cos, sin)
    torch.testing.assert_close(dit(*_inputs(), riflex_k=2), expected)
    assert not torch.allclose(dit(*_inputs()), expected, atol=1e-4)
