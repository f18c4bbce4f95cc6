"""The largest micro-batch of every bucket that fits into memory, found by trying.

A trial is two steps of the run's own trainer, with optimizer, average and, on a CPU, the copy that saving makes: the
second step meets all of them. On a GPU the peak is what torch's allocator has reserved; running out of memory is
caught. On a CPU it is the resident memory of a forked child, with what it has of its parent, against a limit; a child
that grows beyond it, or is killed by the system, is a batch that does not fit, and the run itself goes on.

What was found is kept by a hash of all that it depends on, the device among it, so that a run started again has the
same micro-batches.

Where several processes share a run, each tries alone, as if it were the first of them (``parallel.world.pretend``): it
holds, gathers and computes what that one would, and waits for nobody, so that running out of memory leaves no other in
a collective. After every trial the processes tell each other what they found, and the largest peak decides for all. On
GPUs, where a child cannot be forked, one process that is not part of the run does it beforehand.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.record import read_json
from openhunyuan.parallel.apply import Layout
from openhunyuan.parallel.world import World, pretend
from openhunyuan.train.ahead import Batch
from openhunyuan.train.config import BatchShape, Stage, TrainConfig
from openhunyuan.train.loop import Task, Trainer
from openhunyuan.train.running import Running, chosen_running
from openhunyuan.train.saving import HostMemory

KEPT = "micro-batches.json"
"""Name of the file beside a folder's runs that keeps what was found."""

_WATCH_SECONDS = 0.005
"""Between looks at a child's memory."""

_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to ``most`` that fits, where every smaller one fits too; 0 if one does not. Doubles until
    one does not fit, then halves the gap."""
    good, bad = 0, most + 1
    tried = 1
    while good + 1 < bad:
        tried = min(tried, most)
        if fits(tried):
            good = tried
        else:
            bad = tried
        tried = 2 * good if bad > most else (good + bad) // 2
    return good


def probed(
    config: TrainConfig,
    peak: Callable[[Stage, BatchShape, int], int | None],
    most: int,
    limit: int,
    kept: Path,
    depends_on: Mapping[str, Any],
    world: World | None = None,
) -> TrainConfig:
    """The run's config with the largest micro-batch of every bucket that fits. Processes of a run call it together, and
    go on with the same.

    Args:
        peak: bytes that a trial of so many samples of a bucket needs; None where it found no room.
        most: samples of a micro-batch at most; more than a global batch holds are of no use.
        limit: bytes.
        kept: file that holds what was found before, and is added to; the main process reads and writes it.
        depends_on: what else the peaks depend on: device, network, task, layout, …; the main process's count.

    Raises:
        UserError: one sample of a bucket does not fit.
    """
    world = world or World()
    plain = config.model_dump(mode="json")
    for stage in plain["stages"]:
        for shape in stage["shapes"]:
            del shape["batch_size"]
    known = {"train": plain, "most": most, "limit": limit, "torch": torch.__version__, **depends_on}
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    found = world.once(lambda: _kept(kept).get(key))
    if found is None:
        new = _search(config, partial(_largest_peak, world, peak), most, limit, world.is_main)
        found = world.once(lambda: _keep(kept, key, new))
    stages = tuple(
        stage.model_copy(
            update={"shapes": tuple(s.model_copy(update={"batch_size": found[_name(s)]}) for s in stage.shapes)}
        )
        for stage in config.stages
    )
    return config.model_copy(update={"stages": stages})


def _kept(path: Path) -> dict[str, dict[str, int]]:
    return read_json(path) if path.is_file() else {}


def _keep(path: Path, key: str, found: dict[str, int]) -> dict[str, int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(_kept(path) | {key: found}, indent=1))
    unfinished.replace(path)
    return found


def _largest_peak(
    world: World,
    peak: Callable[[Stage, BatchShape, int], int | None],
    stage: Stage,
    shape: BatchShape,
    count: int,
) -> int | None:
    """Of all processes, once each has tried; None where one of them found no room."""
    peaks = world.every(lambda: peak(stage, shape, count))
    found = [one for one in peaks if one is not None]
    return max(found) if len(found) == len(peaks) else None


def _search(
    config: TrainConfig,
    peak: Callable[[Stage, BatchShape, int], int | None],
    most: int,
    limit: int,
    tell: bool,
) -> dict[str, int]:
    found: dict[str, int] = {}
    for stage in config.stages:
        for shape in stage.shapes:
            if _name(shape) in found:
                continue
            peaks: dict[int, int | None] = {}

            def fits(count: int, stage: Stage = stage, shape: BatchShape = shape, peaks: dict = peaks) -> bool:
                peaks[count] = needed = peak(stage, shape, count)
                return needed is not None and needed <= limit

            found[_name(shape)] = count = largest(fits, most)
            if not count:
                needed = peaks[1]
                how = "it found no room" if needed is None else f"it needs {needed / 1e9:.3g}"
                raise UserError(
                    f"One sample of {_name(shape)} does not fit into {limit / 1e9:.3g} GB ({how}): allow more memory, "
                    "recompute activations (--recompute), or leave the bucket out."
                )
            if tell:
                get_logger("train").info(
                    "%s: %d samples at once need %.3g of %.3g GB",
                    _name(shape),
                    count,
                    (peaks[count] or 0) / 1e9,
                    limit / 1e9,
                )
    return found


def _name(shape: BatchShape) -> str:
    return f"{shape.num_frames}x{shape.height}x{shape.width}"


class Trials:
    """``peak`` of a run's own training steps."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        device: torch.device,
        samples: Callable[[BatchShape, int], Batch],
        limit: int,
        layout: Layout,
        processes: int = 1,
    ) -> None:
        """samples: a micro-batch of so many samples of a bucket, with texts as long as they come. processes: of the
        run, of which each trial is the first; more than one on a GPU make this process pretend for good."""
        self.config, self.task, self.device, self.samples = config, task, device, samples
        self.limit, self.layout, self.processes = limit, layout, processes

    def peak(self, stage: Stage, shape: BatchShape, count: int) -> int | None:
        """Bytes that training needs at most; None where memory ran out.

        Raises:
            UserError: this process is one of several on GPUs.
        """
        alone = stage.model_copy(update={"steps": 2, "shapes": (shape.model_copy(update={"batch_size": count}),)})
        unseen = {"stages": (alone,), "sample_every": 0, "validate_every": 0}
        config, batch = self.config.model_copy(update=unseen), self.samples(shape, count)
        with tempfile.TemporaryDirectory() as folder:  # of the parent's: a child that is killed cannot clear up
            if self.device.type == "cuda":
                self._pretend_on_gpu()
                return _peak_on_gpu(lambda: self._steps(config, copy.deepcopy(self.task), batch, folder), self.device)
            return peak_of_child(lambda: self._steps_of_first(config, batch, folder), self.limit)

    def _pretend_on_gpu(self) -> None:
        """Not where there are connections: what torch remembers of a mesh would be mixed up with the run's."""
        if self.processes == 1 or (dist.is_initialized() and dist.get_backend() == "fake"):
            return
        if dist.is_initialized():
            raise UserError(
                "Micro-batches of a run on several GPUs are found before it: run the same command with "
                f"--processes {self.processes} and without torchrun on one of them, then start this again."
            )
        pretend(self.processes)

    def _steps_of_first(self, config: TrainConfig, batch: Batch, folder: str) -> None:
        """In a child."""
        if self.processes > 1:
            pretend(self.processes)
        self._steps(config, self.task, batch, folder)

    def _steps(self, config: TrainConfig, task: Task, batch: Batch, folder: str) -> None:
        saves = chosen_running().async_save
        running = Running(log=(), heartbeat_seconds=0, async_save=False)
        trainer = Trainer(config, task, _Given(batch), folder, {}, self.device, self.layout, running)
        trainer.model.train()
        # 'auto' may come to mean either: what needs more is tried.
        dtype = torch.bfloat16 if config.autocast == "bfloat16" else None
        trainer.train_step(batch, dtype)
        _with_moments(trainer)
        memory = HostMemory()
        if saves and self.device.type == "cpu":
            trainer.parts(memory.copies())
        trainer.train_step(batch, dtype)


def _with_moments(trainer: Trainer) -> None:
    """Let the optimizers have states: a step that is not finite makes none, and a pretended one need not be finite."""
    for optimizer in (optimizer for held in trainer.optimizers.values() for optimizer in held):
        if not optimizer.state:
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                if p.grad is not None:
                    p.grad.zero_()
            optimizer.step()


class _Given:
    """A source of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.given = batch

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        return self.given


def _peak_on_gpu(work: Callable[[], None], device: torch.device) -> int | None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        work()
        return torch.cuda.max_memory_reserved(device)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def peak_of_child(work: Callable[[], None], limit: int) -> int | None:
    """Bytes of memory that a child of this process has at most while it works; None where it is killed, is told that
    there is no more, or grows beyond ``limit`` bytes, at which it is ended. The child has one thread. Linux only.

    Raises:
        UserError: the work itself went wrong, in the child's words.
    """
    if platform.system() != "Linux":
        raise UserError(
            "Memory of a CPU is probed on Linux only; leave --memory out and set the micro-batches by hand."
        )
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _report(work, writing)
    os.close(writing)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if _memory(child, "VmRSS") > limit:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(_WATCH_SECONDS)
    with os.fdopen(reading) as pipe:
        said = json.loads(pipe.read() or "{}")
    if os.WIFSIGNALED(ended[1]) or said.get("full"):
        return None
    if "peak" not in said:
        raise UserError(f"A trial of a training step went wrong: {said.get('error', 'its process ended')}")
    return said["peak"]


def _report(work: Callable[[], None], writing: int) -> None:
    """In the child: work, say how it went, and end."""
    said: dict[str, Any] = {}
    try:
        torch.set_num_threads(1)  # the parent's other threads are not here
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
        work()
        said["peak"] = _memory(os.getpid(), "VmHWM")
    except MemoryError:
        said["full"] = True
    except Exception as error:
        text = str(error).splitlines() or [type(error).__name__]
        said["full"] = any(words in str(error) for words in _NO_MEMORY)
        said["error"] = f"{type(error).__name__}: {text[0]}"
    finally:
        os.write(writing, json.dumps(said).encode())
        os._exit(0)  # nothing of the parent's is flushed or closed


def _memory(process: int, what: str) -> int:
    """Bytes by a field of a process's status; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{what}:")), 0)


def memory_limit(gigabytes: float, device: torch.device) -> int:
    """Bytes that a run may use, at most what the device has.

    Raises:
        UserError: the device has less.
    """
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if gigabytes * 1e9 > there:
        raise UserError(f"--memory is {gigabytes:g} GB, but {device} has {there / 1e9:.3g}.")
    return int(gigabytes * 1e9)


def device_name(device: torch.device) -> str:
    """What peaks on a device depend on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
