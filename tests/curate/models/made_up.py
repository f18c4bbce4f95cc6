"""Weights made up from their names: the same numbers on every machine, so that what a published implementation gave for
them can be written down."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def made_up(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network with weights of a usual size; buffers of whole numbers are as the network has them."""
    state = {}
    for name, tensor in network.state_dict().items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
            continue
        x = rng.standard_normal(tuple(tensor.shape))
        if name.endswith("running_var"):
            x = 1.0 + 0.3 * np.tanh(x)
        elif tensor.ndim >= 2 and not name.endswith("table"):
            x *= (1.5 / np.prod(tensor.shape[1:])) ** 0.5
        else:
            x = 0.1 * x + (1.0 if name.endswith("weight") and tensor.ndim == 1 else 0.0)
        state[name] = torch.from_numpy(x).to(tensor.dtype)
    return state


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8 of this shape, smooth enough to be told from noise: [..., h, w, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[-3], 0 : shape[-2]].astype(np.float64)
    out = np.empty(shape)
    for place in np.ndindex(*shape[:-3]):
        for channel in range(3):
            a, b, c = rng.uniform(0.05, 0.4, 2).tolist() + [rng.uniform(0, 6)]
            out[(*place, ..., channel)] = 127 + 100 * np.sin(a * x + b * y + c + 0.3 * sum(place))
    return out.clip(0, 255).astype(np.uint8)


def layout(state: Mapping[str, Tensor]) -> str:
    """Hash of the names and shapes of a state."""
    lines = [f"{name} {list(x.shape)}" for name, x in sorted(state.items()) if not name.endswith("num_batches_tracked")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
