from itertools import pairwise

import pytest
import torch
from torch import nn

from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.optim import Muon, build_optimizers, lr_factor, orthogonalize, set_lr


def test_learning_rate_warms_up_then_decays_to_its_floor():
    config = OptimizerConfig(warmup_steps=10, schedule="cosine", final_lr_ratio=0.1)
    factors = [lr_factor(config, i, 110) for i in range(111)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55) and factors[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[9:]))


@pytest.mark.parametrize("shape", [(3, 8, 32), (2, 32, 8), (1, 16, 16)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    g = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=g), steps=10))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_solves_a_linear_regression():
    g = torch.Generator().manual_seed(0)
    x, wanted = torch.randn(256, 16, generator=g), torch.randn(16, 8, generator=g)
    w = nn.Parameter(torch.zeros(16, 8))
    optimizer = Muon([w], lr=0.05)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        loss = (x @ w - x @ wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def muon_parameters(self):
        return [self.hidden.weight]


def test_every_parameter_is_optimised_once():
    module = Named()
    held = build_optimizers(module, OptimizerConfig(name="muon"))
    ids = [id(p) for o in held for group in o.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in module.parameters())
    set_lr(held, 0.5)
    assert held[0].param_groups[0]["lr"] == pytest.approx(5e-4) and held[1].param_groups[0]["lr"] == pytest.approx(0.01)


def test_muon_needs_a_module_that_names_its_matrices():
    with pytest.raises(ValueError, match="adamw"):
        build_optimizers(nn.Linear(2, 2), OptimizerConfig(name="muon"))


def test_muon_takes_a_convolution_kernel_as_the_matrix_of_its_outputs():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 2, 3, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn_like(matrix)
    for parameter in (kernel, matrix):
        parameter.grad = gradient.view(parameter.shape).clone()
        Muon([parameter], lr=0.1).step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach())
    assert not torch.equal(kernel.detach(), torch.zeros_like(kernel))
