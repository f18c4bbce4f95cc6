"""The table of ``openhunyuan train RECIPE --watch``: the processes of a run, as their heartbeats say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

EVERY = 2.0
"""Seconds between two looks."""


def watch(runs: Sequence[Path]) -> int:
    """Show the runs' tables until every process has ended, or until Ctrl-C; once where nobody looks (a pipe)."""
    from rich.live import Live

    from openhunyuan.base.log import console
    from openhunyuan.train.heartbeat import read_beats

    screen = console()
    if not screen.is_terminal:
        screen.width = 200
        screen.print(_tables(runs))
        return 0
    try:
        with Live(_tables(runs), console=screen, auto_refresh=False) as live:
            while any(beat.doing not in ("ended", "stopped") for run in runs for beat in read_beats(run)):
                time.sleep(EVERY)
                live.update(_tables(runs), refresh=True)
    except KeyboardInterrupt:
        pass
    return 0


def _tables(runs: Sequence[Path]) -> Table:
    from rich.table import Table

    from openhunyuan.train.heartbeat import COLUMNS, read_beats, rows, standings

    whole = Table.grid()
    for run in runs:
        found = standings(read_beats(run))
        table = Table(title=str(run), title_justify="left", caption=None if found else "no heartbeats yet")
        for column in COLUMNS:
            table.add_column(column)
        for row, standing in zip(rows(found), found, strict=True):
            table.add_row(*row, style="bold red" if standing.note else None)
        whole.add_row(table)
    return whole
