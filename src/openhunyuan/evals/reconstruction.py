"""What the VAE keeps: PSNR and SSIM on held-out world videos, and whether every palette colour comes back.

PSNR alone hides a lost colour axis (a VAE at 23.7 dB can return red as orange and green as grey), so the report
names each subject and background colour again after the round trip, from pixels, and measures all attributes of the
reconstructed clips.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from scipy import ndimage

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.evals.alignment import SUBJECT_RADIUS, measure
from openhunyuan.evals.background import name_background_colour
from openhunyuan.evals.colour import lab_distance, name_colour
from openhunyuan.evals.filters import eroded
from openhunyuan.evals.report import ATTRIBUTES, AttributeReport
from openhunyuan.evals.sheet import Row, write_sheet
from openhunyuan.tiny.vocabulary import BACKGROUND_COLORS, COLORS
from openhunyuan.tiny.world import Scene, heldout_scenes, render, truth

Frames = NDArray[np.uint8]
RoundTrip = Callable[[Frames], Frames]
"""uint8 [N,T,H,W,3] -> the same shape after encode and decode"""


class ColourRecovery(BaseModel):
    """One palette colour after the round trip, over the clips that contain it.

    mean_rgb: average colour found inside the object; mean_distance and worst_distance: CIE76 Lab difference to the
    rendered colour; recovered: share of clips in which the pixels still get this colour's name (inside the
    measure's reject radius).
    """

    model_config = ConfigDict(frozen=True)

    role: str
    color: str
    clips: int
    mean_rgb: tuple[float, float, float]
    mean_distance: float
    worst_distance: float
    recovered: float


class ReconstructionReport(BaseModel):
    """PSNR in dB (per clip, peak 255), SSIM (0..1), colour recovery, and the alignment measured on the
    reconstructions."""

    model_config = ConfigDict(frozen=True)

    model: str
    seed: int
    num_videos: int
    num_frames: int
    height: int
    width: int
    psnr_mean: float
    psnr_min: float
    psnr_of_mean_error: float
    """PSNR of the mean squared error over all clips: the strictest of the usual averages."""
    ssim_mean: float
    ssim_min: float
    colors: list[ColourRecovery]
    attributes: dict[str, AttributeReport]
    """The alignment measure on reconstructed truth: the ceiling that this VAE sets for any generator."""
    seconds: float

    def table(self) -> Table:
        """Quality and every colour as a rich table."""
        title = (
            f"{self.model}: reconstruction of {self.num_videos} held-out videos: PSNR {self.psnr_mean:.2f} dB (worst"
            f" {self.psnr_min:.2f}), SSIM {self.ssim_mean:.4f} (worst {self.ssim_min:.4f})"
        )
        table = Table(title=title, title_justify="left")
        for column in ("role", "colour"):
            table.add_column(column)
        for column in ("clips", "mean RGB", "mean Lab distance", "worst", "recovered"):
            table.add_column(column, justify="right")
        for c in self.colors:
            rgb = " ".join(f"{v:.0f}" for v in c.mean_rgb)
            numbers = (rgb, f"{c.mean_distance:.1f}", f"{c.worst_distance:.1f}", f"{c.recovered:.3f}")
            table.add_row(c.role, c.color, str(c.clips), *numbers)
        for name, report in self.attributes.items():
            table.add_row("measured", name, str(report.overall.total), "", "", "", f"{report.overall.accuracy:.3f}")
        return table

    def markdown(self) -> str:
        """The same as a page."""
        lines = [
            f"# Reconstruction by the VAE of `{self.model}`",
            "",
            f"{self.num_videos} held-out world videos of {self.num_frames}×{self.height}×{self.width} (seed"
            f" {self.seed}): PSNR {self.psnr_mean:.2f} dB on average, {self.psnr_min:.2f} dB worst,"
            f" {self.psnr_of_mean_error:.2f} dB of the mean error;"
            f" SSIM {self.ssim_mean:.4f}, worst {self.ssim_min:.4f}.",
            "",
            "| role | colour | clips | mean RGB | mean Lab distance | worst | recovered |",
            "| --- | --- | ---: | --- | ---: | ---: | ---: |",
        ]
        for c in self.colors:
            rgb = " ".join(f"{v:.0f}" for v in c.mean_rgb)
            lines.append(
                f"| {c.role} | {c.color} | {c.clips} | {rgb} | {c.mean_distance:.1f} | {c.worst_distance:.1f}"
                f" | {c.recovered:.3f} |"
            )
        lines += ["", "Alignment measured on the reconstructions:", ""]
        lines += [f"- {n}: {r.overall.right}/{r.overall.total}" for n, r in self.attributes.items()]
        return "\n".join(lines) + "\n"


def run_reconstruction(
    model: str = "tiny",
    num_videos: int = 96,
    seed: int = 0,
    json_path: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 4,
    device: str = "cpu",
    show: bool = True,
) -> ReconstructionReport:
    """Encode and decode held-out world videos with a model's VAE (posterior mode) and report; sizes default to the
    model's.

    With output_dir: report.json, report.md and colours.png (each palette colour, original over reconstruction).
    """
    if num_videos < 1 or batch_size < 1:
        raise UserError("num_videos and batch_size must be at least 1.")
    import torch

    from openhunyuan.convert.load import open_model

    loaded = open_model(model, device, torch.float32)
    vae, defaults = loaded.vae, loaded.spec.defaults

    @torch.inference_mode()
    def round_trip(videos: Frames) -> Frames:
        x = torch.from_numpy(videos).to(loaded.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        y = vae.decode(vae.encode(x).mode())
        return ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()

    size = (num_frames or defaults.num_frames, height or defaults.height, width or defaults.width)
    folder = Path(output_dir) if output_dir is not None else None
    report = reconstruct(round_trip, model, heldout_scenes(num_videos, seed), seed, size, batch_size, folder, show)
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(report.model_dump_json(indent=1))
    if show:
        console().print(report.table())
    return report


def reconstruct(
    round_trip: RoundTrip,
    model: str,
    scenes: Sequence[Scene],
    seed: int,
    size: tuple[int, int, int],
    batch_size: int = 4,
    folder: Path | None = None,
    show: bool = False,
) -> ReconstructionReport:
    """The report around any round trip of frames; size is (num_frames, height, width)."""
    from rich.progress import track

    started = time.monotonic()
    errors: list[float] = []
    ssims: list[float] = []
    pairs: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    found: dict[tuple[str, str], list[tuple[NDArray[np.float64], float, bool]]] = defaultdict(list)
    starts = range(0, len(scenes), batch_size)
    for start in track(starts, "reconstructing", console=console(stderr=True), disable=not show):
        batch = scenes[start : start + batch_size]
        originals = np.stack([render(s, *size) for s in batch])
        for scene, original, restored in zip(batch, originals, round_trip(originals), strict=True):
            errors.append(float(((original.astype(np.float64) - restored) ** 2).mean()))
            ssims.append(ssim(original, restored))
            seen = measure(restored)
            for name in ATTRIBUTES:
                pairs[name].append((seen.asked(scene)[name], seen.seen()[name]))
            for key, value in _colours(scene, original, restored, size).items():
                found[key].append(value)
    psnrs = 10 * np.log10(255.0**2 / np.maximum(errors, 1e-10))
    report = ReconstructionReport(
        model=model,
        seed=seed,
        num_videos=len(scenes),
        num_frames=size[0],
        height=size[1],
        width=size[2],
        psnr_mean=float(psnrs.mean()),
        psnr_min=float(psnrs.min()),
        psnr_of_mean_error=float(10 * np.log10(255.0**2 / max(float(np.mean(errors)), 1e-10))),
        ssim_mean=float(np.mean(ssims)),
        ssim_min=float(np.min(ssims)),
        colors=[
            _recovery(role, name, found[role, name])
            for role, palette in (("subject", COLORS), ("background", BACKGROUND_COLORS))
            for name in palette
            if found[role, name]
        ],
        attributes={name: AttributeReport.from_pairs(values) for name, values in pairs.items()},
        seconds=time.monotonic() - started,
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(report.model_dump_json(indent=1))
        (folder / "report.md").write_text(report.markdown())
        _write_colours(round_trip, scenes, size, folder / "colours.png")
    return report


def ssim(first: Frames, second: Frames) -> float:
    """Mean structural similarity of two clips uint8 [T,H,W,3], per frame and channel (Gaussian window, sigma 1.5;
    Wang et al. 2004, constants 0.01 and 0.03 of the range 255)."""
    x, y = first.astype(np.float64), second.astype(np.float64)

    def blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values, (0, 1.5, 1.5, 0), truncate=3.5))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(score[:, 5:-5, 5:-5].mean()) if min(first.shape[1:3]) > 10 else float(score.mean())


def _colours(
    scene: Scene, original: Frames, restored: Frames, size: tuple[int, int, int]
) -> dict[tuple[str, str], tuple[NDArray[np.float64], float, bool]]:
    """Colour of the subject's inside and of the open background after the round trip, located by the truth."""
    mask = np.stack([truth_mask(scene, t, size) for t in range(size[0])])
    inside = eroded(mask, 2)
    if not inside.any():
        inside = mask
    result = {}
    for role, name, where in (
        ("subject", scene.color, inside),
        ("background", scene.background_color, _open(original, mask)),
    ):
        if not where.any():
            continue
        before, after = original[where].mean(0), restored[where].mean(0)
        named = name_colour(after, COLORS, SUBJECT_RADIUS) if role == "subject" else name_background_colour(after)
        result[role, name] = (after, lab_distance(before, after), named == name)
    return result


def _open(original: Frames, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A border of the frame that no object reaches."""
    border = np.zeros_like(mask)
    border[:, :5] = border[:, -5:] = border[:, :, :5] = border[:, :, -5:] = True
    return border & ~mask


def truth_mask(scene: Scene, frame: int, size: tuple[int, int, int]) -> NDArray[np.bool_]:
    """True where the subject covers the pixel in a frame, [H,W]."""
    return np.asarray(truth(scene, *size)["mask"](frame)) > 0.5


def _recovery(role: str, name: str, values: Sequence[tuple[NDArray[np.float64], float, bool]]) -> ColourRecovery:
    mean = np.mean([v[0] for v in values], axis=0)
    return ColourRecovery(
        role=role,
        color=name,
        clips=len(values),
        mean_rgb=(float(mean[0]), float(mean[1]), float(mean[2])),
        mean_distance=float(np.mean([v[1] for v in values])),
        worst_distance=float(np.max([v[1] for v in values])),
        recovered=float(np.mean([v[2] for v in values])),
    )


def _write_colours(round_trip: RoundTrip, scenes: Sequence[Scene], size: tuple[int, int, int], path: Path) -> None:
    rows = []
    for name in COLORS:
        scene = next((s for s in scenes if s.color == name), replace(scenes[0], color=name))
        clip = render(scene, *size)
        rows += [Row(clip, scene.prompt), Row(round_trip(clip[None])[0], "after the VAE")]
    write_sheet(path, rows, "Every subject colour, rendered and after the VAE")
