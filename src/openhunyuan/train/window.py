"""What the steps since the last record reported: means, losses by noise level, operations against what is possible."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEVELS = 5
"""Equal parts of the noise levels 0..1 in which losses are recorded."""


@dataclass(frozen=True)
class Work:
    """What a batch costs by ``models.flops``: operations of one forward through what is trained, and through what is
    not (a teacher; no backward follows). ``bucket`` names its size."""

    bucket: str
    trained: int
    frozen: int = 0


class Meter:
    """Sums of one step's micro-batches in this process, by bucket.

    ``model`` counts what the step needs: three forwards of what is trained and one of what is not. ``hardware`` counts
    also what is computed again (recomputation, repeated micro-batches that weigh nothing).
    """

    def __init__(self, device: torch.device, recompute: bool = False, share: float = 1.0) -> None:
        """share: this process's part of the work on its batches, where several have the same ones."""
        self.device, self.recompute, self.share = device, recompute, share
        self.parts: list[tuple[Work, float, Any, Any]] = []
        self.losses: list[tuple[str, Tensor]] = []

    @contextmanager
    def part(self, work: Work | None, weight: float) -> Iterator[None]:
        """Around forward and backward of one micro-batch."""
        if work is None:
            yield
            return
        begin = self._mark()
        yield
        self.parts.append((work, weight, begin, self._mark()))

    def levels(self, work: Work | None, by_level: Tensor) -> None:
        """Noise level and loss of every sample of a micro-batch, [B, 2]."""
        self.losses.append((work.bucket if work else "all", by_level))

    def take(self) -> dict[str, float]:
        """The sums by name, and begin again. Waits for the device."""
        sums: dict[str, float] = {}

        def add(kind: str, bucket: str, value: float) -> None:
            sums[f"{kind} {bucket}"] = sums.get(f"{kind} {bucket}", 0.0) + value

        for bucket, pairs in self.losses:
            for level, loss in pairs.tolist():
                part = min(int(level * LEVELS), LEVELS - 1)
                add(f"loss{part}", bucket, loss)
                add(f"count{part}", bucket, 1.0)
        if self.device.type == "cuda" and self.parts:
            torch.cuda.synchronize(self.device)
        for work, weight, begin, end in self.parts:
            add("model", work.bucket, self.share * (3 * work.trained + work.frozen) if weight else 0)
            add("hardware", work.bucket, self.share * ((4 if self.recompute else 3) * work.trained + work.frozen))
            add("seconds", work.bucket, begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin)
        self.parts, self.losses = [], []
        return sums

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Window:
    """The steps since the last record. Part of a checkpoint: a run that goes on records what it would have recorded."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.sums: dict[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """One step's numbers, of which the mean is recorded."""
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def count(self, sums: Mapping[str, float]) -> None:
        """One step's sums (``Meter.take``), over all processes."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def record(self, peak: float | None, processes: int = 1) -> dict[str, float]:
        """The record, after which the window is empty.

        ``loss_by_level/BUCKET/LOW-HIGH`` is the mean over samples. ``mfu`` and ``hfu`` are operations ÷ (time ×
        ``peak``, in operations a second of one process): of whole steps, data wait and optimizer included; by bucket,
        of its forwards and backwards alone.
        """
        found = {name: sum(values) / len(values) for name, values in self.values.items()}
        by_kind: dict[str, dict[str, float]] = {}
        for name, value in self.sums.items():
            kind, bucket = name.split(" ", 1)
            by_kind.setdefault(kind, {})[bucket] = value
        for part in range(LEVELS):
            for bucket, count in by_kind.get(f"count{part}", {}).items():
                name = f"loss_by_level/{bucket}/{part / LEVELS:.1f}-{(part + 1) / LEVELS:.1f}"
                found[name] = by_kind[f"loss{part}"][bucket] / count
        seconds = sum(self.values.get("seconds_per_step", ()))
        if peak and seconds:
            for name, kind in (("mfu", "model"), ("hfu", "hardware")):
                held = by_kind.get(kind, {})
                if held:
                    found[name] = sum(held.values()) / (seconds * processes * peak)
                for bucket, flops in held.items():
                    found[f"{name}/{bucket}"] = flops / (by_kind["seconds"][bucket] * peak)
        self.values, self.sums = {}, {}
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"values": {name: list(values) for name, values in self.values.items()}, "sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = {name: list(values) for name, values in state["values"].items()}
        self.sums = dict(state["sums"])
