"""Name maps: a list of rules that reads both ways between our names (the official ones) and another program's.

A rule names modules; a parameter's own name (``weight``, ``bias``) is carried over. ``{i}`` and ``{j}`` stand for
numbers. The table is all there is to know: the way back is the same table read from the other side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from openhunyuan.convert.lazy import Lazy, join, reshape, swap_halves

Kind = Literal["same", "split", "swap", "pointwise"]


@dataclass(frozen=True)
class Rule:
    """One line of a map.

    Attributes:
        ours: our module's name, or a parameter's whole name where theirs ends differently.
        theirs: their names; several for a split.
        kind: same: values unchanged. split: our rows, in order, are those of several modules; the first three take
            hidden_size rows each, a fourth the rest. swap: the halves of the rows change places. pointwise: our
            matrix [out, in] is their convolution [out, in, 1, 1, 1].
    """

    ours: str
    theirs: tuple[str, ...]
    kind: Kind = "same"


def same(ours: str, theirs: str) -> Rule:
    """Ours is theirs by another name."""
    return Rule(ours, (theirs,))


@dataclass(frozen=True)
class NameMap:
    """Rules, ready to be used.

    >>> NameMap((same("final_layer.linear", "proj_out"),)).their_names("final_layer.linear.bias")
    ('proj_out.bias',)
    """

    rules: tuple[Rule, ...]
    _ours: tuple[re.Pattern[str], ...] = field(init=False, repr=False)
    _theirs: tuple[tuple[re.Pattern[str], int, int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ours", tuple(_pattern(rule.ours) for rule in self.rules))
        theirs = tuple(
            (_pattern(name), line, part)
            for line, rule in enumerate(self.rules)
            for part, name in enumerate(rule.theirs)
        )
        object.__setattr__(self, "_theirs", theirs)

    def find(self, ours: str) -> tuple[Rule, tuple[str, ...]]:
        """The rule of one of our names (a module's or a parameter's) and their names for it. KeyError if unknown."""
        for pattern, rule in zip(self._ours, self.rules, strict=True):
            if match := pattern.fullmatch(ours):
                return rule, tuple(_filled(name, match) for name in rule.theirs)
        raise KeyError(f"{ours} is not a module of this network")

    def find_back(self, theirs: str) -> tuple[Rule, str, int]:
        """The rule of one of their names, our name for it, and which of the rule's parts it is. KeyError if unknown."""
        for pattern, line, part in self._theirs:
            if match := pattern.fullmatch(theirs):
                return self.rules[line], _filled(self.rules[line].ours, match), part
        raise KeyError(f"{theirs} is not a module of this network")

    def their_names(self, ours: str) -> tuple[str, ...]:
        """Their name, or names, for one of ours. KeyError if unknown."""
        return self.find(ours)[1]

    def to_theirs(self, state: Mapping[str, Lazy], hidden_size: int = 0) -> dict[str, Lazy]:
        """Our tensors under their names. KeyError for a name that no rule knows."""
        out: dict[str, Lazy] = {}
        for ours, value in state.items():
            rule, names = self.find(ours)
            out.update(zip(names, _apart(rule, value, hidden_size, ours), strict=True))
        return out

    def to_ours(self, state: Mapping[str, Lazy]) -> dict[str, Lazy]:
        """Their tensors under our names; those of unknown name, or with a missing neighbour, are left out."""
        found: dict[str, tuple[Rule, dict[int, Lazy]]] = {}
        for theirs, value in state.items():
            try:
                rule, ours, part = self.find_back(theirs)
            except KeyError:
                continue
            found.setdefault(ours, (rule, {}))[1][part] = value
        return {
            ours: _together(rule, [parts[n] for n in range(len(rule.theirs))])
            for ours, (rule, parts) in found.items()
            if len(parts) == len(rule.theirs)
        }


def _pattern(name: str) -> re.Pattern[str]:
    text = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(name))
    return re.compile(text + r"(?P<parameter>\.(?:weight|bias|weight_scale))?")


def _filled(name: str, match: re.Match[str]) -> str:
    groups = match.groupdict()
    for letter in ("i", "j"):
        if groups.get(letter) is not None:
            name = name.replace("{" + letter + "}", groups[letter])
    return name + (groups["parameter"] or "")


def _apart(rule: Rule, value: Lazy, hidden_size: int, ours: str) -> Iterable[Lazy]:
    if rule.kind == "swap":
        return (swap_halves(value),)
    if rule.kind == "pointwise" and len(value.shape) == 2:
        return (reshape(value, (*value.shape, 1, 1, 1)),)
    if rule.kind != "split":
        return (value,)
    rows = [hidden_size] * 3 + [value.shape[0] - 3 * hidden_size] * (len(rule.theirs) - 3)
    if sum(rows) != value.shape[0] or min(rows) < 1:
        raise ValueError(
            f"{ours} has {value.shape[0]} rows, which do not split into {len(rows)} of width {hidden_size}"
        )
    starts = [sum(rows[:n]) for n in range(len(rows))]
    return [value.rows(start, start + size) for start, size in zip(starts, rows, strict=True)]


def _together(rule: Rule, parts: list[Lazy]) -> Lazy:
    if rule.kind == "swap":
        return swap_halves(parts[0])
    if rule.kind == "pointwise" and len(parts[0].shape) > 2:
        return reshape(parts[0], parts[0].shape[:2])
    return join(parts) if rule.kind == "split" else parts[0]
