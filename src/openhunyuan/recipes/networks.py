"""How a stage's transformer starts from its parent's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT


def filled(config: DiTConfig, state: dict[str, Tensor]) -> DiT:
    """A transformer with these weights, without a copy of them."""
    with torch.device("meta"):
        dit = DiT(config)
    dit.load_state_dict(state, assign=True)
    return dit


def with_picture_channels(dit: DiT) -> DiT:
    """The transformer for latent concat: C noisy channels, C clean ones and a mask (report §7, v1).

    The first convolution keeps its weights and reads the new channels with zeros, so that it starts as it was.

    Raises:
        UserError: it reads more channels than it writes already.
    """
    config = dit.config
    if config.in_channels != config.out_channels:
        raise UserError(
            f"The transformer reads {config.in_channels} channels already, but latent concat starts from one that "
            f"reads {config.out_channels}."
        )
    wide = config.model_copy(update={"in_channels": 2 * config.out_channels + 1})
    weight = dit.img_in.proj.weight.detach()
    widened = weight.new_zeros(len(weight), wide.in_channels, *weight.shape[2:])
    widened[:, : config.in_channels] = weight
    return filled(wide, dit.state_dict() | {"img_in.proj.weight": widened})


class Updates(nn.Module):
    """The parameters of a LoRA as a module of their own: what is trained, averaged and kept in checkpoints, while the
    model around them stays as it is. Has no forward."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "/"), parameter)
