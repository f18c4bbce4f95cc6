"""LPIPS on random weights in the usual formats, against a computation of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.lpips import read_lpips

PLAN = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
TAPS = (3, 8, 15, 22, 29)
CHANNELS = (64, 128, 256, 512, 512)


def vgg() -> nn.Sequential:
    """VGG16's features layer by layer, so that positions count as in torchvision's."""
    layers: list[nn.Module] = []
    before = 3
    for width in PLAN:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = vgg()
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return net


@pytest.fixture(scope="module")
def linear() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=g) for i, c in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, network, linear) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    whole = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save(whole | {"classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg16.pth")
    torch.save(linear, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth"


def by_hand(network: nn.Sequential, linear: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """In NumPy and float64 from the features on: normalise, subtract, square, weigh, average, add."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    maps = []
    for picture in (x, y):
        z = torch.from_numpy((picture.double().permute(0, 2, 3, 1).numpy() - shift) / scale).permute(0, 3, 1, 2).float()
        found = []
        for place, layer in enumerate(network):
            z = layer(z)
            if place in TAPS:
                found.append(z.double().numpy())
        maps.append(found)
    total = np.zeros(len(x))
    for depth, (a, b) in enumerate(zip(*maps, strict=True)):
        a = a / (np.linalg.norm(a, axis=1, keepdims=True) + 1e-10)
        b = b / (np.linalg.norm(b, axis=1, keepdims=True) + 1e-10)
        weight = linear[f"lin{depth}.model.1.weight"].double().numpy()[0][None]
        total += (weight * (a - b) ** 2).sum(axis=1).mean(axis=(1, 2))
    return total


def test_it_equals_a_computation_by_hand(network, linear, files):
    g = torch.Generator().manual_seed(2)
    x, y = (torch.rand(2, 3, 32, 48, generator=g) * 2 - 1 for _ in range(2))
    lpips = read_lpips(*files)
    assert lpips(x, y).numpy() == pytest.approx(by_hand(network, linear, x, y), rel=1e-4)
    assert lpips(x, x).abs().max() < 1e-6 and not list(lpips.parameters())
    y.requires_grad_(True)
    lpips(x, y).sum().backward()
    assert y.grad is not None and y.grad.abs().sum() > 0


def test_other_names_and_safetensors_are_read(tmp_path, network, linear, files):
    x = torch.rand(1, 3, 16, 16)
    wanted = read_lpips(*files)(x, -x)
    save_file(network.state_dict(), str(tmp_path / "bare.safetensors"))
    save_file(linear, str(tmp_path / "linear.safetensors"))
    assert torch.equal(read_lpips(tmp_path / "bare.safetensors", tmp_path / "linear.safetensors")(x, -x), wanted)
    starts = (0, 4, 9, 16, 23, 30)  # the lpips package cuts after each tap
    whole = {}
    for name, value in network.state_dict().items():
        place = int(name.split(".")[0])
        cut = max(i for i, start in enumerate(starts) if place >= start)
        whole[f"net.slice{cut + 1}.{name}"] = value
    whole |= linear | {f"lins.{k[3:]}": v for k, v in linear.items()} | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    torch.save(whole, tmp_path / "whole.pth")
    assert torch.equal(read_lpips(tmp_path / "whole.pth", tmp_path / "whole.pth")(x, -x), wanted)


def test_what_is_not_lpips_is_refused(tmp_path, linear, files):
    features, weights = files
    with pytest.raises(UserError, match="does not exist"):
        read_lpips(tmp_path / "none.pth", weights)
    with pytest.raises(UserError, match=r"features\.0\.weight is missing"):
        read_lpips(weights, weights)
    with pytest.raises(UserError, match=r"lin0\.model\.1\.weight is missing"):
        read_lpips(features, features)
    torch.save(linear | {"lin2.model.1.weight": torch.ones(1, 128, 1, 1)}, tmp_path / "alex.pth")
    with pytest.raises(UserError, match=r"lin2\.model\.1\.weight is \(1, 128, 1, 1\), but must be \(1, 256, 1, 1\)"):
        read_lpips(features, tmp_path / "alex.pth")
    torch.save(linear | {"lin1.model.1.weight": -torch.ones(1, 128, 1, 1)}, tmp_path / "negative.pth")
    with pytest.raises(UserError, match="negative values"):
        read_lpips(features, tmp_path / "negative.pth")
    (tmp_path / "cut.pth").write_bytes(features.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_lpips(tmp_path / "cut.pth", weights)
