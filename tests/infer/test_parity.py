"""Every row of docs/results/parity.md is within its tolerance, and the page lists exactly these rows."""

from __future__ import annotations

import re

import pytest

from tools.parity_rows import MEASURED_FIXES, PIPELINE_ROWS, Row, uncorrected
from tools.parity_table import PAGE, ROWS, page

pytest.importorskip("peft", reason="peft is not installed (pip install 'openhunyuan[dev]')")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_parity(row: Row) -> None:
    assert row.measure() <= row.tolerance


@pytest.mark.parametrize("fix", MEASURED_FIXES)
def test_each_correction_is_needed(fix: str) -> None:
    """The comparison sees what a correction changes: without it the result is further apart than its rows allow."""
    assert uncorrected(fix) > 2 * max(row.tolerance for row in PIPELINE_ROWS if fix in row.notes)


def test_names_of_rows_are_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_lists_these_rows_with_these_tolerances() -> None:
    def listed(text: str) -> list[tuple[str, ...]]:
        rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
        return [(part, what, tolerance, fixes) for part, what, tolerance, _, fixes in rows]

    def prose(text: str) -> list[str]:
        """Everything but the table and what was measured."""
        lines = [line for line in text.splitlines() if not line.startswith(("|", "Measured with"))]
        return [re.sub(r" Left out, the result differs by .*", "", line) for line in lines]

    written, wanted = PAGE.read_text(encoding="utf-8"), page(ROWS, [0.0] * len(ROWS), {})
    assert listed(written) == listed(wanted)
    assert prose(written) == prose(wanted)
