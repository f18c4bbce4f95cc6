"""VAE decode against diffusers: the same random weights, three CPU sizes, alternating runs.

    python -m benchmarks.vae --pairs 5

Time is the median over pairs of (ours / diffusers), each pair run back to back in one process, so that a slow minute of the
machine hits both. Memory is the growth of the peak resident size during one decode, each in a process of its own. diffusers
decodes in 16-frame temporal tiles by default, which is another computation; that is switched off here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from rich.console import Console
from rich.table import Table
from torch import Tensor

from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE


@dataclass(frozen=True)
class Size:
    """One row: a VAE and the latent [T, h, w] it decodes."""

    config: VAEConfig
    latent: tuple[int, int, int]


SIZES = {
    "embedded, 33x64x64": Size(
        VAEConfig(block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=4), (9, 8, 8)
    ),
    "quarter width, 17x128x128": Size(VAEConfig(block_out_channels=(32, 64, 128, 128), norm_num_groups=8), (5, 16, 16)),
    "half width, 9x256x256": Size(VAEConfig(block_out_channels=(64, 128, 256, 256), norm_num_groups=16), (3, 32, 32)),
}
DECODERS = ("ours", "diffusers")


def reference_of(config: VAEConfig) -> AutoencoderKLHunyuanVideo:
    """diffusers' VAE of the same sizes, decoding in one piece as the plain path does."""
    reference = AutoencoderKLHunyuanVideo(
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
    ).eval()
    reference.use_framewise_decoding = False
    return reference


def decoders(size: Size, names: tuple[str, ...] = DECODERS) -> dict[str, Callable[[Tensor], Tensor]]:
    """The decode functions asked for, on the same random weights."""
    torch.manual_seed(0)
    reference = reference_of(size.config)
    functions: dict[str, Callable[[Tensor], Tensor]] = {}
    if "ours" in names:
        ours = CausalVAE(size.config).eval()
        ours.load_state_dict(reference.state_dict(), strict=True)
        functions["ours"] = ours.decode
    if "diffusers" in names:
        functions["diffusers"] = lambda latents: reference.decode(latents, return_dict=False)[0]
    return functions


def latents_of(size: Size) -> Tensor:
    """One standard-normal latent."""
    shape = (1, size.config.latent_channels, *size.latent)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def resident(field: str) -> int:
    """A memory field of this process in bytes: VmRSS is the present size, VmHWM its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; the memory column needs Linux.")


@torch.no_grad()
def measure_memory(size: Size, name: str) -> int:
    """Bytes by which the peak resident size grows during one decode after a warm-up at the smallest size."""
    decode = decoders(size, (name,))[name]
    latents = latents_of(size)
    decode(latents[:, :, :2, :2, :2])
    before = resident("VmRSS")
    decode(latents)
    return max(0, resident("VmHWM") - before)


def memory_in_own_process(row: str, name: str, threads: int) -> int:
    """`measure_memory` where nothing else has been allocated before."""
    command = [sys.executable, "-m", "benchmarks.vae", "--memory-of", row, name, "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@torch.no_grad()
def measure_times(size: Size, pairs: int) -> tuple[dict[str, list[float]], float]:
    """Seconds per decode, alternating and swapping who goes first, and the largest difference of the two results."""
    functions, latents = decoders(size), latents_of(size)
    results = {name: function(latents) for name, function in functions.items()}
    difference = (results["ours"] - results["diffusers"]).abs().max().item()
    times: dict[str, list[float]] = {name: [] for name in DECODERS}
    for pair in range(pairs):
        for name in DECODERS if pair % 2 == 0 else DECODERS[::-1]:
            started = time.perf_counter()
            functions[name](latents)
            times[name].append(time.perf_counter() - started)
    return times, difference


def measure_row(row: str, pairs: int, threads: int) -> dict[str, float | str]:
    """All numbers of one size."""
    times, difference = measure_times(SIZES[row], pairs)
    memory = {name: memory_in_own_process(row, name, threads) for name in DECODERS}
    ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["diffusers"], strict=True)]
    return {
        "size": row,
        "ours_s": statistics.median(times["ours"]),
        "diffusers_s": statistics.median(times["diffusers"]),
        "time_ratio": statistics.median(ratios),
        "ours_mib": memory["ours"] / 2**20,
        "diffusers_mib": memory["diffusers"] / 2**20,
        "memory_ratio": memory["ours"] / max(memory["diffusers"], 1),
        "max_difference": difference,
    }


def print_rows(rows: list[dict[str, float | str]], pairs: int, threads: int) -> None:
    """One line per size; a ratio under 1 means that ours takes less."""
    table = Table(title=f"VAE decode, float32, {threads} threads, {pairs} pairs; ratio = ours / diffusers")
    table.add_column("size")
    for column in ("ours s", "diffusers s", "time ratio", "ours MiB", "diffusers MiB", "memory ratio", "max |diff|"):
        table.add_column(column, justify="right")
    formats = ("{}", "{:.3f}", "{:.3f}", "{:.2f}", "{:.0f}", "{:.0f}", "{:.2f}", "{:.1e}")
    for row in rows:
        table.add_row(*(form.format(value) for form, value in zip(formats, row.values(), strict=True)))
    Console().print(table)


def main() -> None:
    """Measure, print, and keep the numbers if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs per size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", nargs=2, metavar=("ROW", "DECODER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        row, name = options.memory_of
        print(measure_memory(SIZES[row], name))
        return
    rows = [measure_row(row, options.pairs, options.threads) for row in options.rows]
    print_rows(rows, options.pairs, options.threads)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
