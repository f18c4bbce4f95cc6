"""What a run will cost, before it starts: parameters, floating-point operations, tokens, memory, time.

Networks are built and run once on the meta device, where nothing is computed or stored: torch's counter sees every
product, and a hook every tensor that is kept for the backward pass. Time is operations over a measured speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.parallel.apply import ALONE, Layout, blocks, check_layout
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig

BACKWARD = 2
"""A backward pass costs about two forwards: one product each for the inputs' and the weights' gradients."""
_STATES = {"adamw": 2, "muon": 1}
"""Numbers an optimizer keeps for each trained parameter; for a run with Muon, the upper bound of AdamW is taken where
a parameter is not a hidden matrix."""


@dataclass(frozen=True)
class Workload:
    """One run as the estimate sees it.

    modules: on the meta device, the trained model first; what is frozen (a teacher) has no trained parameters.
    forward: makes the inputs of a shape on the meta device and runs what one step runs of the trained modules.
    tokens: of one sample of a shape, as the model reads it. optimizers: where a module has its own.
    count: the forward of a shape, instead of running it.
    micro_batches: how many of each shape a stage runs; None: each of its steps is one.
    without_gradient: forwards of the model a step runs besides, of a teacher or of itself.
    """

    config: TrainConfig
    modules: Mapping[str, nn.Module]
    forward: Callable[[BatchShape], Any]
    tokens: Callable[[BatchShape], int]
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    note: str = ""
    count: Callable[[BatchShape], Forward] | None = None
    micro_batches: Callable[[Stage], Mapping[BatchShape, int]] | None = None
    without_gradient: int = 0


@dataclass(frozen=True)
class StageCost:
    """All steps, or micro-batches, of one batch shape in one stage. flops: forward and backward of all of them, and
    what is computed again; activations: bytes a process keeps for one backward pass."""

    stage: str
    shape: BatchShape
    steps: int
    samples: int
    tokens: int
    flops: int
    activations: int


@dataclass(frozen=True)
class Estimate:
    """The costs of a run. Sizes in bytes and of one process; ``state`` is its part of weights, gradients, optimizer
    states and average, ``gathered`` what it holds whole of the others' parts at the worst moment."""

    name: str
    steps: int
    parameters: Mapping[str, tuple[int, int]]
    """module → (all parameters, trained ones)"""
    stages: tuple[StageCost, ...]
    state: int
    checkpoints: int
    """on the disk, all that are kept and the one being written; of all processes"""
    note: str
    unit: str = "steps"
    """what a stage's line counts"""
    gathered: int = 0
    layout: Layout = ALONE
    processes: int = 1

    @property
    def flops(self) -> int:
        return sum(stage.flops for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def samples(self) -> int:
        return sum(stage.samples for stage in self.stages)

    @property
    def memory(self) -> int:
        """State, what is gathered and the largest step's activations."""
        return self.state + self.gathered + max(stage.activations for stage in self.stages)

    def seconds(self, flops_per_second: float) -> float:
        """At the speed of one process, and as if all were busy all the time."""
        return self.flops / (flops_per_second * self.processes)

    def lines(self, flops_per_second: float, source: str, price_per_hour: float | None = None) -> list[str]:
        """The page that ``--dry-run`` prints. price_per_hour: of one device; without it no cost is printed."""
        lines = [f"run         {self.name}"]
        for name, (every, trained) in self.parameters.items():
            lines.append(f"parameters  {name}: {every:,}" + (f", {trained:,} trained" if trained != every else ""))
        for cost in self.stages:
            shape = cost.shape
            size = f"{shape.batch_size} x {shape.num_frames}x{shape.height}x{shape.width}"
            lines.append(
                f"stage       {cost.stage}: {cost.steps} {self.unit} of {size}, {cost.tokens:,} tokens, "
                f"{in_words(cost.flops, 'FLOP')}, {in_words(cost.activations, 'B')} kept for the backward pass"
            )
        where = "" if self.processes == 1 else " a process"
        state = "weights, gradients, optimizer and average"
        if self.processes > 1:
            shards = self.processes // self.layout.replicas
            lines.append(
                f"layout      {self.processes} processes, {self.layout.replicas} x {shards}: each holds 1/{shards} of "
                "the state" + (", blocks are computed again" if self.layout.recompute else "")
            )
            state += f", {in_words(self.gathered, 'B')} of gathered blocks"
        total = in_words(self.flops, "FLOP")
        lines += [
            f"in all      {self.steps:,} steps, {self.samples:,} samples, {self.tokens:,} tokens, {total}",
            f"memory      {in_words(self.memory, 'B')}{where}: {in_words(self.state, 'B')} of {state}, "
            f"{in_words(self.memory - self.state - self.gathered, 'B')} of activations in the largest step (fp32)",
            f"disk        {in_words(self.checkpoints, 'B')} of checkpoints",
            f"time        {duration(self.seconds(flops_per_second))} at {in_words(int(flops_per_second), 'FLOP/s')}"
            f"{where} ({source}); data, communication, validation and samples not counted",
        ]
        if price_per_hour:
            hours = self.processes * self.seconds(flops_per_second) / 3600
            lines.append(f"cost        {hours * price_per_hour:,.2f}: {hours:,.2f} device hours at {price_per_hour:g}")
        return lines + ([f"note        {self.note}"] if self.note else [])


def estimate(workload: Workload, layout: Layout = ALONE, processes: int = 1) -> Estimate:
    """Count a run. Each distinct shape's forward runs once, on the meta device.

    Several processes share the samples of a step evenly: the one with most sets the memory.

    Raises:
        UserError: the replicas do not divide the processes.
    """
    config = workload.config
    check_layout(layout, processes)
    shards = processes // layout.replicas
    units = [unit for module in workload.modules.values() for unit in blocks(module)]
    held: dict[BatchShape, Forward] = {}
    stages = []
    for stage in config.stages:
        if workload.micro_batches:
            steps = workload.micro_batches(stage)
        else:
            # In whole rounds every shape comes ``share`` times; the last round is counted as it is.
            rounds, rest = divmod(stage.steps, sum(shape.share for shape in stage.shapes))
            steps = {shape: rounds * shape.share for shape in stage.shapes if rounds}
            for place in range(rest):
                shape = stage.shape_at(place)
                steps[shape] = steps.get(shape, 0) + 1
        for shape, count in steps.items():
            key = shape.model_copy(update={"share": 1})
            if key not in held:
                held[key] = (
                    workload.count(shape)
                    if workload.count
                    else count_forward(partial(workload.forward, shape), tuple(workload.modules.values()), units)
                )
            forward = held[key]
            # A micro-batch is one process's; a batch is shared out.
            most = 1 if workload.micro_batches else math.ceil(shape.batch_size / processes) / shape.batch_size
            kept = math.ceil(most * ((layout.recompute and forward.recomputed) or forward.kept))
            passes = 1 + BACKWARD + workload.without_gradient + (1 if layout.recompute else 0)
            samples = count * shape.batch_size
            tokens = samples * workload.tokens(shape)
            stages.append(StageCost(stage.name, shape, count, samples, tokens, count * passes * forward.flops, kept))
    state, saved, largest = 0, 0, 0
    parameters = {}
    for number, (name, module) in enumerate(workload.modules.items()):
        every, trained = list(module.parameters()), [p for p in module.parameters() if p.requires_grad]
        weights = sum(p.numel() * p.element_size() for p in every)
        optimizer = 4 * _optimizer_numbers(module, workload.optimizers.get(name, config.optimizer))
        average = 4 * sum(v.numel() for v in module.state_dict().values()) if config.ema_decay and not number else 0
        own = weights + sum(p.numel() * p.element_size() for p in trained) + optimizer + average
        state += math.ceil(own / shards) if trained else own  # a frozen teacher is whole everywhere
        saved += (weights + optimizer + average) if trained else 0
        if trained:
            largest = max([largest, *(sum(p.numel() * p.element_size() for p in unit.parameters()) for unit in units)])
        parameters[name] = (sum(p.numel() for p in every), sum(p.numel() for p in trained))
    # One block's weights are used while the next one's come; in the backward pass its whole gradient is there as well.
    gathered = 3 * largest if shards > 1 else 0
    disk = saved * (config.keep_checkpoints + 1)
    unit = "micro-batches" if workload.micro_batches else "steps"
    return Estimate(
        config.name,
        config.total_steps,
        parameters,
        tuple(stages),
        state,
        disk,
        workload.note,
        unit,
        gathered,
        layout,
        processes,
    )


def _optimizer_numbers(module: nn.Module, config: OptimizerConfig) -> int:
    trained = [p for p in module.parameters() if p.requires_grad]
    hidden: set[int] = set()
    if config.name == "muon":
        chooser: Any = module
        hidden = {id(p) for p in chooser.muon_parameters()}
    return sum(p.numel() * _STATES["muon" if id(p) in hidden else "adamw"] for p in trained)


@dataclass(frozen=True)
class Forward:
    """One forward pass: operations of products and convolutions, bytes kept for the backward pass, and bytes kept when
    blocks are computed again: all that is kept outside of them, their inputs, and all of the largest one; 0 = not
    known."""

    flops: int
    kept: int
    recomputed: int = 0


def count_forward(
    forward: Callable[[], Any], modules: Iterable[nn.Module] = (), units: Iterable[nn.Module] = ()
) -> Forward:
    """Count one call. Tensors that share memory are counted once, and the modules' own parameters not at all.

    units: the blocks that might be computed again (``parallel.apply.blocks``).
    """
    from torch.utils.flop_counter import FlopCounterMode

    weights = {p.untyped_storage()._cdata for module in modules for p in module.parameters()}
    kept: dict[int, Tensor] = {}
    inside: dict[int | None, dict[int, Tensor]] = {None: {}}  # block → what is kept within it; None: outside of all
    inputs: dict[int, Tensor] = {}
    current: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in weights:
            kept[place] = tensor
            inside.setdefault(current[-1] if current else None, {})[place] = tensor
        return tensor

    def enter(unit: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        current.append(id(unit))
        for tensor in (*args, *named.values()):
            if isinstance(tensor, Tensor):
                inputs[tensor.untyped_storage()._cdata] = tensor

    def leave(*_: Any) -> None:
        current.pop()

    hooks = [
        hook
        for unit in units
        for hook in (
            unit.register_forward_pre_hook(enter, with_kwargs=True),
            unit.register_forward_hook(leave),
        )
    ]
    try:
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = forward()
    finally:
        for hook in hooks:
            hook.remove()
    del out
    outside = inside.pop(None) | inputs
    within = max((_bytes(held, without=outside) for held in inside.values()), default=0)
    return Forward(counter.get_total_flops(), _bytes(kept), _bytes(outside) + within)


def _bytes(held: Mapping[int, Tensor], without: Mapping[int, Tensor] | None = None) -> int:
    """Memory behind tensors by storage."""
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in (without or {}))


def in_words(amount: int, unit: str) -> str:
    """1234567, "B" → "1.23 MB"."""
    value = float(amount)
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 1000 or prefix == "E":
            return f"{value:.3g} {prefix}{unit}" if prefix else f"{amount} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in the unit one would use: 90 → "1.5 minutes"."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
