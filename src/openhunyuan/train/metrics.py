"""Metrics of a run: JSON lines always, TensorBoard where it is installed, Weights & Biases by name."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.log import console
from openhunyuan.base.require import require


class Mirror(Protocol):
    """Where numbers go beside ``metrics.jsonl``."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricLog:
    """Appends one JSON object a record to ``metrics.jsonl`` and mirrors its numbers.

    Of several processes one ``writes``. log: the mirrors, "tensorboard" (left out where it is not installed) and
    "wandb". about: the run's config, for mirrors that show it.

    Raises:
        UserError: wandb is asked for and not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        log: Sequence[str] = ("tensorboard",),
        writes: bool = True,
        about: Mapping[str, Any] | None = None,
    ):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir, self.path, self.writes = run_dir, run_dir / "metrics.jsonl", writes
        self.log, self.about = log, about or {}
        self._mirrors: list[Mirror] | None = None  # made with the first record: a run that goes on says from where
        self._after: int | None = None
        if "wandb" in log and writes:
            require("wandb", "wandb")

    def rewind(self, step: int) -> None:
        """Drop records beyond ``step``: a resumed run repeats the steps since its last checkpoint."""
        if not self.writes:
            return
        self.close()
        self._after = step
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def write(self, step: int, **values: float | str) -> None:
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        if self._mirrors is None:
            self._mirrors = self._open()
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        for mirror in self._mirrors:
            mirror.write(step, numbers)

    def holds(self, step: int, prefix: str) -> bool:
        """Whether a record of ``step`` has a value whose name begins so."""
        return any(r["step"] == step and any(k.startswith(prefix) for k in r) for r in read_metrics(self.path))

    def close(self) -> None:
        for mirror in self._mirrors or ():
            mirror.close()
        self._mirrors = None

    def _open(self) -> list[Mirror]:
        mirrors: list[Mirror] = []
        if "tensorboard" in self.log and importlib.util.find_spec("tensorboard"):
            mirrors.append(TensorBoard(self.run_dir, self._after))
        if "wandb" in self.log:
            mirrors.append(WeightsAndBiases(self.run_dir, self.about))
        return mirrors


class TensorBoard:
    """``tensorboard/`` of a run. after: what lies beyond this step was written by a start that is repeated; hide it."""

    def __init__(self, run_dir: Path, after: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=None if after is None else after + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, the same one again when the run goes on (``wandb.json`` holds its id). Its own environment
    variables say where it goes: WANDB_PROJECT, WANDB_MODE=offline, …

    wandb cannot take back steps: those repeated after a fault stand there twice.
    """

    def __init__(self, run_dir: Path, about: Mapping[str, Any]) -> None:
        wandb = require("wandb", "wandb")
        held = run_dir / "wandb.json"
        if not held.exists():
            write_atomic(held, json.dumps({"id": secrets.token_hex(8)}).encode())
        name = about.get("train", {}).get("name", run_dir.name)
        self.run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else "openhunyuan",
            name=name,
            id=json.loads(held.read_text())["id"],
            resume="allow",
            dir=str(run_dir),
            config=dict(about),
        )
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self) -> None:
        self.run.finish()


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


def counted(what: str, count: int) -> Iterator[int]:
    """The numbers below ``count``, with a bar that says how many are dealt with."""
    with progress_bar() as bar:
        yield from bar.track(range(count), description=what)
