"""NIQE with a Gaussian of our own: does it go up when a good picture is spoiled?

    python -m benchmarks.niqe
    python -m benchmarks.niqe --footage A.mp4 B.mp4     # and the distance of some frames of videos, by the package's

Each of scikit-image's photographs is judged against the Gaussian of all the others, as it is and spoiled.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from openhunyuan.curate.fit_niqe import some_frames
from openhunyuan.curate.footage import Footage
from openhunyuan.curate.measures.measure import reduced
from openhunyuan.curate.measures.niqe import FLAT, Gaussian, Niqe, block_features, distance, fit
from openhunyuan.recipes.niqe import PHOTOGRAPHS, gray_photograph, pictures

SIDE = 512

RNG = np.random.default_rng(0)


def blur(width: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda p: cv2.GaussianBlur(p, (0, 0), width)


def noise(levels: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda p: (p + RNG.normal(0, levels, p.shape)).clip(0, 255).astype(np.uint8)


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def spoil(p: np.ndarray) -> np.ndarray:
        picture = cv2.imdecode(cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
        assert picture is not None
        return picture

    return spoil


def enlarged(times: int) -> Callable[[np.ndarray], np.ndarray]:
    def spoil(p: np.ndarray) -> np.ndarray:
        small = cv2.resize(p, None, fx=1 / times, fy=1 / times, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, p.shape[::-1], interpolation=cv2.INTER_CUBIC)

    return spoil


SPOILED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda p: p,
    "blur 0.7": blur(0.7),
    "blur 1.5": blur(1.5),
    "blur 3": blur(3),
    "noise 4": noise(4),
    "noise 10": noise(10),
    "noise 20": noise(20),
    "JPEG 60": jpeg(60),
    "JPEG 30": jpeg(30),
    "JPEG 10": jpeg(10),
    "enlarged 2": enlarged(2),
    "enlarged 4": enlarged(4),
}


def judge(good: Gaussian, picture: np.ndarray) -> float:
    features, spread = block_features(picture)
    return distance(good, features[spread >= FLAT])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.niqe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--footage", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    print(f"| photograph | {' | '.join(SPOILED)} |")
    print("| --- |" + " --: |" * len(SPOILED))
    rows = []
    for name in PHOTOGRAPHS:
        good, _ = fit(pictures(without=(name,)))
        whole = reduced(gray_photograph(name), SIDE)
        rows.append([judge(good, spoil(whole)) for spoil in SPOILED.values()])
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in rows[-1])} |", flush=True)
    found = np.array(rows)
    print(f"| median | {' | '.join(f'{value:.1f}' for value in np.median(found, axis=0))} |")
    further = (found[:, 1:] > found[:, :1]).sum(axis=0)
    print(f"| further away | | {' | '.join(f'{n} of {len(found)}' for n in further)} |")
    good = Niqe().model()
    for path in args.footage:
        with Footage(path) as footage:
            count = footage.promised
        seen = [block_features(gray) for gray in some_frames(path, count, 3)]
        blocks = np.concatenate([features[spread >= FLAT] for features, spread in seen])
        print(f"{path.name}: {distance(good, blocks):.2f}")


if __name__ == "__main__":
    main()
