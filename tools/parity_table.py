"""Measure every parity row and write docs/results/parity.md: ``python -m tools.parity_table``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from tools.parity_rows import MEASURED_FIXES, ROWS, Row, uncorrected

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "parity.md"


def page(rows: Sequence[Row], errors: Sequence[float], without: Mapping[str, float]) -> str:
    """The page as Markdown: what was compared, how far it may be off, how far it is, how diffusers was set right.

    ``without`` is the error of the frames where one correction is left out.
    """
    notes = list(dict.fromkeys(note for row in rows for note in row.corrected.split("; ") if note))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    lines = [
        "# Parity with diffusers and transformers",
        "",
        "Written by `python -m tools.parity_table`; the same rows are asserted by `tests/infer/test_parity.py`.",
        f"Measured with {packages} on {platform.machine()}: CPU, float32, small random models of the",
        "released structure (`tools/tiny_release.py`). An error is the largest absolute difference. The page is not",
        "written if an error is above its tolerance or if there is nothing but zeros to compare.",
        "",
        "| part | compared | tolerance | measured | set right |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row, error in zip(rows, errors, strict=True):
        marks = ", ".join(str(notes.index(note) + 1) for note in row.corrected.split("; ") if note)
        lines.append(f"| {row.part} | {row.what} | {row.tolerance:.0e} | {error:.1e} | {marks or '-'} |")
    lines += ["", "Where diffusers departs from the released program, it is compared in corrected settings:", ""]
    for index, note in enumerate(notes, start=1):
        lines.append(
            f"{index}. {note}." + (f" Left out, frames differ by {without[note]:.0e}." if note in without else "")
        )
    lines += [
        "",
        "Not compared because diffusers cannot do it: latents that stay float32 beside a bfloat16 transformer (it",
        "rounds latents and timesteps to bfloat16 between steps, which the float32 comparison never meets), and the",
        "picture cropped to a bucket (tested by itself). It also ignores `prompt_2`, which no row uses.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, write the page, and say what fails."""
    torch.set_num_threads(1)
    errors = []
    for row in ROWS:
        errors.append(row.measure())
        print(f"{errors[-1]:.1e}  (tolerance {row.tolerance:.0e})  {row.name}", flush=True)
    bad = [row.name for row, error in zip(ROWS, errors, strict=True) if not error <= row.tolerance]
    if bad:
        print("Above tolerance: " + "; ".join(bad), file=sys.stderr)
        return 1
    PAGE.write_text(page(ROWS, errors, {fix: uncorrected(fix) for fix in MEASURED_FIXES}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
