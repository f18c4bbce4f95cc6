"""Fits the Gaussian of NIQE in the package, to photographs that come with scikit-image.

    python -m openhunyuan.recipes.niqe --output niqe.safetensors

Each photograph counts in up to three sizes, none larger than it is. Of footage of one's own:
`openhunyuan curate fit-niqe DATA`.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.require import require
from openhunyuan.curate.measures.measure import SIDE, reduced
from openhunyuan.curate.measures.niqe import fit, save
from openhunyuan.curate.measures.packaged import WEIGHTS
from openhunyuan.tiny.pictures import photograph

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "rocket",
    "stereo_motorcycle",
)
SIDES = (SIDE, 480, 320)
"""Longer sides that a photograph is reduced to."""


def gray_photograph(name: str) -> np.ndarray:
    """One of scikit-image's, uint8 [H, W], as large as it is."""
    cv2: Any = require("cv2", extra="curate", package="opencv-python-headless")
    return cv2.cvtColor(photograph(name), cv2.COLOR_RGB2GRAY)


def pictures(without: Collection[str] = ()) -> Iterator[np.ndarray]:
    """All photographs but these, in all their sizes."""
    for name in PHOTOGRAPHS:
        if name not in without:
            whole = gray_photograph(name)
            for side in SIDES:
                if side == SIDE or side < max(whole.shape):
                    yield reduced(whole, side)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m openhunyuan.recipes.niqe", description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS / "niqe.safetensors")
    args = parser.parse_args()
    good, count = fit(pictures())
    save(good, args.output)
    print(f"{args.output}: {count} squares of {len(PHOTOGRAPHS)} photographs")


if __name__ == "__main__":
    main()
