"""Signs of life: every process writes now and then where it stands, and a table shows who is silent or slow.

    heartbeats/rank_00003.json      the last sign of process 3, replaced as a whole

Processes that share a step wait for each other within it, so that the time of a step is the same everywhere and does
not tell who was waited for. Two times do: the wait for data, and that of a fixed matrix product made alone.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.record import Record

SLOW = 1.1
"""A process that needs this many times the usual time on its own is called slow."""
_PROBE = {"cpu": 384, "cuda": 4096}
"""Side of the probe's matrices: milliseconds of work."""
Doing = Literal["training", "saving", "validating", "ended", "stopped"]


class Beat(Record):
    """One sign of life. Times in seconds; ``time`` is that of the clock."""

    rank: int
    host: str
    pid: int
    restarts: int
    time: float
    next: float
    """when another one is due, at the latest"""
    step: int
    total_steps: int
    doing: Doing
    last_step: float | None
    median_step: float | None
    data_wait: float | None
    """median of the last steps"""
    probe: float | None
    """fastest of three fixed matrix products"""


class Heartbeat:
    """Writes one process's signs of life: ``every`` so many seconds while it steps, and when it begins another thing.

    stall: seconds after which a process that hangs is ended (``train.stop``); before, a long save is no silence.
    """

    def __init__(
        self, run_dir: Path, total_steps: int, every: float, device: torch.device, rank: int = 0, stall: float = 0.0
    ) -> None:
        self.path = run_dir / "heartbeats" / f"rank_{rank:05d}.json"
        self.total_steps, self.every, self.device, self.rank, self.stall = total_steps, every, device, rank, stall
        self.steps: deque[float] = deque(maxlen=100)
        self.waits: deque[float] = deque(maxlen=100)
        self.written = float("-inf")

    def step(self, step: int, seconds: float, waited: float) -> None:
        """After a step: how long it took, and how much of that was waiting for data."""
        self.steps.append(seconds)
        self.waits.append(waited)
        if time.monotonic() - self.written >= self.every:
            self.say(step, "training")

    def say(self, step: int, doing: Doing) -> None:
        """Now, whatever was said last. A full disk is the checkpoint's to report."""
        if not self.every:
            return
        now = time.time()
        median = statistics.median(self.steps) if self.steps else None
        patience = 3 * max(self.every, median or 0.0) if doing == "training" else max(3600.0, self.stall)
        beat = Beat(
            rank=self.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            time=now,
            next=now + patience,
            step=step,
            total_steps=self.total_steps,
            doing=doing,
            last_step=self.steps[-1] if self.steps else None,
            median_step=median,
            data_wait=statistics.median(self.waits) if self.waits else None,
            probe=probe(self.device) if doing == "training" else None,
        )
        try:
            write_atomic(self.path, beat.model_dump_json(indent=1).encode())
        except OSError:
            return
        self.written = time.monotonic() if doing == "training" else float("-inf")


def probe(device: torch.device) -> float:
    """Seconds of the fastest of three products of fixed matrices."""
    side = _PROBE.get(device.type, 512)
    matrix = torch.ones(side, side, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
        del product
    return best


def forget_beats(run_dir: Path) -> None:
    """Take away what processes of an earlier start said."""
    for path in (run_dir / "heartbeats").glob("rank_*.json"):
        path.unlink(missing_ok=True)


def read_beats(run_dir: Path) -> list[Beat]:
    """The last sign of every process, by rank; files of another version are left out."""
    beats = []
    for path in sorted((run_dir / "heartbeats").glob("rank_*.json")):
        try:
            beats.append(Beat.read(path))
        except UserError:
            continue
    return beats


@dataclass(frozen=True)
class Standing:
    """A process as the table shows it: its last sign, how old that is, and what is wrong with it, if anything."""

    beat: Beat
    age: float
    note: str


COLUMNS = ("rank", "host", "pid", "step", "doing", "last heartbeat", "last step", "median", "data wait", "probe", "")


def standings(beats: Sequence[Beat], now: float | None = None) -> list[Standing]:
    """Who is silent beyond what is due, who was started again, and which one the others wait for.

    The slowest is the process that needs most beyond the usual (the median of all), in data wait as a share of a step
    or in the probe, if that is more than a tenth.
    """
    now = time.time() if now is None else now
    causes = _excess(beats)
    slowest = max(causes, key=lambda rank: causes[rank][0], default=None)
    found = []
    for beat in beats:
        notes = []
        if beat.doing not in ("ended", "stopped") and now > beat.next:
            notes.append("silent")
        if beat.rank == slowest and causes[beat.rank][0] > SLOW - 1:
            notes.append(f"slowest: {causes[beat.rank][1]}")
        if beat.restarts:
            notes.append(f"restarted {beat.restarts}x")
        found.append(Standing(beat, now - beat.time, ", ".join(notes)))
    return found


def _excess(beats: Sequence[Beat]) -> dict[int, tuple[float, str]]:
    """rank → (what it needs beyond the usual ÷ the usual step, or probe, and which of them)."""
    waits = {b.rank: b.data_wait for b in beats if b.data_wait is not None}
    probes = {b.rank: b.probe for b in beats if b.probe is not None}
    steps = [b.median_step for b in beats if b.median_step]
    found: dict[int, tuple[float, str]] = {}
    if len(beats) < 2 or not steps:
        return found
    # The lower of the middle two: of two processes the faster one is the usual one.
    step, wait = statistics.median(steps), statistics.median_low(waits.values())
    usual = statistics.median_low(probes.values()) if probes else None
    for rank, value in waits.items():
        data = (value - wait) / step
        compute = probes[rank] / usual - 1 if usual and rank in probes else 0.0
        found[rank] = max((data, "data"), (compute, "compute"))
    return found


def rows(found: Sequence[Standing]) -> list[tuple[str, ...]]:
    """The table's cells, as ``COLUMNS``."""
    return [
        (
            str(beat.rank),
            beat.host,
            str(beat.pid),
            f"{beat.step}/{beat.total_steps}",
            beat.doing,
            f"{age:.0f} s ago",
            *(
                "–" if value is None else f"{value:.3g} s"
                for value in (beat.last_step, beat.median_step, beat.data_wait, beat.probe)
            ),
            note,
        )
        for beat, age, note in ((s.beat, s.age, s.note) for s in found)
    ]
