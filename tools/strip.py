"""A strip of evenly spaced frames of a video as one PNG, for READMEs and result pages.

    python -m tools.strip outputs/demo.mp4 docs/assets/demo-strip.png --frames 7 --scale 2

Several videos become several rows. Frames are enlarged by repeating pixels, so that what is shown is what was made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from openhunyuan.base.video import read_video, write_image


def strip(video: np.ndarray, frames: int, scale: int, gap: int = 2) -> np.ndarray:
    """uint8 [T, H, W, 3] -> one row [H·scale, ?, 3] of `frames` evenly spaced frames, the first and the last included,
    with white gaps of `gap` pixels."""
    picks = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    parts: list[np.ndarray] = []
    for i in picks:
        picture = video[i].repeat(scale, axis=0).repeat(scale, axis=1)
        if parts:
            parts.append(np.full((picture.shape[0], gap, 3), 255, np.uint8))
        parts.append(picture)
    return np.concatenate(parts, axis=1)


def stack(rows: list[np.ndarray], gap: int = 2) -> np.ndarray:
    """Rows of different widths under each other, padded with white on the right."""
    width = max(row.shape[1] for row in rows)
    parts: list[np.ndarray] = []
    for row in rows:
        if parts:
            parts.append(np.full((gap, width, 3), 255, np.uint8))
        parts.append(np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(parts, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--frames", type=int, default=7)
    parser.add_argument("--scale", type=int, default=2)
    args = parser.parse_args()
    rows = [strip(read_video(path)[0], args.frames, args.scale) for path in args.videos]
    write_image(args.output, stack(rows))
    print(f"{args.output}: {len(rows)} x {args.frames} frames")


if __name__ == "__main__":
    main()
