"""LPIPS: the learned perceptual distance of Zhang et al. 2018, on VGG16, from local weight files.

Two sets of weights make it: VGG16's convolutions (as torchvision or the lpips package names them) and one non-negative
weight a channel for each of five depths. Neither is shipped or fetched.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import load_safetensors

# Position in torchvision's `features` → (channels in, channels out), a depth a row; between depths lies a 2x2 pooling.
DEPTHS: tuple[dict[int, tuple[int, int]], ...] = (
    {0: (3, 64), 2: (64, 64)},
    {5: (64, 128), 7: (128, 128)},
    {10: (128, 256), 12: (256, 256), 14: (256, 256)},
    {17: (256, 512), 19: (512, 512), 21: (512, 512)},
    {24: (512, 512), 26: (512, 512), 28: (512, 512)},
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""The lpips package's input normalisation, for pictures in [−1, 1]."""
EPS = 1e-10


class Lpips(nn.Module):
    """Distance of pictures [N, 3, H, W] in [−1, 1], sides at least 16: one number each, [N]. Frozen."""

    def __init__(self, convolutions: Mapping[int, tuple[Tensor, Tensor]], linear: tuple[Tensor, ...]) -> None:
        """convolutions: position → (weight, bias); linear: [C] of each depth."""
        super().__init__()
        for place, (weight, bias) in convolutions.items():
            self.register_buffer(f"weight_{place}", weight.float())
            self.register_buffer(f"bias_{place}", bias.float())
        for depth, channels in enumerate(linear):
            self.register_buffer(f"linear_{depth}", channels.float())
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        """Rectified features of five depths, unit length over channels."""
        x = (x - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for depth, convolutions in enumerate(DEPTHS):
            if depth:
                x = F.max_pool2d(x, 2)
            for place in convolutions:
                x = F.relu(F.conv2d(x, self.get_buffer(f"weight_{place}"), self.get_buffer(f"bias_{place}"), padding=1))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPS))
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        with torch.autocast(x.device.type, enabled=False):
            pairs = zip(self.features(x.float()), self.features(y.float()), strict=True)
            for depth, (a, b) in enumerate(pairs):
                total = total + torch.einsum("nchw,c->n", (a - b).square(), self.get_buffer(f"linear_{depth}")) / (
                    a.shape[2] * a.shape[3]
                )
        return total


def read_lpips(features: Path | str, linear: Path | str) -> Lpips:
    """LPIPS from files in the usual formats, safetensors or ``torch.save`` (read with ``weights_only``).

    features: VGG16 as torchvision's model (``features.0.weight``), its ``features`` alone (``0.weight``), or the lpips
    package's whole network (``net.slice1.0.weight``). linear: the package's ``lin0.model.1.weight`` [1, C, 1, 1] …
    ``lin4…``; its whole network holds both, so that one file can be given twice.

    Raises:
        UserError: a file that cannot be read, or a weight that is missing or of another shape; names it.
    """
    held, weights = _read(Path(features)), {}
    for number, depth in enumerate(DEPTHS, start=1):
        for place, (before, after) in depth.items():
            names = [f"features.{place}", f"net.slice{number}.{place}", f"{place}"]
            name = next((n for n in names if f"{n}.weight" in held), names[0])
            weight = _take(held, f"{name}.weight", (after, before, 3, 3), features, "VGG16's convolutions")
            weights[place] = weight, _take(held, f"{name}.bias", (after,), features, "VGG16's convolutions")
    held, channels = _read(Path(linear)), []
    for number, depth in enumerate(DEPTHS):
        size = list(depth.values())[-1][1]
        name = f"lin{number}.model.1.weight"
        if name not in held:
            name = f"lins.{number}.model.1.weight" if f"lins.{number}.model.1.weight" in held else name
        weight = _take(held, name, (1, size, 1, 1), linear, "the learned LPIPS weights").flatten()
        if bool((weight < 0).any()):
            raise UserError(f"{linear} holds negative values in {name}; learned LPIPS weights are not negative.")
        channels.append(weight)
    return Lpips(weights, tuple(channels))


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors" or not path.is_file():
        return load_safetensors(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({reason}); download it again.") from None
    if not isinstance(held, Mapping):
        raise UserError(f"{path} holds no weights by name; give a state dict.")
    return held


def _take(held: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path | str, what: str) -> Tensor:
    tensor = held.get(name)
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path} does not hold {what}: {name} is missing.")
    if tuple(tensor.shape) != shape:
        raise UserError(f"{path} does not hold {what}: {name} is {tuple(tensor.shape)}, but must be {shape}.")
    return tensor
