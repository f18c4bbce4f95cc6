"""e. Guidance distillation: does one pass of the student give what two passes of the teacher give, at half the cost?

The embedded model is the teacher. The student learns guided velocities at scales of 1…8 (``train.tasks.guidance``) and
is compared from the same noise on held-out prompts, at scales it was told.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.common import (
    Page,
    Study,
    all_below,
    bars,
    begin,
    figure,
    finish,
    judged,
    mean,
    spoken,
    spread,
    write_page,
)
from experiments.networks import (
    TUNING,
    aligned,
    as_batches,
    config,
    curve,
    distance,
    embedded,
    empty_text,
    encoded,
    held_out,
    noise_seeds,
    sampled,
    shape,
    trained,
    world,
)
from openhunyuan.base.sizes import VideoSize
from openhunyuan.diffusion.schedule import sigmas
from openhunyuan.recipes.world_latents import LatentBatches
from openhunyuan.tiny.world import Scene, heldout_scenes
from openhunyuan.train.config import Strict
from openhunyuan.train.tasks.guidance import GuidanceConfig, GuidanceTask, student_of


class Sizes(Strict):
    steps: int = 160
    batch: int = 16
    clips: int = 480
    frames: int = 17
    prompts: int = 16
    sampling_steps: int = 24
    shift: float = 2.0
    scales: tuple[float, ...] = (3.0, 6.0)


QUICK = Sizes(steps=2, batch=2, clips=4, frames=5, prompts=2, sampling_steps=2)
NEAR, FAR, LEAST, MOST = 0.05, 0.25, 0.4, 0.65
"""Of the rule: share of right videos lost, distance ÷ that without guidance, bounds of the cost ratio."""


def run(study: Study) -> Page:
    sizes = QUICK if study.quick else Sizes()
    return _page(sizes, [study.measured("student", seed, sizes, _seed, study, sizes, seed) for seed in study.seeds])


def _seed(folder: Path, study: Study, sizes: Sizes, seed: int) -> dict[str, Any]:
    teacher = embedded().dit
    data = encoded(study.work, world(sizes.clips, sizes.frames, 64, seed=31))
    held = as_batches(encoded(study.work, held_out(min(16, sizes.clips), sizes.frames, 64, seed=32)))
    torch.manual_seed(seed)
    student = student_of(teacher).requires_grad_(True).train()
    task = GuidanceTask(GuidanceConfig(), student, teacher, empty_text(), {"video": held})
    train = config(
        "guidance", sizes.steps, [shape(sizes.batch, sizes.frames, 64)], seed, TUNING, max(1, sizes.steps // 8)
    )
    trained(train, task, LatentBatches([data], seed), folder / "run")
    scenes = heldout_scenes(sizes.prompts, 200 + seed)
    found: dict[str, Any] = {"curve": curve(folder / "run", "error_video_w4")}
    bare, bare_seconds = _video(sizes, teacher, scenes, seed, 1.0, None)
    found["bare"] = {"seconds": bare_seconds} | aligned(bare, scenes)
    for scale in sizes.scales:
        wanted, two = _video(sizes, teacher, scenes, seed, scale, None)
        given, one = _video(sizes, student, scenes, seed, 1.0, scale)
        found[f"w{scale:g}"] = {
            "teacher": {"seconds": two, "bare_distance": distance(bare, wanted)} | aligned(wanted, scenes),
            "student": {"seconds": one, "distance": distance(given, wanted)} | aligned(given, scenes),
        }
    return found


def _video(
    sizes: Sizes, dit: nn.Module, scenes: list[Scene], seed: int, scale: float, told: float | None
) -> tuple[torch.Tensor, float]:
    """Latents, and CPU seconds of the sampling."""
    size, levels = VideoSize(sizes.frames, 64, 64), sigmas(sizes.sampling_steps, sizes.shift)
    started = time.process_time()
    prompts = [scene.prompt for scene in scenes]
    latents = sampled(dit, prompts, size, levels, noise_seeds(seed, len(scenes)), scale, told)
    return latents, time.process_time() - started


def _page(sizes: Sizes, found: list[dict[str, Any]]) -> Page:
    def of(*keys: str) -> list[float]:
        values = []
        for one in found:
            value: Any = one
            for key in keys:
                value = value[key]
            values.append(float(value))
        return values

    rows = [["videos", "passes", "distance to two passes", "all right", "shape", "motion", "CPU s a video"]]

    def row(name: str, passes: str, far: list[float], *place: str) -> list[str]:
        shares = [spread(of(*place, key), 2) for key in ("all", "shape", "motion")]
        seconds = [value / sizes.prompts for value in of(*place, "seconds")]
        return [name, passes, spread(far, 4) if far else "0", *shares, spread(seconds, 3)]

    first = f"w{sizes.scales[0]:g}"
    rows.append(row("teacher without guidance", "1", of(first, "teacher", "bare_distance"), "bare"))
    cost: list[float] = []
    parts: list[bool] = []
    said: list[str] = []
    for scale in sizes.scales:
        key = f"w{scale:g}"
        rows.append(row(f"teacher, scale {scale:g}", "2", [], key, "teacher"))
        rows.append(row(f"student, told {scale:g}", "1", of(key, "student", "distance"), key, "student"))
        far, without = of(key, "student", "distance"), of(key, "teacher", "bare_distance")
        right, wanted = mean(of(key, "student", "all")), mean(of(key, "teacher", "all"))
        holds = right >= wanted - NEAR and all_below(far, [FAR * value for value in without])
        parts.append(holds)
        ratio = mean([f / w for f, w in zip(far, without, strict=True)])
        said.append(
            f"Scale {scale:g}: {right:.2f} of the student's videos are all right, {wanted:.2f} of the teacher's; its "
            f"distance to them is {ratio:.3f} of what leaving guidance out costs. Holds: {spoken(holds)}."
        )
        cost += [o / t for o, t in zip(of(key, "student", "seconds"), of(key, "teacher", "seconds"), strict=True)]
    cheap = LEAST <= mean(cost) <= MOST
    said.append(
        f"One pass takes {mean(cost):.2f} of the CPU time of two ({1 / mean(cost):.2f} times as fast; the report says "
        f"about 1.9). Holds: {spoken(cheap)}."
    )
    ends, halves = ([one["curve"][place][1] for one in found] for place in (-1, (len(found[0]["curve"]) - 1) // 2))
    said.append(
        f"The student's error on held-out clips at scale 4 is {spread(ends)} of that of ignoring the scale at the end "
        f"and {spread(halves)} half-way (the rate decays): what is left is not shown to be the method's."
    )
    picture = figure(2)
    axes = picture.add_subplot(1, 2, 1)
    for number, one in enumerate(found):
        axes.plot(*zip(*one["curve"], strict=True), "o-", color=f"C{number}", linewidth=1, markersize=3)
    axes.set_yscale("log")
    finish(axes, "held-out error at scale 4 ÷ that of ignoring it", "step", "ratio", legend=False)
    axes = picture.add_subplot(1, 2, 2)
    names = ["no guidance", *(f"{who} {s:g}" for s in sizes.scales for who in ("teacher", "student"))]
    values = [of("bare", "all"), *(of(f"w{s:g}", who, "all") for s in sizes.scales for who in ("teacher", "student"))]
    bars(axes, names, values)
    finish(axes, "all attributes as asked", "", "share", legend=False)
    return Page(
        title="e. Guidance distillation",
        claim="the distilled student gives in one pass what the teacher gives in two, about 1.9 times as fast "
        "(report §5).",
        setup=[
            f"Teacher: the embedded model. Student: its copy with a guidance input, {sizes.steps} steps of "
            f"{sizes.batch} clips ({sizes.clips} clips of the training split, {sizes.frames}×64×64), scale drawn from "
            "1…8, Muon, averaged weights.",
            f"{sizes.prompts} held-out prompts a seed, {sizes.sampling_steps} steps, shift {sizes.shift:g}, the same "
            "noise for both; the teacher's two passes are one call of twice the batch, as in the pipeline.",
        ],
        rule=f"At every scale the student's share of all-right videos is at most {NEAR:g} below the teacher's, and at "
        f"every seed its distance to the teacher's videos is below {FAR:g} of that of the teacher without guidance. "
        f"One pass takes {LEAST:g} to {MOST:g} of the CPU time of two.",
        rows=rows,
        verdict=judged(all(parts), cheap),
        found=said,
        scale="That the method works, that one student serves several scales, and the ratio of costs of the "
        "transformer, which does not depend on its size. Not: visual quality at large scales, and how many steps 13B "
        "parameters need. The embedded teacher was trained on the same world, so that the student sees no other data "
        "than its teacher did.",
        figure=picture,
        caption="Left: the student's error while it learns, one line a seed. Right: share of videos with all "
        "attributes as asked; dots are seeds.",
    )


def main(argv: list[str] | None = None) -> None:
    study = begin("e", "guidance", __doc__, argv)
    write_page(study, run(study))


if __name__ == "__main__":
    main()
