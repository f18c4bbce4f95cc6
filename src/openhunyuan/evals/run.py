"""Alignment of a model with its prompts: generate for held-out prompts, measure from pixels, report every value.

Generated frames are cached without loss in the output folder under a key of (weights, prompt, seed, settings), so
an interrupted evaluation continues where it stopped and a changed model is never measured on old videos.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.caption.camera import CAMERA_MOVES
from openhunyuan.evals.alignment import Measurement, measure
from openhunyuan.evals.report import AttributeReport, FirstFrame, Report, Sample
from openhunyuan.evals.sheet import Row, write_sheet
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, COLORS, MATERIALS, MOTIONS, SHAPES
from openhunyuan.tiny.world import Scene, heldout_scenes, render, sample_scene

Frames = NDArray[np.uint8]
Generate = Callable[..., Frames]
"""(prompts, seeds) -> uint8 [N,T,H,W,3]; with pictures to start from (prompts, seeds, images)."""

SPLITS = ("heldout", "train")
ORDER: dict[str, Sequence[str]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background_color": tuple(BACKGROUND_COLORS),
    "material": MATERIALS,
    "background": tuple(f"{c} {m}" for c in BACKGROUND_COLORS for m in MATERIALS),
    "camera": CAMERA_MOVES,
}
_SHEET_ROWS = 24


def run_alignment(
    model: str = "tiny",
    split: str = "heldout",
    num_prompts: int = 200,
    seed: int = 0,
    json_path: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    camera_prompts: int = 65,
    batch_size: int = 16,
    device: str | None = None,
    show: bool = True,
    from_image: bool = False,
    **overrides: Any,
) -> Report:
    """Generate, measure and report.

    Args:
        model: a model name or folder, as everywhere.
        split: "heldout" (combinations never rendered for training) or "train".
        num_prompts: prompts with a static camera; colours, shapes, motions and backgrounds are balanced.
        seed: chooses the prompts and the noise of each.
        json_path: also write the report's JSON here.
        output_dir: videos, report.json, report.md, worst.png; default outputs/alignment-SPLIT-SEED.
        camera_prompts: prompts that name a camera move, spread over the moves; 0 for none.
        batch_size: videos per network call.
        device: "cpu", "cuda", or None or "auto" for the best one here.
        show: progress bar on stderr and the table on stdout.
        from_image: image-to-video: each video starts from the first frame of its scene as the world renders it, and
            the report says how well the video's first frame matches.
        overrides: Request fields other than the model's defaults (num_inference_steps, true_cfg_scale, ...).

    Raises UserError for an unknown split, numbers below one, or an output folder that cannot be written.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}, but it must be one of {', '.join(SPLITS)}.")
    if from_image and overrides.get("num_frames") == 1:
        raise UserError("A video from an image needs 5 frames or more; leave num_frames at 5 or above.")
    if num_prompts < 1 or batch_size < 1 or camera_prompts < 0:
        raise UserError("num_prompts and batch_size must be at least 1 and camera_prompts at least 0.")
    folder = _writable(Path(output_dir) if output_dir else Path("outputs") / default_folder(split, seed, from_image))
    if json_path is not None:
        _writable(Path(json_path).parent)

    from openhunyuan.infer.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(model, device)
    fingerprint = model_fingerprint(model)
    settings = {**pipe.defaults.model_dump(), **overrides}

    if from_image:
        settings["image"] = "first frame of the scene"

    def generate(prompts: list[str], seeds: list[int], images: list[Frames] | None = None) -> Frames:
        return pipe.generate_batch(prompts, seeds, batch_size=batch_size, images=images, **overrides)

    every = scenes_for(split, num_prompts, seed), camera_scenes_for(split, camera_prompts, seed)
    frames, height, width = (int(settings[name]) for name in ("num_frames", "height", "width"))
    report = evaluate(
        generate,
        folder,
        model=model,
        fingerprint=fingerprint,
        settings=settings,
        split=split,
        scenes=every[0],
        camera_scenes=every[1],
        seed=seed,
        batch_size=batch_size,
        show=show,
        images=[render(s, frames, height, width)[0] for part in every for s in part] if from_image else None,
    )
    if json_path is not None:
        Path(json_path).write_text(report.model_dump_json(indent=1))
    if show:
        console().print(report.table())
        console(stderr=True).print(f"Report, videos and the worst cases: {folder}")
    return report


def evaluate(
    generate: Generate,
    folder: Path,
    *,
    model: str,
    fingerprint: str,
    settings: dict[str, float | int | str | None],
    split: str,
    scenes: Sequence[Scene],
    camera_scenes: Sequence[Scene],
    seed: int,
    batch_size: int = 16,
    show: bool = False,
    images: Sequence[Frames] | None = None,
) -> Report:
    """The evaluation around any generator of frames; writes report.json, report.md and worst.png into the folder.

    images: what each video is to start from, uint8 [H,W,3], one a scene (those of the camera last); None: text alone.
    """
    started = time.monotonic()
    every = [*scenes, *camera_scenes]
    samples = _samples(generate, folder, every, fingerprint, settings, seed, batch_size, show, images)
    plain, camera = samples[: len(scenes)], samples[len(scenes) :]
    report = Report(
        model=model,
        fingerprint=fingerprint,
        split=split,
        seed=seed,
        num_prompts=len(plain),
        settings=settings,
        attributes=_count(plain, ("color", "shape", "motion", "background", "background_color", "material")),
        camera=_count(camera, ("camera",)).get("camera") if camera else None,
        camera_attributes=_count(camera, ("color", "shape", "background")) if camera else {},
        all_correct=sum(all(s.correct.values()) for s in plain) / max(len(plain), 1),
        first_frame=FirstFrame.of(samples),
        seconds=time.monotonic() - started,
        samples=plain,
        camera_samples=camera,
    )
    report.write(folder)
    _write_worst(report, folder)
    return report


def scenes_for(split: str, count: int, seed: int) -> list[Scene]:
    """The scenes whose canonical prompts are asked for, static camera."""
    if split == "heldout":
        return heldout_scenes(count, seed)
    rng = np.random.default_rng([seed, 1])
    return [sample_scene(rng, "train") for _ in range(count)]


def camera_scenes_for(split: str, count: int, seed: int) -> list[Scene]:
    """Scenes that name a camera move, the moves in turn; subjects of the same split."""
    rng = np.random.default_rng([seed, 2])
    moves = [m for m in CAMERA_MOVES if m != "static"]
    return [
        replace(
            sample_scene(rng, "heldout" if split == "heldout" else "train", camera_prob=1.0),
            camera=moves[i % len(moves)],
        )
        for i in range(count)
    ]


def model_fingerprint(model: str) -> str:
    """SHA-256 over the names and bytes of a model folder's files. Raises UserError for an unknown model."""
    from openhunyuan.models.zoo import model_folder

    folder = model_folder(model)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _samples(
    generate: Generate,
    folder: Path,
    scenes: Sequence[Scene],
    fingerprint: str,
    settings: dict[str, Any],
    seed: int,
    batch_size: int,
    show: bool,
    images: Sequence[Frames] | None,
) -> list[Sample]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    seeds = [seed * 100_000 + i for i in range(len(scenes))]
    files = [folder / _video_name(s.prompt, n, fingerprint, settings) for s, n in zip(scenes, seeds, strict=True)]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), disable=not show) as progress:
        task = progress.add_task("generating", total=len(scenes), completed=len(scenes) - len(missing))
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            given = () if images is None else ([images[i] for i in batch],)
            videos = generate([scenes[i].prompt for i in batch], [seeds[i] for i in batch], *given)
            for index, video in zip(batch, videos, strict=True):
                _save(files[index], video)
            progress.advance(task, len(batch))
        task = progress.add_task("measuring", total=len(scenes))
        samples = []
        for index, (scene, number, file) in enumerate(zip(scenes, seeds, files, strict=True)):
            video = _load(file)
            match = None if images is None else psnr(video[0], images[index])
            samples.append(_sample(scene, number, measure(video), str(file.relative_to(folder)), match))
            progress.advance(task)
    return samples


def default_folder(split: str, seed: int, from_image: bool = False) -> str:
    """Name of the folder an evaluation writes to when none is given."""
    return f"{'from-image' if from_image else 'alignment'}-{split}-{seed}"


def psnr(first: Frames, second: Frames) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB, at most 99."""
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def _sample(scene: Scene, seed: int, seen: Measurement, video: str, match: float | None) -> Sample:
    return Sample(
        prompt=scene.prompt,
        seed=seed,
        asked=seen.asked(scene),
        seen=seen.seen(),
        correct=seen.correct(scene),
        video=video,
        first_frame_psnr=match,
    )


def _count(samples: Sequence[Sample], attributes: Sequence[str]) -> dict[str, AttributeReport]:
    return {
        name: AttributeReport.from_pairs([(s.asked[name], s.seen[name]) for s in samples], ORDER[name])
        for name in attributes
    }


def _video_name(prompt: str, seed: int, fingerprint: str, settings: dict[str, Any]) -> str:
    key = json.dumps([prompt, seed, fingerprint, settings], sort_keys=True, default=str)
    return f"videos/{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"


def _save(path: Path, video: Frames) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # renamed when whole: a killed run leaves no half file to trust
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    np.savez_compressed(temporary, frames=video)
    temporary.replace(path)


def _load(path: Path) -> Frames:
    with np.load(path) as archive:
        return archive["frames"]


def _write_worst(report: Report, folder: Path) -> None:
    samples = sorted(report.samples + report.camera_samples, key=lambda s: sum(s.correct.values()) - len(s.correct))
    wrong = [s for s in samples if not all(s.correct.values())][:_SHEET_ROWS]
    title = "Worst cases" if wrong else "Nothing wrong; the first samples"
    rows = []
    for sample in wrong or samples[:8]:
        faults = ", ".join(f"{k}: {sample.seen[k] or 'rejected'}" for k, ok in sample.correct.items() if not ok)
        rows.append(Row(_load(folder / sample.video), f"{sample.prompt}  [{faults}]" if faults else sample.prompt))
    write_sheet(folder / "worst.png", rows, title)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The output folder {folder} cannot be made ({error.strerror}); choose one you may write to."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"The output folder {folder} cannot be written; choose one you may write to.")
    return folder
