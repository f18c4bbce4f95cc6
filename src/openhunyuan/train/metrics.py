"""Metrics of a run: JSON lines always, TensorBoard when it is installed."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openhunyuan.base.log import console


class MetricLog:
    """Appends one JSON object a record to ``metrics.jsonl`` and mirrors the numbers to TensorBoard."""

    def __init__(self, run_dir: Path, tensorboard: bool = True):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "metrics.jsonl"
        self._writer = None
        if tensorboard and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Drop records beyond ``step``: a resumed run repeats the steps since its last checkpoint."""
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= step]
            self.path.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, **values: float | str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        if self._writer is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def progress_bar() -> Progress:
    """A bar with count, elapsed and remaining time, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console(stderr=True))
