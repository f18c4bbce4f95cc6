"""How long training stands still for a checkpoint, written meanwhile or at once, and what the writing costs the steps.

    python -m benchmarks.save_stall --megabytes 400 --saves 3 --folder /tmp

The state is as large as asked for, in the parts a run with AdamW and an average has. The steps are matrix products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from openhunyuan.parallel.apply import whole
from openhunyuan.train.saving import Saver

WIDTH = 1024
"""Side of the state's matrices: 4 MiB each."""


def state_of(megabytes: int) -> dict:
    """Weights, both moments and the average, of ``megabytes`` (2^20 bytes) together."""
    count = max(1, megabytes // 16)

    def part() -> dict[str, torch.Tensor]:
        return {f"{number}": torch.randn(WIDTH, WIDTH) for number in range(count)}

    return {"step": 0, "modules": part(), "first": part(), "second": part(), "ema": part()}


def step(matrix: torch.Tensor, state: dict) -> float:
    """Seconds of a step: some products, and an update of the weights in place."""
    started = time.perf_counter()
    for _ in range(4):
        _ = matrix @ matrix
    for value in state["modules"].values():
        value.mul_(0.999)
    return time.perf_counter() - started


def run(background: bool, state: dict, saves: int, folder: Path) -> dict[str, float]:
    """Save ``saves`` times between steps; seconds of the first and the median later stall, of a step alone and beside a
    save, and until the file is there."""
    matrix = torch.randn(WIDTH, WIDTH)
    saver = Saver(folder, 1, {}, background=background)
    alone = [step(matrix, state) for _ in range(10)]
    stalls, beside, until = [], [], []
    for number in range(saves):
        started = time.perf_counter()
        stalls.append(saver.save(number, lambda then: whole(state, then=then)))
        while saver.writing is not None and not saver.writing.done():
            beside.append(step(matrix, state))
        saver.wait()
        until.append(time.perf_counter() - started)
    saver.close()
    return {
        "first stall": stalls[0],
        "later stall": statistics.median(stalls[1:] or stalls),
        "until written": statistics.median(until),
        "step alone": statistics.median(alone),
        "step beside": statistics.median(beside or [float("nan")]),
    }


def main() -> None:
    """Measure both ways in one process and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="size of the state, MiB")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write (and delete); the system's temporary folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    state = state_of(options.megabytes)
    rows = {}
    for name, background in (("at once", False), ("meanwhile", True)):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows[name] = run(background, state, options.saves, Path(folder))
    columns = next(iter(rows.values()))
    print(f"{options.megabytes} MiB, {options.saves} saves, {torch.get_num_threads()} threads; seconds")
    print(f"{'written':<12}" + "".join(f"{column:>15}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<12}" + "".join(f"{value:>15.3f}" for value in row.values()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
