"""Metrics of a run: JSON lines always, TensorBoard when it is installed."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console


class MetricLog:
    """Appends one JSON object a record to ``metrics.jsonl`` and mirrors the numbers to TensorBoard.

    Of several processes one ``writes``.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = True, writes: bool = True):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path, self.writes = run_dir / "metrics.jsonl", writes
        self._writer = None
        if tensorboard and writes and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Drop records beyond ``step``: a resumed run repeats the steps since its last checkpoint."""
        if not self.writes:
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(self.path)

    def write(self, step: int, **values: float | str) -> None:
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        if self._writer is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, oldest first; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"Line {number} of {path} is not JSON; take the line away.") from None
    return records


def progress_bar(shown: bool = True) -> Progress:
    """A bar with count, elapsed and remaining time, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console(stderr=True), disable=not shown)
