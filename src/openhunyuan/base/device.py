"""Devices, number formats and noise. Nothing here changes a global setting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from openhunyuan.base.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
MAX_SEED = 2**63 - 1


def pick_device(name: str | None = None) -> torch.device:
    """The device called ``name`` ("cpu", "cuda", "cuda:1", "mps"), or the best one here when None or "auto"."""
    import torch

    if name in (None, "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"Unknown device '{name}'; use cpu, cuda, cuda:N, mps or auto.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"Device '{name}' was asked for, but torch sees no CUDA GPU; use cpu or auto.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(f"Device '{name}' was asked for, but torch sees only {torch.cuda.device_count()} CUDA GPUs.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("Device 'mps' was asked for, but torch cannot use it here; use cpu or auto.")
    return device


def pick_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The compute format: by name, or bfloat16 on a GPU that has it and float32 elsewhere (exact, the definition)."""
    import torch

    if isinstance(name, torch.dtype):
        return name
    if name in (None, "auto"):
        if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16
        return torch.float32
    if name not in DTYPES:
        raise UserError(f"Unknown dtype '{name}'; use one of auto, {', '.join(DTYPES)}.")
    return getattr(torch, name)


def make_generator(seed: int) -> torch.Generator:
    """A CPU generator of its own for ``seed`` (0 .. 2^63 - 1): it never touches torch's global one."""
    import torch

    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed is {seed}, but it must be a whole number from 0 to {MAX_SEED}.")
    return torch.Generator(device="cpu").manual_seed(seed)


def noise(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal noise [len(seeds), *shape], float32 on the CPU, one generator a sample.

    A sample's noise depends on its own seed alone, so a seed gives the same video on any device and in any batch.
    """
    import torch

    samples = [torch.randn(tuple(shape), generator=make_generator(seed), dtype=torch.float32) for seed in seeds]
    return torch.stack(samples)


def random_seed() -> int:
    """A fresh seed below 2^31, short enough to read out and retype."""
    import secrets

    return secrets.randbelow(2**31)


def measure_matmul(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """Measured speed of square matrix products in GFLOP/s (2 * size^3 operations each)."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    left = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    right = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    _ = left @ right
    wait()
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        _ = left @ right
        wait()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start) / 1e9


_PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
)
"""Dense bfloat16 operations a second, from the makers' data sheets."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(operations a second that products can reach on ``device``, where the number is from).

    The data sheet's for bfloat16 on a GPU it is known of; else what square products reach at this moment. The global
    random state stays as it is.
    """
    import torch

    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for known, peak in _PEAKS:
            if known in name:
                return peak, f"data sheet of {known}"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        size = 8192 if device.type == "cuda" else 1024
        return 1e9 * measure_matmul(device, dtype, size), f"{str(dtype).removeprefix('torch.')} products measured"
