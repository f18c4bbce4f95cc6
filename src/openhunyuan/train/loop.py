"""The one training loop. A task says what the loss is; a source says what step n's data is; the loop does the rest.

A step is a pure function of (weights, optimizer state, seed, step): the source and every random draw are keyed by the
step number, so a run that is stopped and started again repeats exactly the steps it would have made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from openhunyuan.base.device import peak_flops
from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.parallel.apply import (
    ALONE,
    Layout,
    check,
    make_mesh,
    optimizer_orders,
    whole,
)
from openhunyuan.parallel.apply import apply as parallelize
from openhunyuan.parallel.resharding import parts, placed_all, placed_states
from openhunyuan.parallel.tensor import orders
from openhunyuan.parallel.world import World
from openhunyuan.train import checkpoint, optim
from openhunyuan.train.ahead import Ahead, Batch
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.ema import EMA
from openhunyuan.train.faults import FaultLog, LossWatch
from openhunyuan.train.heartbeat import Doing, Heartbeat, forget_beats
from openhunyuan.train.metrics import MetricLog, progress_bar
from openhunyuan.train.precision import autocast, faster_dtype
from openhunyuan.train.report import write_report
from openhunyuan.train.running import Running, chosen_running
from openhunyuan.train.saving import Saver
from openhunyuan.train.stop import StallGuard, stop_on_signal
from openhunyuan.train.window import Meter, Window, Work


@dataclass(frozen=True)
class StepContext:
    """Where a step stands, and its own random generator (CPU, keyed by run seed and step)."""

    step: int
    total_steps: int
    stage: Stage
    generator: torch.Generator
    seed: int = 0


class Source(Protocol):
    """Training data as a pure function of the step.

    A batch is tensors and values by name, or ``{"parts": [(weight, batch), ...]}``: micro-batches whose weighted losses
    add up to the step's.

    One whose attribute ``at_hand`` is true is not read ahead: where a batch takes a millisecond, a second thread with
    threads of its own costs the step far more on a CPU.
    """

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch: ...


class Task(Protocol):
    """What is trained and by which loss. ``phases`` are optimised in order within a step (generator, discriminator)."""

    @property
    def phases(self) -> tuple[str, ...]: ...

    def modules(self) -> Mapping[str, nn.Module]:
        """The trained module of each phase; the first is the model: averaged, validated, exported."""
        ...

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        """The phase's own optimizer, or None for the run's."""
        ...

    def active(self, phase: str, context: StepContext) -> bool: ...

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss and what is reported of it: numbers by name, and as ``by_level`` the noise level and loss of every
        sample, [B, 2], where there are such."""
        ...

    def validate(self, context: StepContext) -> dict[str, float]: ...

    def sample(self, folder: Path, context: StepContext) -> None:
        """Render samples of the current weights into ``folder``."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A task that knows what its batches cost."""

    def work(self, phase: str, batch: Batch) -> Work | None:
        """The operations of a micro-batch on the CPU, or None where they are not counted."""
        ...


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    if "parts" in batch:
        return {"parts": [(weight, to_device(part, device)) for weight, part in batch["parts"]]}
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that depends on (seed, step) alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


def sample_generator(seed: int, sample: int, epoch: int, purpose: str = "") -> torch.Generator:
    """A CPU generator that depends on (seed, sample, epoch) alone: not on the batch or the rank a sample came to.

    ``purpose`` tells streams of one sample apart."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{epoch}{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Trainer:
    """One run in one directory: ``run.json``, ``metrics.jsonl``, ``tensorboard/``, ``samples/``, ``checkpoints/``,
    and, when it ends or is stopped, ``report.html``.

    A step that is not finite, or a loss that leaps (``config.faults``), sends the run back to its last checkpoint; the
    step is written to ``faults.jsonl`` and left out from then on.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        source: Source,
        run_dir: str | Path,
        record: dict | None = None,
        device: str | torch.device = "cpu",
        layout: Layout | None = None,
        running: Running | None = None,
    ):
        """layout: how several processes share the work; ``torchrun`` says how many there are. running: saving and
        watching, by default what the command line chose."""
        self.config, self.task, self.source = config, task, source
        self.running = running or chosen_running()
        self.run_dir = Path(run_dir)
        self.device = torch.device(device)
        self.world = World.join(self.device)
        self.modules = {name: module.to(self.device) for name, module in task.modules().items()}
        layout = layout or ALONE
        mesh = make_mesh(layout, self.world, self.device.type)
        self.data_rank, self.data_ranks = layout.data_rank(self.world)
        for module in self.modules.values():
            check(module, layout)
        self._check_shared()
        self.record = json.loads(json.dumps({"train": config.model_dump(mode="json"), **(record or {})}))
        self.about = self.world.once(self._write_record)
        for module in self.modules.values():
            parallelize(module, layout, mesh)
        self.model = self.modules[task.phases[0]]
        self.optimizers = {
            phase: optim.build_optimizers(self.modules[phase], task.optimizer(phase) or config.optimizer)
            for phase in task.phases
        }
        self.ema = EMA(self.model, config.ema_decay) if config.ema_decay else None
        self._orders = {
            "modules": {name: orders(module) for name, module in self.modules.items()},
            "optimizers": {
                name: [optimizer_orders(o, self.modules[name]) for o in held] for name, held in self.optimizers.items()
            },
            "ema": {"shadow": orders(self.model)},
        }
        self.step = 0
        self.meter = Meter(self.device, layout.recompute, self.data_ranks / self.world.size)
        self.window = Window()
        self.saver = Saver(self.run_dir, config.keep_checkpoints, self.about, self.world, self.running.async_save)
        self.guard = StallGuard(self.running.stall_seconds)
        self.heart = Heartbeat(
            self.run_dir,
            config.total_steps,
            self.running.heartbeat_seconds,
            self.device,
            self.world.rank,
            self.running.stall_seconds,
        )
        self._saved: int | None = None
        self.autocast: str | None = None  # "none" or "bfloat16": what "auto" was found to mean, once for the whole run
        self.watch = LossWatch(config.faults)
        self.faults = FaultLog(self.run_dir, config.faults.max_faults)

    def _check_shared(self) -> None:
        """What several processes cannot do yet is refused before anything is written."""
        if self.world.size == 1:
            return
        given = getattr(self.source, "rank", self.data_rank), getattr(self.source, "world_size", self.data_ranks)
        if given != (self.data_rank, self.data_ranks):
            raise UserError(
                f"The source gives part {given[0] + 1} of {given[1]}, but this layout needs part {self.data_rank + 1} "
                f"of {self.data_ranks} here; make it with the rank and world size of Layout.data_rank."
            )
        if self.config.sample_every:
            raise UserError("Several processes do not render samples; set sample_every to 0.")

    def _write_record(self) -> dict[str, Any]:
        """The run's config beside its results; a directory that holds another run is refused.

        Returns what every checkpoint says it is of: the record's hash and each module's architecture.
        """
        value, path = self.record, self.run_dir / "run.json"
        if path.exists():
            held = json.loads(path.read_text())
            if held != value:
                changed = sorted(k for k in set(held) | set(value) if held.get(k) != value.get(k))
                raise UserError(
                    f"{self.run_dir} holds another run (different: {', '.join(changed)}); "
                    "choose another output directory or delete it"
                )
        else:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(value, indent=1))
            partial.replace(path)
        return {
            "run": hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest(),
            "modules": {name: checkpoint.fingerprint(module) for name, module in self.modules.items()},
        }

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: [o.state_dict() for o in held] for name, held in self.optimizers.items()},
            "ema": self.ema.state_dict() if self.ema else None,
            "autocast": self.autocast,
            "losses": self.watch.state_dict(),
            "window": self.window.state_dict(),
        }

    def parts(self, then: Callable[[Tensor], Any]) -> Any:
        """The state as this process writes it (``parallel.resharding.parts``), with ``then`` of each of its tensors."""
        return parts(self.state_dict(), self._orders, then, self.world)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """state: of any layout, in the network's order; tensors whole, or still in files (``checkpoint.opened``)."""
        self.step = int(state["step"])
        for name, module in self.modules.items():
            module.load_state_dict(
                placed_all(state["modules"][name], module.state_dict(), self._orders["modules"][name])
            )
        for name, optimizers in self.optimizers.items():
            known = self._orders["optimizers"][name]
            for optimizer, saved, ordered in zip(optimizers, state["optimizers"][name], known, strict=True):
                optimizer.load_state_dict(placed_states(optimizer, saved, ordered))
        if self.ema:
            held = state["ema"]
            shadow = placed_all(held["shadow"], self.ema.shadow, self._orders["ema"]["shadow"])
            self.ema.load_state_dict({**held, "shadow": shadow})
        self.autocast = state["autocast"]
        self.watch.load_state_dict(state["losses"])
        self.window.load_state_dict(state.get("window") or Window().state_dict())

    def save(self, wait: bool = True) -> None:
        """Write a checkpoint of where the run stands, if there is none yet. It is there when this returns, or, without
        ``wait``, some time before the next one is."""
        if self._saved != self.step:
            self.alive("saving")
            stood_still = self.saver.save(self.step, self.parts)
            self.window.add({"save_stall": stood_still})
            self._saved = self.step
        if wait:
            self.saver.wait()

    def resume(self) -> bool:
        """Load the newest whole checkpoint of the run directory, if there is one.

        Raises:
            UserError: there are checkpoints and none is whole, or the newest is of another model or run.
        """
        self.alive()
        self.saver.wait()
        found = checkpoint.newest(self.run_dir, self.world)
        if found is None:
            return False
        checkpoint.check_same(found, self.about)
        self.load_state_dict(checkpoint.opened(found))
        self._saved = self.step
        return True

    def _go_back(self, reason: str) -> None:
        """After a fault in the step just made: to the last checkpoint, without that step from now on."""
        fault = self.step - 1
        self.meter.take()
        self.resume()
        if self.world.is_main:
            get_logger("train").warning("Step %d: %s; going on from step %d without it", fault, reason, self.step)
        self.faults.add(fault, reason, self.step, write=self.world.is_main)
        if self.world.is_main:  # samples of weights that are no longer this run's
            for folder in (self.run_dir / "samples").glob("step_*"):
                if int(folder.name.removeprefix("step_")) > self.step:
                    shutil.rmtree(folder)

    # -- running -----------------------------------------------------------------------------------------------------

    def context(self, step: int) -> StepContext:
        stage, _ = self.config.stage_at(step)
        seed = self.config.seed
        return StepContext(step, self.config.total_steps, stage, step_generator(seed, step), seed)

    def fetch(self, step: int) -> Batch:
        stage, place = self.config.stage_at(step)
        return self.source.batch(step, stage, stage.shape_at(place))

    def train_step(self, batch: Batch, dtype: torch.dtype | None = None) -> dict[str, float]:
        context = self.context(self.step)
        metrics: dict[str, Tensor | float] = {}
        parts = [(weight, part, to_device(part, self.device)) for weight, part in batch.get("parts") or [(1.0, batch)]]
        for phase in self.task.phases:
            if not self.task.active(phase, context):
                continue
            module, held = self.modules[phase], self.optimizers[phase]
            chosen = self.task.optimizer(phase) or self.config.optimizer
            factor = optim.lr_factor(chosen, self.step, self.config.total_steps) * context.stage.lr_scale
            optim.set_lr(held, factor)
            for optimizer in held:
                optimizer.zero_grad(set_to_none=True)
            if self.data_ranks > 1 and "parts" not in batch:
                raise UserError("Several processes need a source that gives each its part; use PlannedBatches.")
            values: dict[str, Tensor | float] = {}
            for weight, fetched, part in parts:
                work = self.task.work(phase, fetched) if isinstance(self.task, Counted) else None
                with self.meter.part(work, weight):
                    with autocast(module, dtype):
                        loss, said = self.task.loss(phase, part, context)
                    (loss * weight).backward()
                by_level = said.pop("by_level", None)
                if isinstance(by_level, Tensor) and weight:
                    self.meter.levels(work, by_level)
                for key, value in said.items():
                    values[key] = values.get(key, 0.0) + weight * value
            trained = [p for p in module.parameters() if p.requires_grad]
            norm = whole(nn.utils.clip_grad_norm_(trained, chosen.grad_clip))
            reported = self._added(values)
            if not torch.isfinite(norm):
                metrics |= {f"{phase}/skipped": 1.0}
                continue
            for optimizer in held:
                optimizer.step()
            prefix = "" if phase == self.task.phases[0] else f"{phase}/"
            metrics |= {f"{prefix}{k}": v for k, v in reported.items()} | {
                f"{prefix}grad_norm": norm,
                f"{prefix}lr_factor": factor,
            }
        if self.ema:
            self.ema.update(self.model)
        self.step += 1
        return {k: float(v) for k, v in metrics.items()}

    def _added(self, values: Mapping[str, Tensor | float]) -> Mapping[str, Tensor | float]:
        """What a phase reported, over all data: each process has weighted its own by its share of the batch."""
        if self.world.size == 1:
            return values
        share = self.data_ranks / self.world.size  # processes with the same data report the same
        return self.world.sum({name: float(value) * share for name, value in values.items()})

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model holds its averaged weights and is in eval mode."""
        if self.ema:
            self.ema.swap(self.model)
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            if self.ema:
                self.ema.swap(self.model)

    def _observe(self, log: MetricLog, force: bool = False) -> None:
        """What is due at this step and not there yet: a run that was killed between saving and this makes up for it."""
        config, samples = self.config, self.run_dir / "samples" / f"step_{self.step:08d}"
        validates, renders = (
            bool(every) and (force or self.step % every == 0) for every in (config.validate_every, config.sample_every)
        )
        if not (validates or renders):
            return
        self.alive("validating")
        validates, renders = self.world.once(
            lambda: (validates and not log.holds(self.step, "val/"), renders and not samples.exists())
        )
        context = self.context(min(self.step, config.total_steps - 1))
        with self.averaged(), torch.no_grad():
            if validates and (values := self.task.validate(context)):
                log.write(self.step, **{f"val/{k}": v for k, v in values.items()})
            if renders:
                self.alive("validating")
                folder = samples.with_name(f".{samples.name}")
                folder.mkdir(parents=True, exist_ok=True)
                self.task.sample(folder, context)
                folder.rename(samples)

    def alive(self, doing: Doing = "training") -> None:
        """This process goes on, and with what."""
        self.guard.alive()
        if doing != "training":
            self.heart.say(self.step, doing)

    def run(self) -> nn.Module:
        """Train to the end, resuming where the directory stands; returns the model with its averaged weights."""
        torch.set_flush_denormal(True)  # vanishing moments and averages make CPU arithmetic several times slower
        self.world.once(lambda: forget_beats(self.run_dir))
        with closing(self.guard), closing(self.saver), stop_on_signal() as received:
            resumed = self.resume()
            log = MetricLog(self.run_dir, self.running.log, self.world.is_main, self.record)
            with closing(log):
                log.rewind(self.step if resumed else -1)
                dtype = self._autocast_dtype(log)
                peak = self._peak(dtype)
                if not resumed:
                    self.save()  # what a fault before the first checkpoint goes back to, and whether there is room
                elif self.step:
                    self._observe(log)
                stopped = self._train(log, received, dtype, peak)
                self.save()
                if not stopped:
                    self._observe(log, force=True)
            self.heart.say(self.step, "stopped" if stopped else "ended")
            self.world.sum({})  # all have said so
            self.world.once(lambda: write_report(self.run_dir))
        if stopped:
            raise SystemExit(128 + (received[0] if received else signal.SIGTERM))
        if self.ema:
            self.ema.swap(self.model)
        return self.model.eval()

    def _train(self, log: MetricLog, received: list[int], dtype: torch.dtype | None, peak: float | None) -> bool:
        """Steps until the run's last or until a signal is received by any process; tells which."""
        config, stopped = self.config, False
        self.model.train()
        ahead = Ahead(self.fetch, config.total_steps - 1, getattr(self.source, "at_hand", False))
        with closing(ahead), progress_bar(self.world.is_main) as bar:
            shown = bar.add_task(config.name, total=config.total_steps, completed=self.step)
            while self.step < config.total_steps and not stopped:
                self.alive()
                if self.step in self.faults.skipped:
                    self.step += 1
                else:
                    started = time.perf_counter()
                    batch = ahead.take(self.step)
                    waited = time.perf_counter() - started
                    metrics = self.train_step(batch, dtype)
                    if reason := self.watch.check(self._kind(self.step - 1), metrics):
                        self._go_back(reason)
                        log.rewind(self.step)
                        continue
                    seconds = time.perf_counter() - started
                    self.window.add(metrics | {"data_wait": waited, "seconds_per_step": seconds})
                    self.heart.step(self.step, seconds, waited)
                    told = self.world.sum({"signal": len(received), "failed": self.saver.failed} | self.meter.take())
                    if told.pop("failed"):
                        self.saver.wait()  # raises what went wrong
                    stopped = bool(told.pop("signal"))
                    self.window.count(told)
                if self.window.values and (self.step % config.log_every == 0 or self.step == config.total_steps):
                    means = self.window.record(peak, self.world.size)
                    log.write(self.step, stage=self.context(self.step - 1).stage.name, **means)
                    bar.update(shown, completed=self.step, description=f"{config.name} loss {means.get('loss', 0):.4f}")
                if self.step % config.checkpoint_every == 0 and self.step < config.total_steps:
                    self.save(wait=False)
                if self.step < config.total_steps and not stopped:
                    self._observe(log)
        return stopped

    def _kind(self, step: int) -> str:
        """Which batches a step's losses are compared with: those of its stage and shape."""
        stage, place = self.config.stage_at(step)
        shape = stage.shape_at(place)
        return f"{stage.name} {shape.num_frames}x{shape.height}x{shape.width}"

    def _autocast_dtype(self, log: MetricLog) -> torch.dtype | None:
        """What the run computes in. 'auto' is measured once; a resumed run keeps what was found."""
        config = self.config
        if self.autocast is None:
            self.autocast = config.autocast
            if config.autocast == "auto":
                batch, context = to_device(self.fetch(self.step), self.device), self.context(self.step)
                _, batch = batch["parts"][0] if "parts" in batch else (1.0, batch)
                fast = faster_dtype(self.model, lambda: self.task.loss(self.task.phases[0], batch, context))
                self.autocast = self.world.once(lambda: "bfloat16" if fast else "none")
                log.write(self.step, autocast=self.autocast)
        return torch.bfloat16 if self.autocast == "bfloat16" else None

    def _peak(self, dtype: torch.dtype | None) -> float | None:
        """Operations a second that a process could reach, where the task counts what it needs."""
        if not isinstance(self.task, Counted):
            return None
        peak, source = self.world.once(lambda: peak_flops(self.device, dtype or torch.float32))
        if self.world.is_main:
            get_logger("train").info("mfu and hfu are shares of %.3g operations a second (%s)", peak, source)
        return peak
