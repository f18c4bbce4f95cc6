"""The curation pipeline: footage, a Python list of stages, a manifest.

    videos -> split -> [stage, stage, ...] -> manifest.jsonl + drops.jsonl + funnel.json

A stage has a name and maps one clip to one clip: changed (a score, a caption, a tag), dropped with a reason, or as it
was. Clips that are already dropped are not shown to later stages but stay in the manifest, so that nothing vanishes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import Clip, to_jsonl
from openhunyuan.curate.split import STAGE as SPLIT
from openhunyuan.curate.split import SplitConfig, cut_clips, split_video

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Stage:
    """A named function over clips."""

    name: str
    run: Callable[[Clip], Clip]


@dataclass(frozen=True)
class FunnelRow:
    """How many clips a stage saw, and how many it let through."""

    stage: str
    seen: int
    kept: int


def find_videos(path: Path | str) -> list[Path]:
    """A video file, or all video files below a folder in sorted order. Raises UserError when there is none."""
    path = Path(path)
    if path.is_file():
        return [path]
    videos = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not videos:
        raise UserError(f"No video ({', '.join(VIDEO_SUFFIXES)}) was found at {path}.")
    return videos


def curate(
    videos: Sequence[Path],
    folder: Path | str,
    stages: Sequence[Stage] = (),
    split: SplitConfig | None = None,
    on_video: Callable[[Path, Sequence[Clip]], None] | None = None,
) -> list[Clip]:
    """Split, run the stages, cut the clips that are left, and write the three files under `folder`.

    `on_video` is called after each video with its clips (progress). Two sources with the same bytes give each clip
    once; the second is recorded as dropped. Returns all clips, dropped ones included, in footage order.
    """
    names = [SPLIT, *(stage.name for stage in stages)]
    if len(set(names)) != len(names):
        raise ValueError(f"stage names must differ, got {names}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    result: list[Clip] = []
    known: set[str] = set()
    for video in videos:
        clips = [
            clip.drop(SPLIT, "the same footage was seen before") if clip.id in known else clip
            for clip in split_video(video, split)
        ]
        known.update(clip.id for clip in clips)
        for stage in stages:
            clips = [clip if clip.dropped else stage.run(clip) for clip in clips]
        clips = cut_clips(clips, folder)
        result.extend(clips)
        if on_video:
            on_video(video, clips)
    write_manifest(folder, result, names)
    return result


def write_manifest(folder: Path, clips: Sequence[Clip], stages: Sequence[str]) -> None:
    """manifest.jsonl: every clip. drops.jsonl: (clip, stage, reason, score). funnel.json: counts by stage."""
    drops = [{"clip": c.id, **c.dropped.model_dump()} for c in clips if c.dropped]
    _write_text(folder / "drops.jsonl", "".join(json.dumps(drop) + "\n" for drop in drops))
    _write_text(folder / "funnel.json", json.dumps([asdict(row) for row in funnel(clips, stages)], indent=2) + "\n")
    _write_text(folder / "manifest.jsonl", to_jsonl(clips))  # last: where it is, the others are


def funnel(clips: Iterable[Clip], stages: Sequence[str]) -> list[FunnelRow]:
    """One row a stage, in order."""
    clips = list(clips)
    rows, seen = [], len(clips)
    for stage in stages:
        kept = seen - sum(1 for clip in clips if clip.dropped and clip.dropped.stage == stage)
        rows.append(FunnelRow(stage, seen, kept))
        seen = kept
    return rows


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
