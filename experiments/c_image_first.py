"""c. Image pre-training: does video training reach a given loss sooner from image weights than from nothing?

Two trainings of the small transformer on the same clips in the same order: from random weights, and from weights that
saw images first. The first also goes on for as long as both parts of the second take together.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.common import Page, Study, all_below, begin, figure, finish, judged, spoken, spread, write_page
from experiments.networks import (
    SMALL,
    as_batches,
    config,
    curve,
    encoded,
    flow,
    held_out,
    new_dit,
    parameters,
    shape,
    world,
)
from openhunyuan.base.sizes import VideoSize
from openhunyuan.models.flops import dit_flops
from openhunyuan.tiny.vocabulary import MOTIONS
from openhunyuan.train.config import Strict

TEXT_TOKENS = 25
"""Of a prompt of the world, for the count of operations."""


class Sizes(Strict):
    images: int = 2000
    clips: int = 960
    frames: int = 9
    image_steps: int = 150
    image_batch: int = 64
    video_steps: int = 160
    video_batch: int = 32
    validate_every: int = 20


QUICK = Sizes(images=8, clips=8, image_steps=2, image_batch=4, video_steps=4, video_batch=2, validate_every=1)


def cost(frames: int, batch: int, steps: int) -> float:
    """Operations of the forward passes of a training, in units of 1e12."""
    return steps * batch * dit_flops(SMALL, VideoSize(frames, 64, 64).latent, TEXT_TOKENS) / 1e12


def run(study: Study) -> Page:
    sizes = QUICK if study.quick else Sizes()
    # From nothing for as many operations as images and videos take together.
    more = round(cost(1, sizes.image_batch, sizes.image_steps) / cost(sizes.frames, sizes.video_batch, 1))
    more = -(-more // sizes.validate_every) * sizes.validate_every
    after = [study.measured("images first", seed, sizes, _images_first, study, sizes, seed) for seed in study.seeds]
    alone = [study.measured("from nothing", seed, sizes, _alone, study, sizes, seed, more) for seed in study.seeds]
    return _page(sizes, more, after, alone)


def _video(folder: Path, study: Study, sizes: Sizes, seed: int, steps: int, dit: Any) -> dict[str, Any]:
    data = encoded(study.work, world(sizes.clips, sizes.frames, 64, seed=41, motions=MOTIONS))
    held = as_batches(encoded(study.work, held_out(min(48, sizes.clips), sizes.frames, 64, seed=42)))
    shapes = [shape(sizes.video_batch, sizes.frames, 64)]
    train = config("video", steps, shapes, seed, validate_every=sizes.validate_every)
    flow(train, dit, [data], {"video": held}, folder / "video")
    return {
        "curve": curve(folder / "video", "loss_video"),
        "without text": curve(folder / "video", "loss_video_empty_text"),
    }


def _images_first(folder: Path, study: Study, sizes: Sizes, seed: int) -> dict[str, Any]:
    data = encoded(study.work, world(sizes.images, 1, 64, seed=115))
    held = as_batches(encoded(study.work, held_out(min(128, sizes.images), 1, 64, seed=116)))
    dit = new_dit(SMALL, seed)
    train = config("image", sizes.image_steps, [shape(sizes.image_batch, 1, 64)], seed)
    flow(train, dit, [data], {"image": held}, folder / "image")
    dit.train()
    return _video(folder, study, sizes, seed, sizes.video_steps, dit) | {"parameters": parameters(dit)}


def _alone(folder: Path, study: Study, sizes: Sizes, seed: int, more: int) -> dict[str, Any]:
    return _video(folder, study, sizes, seed, sizes.video_steps + more, new_dit(SMALL, seed))


def reached(points: list[tuple[int, float]], loss: float) -> float:
    """The step at which a curve first comes to ``loss``, between the points on a line; inf if it never does."""
    for (before, high), (after, low) in pairwise(points):
        if high > loss >= low:
            return before + (after - before) * (high - loss) / (high - low)
    return float(points[0][0]) if points[0][1] <= loss else float("inf")


def _at(points: list[tuple[int, float]], step: int) -> float:
    return min(points, key=lambda point: abs(point[0] - step))[1]


def _page(sizes: Sizes, more: int, after: list[dict[str, Any]], alone: list[dict[str, Any]]) -> Page:
    image_cost = cost(1, sizes.image_batch, sizes.image_steps)
    step_cost = cost(sizes.frames, sizes.video_batch, 1)
    goals = [_at(one["curve"], sizes.video_steps) for one in alone]
    needed = [reached(one["curve"], goal) for one, goal in zip(after, goals, strict=True)]
    ends = [_at(one["curve"], sizes.video_steps) for one in after]
    equal = [one["curve"][-1][1] for one in alone]
    sooner = all(step < sizes.video_steps for step in needed)
    cheaper = all_below(ends, equal)
    rows = [["training", "video steps", "operations", "held-out loss", "without text"]]

    def row(name: str, steps: int, operations: float, found: list[dict[str, Any]]) -> list[str]:
        losses = [spread([_at(one[key], steps) for one in found], 4) for key in ("curve", "without text")]
        return [name, str(steps), f"{operations:.1f}e12", *losses]

    both = image_cost + step_cost * sizes.video_steps
    rows.append(row("from nothing", sizes.video_steps, step_cost * sizes.video_steps, alone))
    rows.append(row("from nothing, longer", sizes.video_steps + more, step_cost * (sizes.video_steps + more), alone))
    rows.append(row("images first", sizes.video_steps, both, after))
    picture = figure(2)
    for place, (offset, title, label) in enumerate(
        ((0.0, "by steps on video", "step on video"), (image_cost, "by all operations", "1e12 operations")), start=1
    ):
        axes = picture.add_subplot(1, 2, place)
        scale = step_cost if offset else 1.0
        for name, group, start, colour in (("from nothing", alone, 0.0, "C0"), ("images first", after, offset, "C1")):
            for number, one in enumerate(group):
                x = [start + scale * step for step, _ in one["curve"]]
                y = [loss for _, loss in one["curve"]]
                axes.plot(x, y, color=colour, linewidth=1, label=None if number else name)
        finish(axes, title, label, "held-out loss")
    shown = [step if step < float("inf") else sizes.video_steps for step in needed]
    return Page(
        title="c. Image pre-training",
        claim="video training started from an image model reaches a given loss sooner (report §4.5).",
        setup=[
            f"Transformer of {after[0]['parameters']}; clips {sizes.frames}×64×64 ({sizes.clips}), batches of "
            f"{sizes.video_batch}; images 64×64 ({sizes.images}), {sizes.image_steps} steps of {sizes.image_batch}; "
            "the same clips in the same order with the same noise in both trainings.",
            "Muon with a constant rate after warm-up, averaged weights, no images among the videos.",
            "Loss: held-out clips (combinations never trained on), mean over five noise levels, the same noise always. "
            f"Operations: forward passes, texts of {TEXT_TOKENS} tokens.",
        ],
        rule=f"(1) At every seed, from images the loss that {sizes.video_steps} steps from nothing reach is reached in "
        "fewer steps on video. (2) At every seed it is also lower where training from nothing goes on for as many "
        "operations as images and videos took together.",
        rows=rows,
        verdict=judged(sooner, cheaper),
        found=[
            f"The loss after {sizes.video_steps} steps from nothing ({spread(goals, 4)}) is reached from images after "
            f"{spread(shown, 0)} steps on video. Part 1 holds: {spoken(sooner)}.",
            f"With all operations counted, images first ends at {spread(ends, 4)}, from nothing at {spread(equal, 4)}. "
            f"Part 2 holds: {spoken(cheaper)}.",
        ],
        scale="Whether what is learned of single pictures carries over to clips, and how that compares with spending "
        "the same operations on clips. Not: the report's real gain, which is that images are many and cheap and clips "
        "few and dear; here a picture costs a third of a clip of three latent frames, and both come from one world.",
        figure=picture,
        caption="Held-out loss on clips, a line a seed: by steps on video, and by all operations with those on images.",
    )


def main(argv: list[str] | None = None) -> None:
    study = begin("c", "image-first", __doc__, argv)
    write_page(study, run(study))


if __name__ == "__main__":
    main()
