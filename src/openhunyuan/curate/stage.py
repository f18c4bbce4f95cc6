"""The contract of a curation stage, and the three things that can come out of one.

A stage is a frozen record: its fields are its parameters. Name, version, parameters and the hash of its weights make
its key; the key and the hash of what it read are the address of what it found. So a stage that was changed in any of
them is run again, and nothing else is.

What a stage gives for one input is an `Outcome`: rows, or a drop with its reason, or an error. An input never vanishes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from openhunyuan.base.record import Record
from openhunyuan.curate.clip import Drop


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage needs."""

    cpus: int = 1
    gpus: int = 0


def together(needs: Iterable[Resources]) -> Resources:
    """What one worker needs that runs several stages one after the other."""
    needs = list(needs)
    return Resources(max((n.cpus for n in needs), default=1), max((n.gpus for n in needs), default=0))


class Stage(Record):
    """Base of every stage. Subclasses say `name` and `version`, and raise `version` when the same parameters would
    give other numbers than before."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    resources: ClassVar[Resources] = Resources()
    bulky: ClassVar[tuple[str, ...]] = ()
    """Columns that stay on disk, for memory must not grow with them: what needs them reads some rows at a time."""

    @property
    def weights(self) -> str | None:
        """Hash of the stage's weights; None where it has none."""
        return None

    def check(self) -> None:
        """Raise UserError when the stage cannot run, before anything is read; stages with weights open them."""

    def describe(self) -> dict[str, Any]:
        """Everything that the key is made of."""
        return {
            "name": self.name,
            "version": self.version,
            "parameters": self.model_dump(mode="json"),
            "weights": self.weights,
        }

    @property
    def key(self) -> str:
        """16 hex digits that change with name, version, parameters and weights."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What a stage gave for the input with this key (a hash of content): rows, else a drop, else an error."""

    key: str
    rows: tuple[dict[str, Any], ...] = field(default=())
    drop: Drop | None = None
    error: str | None = None

    def table_rows(self) -> list[dict[str, Any]]:
        """The rows as a table holds them: every one with the key and the columns `error`, `reason` and `score`."""
        common = {
            "key": self.key,
            "error": self.error,
            "reason": self.drop.reason if self.drop else None,
            "score": self.drop.score if self.drop else None,
        }
        return [{**common, **row} for row in self.rows] or [common]
