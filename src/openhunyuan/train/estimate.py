"""What a run will cost, before it starts: parameters, floating-point operations, tokens, memory, time.

Networks are built and run once on the meta device, where nothing is computed or stored: torch's counter sees every
product, and a hook every tensor that is kept for the backward pass. Time is operations over a measured speed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.parallel.apply import ALONE, Layout, blocks, check, check_layout, shards
from openhunyuan.parallel.tensor import split_alone
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
    count: the forward of a shape in one process of a layout, instead of running it.
    micro_batches: how many of each shape a stage runs; None: each of its steps is one.
    without_gradient: forwards of the model that a step runs besides. teacher: forwards of a frozen one, which processes
    with the same samples do not share: each of them runs it whole.
    global_batch: samples of a step, over all processes; 0: those of its shape.
    recompute: the run computes blocks again, whatever the layout says.
    alone: why the run takes one process only; empty: it takes several.
    """

    config: TrainConfig
    modules: Mapping[str, nn.Module]
    forward: Callable[[BatchShape], Any]
    tokens: Callable[[BatchShape], int]
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    note: str = ""
    count: Callable[[BatchShape, Layout], Forward] | None = None
    micro_batches: Callable[[Stage], Mapping[BatchShape, int]] | None = None
    without_gradient: int = 0
    teacher: int = 0
    global_batch: int = 0
    recompute: bool = False
    alone: str = ""


@dataclass(frozen=True)
class StageCost:
    """All steps, or micro-batches, of one batch shape in one stage. flops: forward and backward of all of them in all
    processes, with what is computed again or by several; activations: bytes a process keeps for one backward pass."""

    stage: str
    shape: BatchShape
    steps: int
    samples: int
    tokens: int
    flops: int
    activations: int


@dataclass(frozen=True)
class Estimate:
    """The costs of a run. Sizes in bytes and of one process, the one that holds most: ``weights`` is its part of all
    parameters, ``state`` of weights, gradients, optimizer states and average, ``gathered`` what it holds of the others'
    parts at the worst moment."""

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
    weights: int = 0
    sent: int = 0
    """what a process sends of weights and gradients in a micro-batch"""
    samples_per_rank: float = 0.0
    """samples of a step that come to processes with the same data, on average; 0 = as the shape says"""

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
            lines += self._layout_lines()
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
        if self.processes > 1:
            share = in_words(self.flops // self.processes, "FLOP")
            lines.insert(-2, f"a process   {in_words(self.weights, 'B')} of weights, {share}")
        if price_per_hour:
            hours = self.processes * self.seconds(flops_per_second) / 3600
            lines.append(f"cost        {hours * price_per_hour:,.2f}: {hours:,.2f} device hours at {price_per_hour:g}")
        return lines + ([f"note        {self.note}"] if self.note else [])

    def _layout_lines(self) -> list[str]:
        layout, within = self.layout, shards(self.layout, self.processes)
        of = f" (of blocks 1/{layout.tensor} of that)" if layout.tensor > 1 else ""
        again = ", blocks are computed again" if layout.recompute else ""
        each = f"{layout.replicas} x {self.processes // layout.replicas}"
        lines = [f"layout      {self.processes} processes, {each}: each holds 1/{within} of the state{of}{again}"]
        if layout.alike > 1:
            degrees = f"tensor {layout.tensor} x ulysses {layout.ulysses} x ring {layout.ring}"
            lines.append(f"            {layout.alike} processes work on the same samples ({degrees})")
        if self.samples_per_rank:
            groups = self.processes // layout.alike
            lines.append(
                f"            {groups} parts of the data, of a step {self.samples_per_rank:g} samples each (mean)"
            )
        exchanged = "; activations that blocks exchange are not counted" if layout.alike > 1 else ""
        lines.append(
            f"traffic     a process sends {in_words(self.sent, 'B')} of weights and gradients (fp32) in every "
            f"micro-batch{exchanged}"
        )
        return lines


def estimate(workload: Workload, layout: Layout = ALONE, processes: int = 1) -> Estimate:
    """Count a run. Each distinct shape's forward runs once, on the meta device.

    Several processes share the samples of a step evenly: the one with most sets the memory. State and traffic are those
    of the first, whose parts of what does not divide are the largest.

    Raises:
        UserError: the layout does not divide the processes or the network, a step has fewer samples than there are
            parts of the data, or the run takes one process only.
    """
    config = workload.config
    if processes > 1 and workload.alone:
        raise UserError(workload.alone)
    check_layout(layout, processes)
    trained = {name: m for name, m in workload.modules.items() if any(p.requires_grad for p in m.parameters())}
    for module in trained.values():
        check(module, layout)
    if layout.alike > 1 and workload.count is None:
        raise UserError(f"{config.name} is counted for shards and replicas only; leave tensor, ulysses and ring out.")
    groups = processes // layout.alike
    if workload.global_batch and workload.global_batch < groups:
        raise UserError(
            f"A global batch of {workload.global_batch} leaves some of the {groups} processes without a sample; take "
            "fewer, or let more of them share samples (--tensor, --ulysses, --ring)."
        )
    layout = layout.model_copy(update={"recompute": layout.recompute or workload.recompute})
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
                    workload.count(shape, layout)
                    if workload.count
                    else count_forward(partial(workload.forward, shape), tuple(workload.modules.values()), units)
                )
            forward = held[key]
            # A micro-batch is one process's; a batch is shared out.
            most = 1 if workload.micro_batches else math.ceil(shape.batch_size / groups) / shape.batch_size
            kept = math.ceil(most * ((layout.recompute and forward.recomputed) or forward.kept))
            passes = 1 + BACKWARD + workload.without_gradient + (1 if layout.recompute else 0)
            samples = count * shape.batch_size
            tokens = samples * workload.tokens(shape)
            flops = passes * forward.flops + workload.teacher * (forward.unshared or forward.flops)
            flops *= count * layout.alike
            stages.append(StageCost(stage.name, shape, count, samples, tokens, flops, kept))
    weights, state, saved, gathered, sent = 0, 0, 0, 0, 0
    parameters = {}
    for number, (name, module) in enumerate(workload.modules.items()):
        parameters[name] = tuple(sum(p.numel() for p in m) for m in _all_and_trained(module))
        if name not in trained:  # a frozen teacher is whole everywhere
            size = sum(p.numel() * p.element_size() for p in module.parameters())
            weights, state = weights + size, state + size
            continue
        optimizer, averaged = workload.optimizers.get(name, config.optimizer), config.ema_decay and not number
        whole = _State.of(module, optimizer, 1)
        saved += whole.weights + whole.optimizer + (whole.average if averaged else 0)
        part = _State.of(_split(module, layout), optimizer, shards(layout, processes))
        weights += part.weights
        state += part.weights + part.gradients + part.optimizer + (part.average if averaged else 0)
        gathered = max(gathered, part.gathered)
        sent += part.sent(shards(layout, processes), layout.replicas)
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
        weights,
        sent,
        workload.global_batch / groups,
    )


def _all_and_trained(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    return list(module.parameters()), [p for p in module.parameters() if p.requires_grad]


def _split(module: nn.Module, layout: Layout) -> nn.Module:
    """What the first process of a tensor-parallel group holds of a module; the module itself is not changed."""
    if layout.tensor > 1:
        module = copy.deepcopy(module)
        split_alone(module, layout.tensor, layout.sequence)
    return module


@dataclass(frozen=True)
class _State:
    """Bytes of a trained module that a process holds, sharded along the first axis of every parameter (FSDP2)."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    gathered: int
    """whole blocks, and what is outside of blocks, which stays from the forward to the end of the backward pass"""
    twice: int
    """of ``weights``, those of blocks: they are gathered again going backward"""

    @classmethod
    def of(cls, module: nn.Module, config: OptimizerConfig, shards: int) -> _State:
        def part(tensor: Tensor) -> int:
            return math.ceil(tensor.shape[0] / shards) * math.prod(tensor.shape[1:]) if tensor.ndim else 1

        def size(tensors: Iterable[Tensor]) -> int:
            return sum(t.numel() * t.element_size() for t in tensors)

        every, trained = _all_and_trained(module)
        hidden: set[int] = set()
        if config.name == "muon":
            chooser: Any = module
            hidden = {id(p) for p in chooser.muon_parameters()}
        sharded = {id(p) for p in every}
        buffers = [value for value in module.state_dict(keep_vars=True).values() if id(value) not in sharded]
        units = list(blocks(module))
        within = {id(p) for unit in units for p in unit.parameters()}
        largest = max((size(unit.parameters()) for unit in units), default=0)
        outside = size(p for p in every if id(p) not in within)
        return cls(
            weights=sum(part(p) * p.element_size() for p in every),
            gradients=sum(part(p) * p.element_size() for p in trained),
            optimizer=4 * sum(part(p) * _STATES["muon" if id(p) in hidden else "adamw"] for p in trained),
            average=4 * (sum(part(p) for p in every) + sum(value.numel() for value in buffers)),
            # One block's weights are used while the next one's come; going backward its whole gradient is there, too.
            gathered=3 * largest + 2 * outside if shards > 1 else 0,
            twice=sum(part(p) * p.element_size() for p in every if id(p) in within),
        )

    def sent(self, shards: int, replicas: int) -> int:
        """Gathering weights, and scattering gradients to be added, a process sends its share to each of the others;
        adding over replicas, all of its part twice but for one share of it."""
        return (shards - 1) * (self.weights + self.twice + self.gradients) + round(
            2 * (replicas - 1) / replicas * self.gradients
        )


@dataclass(frozen=True)
class Forward:
    """One forward pass: operations of products and convolutions, bytes kept for the backward pass, and bytes kept when
    blocks are computed again: all that is kept outside of them, their inputs, and all of the largest one; 0 = not
    known. unshared: operations where no process shares the samples; 0 = as many."""

    flops: int
    kept: int
    recomputed: int = 0
    unshared: int = 0


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
