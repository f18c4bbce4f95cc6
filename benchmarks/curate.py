"""What curation costs: the default plan against shot detection alone and against data-juicer, and its memory.

    python -m benchmarks.curate --minutes 2                     # footage of the synthetic world is rendered first
    python -m benchmarks.curate --folder raw/                   # or footage of one's own
    python -m benchmarks.curate --data-juicer VENV/bin/python   # data-juicer lives in an environment of its own

Every side runs alone in a fresh process with one thread, the sides taking turns; a row gives the smallest processor
time of `--runs` (user and system, children included), which other work on the machine disturbs least, and the elapsed
time of that run. "clips/s per core" is clips made per second of processor time.

    scenedetect      PySceneDetect's `detect` with its AdaptiveDetector and its own reader (OpenCV), nothing else
    shots            our split alone: the same detector, and fades
    default plan     all of `recipes.curate.PLAN`: hash, split, every measure, decisions, files
    shared subset    what data-juicer has too: shots, filters on size, duration and aspect, Farneback motion, files
    data-juicer      its operators for that, one after the other in one process, which is cheaper than its workers

Memory is the highest resident size of a process that curates ten times as much footage, over that of the process that
curates it once, both as the process itself reads it at its end (what its parent is told counts the parent's own memory
too); the tenfold footage is the same films with a different number of empty bytes behind each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What one run of a side took: seconds, MiB at its highest, clips it made, and the processor seconds of each step
    where it has steps."""

    side: str
    cpu_s: float
    wall_s: float
    peak_mib: float
    clips: int
    steps: dict[str, float]


class Steps:
    """Processor seconds of a run's steps, told by its progress."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.began = time.process_time()

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.process_time()
        if done == 0:
            self.began = now
        self.seconds[step] = now - self.began


STEPS = Steps()


def whole(raw: Path, data: Path) -> int:
    """The default plan."""
    from openhunyuan.curate.run import curate
    from openhunyuan.recipes.curate import PLAN

    return len(curate(raw, data, PLAN, on_progress=STEPS).clips)


def shared(raw: Path, data: Path) -> int:
    """The stages that data-juicer has too."""
    from openhunyuan.curate.decide import Filter
    from openhunyuan.curate.measures.motion import Motion
    from openhunyuan.curate.run import Plan, curate

    filters = (
        Filter(name="duration", score="clip.seconds", at_least=0.0, reason="is too short"),
        Filter(name="size", score="clip.short_side", at_least=1, reason="is too small"),
        Filter(name="aspect", score="clip.aspect", at_least=0.1, at_most=10.0, reason="is too narrow or too wide"),
        Filter(name="motion", score="motion.speed", at_least=0.0, reason="hardly moves"),
    )
    plan = Plan(measures=(Motion(method="farneback"),), filters=filters)
    return len(curate(raw, data, plan, on_progress=STEPS).kept)


def shots(raw: Path, data: Path) -> int:
    from openhunyuan.curate.find import find_videos
    from openhunyuan.curate.split import find_shots

    return sum(len(find_shots(video).spans) for video in find_videos(raw))


def scenedetect(raw: Path, data: Path) -> int:
    """As a user of PySceneDetect would write it."""
    from scenedetect import AdaptiveDetector, detect

    from openhunyuan.curate.find import find_videos

    return sum(max(1, len(detect(str(video), AdaptiveDetector()))) for video in find_videos(raw))


SIDES: dict[str, Callable[[Path, Path], int]] = {
    "scenedetect": scenedetect,
    "shots": shots,
    "default plan": whole,
    "shared subset": shared,
}

JUICER = """
import json, os, sys, time
import cv2
cv2.setNumThreads(1)
start = time.perf_counter()
from data_juicer.core.data import NestedDataset
from data_juicer.ops.filter.video_aspect_ratio_filter import VideoAspectRatioFilter
from data_juicer.ops.filter.video_duration_filter import VideoDurationFilter
from data_juicer.ops.filter.video_motion_score_filter import VideoMotionScoreFilter
from data_juicer.ops.filter.video_resolution_filter import VideoResolutionFilter
from data_juicer.ops.mapper.video_split_by_scene_mapper import VideoSplitBySceneMapper
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import SpecialTokens

def used():
    return sum(os.times()[:4])

steps = {"start": round(used(), 2)}
videos, out = json.loads(sys.argv[1]), sys.argv[2]
rows = [{"videos": [v], "text": SpecialTokens.video} for v in videos]
dataset = NestedDataset.from_list(rows)
one = {"num_proc": None, "auto_op_parallelism": False}
for operator in (
    VideoSplitBySceneMapper("AdaptiveDetector", 3.5, 1, save_dir=out, ffmpeg_extra_args=sys.argv[3], **one),
    VideoDurationFilter(0, 10**9, **one),
    VideoResolutionFilter(1, 10**9, 1, 10**9, **one),
    VideoAspectRatioFilter("1/10", "10/1", **one),
    VideoMotionScoreFilter(0.0, sampling_fps=float(sys.argv[4]), size=None, **one),
):
    before = used()
    dataset = operator.run(dataset)
    steps[operator._name] = round(used() - before, 2)
clips = sum(len(row["videos"]) for row in dataset)
assert all(score >= 0 for row in dataset for score in row[Fields.stats][StatsKeys.video_motion_score]), "no motion"
high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
answer = {"clips": clips, "wall_s": time.perf_counter() - start, "peak_mib": int(high.split()[1]) / 1024}
print(json.dumps({**answer, "steps": steps}))
"""
"""In its own process (`num_proc` None), without the worker that `num_proc=1` starts for every step."""

JUICER_CODEC = "-c:v libx264 -preset veryfast -crf 12 -threads 1"
"""As our own clip files are encoded."""

JUICER_FPS = 2.0
"""Frames a second whose motion its filter looks at, by its default."""


def one_thread() -> dict[str, str]:
    """The environment of a side."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **one, "OPENCV_FFMPEG_CAPTURE_OPTIONS": "threads;1", "TOKENIZERS_PARALLELISM": "false"}


def child(side: str, raw: Path, data: Path) -> None:
    """Run a side here, and say what it took."""
    import cv2

    cv2.setNumThreads(1)
    start = time.perf_counter()
    clips = SIDES[side](raw, data)
    wall_s = time.perf_counter() - start
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    steps = {step: round(seconds, 2) for step, seconds in STEPS.seconds.items()}
    print(json.dumps({"clips": clips, "wall_s": wall_s, "peak_mib": int(high.split()[1]) / 1024, "steps": steps}))


def measure(side: str, raw: Path, juicer: Path | None = None) -> Cost:
    """One run of a side in a fresh process. Raises RuntimeError with the end of its output when it fails."""
    with tempfile.TemporaryDirectory() as data:
        environment = one_thread()
        if side == "data-juicer":
            from openhunyuan.curate.find import find_videos

            assert juicer is not None
            environment["PATH"] = f"{juicer.absolute().parent}{os.pathsep}{environment['PATH']}"
            videos = json.dumps([str(video.absolute()) for video in find_videos(raw)])
            command = [str(juicer), "-c", JUICER, videos, data, JUICER_CODEC, str(JUICER_FPS)]
        else:
            command = [sys.executable, "-m", "benchmarks.curate", "--child", side, str(raw), data]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=said, text=True)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said.seek(0)
            if process.returncode:
                raise RuntimeError(f"{side} ended with {process.returncode}: {said.read()[-2000:]}")
            answer = json.loads(out.read().splitlines()[-1])
        return Cost(side, used.ru_utime + used.ru_stime, **answer)  # the children that it waited for are counted


def tenfold(raw: Path, into: Path, times: int) -> Path:
    """The films of a folder so many times, each copy with other bytes behind its end, which no decoder reads."""
    from openhunyuan.curate.find import find_videos

    for video in find_videos(raw):
        for number in range(times):
            copy = into / f"{number:03d}-{video.name}"
            shutil.copy(video, copy)
            with copy.open("ab") as file:
                size = 8 + number
                file.write(size.to_bytes(4, "big") + b"free" + bytes(number))
    return into


def render(folder: Path, minutes: float, seed: int, size: tuple[int, int]) -> Path:
    """Rendered footage of about so many minutes in files of half a minute; files that are there are kept."""
    from openhunyuan.tiny.raw import truth_path, write_raw_footage

    for number in range(max(1, round(2 * minutes))):
        video = folder / f"footage-{seed + number}.mp4"
        if not truth_path(video).is_file():
            write_raw_footage(video, seed + number, 30.0, height=size[0], width=size[1], split="any")
    return folder


def seconds_of(raw: Path) -> float:
    """Length of all footage of a folder, by the containers."""
    import av

    from openhunyuan.curate.find import find_videos

    total = 0.0
    for video in find_videos(raw):
        with av.open(str(video)) as container:
            total += (container.duration or 0) / 1e6
    return total


def table(costs: Sequence[Cost], seconds: float) -> str:
    """The sides as Markdown; ratios are of processor time, to scenedetect."""
    base = next(c.cpu_s for c in costs if c.side == "scenedetect")
    lines = [
        "| side | cpu s | elapsed s | to scenedetect | clips | clips/s per core | times real time | peak MiB |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for c in costs:
        lines.append(
            f"| {c.side} | {c.cpu_s:.1f} | {c.wall_s:.1f} | {c.cpu_s / base:.2f} | {c.clips} | {c.clips / c.cpu_s:.2f} "
            f"| {seconds / c.cpu_s:.1f} | {c.peak_mib:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="footage of one's own; without it, some is rendered")
    parser.add_argument("--minutes", type=float, default=2.0, help="of rendered footage")
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--work", type=Path, default=Path("outputs/curate-cost"), help="where rendered footage lies")
    parser.add_argument("--runs", type=int, default=2, help="runs of each side, of which the smallest counts")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, "data-juicer"], help="default: all that can run")
    parser.add_argument(
        "--times", type=int, default=10, help="how much more footage memory is compared at; 0: not at all"
    )
    parser.add_argument("--data-juicer", type=Path, help="the python of an environment with py-data-juicer and ffmpeg")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "RAW", "DATA"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child(args.child[0], Path(args.child[1]), Path(args.child[2]))
        return
    raw = args.folder or render(args.work, args.minutes, args.seed, (args.height, args.width))
    sides = args.sides or [*SIDES, *(["data-juicer"] if args.data_juicer else [])]
    seconds = seconds_of(raw)
    print(f"{seconds:.0f} s of footage, {args.runs} runs of each side, one thread", flush=True)
    runs: dict[str, list[Cost]] = {side: [] for side in sides}
    for number in range(args.runs):
        for side in sides if number % 2 == 0 else reversed(sides):
            runs[side].append(measure(side, raw, args.data_juicer))
            print(f"  {side}: {runs[side][-1].cpu_s:.1f} s of processor time", file=sys.stderr, flush=True)
            if args.json:
                args.json.write_text(json.dumps([vars(c) for found in runs.values() for c in found], indent=2))
    costs = [min(found, key=lambda c: c.cpu_s) for found in runs.values()]
    print(table(costs, seconds))
    for c in costs:
        if c.steps:
            print(f"{c.side}: " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in c.steps.items()))
    if "data-juicer" not in sides:
        print("data-juicer was not measured: name the python of an environment that has it (--data-juicer)")
    by_side = {c.side: c for c in costs}
    if {"data-juicer", "shared subset"} <= set(by_side):
        ratio = by_side["data-juicer"].cpu_s / by_side["shared subset"].cpu_s
        print(f"data-juicer takes {ratio:.2f} times the processor time of our shared subset (aim: at least 3)")
    if {"default plan", "scenedetect"} <= set(by_side):
        ratio = by_side["default plan"].cpu_s / by_side["scenedetect"].cpu_s
        print(f"the default plan takes {ratio:.2f} times that of scenedetect alone (aim: at most 2)")
    growth = None
    if args.times:
        with tempfile.TemporaryDirectory() as once, tempfile.TemporaryDirectory() as many:
            small = measure("default plan", tenfold(raw, Path(once), 1))
            large = measure("default plan", tenfold(raw, Path(many), args.times))
        growth = [small.peak_mib, large.peak_mib]
        print(f"memory: {small.peak_mib:.0f} MiB once, {large.peak_mib:.0f} MiB with {args.times} times the footage")
    if args.json:
        args.json.write_text(json.dumps({"sides": [vars(c) for c in costs], "memory_mib": growth}, indent=2))


if __name__ == "__main__":
    main()
