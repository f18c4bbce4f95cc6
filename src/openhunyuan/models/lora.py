"""Low-rank adaptation (LoRA): small updates W + strength · alpha/rank · up·down, beside a model or merged into it.

``LoRA`` is the value, in our module names; ``Adapters`` puts several on one model. Unmerged, an update is computed
beside its layer, so the layer may be quantized in any way: only its input and output matter. Files of every format are
read and written in ``convert.lora``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openhunyuan.base.errors import UserError

TRAIN_TARGETS = (
    "linear",
    "fc1",
    "fc2",
    "img_attn_qkv",
    "img_attn_proj",
    "txt_attn_qkv",
    "txt_attn_proj",
    "linear1",
    "linear2",
)
"""Last names of the layers that the official image-to-video LoRA training adapts (release fact F)."""

_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LowRank:
    """An update of some rows of one layer's weight: alpha / rank · up · down.

    Attributes:
        down: [rank, in], A in the paper's letters. A convolution's is flattened to this shape.
        up: [rows, rank], B.
        alpha: the update is scaled by alpha / rank.
        start: the first row of the layer's output that it changes; fused query-key-value layers have updates of parts.
    """

    down: Tensor
    up: Tensor
    alpha: float
    start: int = 0

    @property
    def rank(self) -> int:
        """Columns of ``up``."""
        return self.down.shape[0]

    @property
    def stop(self) -> int:
        """One after the last row it changes."""
        return self.start + self.up.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The dense update of its rows, float32 [rows, in]."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class LoRA:
    """A LoRA in our names.

    Attributes:
        pairs: module name (``double_blocks.0.img_attn_qkv``) → its updates; several change different rows.
        dense: parameter name (``double_blocks.0.img_attn_qkv.bias``) → a difference of the parameter's own shape.
    """

    pairs: Mapping[str, tuple[LowRank, ...]]
    dense: Mapping[str, Tensor] = field(default_factory=dict)


def features(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of anything that is a linear layer, quantized ones included; None of other modules."""
    out, into = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if isinstance(out, int) and isinstance(into, int):
        return out, into
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding):
        return weight.shape[0], weight.shape[1]
    return None


def check_lora(lora: LoRA, model: nn.Module, source: str = "This LoRA") -> None:
    """Raise ``UserError`` unless every update of ``lora`` has a layer of its shape in ``model``."""
    modules = dict(model.named_modules())
    parameters = {**dict(model.named_buffers()), **dict(model.named_parameters())}  # Quantized weights may be buffers.
    wrong = [name for name in lora.pairs if name not in modules] + [
        name for name in lora.dense if name not in parameters
    ]
    if wrong:
        raise UserError(f"{source} changes layers that this model does not have: {listed(wrong)}.")
    for name, pairs in lora.pairs.items():
        rows, columns = _shape(modules[name], name)
        for pair in pairs:
            if pair.down.shape != (pair.rank, columns) or pair.up.shape[1:] != (pair.rank,) or pair.stop > rows:
                raise UserError(
                    f"{source} is for another model: its update of {name} is {list(pair.up.shape)} times "
                    f"{list(pair.down.shape)} from row {pair.start}, but the layer here is {[rows, columns]}; "
                    "use one that was trained for this model."
                )
    for name, difference in lora.dense.items():
        if difference.shape != parameters[name].shape:
            raise UserError(
                f"{source} is for another model: its difference of {name} is {list(difference.shape)}, but the "
                f"parameter here is {list(parameters[name].shape)}; use one that was trained for this model."
            )


def listed(names: Sequence[str], most: int = 20) -> str:
    """The names in one line, the rest counted."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shape(module: nn.Module, name: str) -> tuple[int, int]:
    """[out, in] of a layer's weight as a matrix."""
    if size := features(module):
        return size
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise UserError(f"{name} is no layer that a low-rank update can change; it needs a weight matrix.")
    return weight.shape[0], math.prod(weight.shape[1:])


class LoRALayer(nn.Module):
    """One update beside its layer. Only ``down`` and ``up`` ever take gradients, and only when it is ``trainable``.

    Attributes:
        strength: the user's weight of this update; 0 skips it.
        merged: whether the layer's own weight already holds it.
    """

    def __init__(
        self,
        pair: LowRank,
        strength: float = 1.0,
        dropout: float = 0.0,
        trainable: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        # Copied: a LoRA is a value, and training must not write into it.
        self.down = nn.Parameter(pair.down.detach().to(device, dtype, copy=True), requires_grad=trainable)
        self.up = nn.Parameter(pair.up.detach().to(device, dtype, copy=True), requires_grad=trainable)
        self.alpha, self.start = pair.alpha, pair.start
        self.strength, self.dropout, self.merged = strength, dropout, False

    @property
    def pair(self) -> LowRank:
        """The update as a value; shares memory."""
        return LowRank(self.down.detach(), self.up.detach(), self.alpha, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] → strength · alpha/rank · up·down·x, [..., rows]."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        # The scale is applied where there are the fewest values.
        low = F.linear(x, self.down.to(x.dtype)) * (self.strength * self.alpha / self.down.shape[0])
        return F.linear(low, self.up.to(low.dtype))

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """The layer's output y [..., out] with this update's rows added; written into y where no gradient needs it."""
        part = self(x).to(y.dtype)
        stop = self.start + part.shape[-1]
        if torch.is_grad_enabled():
            return y + F.pad(part, (self.start, y.shape[-1] - stop))
        y[..., self.start : stop] += part
        return y


class _WithLoRA(nn.Module):
    """What a layer's class gains while LoRAs are on it; ``lora`` is adapter name → its updates."""

    lora: nn.ModuleDict

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(x, *args, **kwargs)
        for updates in self.lora.values():
            for layer in updates:  # pyright: ignore[reportGeneralTypeIssues]  (a ModuleList)
                if layer.strength and not layer.merged:
                    y = layer.add_to(y, x)
        return y


@cache
def _with_lora(kind: type[nn.Module]) -> type[nn.Module]:
    """The class ``kind`` with updates added to its result.

    The layer keeps its place, its names and what it is (FSDP2 does the same to what it shards), so that checkpoints,
    sharding plans and quantized layers need to know nothing of LoRA. Compiled graphs notice: they check classes.
    """
    return type(f"{kind.__name__}WithLoRA", (_WithLoRA, kind), {})


class Adapters:
    """The LoRAs on one model: add, weigh, remove, merge, in any order. A model has at most one of these.

    Attributes:
        model: the model; its own parameters are changed only by ``merge``, and by updates of layers that are not
            linear (a convolution, a norm, a bias). Whatever was changed is restored bit for bit.
        merged: whether updates are inside the weights: no extra time a step, a copy of the changed weights in memory.

    Example:
        >>> adapters = Adapters(dit)
        >>> adapters.add("style", read_lora("style.safetensors", dit), strength=0.8)
        >>> adapters.set_strengths({"style": 0.5})
        >>> adapters.remove("style")
    """

    def __init__(self, model: nn.Module) -> None:
        if any(isinstance(module, _WithLoRA) for module in model.modules()):
            raise ValueError("this model already has LoRAs on it; use the Adapters that put them there")
        self.model = model
        self.merged = False
        self._strengths: dict[str, float] = {}
        self._dense: dict[str, LoRA] = {}  # The parts of each LoRA that have no branch: they go into parameters.
        self._kept: dict[str, Tensor] = {}  # Changed parameter → its own value, on the CPU.

    @property
    def strengths(self) -> dict[str, float]:
        """Name → strength of every LoRA on the model."""
        return dict(self._strengths)

    def add(
        self,
        name: str,
        lora: LoRA,
        strength: float = 1.0,
        *,
        trainable: bool = False,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Put a LoRA on the model.

        Args:
            name: a new name: letters, digits, ``_`` and ``-``.
            lora: what to add; it is copied to each layer's device.
            strength: its weight; negative ones take away.
            trainable: its ``up`` and ``down`` take gradients, and nothing else of the model does.
            dropout: of the updates' input while the model is in training mode, 0 to below 1.
            dtype: of the updates. Default: the layer's when that is a floating one, float32 when trainable.

        Raises:
            UserError: a name that is taken or unusable, a layer that the model lacks, a wrong shape, or a difference of
                a weight that is quantized.
        """
        if not name.replace("-", "_").isidentifier() or hasattr(nn.ModuleDict, name):
            raise UserError(f"'{name}' cannot name a LoRA; use letters, digits, _ and -, a letter first.")
        if name in self._strengths:
            raise UserError(f"There is already a LoRA {name}; remove it first or choose another name.")
        if not math.isfinite(strength):
            raise UserError(f"The strength of {name} is {strength}, but it must be a finite number.")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is {dropout}, but it must be at least 0 and below 1.")
        check_lora(lora, self.model, f"The LoRA {name}")
        modules = dict(self.model.named_modules())
        beside = {module: pairs for module, pairs in lora.pairs.items() if features(modules[module])}
        inside = LoRA({module: pairs for module, pairs in lora.pairs.items() if module not in beside}, lora.dense)
        if trainable and (inside.pairs or inside.dense):
            others = listed([*inside.pairs, *inside.dense])
            raise UserError(f"Only updates of linear layers can be trained, but {name} changes {others}.")
        for parameter in [*(f"{module}.weight" for module in inside.pairs), *inside.dense]:
            self._check_plain(parameter)
        if self.merged:
            for module in beside:
                self._check_plain(f"{module}.weight")

        if trainable:
            self._freeze()
        for module, pairs in beside.items():
            self._attach(modules[module], name, pairs, strength, dropout, trainable, dtype)
        self._strengths[name] = strength
        self._dense[name] = inside
        self._refresh()

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Change the weights of some LoRAs; 0 switches one off at no cost. ``UserError`` for a name that is not on."""
        for name, strength in strengths.items():
            self._check_name(name)
            if not math.isfinite(strength):
                raise UserError(f"The strength of {name} is {strength}, but it must be a finite number.")
        self._strengths.update(strengths)
        for adapter, _, layer in self._layers():
            layer.strength = self._strengths[adapter]
        self._refresh()

    def remove(self, name: str) -> None:
        """Take a LoRA off; with the last one the model is what it was, bit for bit."""
        self._check_name(name)
        for module in list(self.model.modules()):
            if isinstance(module, _WithLoRA) and name in module.lora:
                del module.lora[name]
                if not module.lora:
                    del module.lora
                    module.__class__ = type(module).__bases__[1]
        del self._strengths[name], self._dense[name]
        self._refresh()

    def merge(self) -> None:
        """Compute every update into the weights; later additions and strengths follow. Undone by ``unmerge``.

        The weights as they were are kept on the CPU, without a copy where they are there already. On quantized layers
        ``UserError``, before anything changes: there updates stay beside the layer.
        """
        for _, module, _ in self._layers():
            self._check_plain(f"{module}.weight")
        self.merged = True
        self._refresh()

    def unmerge(self) -> None:
        """Restore the weights bit for bit and compute the updates beside them again."""
        self.merged = False
        self._refresh()

    def parameters(self, name: str) -> Iterator[nn.Parameter]:
        """``down`` and ``up`` of every update of a LoRA, for an optimizer."""
        self._check_name(name)
        for adapter, _, layer in self._layers():
            if adapter == name:
                yield from (layer.down, layer.up)

    def lora(self, name: str) -> LoRA:
        """A LoRA as it is on the model now (trained or not), on the CPU, for ``convert.lora.write_lora``."""
        self._check_name(name)
        pairs: dict[str, tuple[LowRank, ...]] = {}
        for adapter, module, layer in self._layers():
            if adapter == name:
                own = layer.pair
                copied = LowRank(own.down.cpu().clone(), own.up.cpu().clone(), own.alpha, own.start)
                pairs[module] = (*pairs.get(module, ()), copied)
        inside = self._dense[name]
        return LoRA({**pairs, **inside.pairs}, inside.dense)

    def _check_name(self, name: str) -> None:
        if name not in self._strengths:
            there = f"there are {', '.join(self._strengths)}" if self._strengths else "there are none"
            raise UserError(f"There is no LoRA {name} on the model; {there}.")

    def _check_plain(self, parameter: str) -> None:
        module, _, last = parameter.rpartition(".")
        value = getattr(self.model.get_submodule(module), last, None)
        if not isinstance(value, nn.Parameter) or value.dtype not in _PLAIN:
            raise UserError(
                f"{parameter} is quantized, so nothing can be added to it; leave the LoRA unmerged, or load the model "
                "in bfloat16 or float32."
            )

    def _freeze(self) -> None:
        own = {id(parameter) for _, _, layer in self._layers() for parameter in layer.parameters()}
        for parameter in self.model.parameters():
            if id(parameter) not in own:
                parameter.requires_grad_(False)

    def _attach(
        self,
        module: nn.Module,
        name: str,
        pairs: Iterable[LowRank],
        strength: float,
        dropout: float,
        trainable: bool,
        dtype: torch.dtype | None,
    ) -> None:
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if dtype is None:
            dtype = torch.float32 if trainable else next((t.dtype for t in tensors if t.dtype in _PLAIN), None)
        device = tensors[0].device if tensors else None
        layers = [LoRALayer(pair, strength, dropout, trainable, device, dtype) for pair in pairs]
        if not isinstance(module, _WithLoRA):
            module.lora = nn.ModuleDict()
            module.__class__ = _with_lora(type(module))
        assert isinstance(module, _WithLoRA)
        module.lora[name] = nn.ModuleList(layers).train(module.training)

    def _layers(self) -> Iterator[tuple[str, str, LoRALayer]]:
        """(LoRA, module, update) of everything that is beside a layer."""
        for module_name, module in self.model.named_modules():
            if isinstance(module, _WithLoRA):
                for name, updates in module.lora.items():
                    for layer in updates:  # pyright: ignore[reportGeneralTypeIssues]  (a ModuleList)
                        yield name, module_name, layer

    @torch.no_grad()
    def _refresh(self) -> None:
        """Make the parameters what they must be now: their own values plus every update that goes inside."""
        changes: dict[str, list[tuple[float, LowRank | Tensor]]] = {}
        for name, inside in self._dense.items():
            strength = self._strengths[name]
            for module, pairs in inside.pairs.items():
                changes.setdefault(f"{module}.weight", []).extend((strength, pair) for pair in pairs)
            for parameter, difference in inside.dense.items():
                changes.setdefault(parameter, []).append((strength, difference))
        for name, module, layer in self._layers():
            layer.merged = self.merged
            if self.merged:
                changes.setdefault(f"{module}.weight", []).append((self._strengths[name], layer.pair))
        changes = {parameter: parts for parameter, parts in changes.items() if any(strength for strength, _ in parts)}

        # Parameters get new values rather than values written into them: loaded weights may be mapped from a file, and
        # another model may share the mapping.
        for name in [name for name in self._kept if name not in changes]:
            parameter = self.model.get_parameter(name)
            parameter.data = self._kept.pop(name).to(parameter.device)
        for name, parts in changes.items():
            parameter = self.model.get_parameter(name)
            if name not in self._kept:
                self._kept[name] = parameter.data.cpu()
            total = self._kept[name].to(parameter.device, torch.float32, copy=True)
            for strength, part in parts:
                if isinstance(part, LowRank):
                    total.flatten(1)[part.start : part.stop] += strength * part.delta().to(parameter.device)
                else:
                    total += strength * part.to(parameter.device, torch.float32)
            parameter.data = total.to(parameter.dtype)


def new_lora(
    model: nn.Module,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = TRAIN_TARGETS,
    init: Literal["kaiming", "gaussian"] = "kaiming",
    generator: torch.Generator | None = None,
) -> LoRA:
    """A LoRA to train: ``up`` is zero, so that the model starts as it was; ``down`` is random. float32, on the CPU.

    Put it on the model with ``Adapters.add(name, lora, trainable=True)``.

    Args:
        model: its linear layers are adapted.
        rank: 1 or more, at most what each layer's matrix has.
        alpha: the update's scale times the rank. Default: the rank.
        targets: a linear layer is adapted when its name, or the end of it after a dot, is one of these.
        init: of ``down``: "kaiming" is uniform within ±1/√in (the paper's code and PEFT's default), "gaussian" is
            normal with standard deviation 1/rank (the official image-to-video training).
        generator: a CPU generator for ``down``.

    Raises:
        UserError: a rank or alpha out of range, or a target that no linear layer has.
    """
    alpha = float(rank) if alpha is None else float(alpha)
    if rank < 1:
        raise UserError(f"rank is {rank}, but it must be at least 1.")
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha is {alpha}, but it must be above 0.")
    linears = {name: size for name, module in model.named_modules() if (size := features(module))}
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linears):
            raise UserError(f"No linear layer is called {target}; give the end of a name, such as img_attn_qkv.")
    pairs: dict[str, tuple[LowRank, ...]] = {}
    for name, (rows, columns) in linears.items():
        if not any(f".{name}".endswith(f".{target}") for target in targets):
            continue
        if rank > min(rows, columns):
            raise UserError(f"rank is {rank}, but {name} is {rows} by {columns}; use at most {min(rows, columns)}.")
        down = torch.empty(rank, columns)
        if init == "gaussian":
            down.normal_(std=1 / rank, generator=generator)
        else:
            down.uniform_(-1 / math.sqrt(columns), 1 / math.sqrt(columns), generator=generator)
        pairs[name] = (LowRank(down, torch.zeros(rows, rank), alpha),)
    return LoRA(pairs)
