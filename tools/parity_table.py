"""Measure every parity row and write docs/results/parity.md: ``python -m tools.parity_table``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from tools.parity_formats import FORMAT_ROWS
from tools.parity_rows import MEASURED_FIXES, PIPELINE_ROWS, Row, uncorrected

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "parity.md"
ROWS = [*PIPELINE_ROWS, *FORMAT_ROWS]
PACKAGES = ("torch", "diffusers", "transformers", "peft")

_INTRO = """\
# Parity with diffusers, transformers and PEFT

Written by `python -m tools.parity_table`; the same rows are asserted by `tests/infer/test_parity.py`.
Measured with {packages} on {machine}.

CPU, float32 where no row says otherwise, small random models of the released structure (`tools/tiny_release.py`); names
and shapes are those of the 13B, on the meta device. A number is the largest absolute difference; "tensors" counts those
whose name, shape, format or bits differ. Source files are written by diffusers, PEFT and transformers, or by hand
(`tools/tiny_files.py`), never by ours. The page is not written if an error is above its tolerance or if there is
nothing but zeros to compare.

| part | compared | tolerance | measured | set right |
| --- | --- | --- | --- | --- |"""

_END = """\
What else differs in diffusers (release fact J.44), and why no row needs it set right:

- It always cuts time into tiles, also where tiling is off. At the official lengths (note {tiles}) the videos here are
  too short to be cut, and the tiled rows of the VAE cut both.
- It crops no picture to a bucket. Buckets and cropping are tested by themselves (`tests/infer/test_conditions.py`).
- It ignores `prompt_2`, the prompt for CLIP alone. The release has one prompt, and so has every row.
"""


def page(rows: Sequence[Row], errors: Sequence[float], without: Mapping[str, float]) -> str:
    """The page as Markdown: what was compared, how far it may be off, how far it is, how diffusers was set right.

    ``without`` is the error of the result where one correction is left out.
    """
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [_INTRO.format(packages=packages, machine=platform.machine())]
    for row, error in zip(rows, errors, strict=True):
        marks = ", ".join(str(notes.index(note) + 1) for note in row.notes)
        lines.append(f"| {row.part} | {row.what} | {row.shown(row.tolerance)} | {row.shown(error)} | {marks or '-'} |")
    lines += ["", "Where diffusers departs from the released program, it is compared in corrected settings:", ""]
    for index, note in enumerate(notes, start=1):
        lines.append(
            f"{index}. {note}." + (f" Left out, the result differs by {without[note]:.0e}." if note in without else "")
        )
    tiles = next(index for index, note in enumerate(notes, start=1) if note.startswith("VAE tiles"))
    return "\n".join([*lines, "", _END.format(tiles=tiles)])


def main() -> int:
    """Measure, write the page, and say what fails."""
    torch.set_num_threads(1)
    errors = []
    for row in ROWS:
        errors.append(row.measure())
        print(f"{row.shown(errors[-1])}  (tolerance {row.shown(row.tolerance)})  {row.name}", flush=True)
    bad = [row.name for row, error in zip(ROWS, errors, strict=True) if not error <= row.tolerance]
    if bad:
        print("Above tolerance: " + "; ".join(bad), file=sys.stderr)
        return 1
    PAGE.write_text(page(ROWS, errors, {fix: uncorrected(fix) for fix in MEASURED_FIXES}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
