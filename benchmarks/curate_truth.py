"""How well curation finds what was planted in rendered footage: one table, from one command.

    python -m benchmarks.curate_truth --minutes 4 --seed 100

Footage of the synthetic world with cuts, fades and defects is rendered (or found in --folder from an earlier run), and
of some of its shots copies are made: encoded again, cropped, mirrored, given a subtitle. The whole lot goes through
`openhunyuan.recipes.curate.PLAN`, and every answer is compared with the truth.

Recall is over the shots that carry the defect, false alarms over the shots that carry none. Duplicates are judged over
all pairs of clips. Cuts are right to the frame; a fade is found when the gap between two clips overlaps it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.video import write_video
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.duplicates import Duplicates, described, same_pairs
from openhunyuan.curate.footage import Footage
from openhunyuan.curate.measures.fingerprint import thumbs_of
from openhunyuan.curate.run import curate
from openhunyuan.curate.tables import TABLES, read_rows
from openhunyuan.recipes.curate import PLAN
from openhunyuan.tiny.blurs import KINDS as BLURS
from openhunyuan.tiny.raw import RawTruth, Shot, read_truth, truth_path, write_raw_footage

COPIES = ("re-encoded", "cropped", "mirrored", "subtitle added")


@dataclass(frozen=True)
class Line:
    """One row of the table: what was planted, how much of it was found, how often something else was taken for it."""

    what: str
    planted: int
    recall: float
    false_alarms: float
    others: int
    f1: float | None = None


def copy_name(video: Path, shot: int, copy: str) -> Path:
    """Where the copy of a shot lies."""
    return video.parent / f"{video.stem}-shot{shot}-{copy.replace(' ', '-')}.mp4"


def write_copies(video: Path, truth: RawTruth, shots: Sequence[int]) -> None:
    """A file for each kind of copy of each of these shots."""
    import cv2

    with Footage(video) as footage:
        frames = np.stack([frame.rgb() for frame in footage.frames()])
    for number in shots:
        shot = truth.shots[number]
        clip = frames[shot.clear_start : shot.clear_end]
        height, width = clip.shape[1:3]
        cut = max(1, round(0.035 * height)), max(1, round(0.035 * width))
        cropped = np.stack(
            [cv2.resize(f[cut[0] : height - cut[0], cut[1] : width - cut[1]], (width, height)) for f in clip]
        )
        titled = clip.copy()
        for frame in titled:
            where = (width // 5, round(0.93 * height))
            for stroke, level in ((4, 0), (1, 255)):
                cv2.putText(frame, "a line of text", where, 0, height / 300, (level,) * 3, stroke, cv2.LINE_AA)
        made = {"cropped": cropped, "mirrored": clip[:, :, ::-1], "subtitle added": titled}
        for copy in COPIES:
            crf = 32 if copy == "re-encoded" else 18
            path = copy_name(video, number, copy)
            write_video(path, np.ascontiguousarray(made.get(copy, clip)), truth.fps, crf=crf)


def originals(truth: RawTruth, count: int) -> list[int]:
    """Clean shots whose copies are made, spread over the file."""
    clean = [shot.index for shot in truth.shots if not shot.defects]
    return [clean[i] for i in np.unique(np.linspace(0, len(clean) - 1, min(count, len(clean))).round().astype(int))]


def shot_of(clip: Clip, truth: RawTruth) -> Shot | None:
    """The shot that most of a clip lies in."""
    best = max(truth.shots, key=lambda s: min(s.end_frame, clip.end_frame) - max(s.start_frame, clip.start_frame))
    overlap = min(best.end_frame, clip.end_frame) - max(best.start_frame, clip.start_frame)
    return best if overlap > 0.5 * (clip.end_frame - clip.start_frame) else None


def failed(clip: Clip, *filters: str) -> bool:
    """Whether one of these filters refused the clip, first or not."""
    return any(not d.passed and d.filter in filters for d in clip.decisions)


def is_letterboxed(clip: Clip) -> bool:
    return clip.scores.get("border.share", 0.0) > 0.02


def has_subtitles(clip: Clip) -> bool:
    return clip.scores.get("text.subtitle_top", 1.0) < 1.0 or failed(clip, "text")


def cropped_away(clip: Clip, shot: Shot) -> bool:
    """Whether the crop ends above the lettering, and left enough of the picture for the filter (four fifths).

    The box of the truth is the line's, with room for accents: the letters begin three rows below its upper edge.
    """
    if clip.crop is None or failed(clip, "subtitles"):
        return False
    top = min(defect.box[1] for defect in shot.defects if defect.box)
    return clip.crop[3] <= top + 3


FINDERS: dict[str, tuple[tuple[str, ...], Callable[[Clip], bool]]] = {
    "static or slow": (("static", "slow"), lambda clip: failed(clip, "motion")),
    "blur": (("blur",), lambda clip: failed(clip, "clarity")),
    "low contrast": (("low_contrast",), lambda clip: failed(clip, "contrast")),
    "border": (("letterbox",), is_letterboxed),
    "subtitle": (("subtitles",), has_subtitles),
    "watermark or logo": (("watermark", "logo"), lambda clip: failed(clip, "overlay")),
}


def score(truths: dict[str, RawTruth], clips: Sequence[Clip], thumbs: dict[str, np.ndarray]) -> list[Line]:
    """The table. truths: by the source's file name. thumbs: fingerprints by the clip's id."""
    of = {name: [c for c in clips if Path(c.source).name == name] for name in truths}  # in the order of the source
    lines = [_cuts(truths, of), _fades(truths, of)]
    found = [(clip, shot_of(clip, truths[name])) for name in truths for clip in of[name]]
    clean = [clip for clip, shot in found if shot and not shot.defects]
    for what, (kinds, finder) in FINDERS.items():
        planted = [(clip, d) for clip, shot in found if shot for d in shot.defects[:1] if d.kind in kinds]
        rows = {what: [clip for clip, _ in planted]}
        if what == "blur":
            for blur in BLURS:
                # Footage of before there were several carries Gaussian blur, and does not say so.
                of_kind = [clip for clip, d in planted if (d.blur or "gaussian") == blur]
                rows |= {f"  {blur}": of_kind} if of_kind else {}
        alarms = _share(clean, finder)
        lines += [Line(name, len(those), _share(those, finder), alarms, len(clean)) for name, those in rows.items()]
    titled = [(clip, shot) for clip, shot in found if shot and any(d.kind == "subtitles" for d in shot.defects)]
    away = sum(cropped_away(clip, shot) for clip, shot in titled)
    lines.append(Line("subtitle cropped away", len(titled), away / max(len(titled), 1), 0.0, 0))
    return [*lines, *_duplicates(truths, of, clips, thumbs)]


def _share(clips: Sequence[Clip], finder: Callable[[Clip], bool]) -> float:
    return sum(map(finder, clips)) / len(clips) if clips else float("nan")


def _f1(what: str, hits: int, planted: int, found: int) -> Line:
    recall, precision = hits / max(planted, 1), hits / max(found, 1)
    f1 = 2 * recall * precision / max(recall + precision, 1e-9)
    return Line(what, planted, recall, 1 - precision if found else 0.0, found, f1)


def _cuts(truths: dict[str, RawTruth], of: dict[str, list[Clip]]) -> Line:
    hits = planted = found = 0
    for name, truth in truths.items():
        wanted = {cut.frame for cut in truth.cuts if cut.kind == "cut"}
        got = {clip.start_frame for clip in of[name] if clip.transition == "cut"}
        hits, planted, found = hits + len(wanted & got), planted + len(wanted), found + len(got)
    return _f1("hard cuts", hits, planted, found)


def _fades(truths: dict[str, RawTruth], of: dict[str, list[Clip]]) -> Line:
    hits = planted = found = 0
    for name, truth in truths.items():
        wanted = [(cut.start_frame, cut.end_frame) for cut in truth.cuts if cut.kind != "cut"]
        pairs = itertools.pairwise(of[name])
        got = [(a.end_frame, b.start_frame) for a, b in pairs if b.transition == "fade"]
        hits += sum(any(a < d and c < b for c, d in got) for a, b in wanted)
        planted, found = planted + len(wanted), found + len(got)
    return _f1("fades and dissolves", hits, planted, found)


def _duplicates(
    truths: dict[str, RawTruth], of: dict[str, list[Clip]], clips: Sequence[Clip], thumbs: dict[str, np.ndarray]
) -> list[Line]:
    """Near-duplicates planted in the footage, and each kind of copy; false alarms are shares of all other pairs."""
    identity: dict[str, tuple[str, int]] = {}  # clip → the shot it shows, originals standing for their copies
    kind: dict[str, str] = {}
    for name, truth in truths.items():
        for clip in of[name]:
            if shot := shot_of(clip, truth):
                original = next((d.duplicate_of for d in shot.defects if d.duplicate_of is not None), None)
                identity[clip.id] = (name, shot.index if original is None else original)
                kind[clip.id] = "original" if original is None else "near-duplicate"
    copied = {
        copy_name(Path(name), number, copy).name: (name, number, copy)
        for name, truth in truths.items()
        for number, copy in itertools.product(range(len(truth.shots)), COPIES)
    }
    for clip in clips:
        if found := copied.get(Path(clip.source).name):
            identity[clip.id], kind[clip.id] = found[:2], found[2]
    ids = [clip.id for clip in clips if clip.id in identity and clip.id in thumbs]
    clips_seen = described(np.stack([thumbs[i] for i in ids]))
    alike = {(i, j) for i, j in same_pairs(clips_seen, PLAN.duplicates or Duplicates()).tolist()}
    counts: dict[str, list[int]] = {}
    wrong = others = 0
    for i, j in itertools.combinations(range(len(ids)), 2):
        hit = (i, j) in alike
        if identity[ids[i]] != identity[ids[j]]:
            wrong, others = wrong + hit, others + 1
        elif "original" in (kind[ids[i]], kind[ids[j]]):
            other = kind[ids[j]] if kind[ids[i]] == "original" else kind[ids[i]]
            tally = counts.setdefault(other, [0, 0])
            tally[0], tally[1] = tally[0] + hit, tally[1] + 1
    rate = wrong / max(others, 1)
    hits, planted = (sum(tally[k] for tally in counts.values()) for k in (0, 1))
    lines = [Line("duplicates", planted, hits / max(planted, 1), rate, others)]
    return [*lines, *(Line(f"  {what}", n, k / n, rate, others) for what, (k, n) in sorted(counts.items()))]


def fingerprints(data: Path) -> dict[str, np.ndarray]:
    """Thumbnails of every measured clip of a data folder."""
    return {
        key: thumbs_of(rows[0])
        for folder in data.glob(f"{TABLES}/fingerprint/*")
        for key, rows in read_rows(folder).items()
        if rows[0]["error"] is None
    }


def render(folder: Path, minutes: float, seed: int, size: tuple[int, int], file_seconds: float, copies: int) -> None:
    """Footage of about so many minutes, a file at a time; files that are there are kept."""
    for number in range(max(1, round(60 * minutes / file_seconds))):
        video = folder / f"footage-{seed + number}.mp4"
        if not truth_path(video).is_file():
            write_raw_footage(video, seed + number, file_seconds, height=size[0], width=size[1], split="any")
        truth = read_truth(video)
        chosen = originals(truth, copies)
        if any(not copy_name(video, shot, copy).is_file() for shot in chosen for copy in COPIES):
            write_copies(video, truth, chosen)
        print(f"{video}: {len(truth.shots)} shots, {len(chosen)} copied", flush=True)


def run(folder: Path, workers: int = 0) -> list[Line]:
    """Curate what `render` left in a folder, and compare with the truth."""
    raw, data = folder / "raw", folder / "data"
    truths = {p.name.removesuffix(".truth.json"): RawTruth.read(p) for p in sorted(raw.glob("*.truth.json"))}
    start = time.perf_counter()
    # Overlays, blur and the rest are judged whatever another filter says; so nothing but the truth is left out here.
    result = curate(raw, data, replace(PLAN, duplicates=None), workers)
    seconds = sum(truth.num_frames / truth.fps for truth in truths.values())
    print(f"curated {seconds / 60:.1f} minutes of footage and its copies in {time.perf_counter() - start:.0f} s")
    return score(truths, result.clips, fingerprints(data))


def table(lines: Sequence[Line]) -> str:
    """The lines as Markdown."""
    rows = ["| planted | count | found | false alarms | F1 |", "| --- | --: | --: | --: | --: |"]
    for line in lines:
        f1 = "" if line.f1 is None else f"{line.f1:.3f}"
        rows.append(
            f"| {line.what} | {line.planted} | {line.recall:.3f} | {line.false_alarms:.4f} of {line.others} | {f1} |"
        )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="footage to render")
    parser.add_argument("--seed", type=int, default=100, help="of the first file")
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--file-seconds", type=float, default=60.0, help="length of one file")
    parser.add_argument("--copies", type=int, default=4, help="shots a file of which copies are made")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = this one")
    parser.add_argument("--folder", type=Path, default=Path("outputs/curate-truth"), help="footage and result")
    args = parser.parse_args(argv)
    size = (args.height, args.width)
    render(args.folder / "raw", args.minutes, args.seed, size, args.file_seconds, args.copies)
    print(table(run(args.folder, args.workers)))


if __name__ == "__main__":
    main()
