"""b. Mixed scales: does tuning on large pictures alone ruin small ones, and does mixing both keep them?

A small transformer learns pictures of 32 pixels (the report's 256), then is tuned on 64 pixels alone (512), on both in
every batch, or on 32 further, for as many steps.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from experiments.common import Page, Study, all_below, begin, figure, finish, judged, spoken, spread, write_page
from experiments.networks import (
    FROM_NOTHING,
    SMALL,
    as_batches,
    config,
    curve,
    encoded,
    flow,
    held_out,
    new_dit,
    shape,
    world,
)
from openhunyuan.latents.plan import CostModel
from openhunyuan.models.dit.model import DiT
from openhunyuan.train.config import Strict
from openhunyuan.train.planned import PlannedBatches

LOW, HIGH = 32, 64
ONLY_HIGH, MIXED, ONLY_LOW = "64 only", "mixed", "32 only"
TEXT_TOKENS = 25


class Sizes(Strict):
    images: int = 2000
    steps: int = 300
    tuning_steps: int = 160
    batch: int = 64
    validate_every: int = 20


QUICK = Sizes(images=8, steps=2, tuning_steps=2, batch=4, validate_every=1)


def run(study: Study) -> Page:
    sizes = QUICK if study.quick else Sizes()
    found: dict[str, list[dict[str, Any]]] = {ONLY_HIGH: [], MIXED: [], ONLY_LOW: []}
    before = []
    for seed in study.seeds:
        before.append(study.measured("before", seed, sizes, _before, study, sizes, seed))
        for arm in found:
            found[arm].append(study.measured(arm, seed, sizes, _tuned, study, sizes, seed, arm))
    return _page(sizes, before, found)


def _sets(study: Study, sizes: Sizes) -> tuple[list[Any], dict[str, Any]]:
    train = [encoded(study.work, world(sizes.images, 1, side, seed=51 + side)) for side in (LOW, HIGH)]
    count = min(128, sizes.images)
    held = {
        str(side): as_batches(encoded(study.work, held_out(count, 1, side, seed=52 + side))) for side in (LOW, HIGH)
    }
    return train, held


def _base(study: Study, sizes: Sizes, seed: int) -> DiT:
    """The transformer after the first stage; trained where that was not done yet."""
    train, held = _sets(study, sizes)
    dit = new_dit(SMALL, seed)
    folder = study.place("before", seed, sizes) / "run"
    flow(config("low", sizes.steps, [shape(sizes.batch, 1, LOW)], seed), dit, train, held, folder)
    return dit


def _before(folder: Path, study: Study, sizes: Sizes, seed: int) -> dict[str, Any]:
    _base(study, sizes, seed)
    return {str(side): curve(folder / "run", f"loss_{side}")[-1][1] for side in (LOW, HIGH)}


def _tuned(folder: Path, study: Study, sizes: Sizes, seed: int, arm: str) -> dict[str, Any]:
    train, held = _sets(study, sizes)
    dit: nn.Module = copy.deepcopy(_base(study, sizes, seed)).train()
    assert isinstance(dit, DiT)
    sides = {ONLY_HIGH: (HIGH,), MIXED: (LOW, HIGH), ONLY_LOW: (LOW,)}[arm]
    shapes = [shape(sizes.batch, 1, side) for side in sides]
    source = None
    if arm == MIXED:
        cost = CostModel.flops(SMALL, TEXT_TOKENS)
        source = PlannedBatches(train, cost, sizes.batch, (1, 0), seed=seed, image_scales=((LOW, 1), (HIGH, 1)))
    optimizer = FROM_NOTHING.model_copy(
        update={"lr": 0.6 * FROM_NOTHING.lr, "muon_lr": 0.6 * FROM_NOTHING.muon_lr}
    )  # the rate of the stage flow-mix-256-512
    made = config("tuned", sizes.tuning_steps, shapes, seed, optimizer, sizes.validate_every)
    flow(made, dit, train, held, folder / "run", source=source)
    return {str(side): curve(folder / "run", f"loss_{side}") for side in (LOW, HIGH)}


def _page(sizes: Sizes, before: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]]) -> Page:
    def after(arm: str, side: int) -> list[float]:
        return [one[str(side)][-1][1] for one in found[arm]]

    was = {side: [one[str(side)] for one in before] for side in (LOW, HIGH)}
    rows = [["tuned on", f"held-out loss at {LOW}", f"held-out loss at {HIGH}"]]
    rows.append(["not yet", *(spread(was[side], 4) for side in (LOW, HIGH))])
    rows += [[arm, *(spread(after(arm, side), 4) for side in (LOW, HIGH))] for arm in found]
    ruined = all_below(was[LOW], after(ONLY_HIGH, LOW))
    kept = not any(now > then for now, then in zip(after(MIXED, LOW), was[LOW], strict=True))
    picture = figure(2)
    for place, side in enumerate((LOW, HIGH), start=1):
        axes = picture.add_subplot(1, 2, place)
        for number, (arm, group) in enumerate(found.items()):
            for seed, one in enumerate(group):
                points = [(0, was[side][seed]), *one[str(side)]]
                axes.plot(*zip(*points, strict=True), color=f"C{number}", linewidth=1, label=None if seed else arm)
        finish(axes, f"held-out loss at {side} pixels", "step of tuning", "loss")
    return Page(
        title="b. Mixed scales",
        claim="tuning on 512 pixels alone ruins 256, and mixed scales in every global batch do not (report §4.5).",
        setup=[
            f"Pictures of {LOW} pixels stand for 256, of {HIGH} for 512 ({sizes.images} each, other scenes). "
            f"{sizes.steps} steps of {sizes.batch} at {LOW}; then {sizes.tuning_steps} steps of {sizes.batch} at six "
            "tenths of the rate. Mixed: as many of both in every batch, the loss a token "
            "(`train.planned.PlannedBatches`). Small transformer, Muon, averaged weights.",
            "Loss: 128 held-out images of each side, mean over five noise levels, the same noise always.",
        ],
        rule=f"(1) At every seed the loss at {LOW} is higher after tuning on {HIGH} alone than before. (2) At no seed "
        "is it higher after mixed tuning. What mixing costs at the larger side is reported and does not decide.",
        rows=rows,
        verdict=judged(ruined, kept),
        found=[
            f"{HIGH} alone: loss at {LOW} from {spread(was[LOW], 4)} to {spread(after(ONLY_HIGH, LOW), 4)}. Part 1 "
            f"holds: {spoken(ruined)}.",
            f"Mixed: to {spread(after(MIXED, LOW), 4)}. Part 2 holds: {spoken(kept)}.",
            f"At {HIGH}: {spread(after(ONLY_HIGH, HIGH), 4)} after {HIGH} alone, {spread(after(MIXED, HIGH), 4)} after "
            f"mixed tuning with half as many pictures of that side, {spread(was[HIGH], 4)} before.",
        ],
        scale="Forgetting between two token grids (4 and 16 tokens) in a network that has room for both. Not: the "
        "report's stages, which last a thousand times longer, and what the eye sees; a loss that rises is the first "
        "sign of it.",
        figure=picture,
        caption="Held-out loss at both sides while tuning; a line a seed.",
    )


def main(argv: list[str] | None = None) -> None:
    study = begin("b", "mix-scale", __doc__, argv)
    write_page(study, run(study))


if __name__ == "__main__":
    main()
