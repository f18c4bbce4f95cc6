"""Recipe ``tiny-vae-decoder``: see ``recipes.tiny_vae``."""

from openhunyuan.recipes.tiny_vae import decoder_workloads as workloads
from openhunyuan.recipes.tiny_vae import train_decoder as train

__all__ = ["train", "workloads"]
