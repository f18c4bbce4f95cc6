"""The two small networks of curation against the heuristics, on the same spoiled and unspoiled clips.

    python -m benchmarks.small_networks --minutes 3 --seed 900 --real FOLDER

Rendered footage (`tiny.raw`) carries its truth: shots with a watermark, a logo, blur, or nothing. Real clips (any
folder of videos) are cut into shots and taken as they are, and again with a pasted mark or a blur of known width;
whether one of them has a mark or is blurred by itself is not known: alarms on unspoiled real clips are only counted.
Every clip goes through all four measures alone; nothing is trained here. --scores keeps every number as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from openhunyuan.curate.footage import Footage
from openhunyuan.curate.measures.blur import Blur
from openhunyuan.curate.measures.clarity import Clarity
from openhunyuan.curate.measures.measure import ClipSpan, Measure, View
from openhunyuan.curate.measures.overlay import Overlay
from openhunyuan.curate.measures.watermark import Watermark
from openhunyuan.curate.models.choice import SCORES
from openhunyuan.curate.split import find_shots, pieces_of
from openhunyuan.recipes.curate import PLAN
from openhunyuan.tiny.blurs import blurred, kernel_of
from openhunyuan.tiny.marks import draw_mark, paste, place
from openhunyuan.tiny.raw import read_truth, truth_path, write_raw_footage

SECONDS = 3.0
"""Longest part of a shot that is looked at."""

BLURS = (("gaussian", 6.0), ("defocus", 6.0), ("motion", 8.0))
"""Blurs put on clips: kind, width in per cent of the shorter side."""

MARKS = ("watermark", "logo")
OTHERS = ("subtitles", "static", "low_contrast", "letterbox")
"""Defects of rendered footage that neither measure is to take for its own."""


@dataclass
class Shown:
    """Pixels in place of a decoded frame."""

    number: int
    pixels: np.ndarray

    def rgb(self, side: int | None = None) -> np.ndarray:
        scale = min(1.0, (side or max(self.pixels.shape)) / max(self.pixels.shape[:2]))
        if scale == 1.0:
            return self.pixels
        return cv2.resize(self.pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


@dataclass
class Sample:
    """One clip: where it comes from, what was done to it ("clean": nothing), its frames [T, H, W, 3]."""

    group: str
    spoiled: str
    name: str
    frames: np.ndarray
    fps: float


@dataclass
class Tally:
    """Scores by (group, spoiled), and seconds of processor time by measure."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)


def rendered(folder: Path, minutes: float, seed: int, height: int) -> Iterator[Sample]:
    """Shots of fresh footage, with what was planted in them; clean ones also with marks and blurs of other kinds."""
    width = height * 16 // 9
    for number in range(max(1, round(minutes))):
        video = folder / f"small-{height}-{seed + number}.mp4"
        if not truth_path(video).is_file():
            write_raw_footage(video, seed + number, 60.0, height=height, width=width, split="any")
        truth = read_truth(video)
        with Footage(video) as footage:
            frames = np.stack([frame.rgb() for frame in footage.frames()])
        for shot in truth.shots:
            defect = shot.defects[0] if shot.defects else None
            kind = defect.kind if defect else "clean"
            clip = frames[shot.clear_start : shot.clear_end]
            spoiled = "mark" if kind in MARKS else f"blur: {defect.blur}" if defect and defect.blur else kind
            name = f"{video.name}:{shot.index}"
            if spoiled.startswith(("clean", "mark", "blur")) or kind in OTHERS:
                yield Sample(f"rendered {height}", spoiled, name, clip, truth.fps)
            if spoiled == "clean":
                yield from spoilt(f"rendered {height}, other", name, clip, truth.fps, [seed, number, shot.index])


def real(folder: Path, seed: int, marks: int) -> Iterator[Sample]:
    """Shots of real footage, as they are and spoiled."""
    for video in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mkv", ".mov", ".webm")):
        shots = pieces_of(find_shots(video, PLAN.split), PLAN.split.max_seconds)
        fps = float(Fraction(shots.media.rate))
        with Footage(video) as footage:
            spans = list(shots.spans)
            held: list[np.ndarray] = []
            for frame in footage.frames():
                held.append(frame.rgb(640))
                while spans and spans[0].end_frame <= frame.number + 1:
                    span = spans.pop(0)
                    base = frame.number + 1 - len(held)
                    clip = held[span.start_frame - base : span.end_frame - base]
                    held = held[span.end_frame - base :]
                    if len(clip) < fps:
                        continue
                    name = f"{video.name}:{span.start_frame}"
                    part = np.stack(clip[: round(SECONDS * fps)])
                    yield Sample("real", "clean", name, part, fps)
                    for again in range(marks):
                        yield from spoilt("real", name, part, fps, [seed, again, span.start_frame], blurs=again == 0)


def spoilt(
    group: str, name: str, frames: np.ndarray, fps: float, seed: Sequence[int], blurs: bool = True
) -> Iterator[Sample]:
    """The clip with a drawn mark, and with each blur."""
    rng = np.random.default_rng([*seed, 0x5E])
    height, width = frames.shape[1:3]
    marked, mark = frames.copy(), draw_mark(rng, height, width)
    paste(marked, mark, *place(rng, mark, height, width))
    yield Sample(group, "mark", name, marked, fps)
    for kind, per_cent in BLURS if blurs else ():
        kernel = kernel_of(kind, per_cent / 100 * min(height, width), rng.uniform(0, np.pi))
        wanted = ClipSpan(name, 0, len(frames), fps)
        spoiled = frames.copy()
        for index in filter(wanted.wants, range(len(frames))):
            spoiled[index] = blurred(frames[index], kernel)
        yield Sample(group, f"blur: {kind}", name, spoiled, fps)


def look(measure: Measure, sample: Sample) -> tuple[dict[str, Any], float]:
    """(the measure's row, seconds of processor time); views are made anew, so that no measure lives on another's."""
    clip = ClipSpan(sample.name, 0, len(sample.frames), sample.fps)
    start = time.process_time()
    reader = measure.begin(clip)
    for index, frame in enumerate(sample.frames):
        if clip.wants(index) or reader.wants(index):
            reader.add(View(Shown(index, frame), clip))  # type: ignore[arg-type]
    return reader.finish(), time.process_time() - start


def measure_all(samples: Iterator[Sample], what: str = "both", file: Any = None) -> Tally:
    measures: list[Measure] = [] if what == "blur" else [Overlay(), Watermark()]
    measures += [] if what == "mark" else [Clarity(), Blur()]
    tally = Tally()
    left_out = {"mark": "blur", "blur": "mark"}.get(what)
    for sample in samples:
        if left_out and sample.spoiled.startswith(left_out):
            continue
        row: dict[str, Any] = {"group": sample.group, "spoiled": sample.spoiled, "name": sample.name}
        for measure in measures:
            for_this = "blur" if measure.group == "clarity" else "mark"
            other = "mark" if for_this == "blur" else "blur"
            if sample.spoiled.startswith(other):
                continue
            found, seconds = look(measure, sample)
            tally.seconds.setdefault(measure.name, []).append(seconds)
            row |= {f"{measure.name}.{c}": found.get(c) for c in measure.columns if c in found}
            row[f"{measure.name}.box"] = found.get("box")
        tally.rows.append(row)
        if file:
            file.write(json.dumps(row) + "\n")
            file.flush()
    return tally


COMPARED = (
    ("mark", "overlay.strength", SCORES["overlay"]["lasting"].limit),
    ("mark", "watermark.chance", SCORES["overlay"]["watermark"].limit),
    ("blur", "clarity.edge_width", SCORES["clarity"]["edges"].limit),
    ("blur", "blur.width", SCORES["clarity"]["blur"].limit),
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Recall and alarms of each score at its threshold; and the recall that it would have at 5 % of alarms."""
    lines = ["| clips | planted | score | count | found | alarms | found at 5 % alarms |"]
    lines += ["| --- | --- | --- | --: | --: | --: | --: |"]
    for group in dict.fromkeys(row["group"] for row in rows):
        base = group.removesuffix(", other")
        clean = [r for r in rows if r["group"] == base and r["spoiled"] == "clean"]
        for kind in dict.fromkeys(r["spoiled"] for r in rows if r["group"] == group and r["spoiled"] != "clean"):
            spoiled = [r for r in rows if r["group"] == group and r["spoiled"] == kind]
            for what, score, limit in COMPARED:
                if kind.startswith(("mark", "blur")) and not kind.startswith(what):
                    continue
                values, others = _values(spoiled, score), _values(clean, score)
                if not len(values) or not len(others):
                    continue
                quantile = np.sort(others)[::-1][min(len(others) - 1, int(0.05 * len(others)))]
                lines.append(
                    f"| {group} | {kind} | `{score}` | {len(values)} | {np.mean(values > limit):.3f} | "
                    f"{np.mean(others > limit):.3f} of {len(others)} | {np.mean(values > quantile):.3f} |"
                )
    return "\n".join(lines)


def told_apart(rows: Sequence[dict[str, Any]]) -> str:
    """How well `blur.motion` tells motion blur from other blur, and from none: areas under the curve of whole clips."""
    lines = [
        "| clips | motion blur against | count | area under the curve of `blur.motion` |",
        "| --- | --- | --: | --: |",
    ]
    for group in dict.fromkeys(row["group"].removesuffix(", other") for row in rows):
        known = [r for r in rows if r["group"].removesuffix(", other") == group and r.get("blur.motion") is not None]
        motion = np.array([r["blur.motion"] for r in known if r["spoiled"] == "blur: motion"])
        for what, kinds in (("other blur", ("blur: gaussian", "blur: defocus")), ("none", ("clean",))):
            others = np.array([r["blur.motion"] for r in known if r["spoiled"] in kinds])
            if len(motion) and len(others):
                wins = (motion[:, None] > others).mean() + 0.5 * (motion[:, None] == others).mean()
                lines.append(f"| {group} | {what} | {len(motion)} : {len(others)} | {wins:.3f} |")
    return "\n".join(lines)


def _values(rows: Sequence[dict[str, Any]], score: str) -> np.ndarray:
    """A score that could not be had passes every threshold: it counts as 0."""
    return np.array([r[score] if r[score] is not None else 0.0 for r in rows if score in r])


def costs(seconds: dict[str, list[float]]) -> str:
    lines = ["| measure | processor time a clip, ms (median) |", "| --- | --: |"]
    return "\n".join([*lines, *(f"| `{name}` | {1000 * np.median(s):.0f} |" for name, s in seconds.items())])


def main(argv: Sequence[str] | None = None) -> None:
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="rendered footage")
    parser.add_argument("--seed", type=int, default=900, help="of the first rendered minute")
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--real", type=Path, help="folder of real videos")
    parser.add_argument("--marks", type=int, default=2, help="marks pasted on each real shot")
    parser.add_argument("--folder", type=Path, default=Path("outputs/small-networks"), help="rendered footage")
    parser.add_argument("--what", choices=("both", "mark", "blur"), default="both", help="which network")
    parser.add_argument("--scores", type=Path, help="file of every score, JSON lines")
    args = parser.parse_args(argv)

    def samples() -> Iterator[Sample]:
        if args.minutes:
            yield from rendered(args.folder, args.minutes, args.seed, args.height)
        if args.real:
            yield from real(args.real, args.seed, args.marks)

    file = args.scores.open("w") if args.scores else None
    tally = measure_all(samples(), args.what, file)
    print(table(tally.rows))
    print()
    if args.what != "mark":
        print(told_apart(tally.rows))
        print()
    print(costs(tally.seconds))


if __name__ == "__main__":
    main()
