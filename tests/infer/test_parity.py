"""Every row of docs/results/parity.md is within its tolerance, and the page lists exactly these rows."""

from __future__ import annotations

import re

import pytest

from tools.parity_rows import MEASURED_FIXES, ROWS, Row, uncorrected
from tools.parity_table import PAGE, page


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_parity(row: Row) -> None:
    assert row.measure() <= row.tolerance


@pytest.mark.parametrize("fix", MEASURED_FIXES)
def test_each_correction_is_needed(fix: str) -> None:
    """The comparison sees what a correction changes: without it the frames are further apart than any row allows."""
    assert uncorrected(fix) > 5 * max(row.tolerance for row in ROWS)


def test_the_page_lists_these_rows_with_these_tolerances() -> None:
    def listed(text: str) -> list[tuple[str, ...]]:
        rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
        return [(part, what, tolerance, fixes) for part, what, tolerance, _, fixes in rows]

    assert listed(PAGE.read_text(encoding="utf-8")) == listed(page(ROWS, [0.0] * len(ROWS), {}))
