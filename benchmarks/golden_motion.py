"""Motion scores that others publish for clips of theirs, beside ours on the same clips.

    python -m benchmarks.golden_motion FOLDER [FOLDER ...]

The folders are searched for the clips by the ends of their names: cosmos-curate's `test_clip_10s.mp4` (also known as
`sintel_trailer_10s.mp4`), and VideoX-Fun's `--C66yU3LjM_2-Scene-001.mp4` to `-005.mp4` of Panda-70M.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openhunyuan.curate.analyse import AnalyseJob, Work, analyse
from openhunyuan.curate.footage import Footage
from openhunyuan.curate.measures.measure import ClipSpan
from openhunyuan.curate.measures.motion import Motion


@dataclass(frozen=True)
class Golden:
    """Published scores of a clip, by column of `Motion(method=method)`, with what they may differ by."""

    names: tuple[str, ...]
    method: Literal["farneback", "h264"]
    scores: dict[str, float]
    within: float


GOLDEN = (
    Golden(
        ("sintel_trailer_10s.mp4", "test_clip_10s.mp4"), "h264", {"speed": 0.002402, "slowest_patch": 0.001553}, 1e-6
    ),
    *(
        Golden((f"--C66yU3LjM_2-Scene-00{number}.mp4",), "farneback", {"speed": score}, 1e-5)
        for number, score in enumerate((4.65617, 5.28975, 5.44268, 4.99615, 5.59821), start=1)
    ),
)


def scores_of(path: Path, method: Literal["farneback", "h264"]) -> dict[str, float]:
    """Row of `Motion` for a whole file."""
    with Footage(path) as footage:
        rate = footage.media.rate.split("/")
        count = sum(1 for _ in footage.frames())
    work = Work(ClipSpan("whole", 0, count, int(rate[0]) / int(rate[1])), (Motion(method=method),))
    ((_, outcome),) = analyse(AnalyseJob(str(path), (work,)))
    assert outcome.rows is not None, outcome.error
    return dict(outcome.rows[0])


def find(golden: Golden, folders: list[Path]) -> Path | None:
    """The clip in one of the folders."""
    files = [path for folder in folders for path in sorted(folder.rglob("*.mp4"))]
    return next((path for path in files if path.name.endswith(golden.names)), None)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.golden_motion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+")
    folders: list[Path] = parser.parse_args().folders
    print("| clip | scorer | column | published | ours | |\n| --- | --- | --- | --: | --: | --- |")
    for golden in GOLDEN:
        path = find(golden, folders)
        ours = scores_of(path, golden.method) if path else {}
        for column, published in golden.scores.items():
            value = ours.get(column)
            said = "not there" if value is None else "same" if abs(value - published) <= golden.within else "OTHER"
            shown = "" if value is None else f"{value:.8f}"
            print(f"| {golden.names[0]} | {golden.method} | {column} | {published} | {shown} | {said} |", flush=True)


if __name__ == "__main__":
    main()
