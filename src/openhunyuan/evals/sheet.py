"""Contact sheets: a few frames per clip in a row under a caption, as one PNG to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_TEXT_HEIGHT = 15
_GAP = 2


@dataclass(frozen=True)
class Row:
    """A clip uint8 [T,H,W,3] and the line above it."""

    frames: NDArray[np.uint8]
    caption: str


def write_sheet(path: str | os.PathLike[str], rows: Sequence[Row], title: str, columns: int = 8, zoom: int = 2) -> None:
    """Write a PNG with `columns` evenly spaced frames of each row, enlarged `zoom` times without smoothing."""
    height, width = rows[0].frames.shape[1:3] if rows else (64, 64)
    cell_h, cell_w = height * zoom, width * zoom
    sheet = Image.new(
        "RGB",
        (columns * (cell_w + _GAP) + _GAP, _TEXT_HEIGHT + len(rows) * (cell_h + _TEXT_HEIGHT + _GAP)),
        (24, 24, 24),
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 2), title, fill=(255, 255, 255))
    for index, row in enumerate(rows):
        top = _TEXT_HEIGHT + index * (cell_h + _TEXT_HEIGHT + _GAP)
        draw.text((_GAP, top + 2), row.caption.encode("latin-1", "replace").decode("latin-1"), fill=(220, 220, 220))
        chosen = np.linspace(0, len(row.frames) - 1, min(columns, len(row.frames))).round().astype(int)
        for column, frame in enumerate(row.frames[chosen]):
            image = Image.fromarray(frame).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(image, (_GAP + column * (cell_w + _GAP), top + _TEXT_HEIGHT))
    sheet.save(path)
