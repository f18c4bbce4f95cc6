"""What a step computes in: fp32, or bfloat16 by autocast where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def autocast(module: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[Any, Any]:
    """Within, products on the module's device are made in ``dtype``; None: as they are."""
    device = next(module.parameters()).device.type
    return torch.autocast(device, dtype) if dtype else nullcontext()


def faster_dtype(module: nn.Module, run_once: Callable[[], Any]) -> torch.dtype | None:
    """bfloat16 when one autocast forward of ``run_once()`` is measured faster than one in fp32, else None.

    A CPU without bfloat16 units is not measured: convolutions of clips were seen to take eighty times as long there.
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    if on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None

    def seconds(dtype: torch.dtype | None) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            with torch.no_grad(), autocast(module, dtype):
                run_once()
            best = min(best, time.perf_counter() - start)
        return best

    return torch.bfloat16 if seconds(torch.bfloat16) < seconds(None) else None
