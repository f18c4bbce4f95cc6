"""What a run will cost, before it starts: parameters, floating-point operations, tokens, memory, time.

Networks are built and run once on the meta device, where nothing is computed or stored: torch's counter sees every
product, and a hook every tensor that is kept for the backward pass. Time is operations over a measured speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
    count: (operations of a forward, bytes kept for the backward pass) of a shape, instead of running it.
    micro_batches: how many of each shape a stage runs; None: each of its steps is one.
    without_gradient: forwards of the model a step runs besides, of a teacher or of itself.
    """

    config: TrainConfig
    modules: Mapping[str, nn.Module]
    forward: Callable[[BatchShape], Any]
    tokens: Callable[[BatchShape], int]
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    note: str = ""
    count: Callable[[BatchShape], tuple[int, int]] | None = None
    micro_batches: Callable[[Stage], Mapping[BatchShape, int]] | None = None
    without_gradient: int = 0


@dataclass(frozen=True)
class StageCost:
    """All steps, or micro-batches, of one batch shape in one stage. flops: forward and backward of all of them;
    activations: bytes kept for one backward pass."""

    stage: str
    shape: BatchShape
    steps: int
    samples: int
    tokens: int
    flops: int
    activations: int


@dataclass(frozen=True)
class Estimate:
    """The costs of a run. Sizes in bytes; ``state`` is weights, gradients, optimizer states and average."""

    name: str
    steps: int
    parameters: Mapping[str, tuple[int, int]]
    """module → (all parameters, trained ones)"""
    stages: tuple[StageCost, ...]
    state: int
    checkpoints: int
    """on the disk, all that are kept and the one being written"""
    note: str
    unit: str = "steps"
    """what a stage's line counts"""

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
        """State and the largest step's activations."""
        return self.state + max(stage.activations for stage in self.stages)

    def seconds(self, flops_per_second: float) -> float:
        return self.flops / flops_per_second

    def lines(self, flops_per_second: float, source: str) -> list[str]:
        """The page that ``--dry-run`` prints."""
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
        total = in_words(self.flops, "FLOP")
        lines += [
            f"in all      {self.steps:,} steps, {self.samples:,} samples, {self.tokens:,} tokens, {total}",
            f"memory      {in_words(self.memory, 'B')}: {in_words(self.state, 'B')} of weights, gradients, optimizer "
            f"and average, {in_words(self.memory - self.state, 'B')} of activations in the largest step (fp32)",
            f"disk        {in_words(self.checkpoints, 'B')} of checkpoints",
            f"time        {duration(self.seconds(flops_per_second))} at {in_words(int(flops_per_second), 'FLOP/s')}"
            f" ({source}); data, validation and samples not counted",
        ]
        return lines + ([f"note        {self.note}"] if self.note else [])


def estimate(workload: Workload) -> Estimate:
    """Count a run. Each distinct shape's forward runs once, on the meta device."""
    config = workload.config
    held: dict[BatchShape, tuple[int, int]] = {}
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
                run = partial(count_forward, partial(workload.forward, shape), tuple(workload.modules.values()))
                held[key] = workload.count(shape) if workload.count else run()
            flops, kept = held[key]
            samples = count * shape.batch_size
            tokens = samples * workload.tokens(shape)
            passes = 1 + BACKWARD + workload.without_gradient
            stages.append(StageCost(stage.name, shape, count, samples, tokens, count * passes * flops, kept))
    state, saved = 0, 0
    parameters = {}
    for number, (name, module) in enumerate(workload.modules.items()):
        every, trained = list(module.parameters()), [p for p in module.parameters() if p.requires_grad]
        weights = sum(p.numel() * p.element_size() for p in every)
        optimizer = 4 * _optimizer_numbers(module, workload.optimizers.get(name, config.optimizer))
        average = 4 * sum(v.numel() for v in module.state_dict().values()) if config.ema_decay and not number else 0
        state += weights + sum(p.numel() * p.element_size() for p in trained) + optimizer + average
        saved += (weights + optimizer + average) if trained else 0
        parameters[name] = (sum(p.numel() for p in every), sum(p.numel() for p in trained))
    disk = saved * (config.keep_checkpoints + 1)
    unit = "micro-batches" if workload.micro_batches else "steps"
    return Estimate(config.name, config.total_steps, parameters, tuple(stages), state, disk, workload.note, unit)


def _optimizer_numbers(module: nn.Module, config: OptimizerConfig) -> int:
    trained = [p for p in module.parameters() if p.requires_grad]
    hidden: set[int] = set()
    if config.name == "muon":
        chooser: Any = module
        hidden = {id(p) for p in chooser.muon_parameters()}
    return sum(p.numel() * _STATES["muon" if id(p) in hidden else "adamw"] for p in trained)


def count_forward(forward: Callable[[], Any], modules: Any = ()) -> tuple[int, int]:
    """(operations of products and convolutions, bytes kept for the backward pass) of one call.

    Tensors that share memory are counted once, and the modules' own parameters not at all.
    """
    from torch.utils.flop_counter import FlopCounterMode

    weights = {p.untyped_storage()._cdata for module in modules for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in weights:
            kept[place] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()
    del out
    return counter.get_total_flops(), sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


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
