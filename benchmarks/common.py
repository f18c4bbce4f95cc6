"""Comparison of two implementations of one thing: alternating runs, and peak memory in fresh processes.

Time: both sides live in one process and take turns, so that whatever else the machine does falls on both; a row
gives the median of the per-turn ratios. Memory: each side runs alone in a fresh process that resets the kernel's
high-water mark before one forward, so that a row gives what the forward itself adds to the resident set, weights
and imports excluded. Both sides compute with the same weights, and the largest difference of results is printed.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SIDES = ("ours", "theirs")
Build = Callable[[str, str], Callable[[], Tensor]]
"""(case, side) → a function that runs one forward; weights and inputs depend on the case alone."""


@dataclass(frozen=True)
class Row:
    """One line of the table. Seconds are medians; memory is MiB that one forward adds, None where unknown."""

    case: str
    ours_s: float
    theirs_s: float
    time_ratio: float
    ours_mib: float | None
    theirs_mib: float | None
    max_difference: float

    @property
    def memory_ratio(self) -> float | None:
        """ours / theirs."""
        return self.ours_mib / self.theirs_mib if self.ours_mib and self.theirs_mib else None


def alternate(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], runs: int) -> tuple[list[float], list[float]]:
    """Seconds of `runs` runs of each, taking turns and swapping who goes first; one unmeasured turn before."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        order = (0, 1) if turn % 2 else (1, 0)
        for side in order:
            start = time.perf_counter()
            (ours, theirs)[side]()
            if turn:
                seconds[side].append(time.perf_counter() - start)
    return seconds


def compare(module: str, case: str, build: Build, runs: int, threads: int) -> Row:
    """Both sides of one case: time here, peak memory in two child processes of `python -m module`."""
    memory = [_peak_in_child(module, case, side, threads) for side in SIDES]
    with torch.inference_mode():
        ours, theirs = build(case, "ours"), build(case, "theirs")
        difference = (ours().float() - theirs().float()).abs().max().item()
        ours_s, theirs_s = alternate(ours, theirs, runs)
    ratio = statistics.median(a / b for a, b in zip(ours_s, theirs_s, strict=True))
    return Row(case, statistics.median(ours_s), statistics.median(theirs_s), ratio, memory[0], memory[1], difference)


def peak_mib(run: Callable[[], Tensor]) -> float | None:
    """MiB that one call adds to the resident set at its highest; None where the kernel cannot say (not Linux)."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with torch.inference_mode():
        run()  # libraries load and caches fill on the first call
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
        before = _status_kib("VmRSS")
        run()
    return (_status_kib("VmHWM") - before) / 1024


def run(module: str, title: str, cases: Mapping[str, str], build: Build, default: tuple[str, ...]) -> None:
    """The command line of a benchmark. cases: name → description; default: the cases run without `--cases`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=title)
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(default))
    parser.add_argument("--runs", type=int, default=7, help="measured runs of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak_mib(build(*args.peak))))
        return
    print(f"{title}; {args.threads} threads, {args.runs} alternating runs, fp32, torch {torch.__version__}")
    names = ("case", "ours s", "theirs s", "ratio", "ours MiB", "theirs MiB", "ratio")
    print("{:<10}{:>9}{:>10}{:>7}{:>10}{:>12}{:>7}  max diff".format(*names))
    rows = []
    for case in args.cases:
        row = compare(module, case, build, args.runs, args.threads)
        rows.append(row)
        memory = [f"{value:.0f}" if value is not None else "–" for value in (row.ours_mib, row.theirs_mib)]
        ratio = f"{row.memory_ratio:.2f}" if row.memory_ratio is not None else "–"
        print(
            f"{case:<10}{row.ours_s:>9.3f}{row.theirs_s:>10.3f}{row.time_ratio:>7.2f}"
            f"{memory[0]:>10}{memory[1]:>12}{ratio:>7}  {row.max_difference:.1e}",
            flush=True,
        )
    for case in args.cases:
        print(f"  {case}: {cases[case]}")
    print("ratio = ours / theirs, below 1 is better; MiB = what one forward adds at its highest")
    if args.json:
        args.json.write_text(json.dumps([vars(row) | {"memory_ratio": row.memory_ratio} for row in rows], indent=2))


def _peak_in_child(module: str, case: str, side: str, threads: int) -> float | None:
    # A fixed, low mmap threshold makes the allocator give freed tensors back, so that resident memory is live memory.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", module, "--threads", str(threads), "--peak", case, side]
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"the kernel does not report {field}")
