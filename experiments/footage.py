"""Raw footage of the world with planted defects, curated, and its clips encoded: what filters are judged on.

Every choice of filters is a plan of its own over the same footage: shots and measures are made once, decisions anew. A
clip file that several plans cut is encoded once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.networks import Frames, embedded
from openhunyuan.base.video import iter_video, write_video
from openhunyuan.curate.analyse import AnalyseJob, Work, analyse
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.decide import Crop, decide
from openhunyuan.curate.measures.measure import ClipSpan
from openhunyuan.curate.run import Plan, curate
from openhunyuan.latents.encode import to_pixels
from openhunyuan.latents.shards import LatentSample, read_shard, write_shard
from openhunyuan.recipes.curate import FILTERS, PLAN, POOL
from openhunyuan.tiny.raw import RawTruth, Shot, read_truth, truth_path, write_raw_footage
from openhunyuan.train.config import Strict

FILTER_NAMES: dict[str, tuple[str, ...]] = {
    "motion": ("motion",),
    "frozen": ("frozen",),
    "contrast": ("contrast",),
    "clarity": ("clarity",),
    "overlay": ("overlay",),
    "text": ("text",),
    "subtitles": ("subtitles",),
    "borders": ("borders",),
    "duplicates": ("duplicate",),
}
"""Filter → its names in a clip's decisions. Subtitles and borders are cropped away rather than refused."""
KINDS: dict[str, tuple[str, ...]] = {
    "motion": ("slow",),
    "frozen": ("static",),
    "contrast": ("low_contrast",),
    "clarity": ("blur",),
    "overlay": ("logo",),
    "text": ("watermark",),
    "subtitles": ("subtitles",),
    "borders": ("letterbox",),
    "duplicates": ("near_duplicate",),
}
"""Filter → what is planted for it; others may find it too. A shot that stands still hardly moves either, and a
watermark is a word in a corner."""
PLANTED = tuple(itertools.chain.from_iterable(2 * kinds for kinds in KINDS.values()))
"""The kinds in the order of `KINDS`, so often that every filter has as much to find."""
MEASURES = tuple(m for m in PLAN.measures if m.name in ("border", "motion", "blur", "quality", "text", "watermark"))
"""What generated clips are looked at with."""
BORDER = 0.02
"""Share of the picture from which bars count."""
LOOKED_AT = 128
"""Side to which generated clips are enlarged for the measures."""
CLIP_FPS = 8.5
"""Frames a second of a generated clip: its 17 frames stand for a shot of two seconds."""


class Footage(Strict):
    """What is rendered: so many files of so many seconds, in squares."""

    files: int = 6
    seconds: float = 60.0
    side: int = 160
    fps: float = 16.0
    shot_seconds: tuple[float, float] = (1.6, 2.4)
    seed: int = 700


def plan(filters: Iterable[str]) -> Plan:
    """The default plan with these of the `FILTER_NAMES`; length, size and aspect always hold."""
    chosen = set(filters)
    names = {name for one in chosen for name in FILTER_NAMES[one]}
    crop = Crop(border="borders" in chosen, subtitles="subtitles" in chosen)
    kept = tuple(f for f in FILTERS if f in POOL or f.name in names)
    twins = PLAN.duplicates if "duplicates" in chosen else None
    return replace(PLAN, filters=kept, crop=crop, duplicates=twins, concepts=None)


def render_footage(folder: Path, spec: Footage) -> None:
    """The files and their truths; those that are there are kept."""
    for number in range(spec.files):
        video = folder / f"footage-{spec.seed + number}.mp4"
        if not truth_path(video).is_file():
            write_raw_footage(
                video,
                spec.seed + number,
                spec.seconds,
                spec.fps,
                height=spec.side,
                width=spec.side,
                defects=PLANTED,
                shot_seconds=spec.shot_seconds,
            )


@dataclass(frozen=True)
class Piece:
    """A clip that a plan kept, the shot that it shows most of, and what was planted there (None: nothing)."""

    clip: Clip
    shot: Shot

    @property
    def kind(self) -> str | None:
        return self.shot.defects[0].kind if self.shot.defects else None

    @property
    def spoiled_for(self) -> str | None:
        """The filter that the shot was spoiled for."""
        return next((name for name, kinds in KINDS.items() if self.kind in kinds), None)

    @property
    def place(self) -> tuple[str, int, int]:
        """Where it lies in the footage."""
        return Path(self.clip.source).name, self.clip.start_frame, self.clip.end_frame


def curated(folder: Path, filters: Iterable[str]) -> list[Piece]:
    """The clips that these filters keep of the footage in ``folder``, in the order of the footage."""
    raw = folder / "raw"
    truths = {path: read_truth(path) for path in sorted(raw.glob("*.mp4"))}
    kept = curate(raw, folder / "data", plan(filters)).kept
    return [Piece(clip, shot_of(clip, truths[raw / Path(clip.source).name])) for clip in kept]


def shot_of(clip: Clip, truth: RawTruth) -> Shot:
    """The shot that most of a clip lies in."""
    return max(truth.shots, key=lambda s: min(s.end_frame, clip.end_frame) - max(s.start_frame, clip.start_frame))


def spread_frames(count: int, wanted: int) -> list[int]:
    """Numbers of ``wanted`` frames, evenly over ``count``: the first to the last."""
    return [int(n) for n in np.linspace(0, count - 1, wanted).round()]


def read_piece(folder: Path, piece: Piece, num_frames: int, moved: float = 0.0) -> Frames:
    """uint8 [num_frames, H, W, 3], evenly over a clip's file.

    moved: as many of its own lengths later (earlier: below 0) in the source, whatever is cut there; inside the file.
    """
    clip = piece.clip
    if not moved:
        return _taken(folder / "data" / str(clip.path), spread_frames(clip.num_frames, num_frames))
    source = folder / "raw" / Path(clip.source).name
    length, total = clip.end_frame - clip.start_frame, read_truth(source).num_frames
    start = min(max(0, clip.start_frame + round(moved * length)), total - length)
    frames = _taken(source, [start + n for n in spread_frames(length, num_frames)])
    left, top, right, bottom = clip.crop or (0, 0, *frames.shape[2:0:-1])
    return frames[:, top:bottom, left:right]


def _taken(path: Path, numbers: Sequence[int]) -> Frames:
    wanted = set(numbers)
    held = {n: frame for n, frame in enumerate(itertools.islice(iter_video(path), max(numbers) + 1)) if n in wanted}
    return np.stack([held[n] for n in numbers])


def read_pieces(folder: Path) -> dict[str, LatentSample]:
    """The samples that were encoded so far, by key."""
    samples = (sample for path in sorted(folder.glob("latents/*.safetensors")) for sample in read_shard(path))
    return {sample.metadata["key"]: sample for sample in samples}


@torch.inference_mode()
def encode_pieces(
    folder: Path, pieces: Mapping[str, tuple[Piece, float]], num_frames: int, side: int, at_once: int = 64
) -> dict[str, LatentSample]:
    """Samples by key: (clip, how far it is moved) encoded with the embedded model and the true caption of its shot.

    What lies in ``folder`` is kept, so that this resumes.
    """
    held = read_pieces(folder)
    missing = [key for key in pieces if key not in held]
    number = len(list(folder.glob("latents/*.safetensors")))
    vae, text = embedded().vae, embedded().text
    (folder / "latents").mkdir(exist_ok=True)
    for start in range(0, len(missing), at_once):
        made = []
        for key in missing[start : start + at_once]:
            piece, moved = pieces[key]
            pixels = to_pixels(read_piece(folder, piece, num_frames, moved), side, side)
            features = text.encode([piece.shot.prompt], data_type="video")
            states = features.states[0][features.mask[0]]
            latents = vae.encode_latents(pixels).float()[0]
            about = {"key": key, "kind": piece.kind}
            made.append(LatentSample(latents, states, features.pooled[0], piece.shot.prompt, about))
        write_shard(folder / "latents" / f"shard-{number:05d}.safetensors", made)
        number += 1
    held = read_pieces(folder)
    return {key: held[key] for key in pieces}


def faults(folder: Path, clips: Sequence[Frames], side: int = LOOKED_AT) -> list[set[str]]:
    """For every clip the filters (of `FILTER_NAMES`, without duplicates) that would refuse or crop it.

    clips: uint8 [T, H, W, 3] of one size. They are enlarged, written as one video, and go through the measures and
    thresholds of curation, each as a source of its own.
    """
    import cv2

    count = len(clips[0])
    large = [cv2.resize(frame, (side, side), interpolation=cv2.INTER_CUBIC) for clip in clips for frame in clip]
    path = folder / "looked-at.mp4"
    write_video(path, np.stack(large), CLIP_FPS, crf=12)
    spans = [ClipSpan(f"{n:032x}", n * count, (n + 1) * count, CLIP_FPS) for n in range(len(clips))]
    names = {measure.key: measure.name for measure in MEASURES}
    rows: dict[str, dict[str, Any]] = {span.id: {} for span in spans}
    for key, outcome in analyse(AnalyseJob(str(path), tuple(Work(span, MEASURES) for span in spans))):
        rows[outcome.key][names[key]] = outcome.rows[0]
    path.unlink()
    records = [
        Clip(
            id=span.id,
            source=span.id,
            source_sha256=span.id,
            start_frame=0,
            end_frame=count,
            fps=CLIP_FPS,
            height=side,
            width=side,
        )
        for span in spans
    ]
    decided = decide(records, rows, {}, FILTERS, Crop(), None, None)
    return [_found(clip) for clip in decided.clips]


def _found(clip: Clip) -> set[str]:
    failed = {decision.filter for decision in clip.decisions if not decision.passed}
    found = {name for name, filters in FILTER_NAMES.items() if failed.intersection(filters)}
    if clip.scores["border.share"] > BORDER:
        found.add("borders")
    if clip.scores["text.subtitle_top"] < 1:
        found.add("subtitles")
    return found
