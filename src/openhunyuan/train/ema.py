"""Exponential moving average of a module's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openhunyuan.parallel.apply import local


class EMA:
    """Shadow of a module's state. The decay warms up as (1+n)/(10+n), so that early steps are forgotten."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = module.state_dict()
        keys = list(self.shadow)
        shadows, values = [local(self.shadow[k]) for k in keys], [local(state[k]).float() for k in keys]
        torch._foreach_lerp_(shadows, values, 1 - decay)

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        """The shadow has to be sharded as the module is."""
        self.updates = int(state["updates"])
        self.shadow = {k: v.to(self.shadow[k].device, copy=True) for k, v in state["shadow"].items()}

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's weights with the average; call again to change back."""
        for key, value in module.state_dict().items():
            held = value.detach().clone()
            value.copy_(self.shadow[key])
            self.shadow[key] = held.float()
