"""How well the camera classifier does: rendered scenes with unseen textures, and real footage with virtual moves.

    python -m benchmarks.camera --clips 600 --footage FOLDER

Rendered: clips of `tiny.camera_scenes` whose photographs training never saw. Photographs: virtual moves over those,
with things passing before them. Footage: every video of the folder is
searched for two seconds in which its own camera stands (measured at the picture's border), and a virtual camera
turns, zooms, shakes or stands inside it; none of this footage was trained on. Accuracy is that of the likeliest of
the fourteen moves and "none", and also of the likeliest of the fourteen moves alone; at the gate, precision is the
share of given labels that are right, coverage the share of clips of the fourteen moves that are given a label.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.caption.camera import CAMERA_GATE
from openhunyuan.curate.camera.classifier import Classifier, labels_of, load_classifier
from openhunyuan.curate.camera.primitives import LABELS, MOVES, NONE, STATES, label_of
from openhunyuan.curate.footage import Footage
from openhunyuan.recipes.camera_motion import Examples, features_of_frames, photographed, rendered
from openhunyuan.tiny.virtual_moves import VIRTUAL_STATES, virtual_move

SECONDS = 2.0
LOOK = 8.0
"""Seconds from a video's start in which a standing camera is looked for."""

BORDER = 0.2
"""Share of the picture on each side whose points must stand."""


@dataclass(frozen=True)
class Score:
    """accuracy: over clips of the fourteen moves. alone: the same where "none" may not be answered. merged: accuracy
    with pan and tilt of one direction taken for the same. coverage, precision: at the gate. nothing: clips that are
    none of the moves; named: how many of them got a label."""

    clips: int
    accuracy: float
    alone: float
    merged: float
    coverage: float
    precision: float
    nothing: int
    named: int
    confusion: np.ndarray


def score(classifier: Classifier, examples: Examples, gate: float = CAMERA_GATE) -> Score:
    probabilities = labels_of(classifier.states(examples.features))
    said, truth = probabilities.argmax(axis=1), examples.labels
    none = LABELS.index(NONE)
    real = truth != none
    sure = (classifier.confidence(probabilities.max(axis=1)) >= gate) & (said != none)
    moves = probabilities.copy()
    moves[:, none] = 0
    one = np.array([LABELS.index(label.replace("pan ", "tilt ")) for label in LABELS])
    confusion = np.zeros((len(LABELS), len(LABELS)), int)
    np.add.at(confusion, (truth, said), 1)
    return Score(
        clips=int(real.sum()),
        accuracy=float((said == truth)[real].mean()),
        alone=float((moves.argmax(axis=1) == truth)[real].mean()),
        merged=float((one[said] == one[truth])[real].mean()),
        coverage=float(sure[real].mean()),
        precision=float((said == truth)[sure].mean()) if sure.any() else float("nan"),
        nothing=int((~real).sum()),
        named=int(sure[~real].sum()),
        confusion=confusion,
    )


def standing(frames: np.ndarray) -> bool:
    """Whether the camera of grey frames [T, H, W] stands: corners near at least three sides stay where they are."""
    import cv2

    scale = 320 / max(frames.shape[1:])
    small = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames[::6]]
    height, width = small[0].shape
    points = cv2.goodFeaturesToTrack(small[0], 300, 0.01, 5)
    if points is None:
        return False
    x, y = points[:, 0, 0] / width, points[:, 0, 1] / height
    sides = [x < BORDER, x > 1 - BORDER, y < BORDER, y > 1 - BORDER]
    points = points[np.any(sides, axis=0)]
    if len(points) < 25 or sum(int(side.sum()) >= 5 for side in sides) < 3:
        return False
    for frame in small[1:]:
        moved = cv2.calcOpticalFlowPyrLK(small[0], frame, points, None, winSize=(15, 15), maxLevel=3)[0]  # type: ignore
        far = np.linalg.norm(moved - points, axis=2)
        if np.median(far) >= 0.12 or (far < 0.5).mean() <= 0.85:
            return False
    return True


def standing_parts(folder: Path) -> Iterator[tuple[str, np.ndarray, float]]:
    """(file, grey frames of two seconds [T, H, W], frames a second): the first such part of every video."""
    import cv2

    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".mp4", ".mkv", ".webm", ".mov")):
        try:
            with Footage(path) as footage:
                rate = footage.media.rate.split("/")
                fps = float(rate[0]) / float(rate[1])
                step = max(1, round(fps / 12))
                seen = []
                for frame in footage.frames():
                    if frame.number > LOOK * fps:
                        break
                    if frame.number % step == 0:
                        seen.append(cv2.cvtColor(frame.rgb(640), cv2.COLOR_RGB2GRAY))
        except UserError as error:
            print(f"{path.name}: {error}")
            continue
        count = round(SECONDS * fps / step) + 1
        for start in range(0, len(seen) - count + 1, count):
            part = np.stack(seen[start : start + count])
            if standing(part):
                yield path.name, part, fps / step
                break


def virtual(folder: Path, seed: int = 11) -> tuple[Examples, int]:
    """One clip of every virtual move over each video with a standing camera; and how many such videos there are."""
    features, states, videos = [], [], 0
    for number, (_, frames, fps) in enumerate(standing_parts(folder)):
        videos += 1
        for index, state in enumerate(VIRTUAL_STATES):
            rng = np.random.default_rng([seed, number, index])
            try:
                found = features_of_frames(virtual_move(frames, state, rng, fps), fps)
            except UserError:
                continue  # no path of this move fits into the picture
            if found is not None:
                features.append(found)
                states.append(STATES.index(state))
    if not features:
        raise UserError(f"No video of {folder} has a camera that stands for two seconds.")
    return Examples(np.stack(features), np.array(states)), videos


def show(title: str, classifier: Classifier, examples: Examples, gates: Sequence[float]) -> None:
    scores = [score(classifier, examples, gate) for gate in gates]
    first = scores[0]  # the gate changes only what is said of it
    print(f"{title}: {first.clips} clips, accuracy {first.accuracy:.3f}", end="")
    print(f", of the moves alone {first.alone:.3f}, pan and tilt merged {first.merged:.3f}")
    for found, gate in zip(scores, gates, strict=True):
        print(f"  gate {gate}: coverage {found.coverage:.3f}, precision {found.precision:.3f}", end="")
        print(f"; {found.named} of {found.nothing} that are no move got a label" if found.nothing else "")
    for number, label in enumerate(MOVES):
        row = first.confusion[number]
        if row.sum():
            wrong = Counter({LABELS[i]: int(n) for i, n in enumerate(row) if n and i != number}).most_common()
            others = ", ".join(f"{name} {count}" for name, count in wrong)
            print(f"  {label:<13}{row[number]:>4} of {row.sum():<4} {others}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camera", description=__doc__)
    parser.add_argument("--clips", type=int, default=600, help="rendered clips; 0 for none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--photographs", type=int, default=0, help="clips of virtual moves over photographs kept back")
    parser.add_argument("--footage", type=Path, help="a folder of videos")
    parser.add_argument("--gate", type=float, nargs="+", default=[CAMERA_GATE], help="one or several")
    args = parser.parse_args()
    classifier = load_classifier()
    if args.clips:
        start = time.process_time()
        examples = rendered(args.clips, "heldout", args.seed)
        seconds = (time.process_time() - start) / args.clips
        show("rendered, unseen textures", classifier, examples, args.gate)
        print(f"  {seconds:.3f} CPU seconds a clip, rendering included")
    if args.photographs:
        examples = photographed(args.photographs, "heldout", args.seed)
        show("virtual moves over photographs kept back", classifier, examples, args.gate)
    if args.footage:
        examples, videos = virtual(args.footage)
        show(f"virtual moves over {videos} real videos", classifier, examples, args.gate)
    moves = {label_of(state) for state in VIRTUAL_STATES}
    print(f"not shown on real footage: {', '.join(label for label in MOVES if label not in moves)}")


if __name__ == "__main__":
    main()
