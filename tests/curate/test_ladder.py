"""The ladder: nested sets, thresholds that rise, a verdict for every filter, calibration, proxies."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import Clip, clip_id
from openhunyuan.curate.decide import DUPLICATE, Filter, with_threshold
from openhunyuan.curate.ladder import (
    YIELD,
    Climbed,
    Ladder,
    TrainingSet,
    climb,
    forget_verdicts,
    read_sets,
    read_verdicts,
    write_sets,
)
from openhunyuan.curate.measures.clarity import Clarity
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.measures.text import Text
from openhunyuan.recipes.curate import LADDER_PLAN

MEASURES = (Motion(), Clarity(), Text())


def moves(speed: float, removes: float = 0.0) -> Filter:
    return Filter(
        name="motion", score="motion.speed", at_least=speed, reason="hardly moves", group="motion", removes=removes
    )


def clear(width: float, removes: float = 0.0) -> Filter:
    return Filter(
        name="clarity", score="clarity.edge_width", at_most=width, reason="blurred", group="clarity", removes=removes
    )


def make_clip(number: int, kind: str = "video", source: str = "a.mp4", **scores: float) -> Clip:
    return Clip(
        id=clip_id(str(number), 0, 48), kind=kind, source=source, source_sha256=str(number), start_frame=0,
        end_frame=48, fps=24.0, height=144, width=256, scores={k.replace("__", "."): v for k, v in scores.items()},
    )  # fmt: skip


def film(number: int, speed: float, width: float, **more: Any) -> Clip:
    return make_clip(number, motion__speed=speed, clarity__edge_width=width, **more)


def two(low: tuple[Filter, ...], high: tuple[Filter, ...], **more: Any) -> Ladder:
    return Ladder(sets=(TrainingSet(name="256p", filters=low), TrainingSet(name="360p", filters=high)), **more)


def sets_of(result: Climbed) -> list[tuple[str, ...]]:
    return [clip.sets for clip in result.clips]


def test_sets_are_nested_and_every_filter_of_every_set_answers(tmp_path: Path) -> None:
    clips = [film(0, 9.0, 1.0), film(1, 9.0, 4.0), film(2, 1.5, 1.0), film(3, 0.5, 9.0)]
    result = climb(clips, two((moves(1.0),), (moves(2.0), clear(3.0))), (), MEASURES)
    assert sets_of(result) == [("256p", "360p"), ("256p",), ("256p",), ()]
    dropped = result.clips[3].dropped
    assert dropped is not None
    assert (dropped.stage, dropped.reason, dropped.score) == ("motion", "hardly moves", 0.5)
    write_sets(tmp_path, result)
    rows = read_verdicts(tmp_path)
    assert len(rows) == 4 * (1 + 2)
    # The last clip fails in 256p, and yet each filter of 360p says what it thinks of it.
    last = {(r["set"], r["filter"]): r for r in rows if r["clip"] == clips[3].id}
    assert {k: r["verdict"] for k, r in last.items()} == {
        ("256p", "motion"): "failed",
        ("360p", "motion"): "failed",
        ("360p", "clarity"): "failed",
    }
    assert last["360p", "clarity"]["value"] == 9.0
    assert last["360p", "clarity"]["at_most"] == 3.0
    assert last["360p", "clarity"]["group"] == "clarity"
    assert read_sets(tmp_path) == result.reports
    first, second = result.reports
    assert [(first.pool, first.before, first.kept), (second.before, second.kept)] == [(4, 4, 3), (3, 1)]
    # Of the pool, two fail on clarity; of the clips of 256p one does, and nothing else keeps that one out.
    line = next(a for a in second.filters if a.filter == "clarity")
    assert (line.removed, line.alone, line.fails) == (1, 1, 2)
    forget_verdicts(tmp_path, {clips[3].id})
    assert len(read_verdicts(tmp_path)) == 3 * 3
    with pytest.raises(UserError, match="has no sets"):
        read_verdicts(tmp_path / "elsewhere")


def test_a_threshold_never_falls_and_is_inherited() -> None:
    clips = [film(0, 1.5, 1.0), film(1, 2.5, 5.0)]
    ladder = two((moves(2.0), clear(4.0)), (moves(1.0),))
    result = climb(clips, ladder, (), MEASURES)
    assert sets_of(result) == [(), ()]
    assert [(a.filter, a.at_least, a.at_most) for a in result.reports[1].filters] == [
        ("clarity", None, 4.0),
        ("motion", 2.0, None),
    ]


def test_what_could_not_be_had_passes_and_says_so(tmp_path: Path) -> None:
    result = climb([make_clip(0, motion__speed=9.0)], two((moves(1.0),), (clear(3.0),)), (), MEASURES)
    assert sets_of(result) == [("256p", "360p")]
    write_sets(tmp_path, result)
    assert {r["filter"]: r["verdict"] for r in read_verdicts(tmp_path) if r["set"] == "360p"} == {
        "motion": "passed",
        "clarity": "no score",
    }


def test_clips_without_scores_are_in_the_pool_and_in_no_set() -> None:
    clips = [film(0, 9.0, 1.0), make_clip(1).drop("measured", "oops"), make_clip(2).drop("split", "too short")]
    result = climb(clips, two((moves(1.0),), ()), (), MEASURES)
    report = result.reports[0]
    assert (report.pool, report.kept) == (2, 1), "what the split dropped was never in the pool"
    assert (report.filters[0].filter, report.filters[0].removed) == ("measured", 1)
    assert result.clips[1].dropped == clips[1].dropped


def test_the_copy_that_climbs_highest_is_kept() -> None:
    seen: dict[str, tuple[float, ...]] = {}

    def better(clips: Any, first: Any) -> dict[str, str]:
        seen.update(first)
        best = max(clips, key=lambda c: first[c.id])
        return {c.id: best.id for c in clips if c is not best}

    clips = [film(0, 1.5, 1.0), film(1, 9.0, 1.0), film(2, 0.5, 1.0)]
    result = climb(clips, two((moves(1.0),), (moves(2.0),)), (), MEASURES, better)
    assert sets_of(result) == [(), ("256p", "360p"), ()]
    assert seen == {clips[0].id: (1.0,), clips[1].id: (2.0,)}, "a clip that fails anyway is not compared"
    assert result.clips[0].duplicate_of == clips[1].id
    assert result.clips[0].dropped is not None and result.clips[0].dropped.stage == DUPLICATE
    column = next(c for _, c in result.columns if c.filter.name == DUPLICATE)
    assert [column.verdict(i) for i in range(3)] == ["failed", "passed", "not compared"]


def pool(count: int = 1000) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [film(i, float(rng.gamma(2, 2)), float(rng.gamma(2, 1))) for i in range(count)]


def test_calibration_keeps_what_the_report_kept_and_shares_out_as_it_did() -> None:
    sets = (
        TrainingSet(name="256p", keep=0.5, filters=(moves(0.1, removes=40), clear(9.0, removes=10))),
        TrainingSet(name="360p", keep=0.25, filters=(clear(9.0, removes=20), moves(0.1, removes=5))),
        TrainingSet(name="540p", keep=0.02, filters=(moves(0.1, removes=1),)),
    )
    result = climb(pool(), Ladder(sets=sets, calibrated=True), (), MEASURES)
    assert Counter(name for clip in result.clips for name in clip.sets) == {"256p": 500, "360p": 250, "540p": 20}
    removed = [{a.filter: a.removed for a in report.filters if a.removed} for report in result.reports]
    assert removed == [{"motion": 400, "clarity": 100}, {"clarity": 200, "motion": 50}, {"motion": 230}]
    lows = [a.at_least for report in result.reports for a in report.filters if a.filter == "motion"]
    assert lows == sorted(lows)
    assert lows[0] > 0.1


def test_equal_scores_stand_or_fall_together_and_the_next_filter_takes_the_rest() -> None:
    clips = [film(i, float(i), 1.0 if i < 90 else 2.0 + i) for i in range(100)]
    one = TrainingSet(name="256p", keep=0.5, filters=(clear(9.0, removes=30), moves(0.0, removes=20)))
    result = climb(clips, Ladder(sets=(one,), calibrated=True), (), MEASURES)
    (report,) = result.reports
    # 30 were clarity's part, but 90 clips are equally clear: it takes the ten that are worse, motion the other 40.
    assert {a.filter: a.removed for a in report.filters} == {"clarity": 10, "motion": 40}
    assert report.kept == 50


def test_a_pool_that_is_too_small_is_not_filtered_further_and_the_wanted_share_is_on_record() -> None:
    one = TrainingSet(name="256p", keep=0.9, filters=(moves(0.0, removes=1),))
    given = Filter(name="sharp", score="clarity.edge_width", at_most=1.0, reason="blurred")
    clips = pool(100)
    result = climb(clips, Ladder(sets=(one,), calibrated=True), (given,), MEASURES)
    (report,) = result.reports
    assert report.kept == sum(c.scores["clarity.edge_width"] <= 1.0 for c in clips) < 90
    assert (report.wanted, [a.removed for a in report.filters if a.filter == "motion"]) == (0.9, [0])


def test_sources_by_name_and_by_what_they_are_worth() -> None:
    good = Filter(name="source", score=YIELD, at_least=0.5, reason="of a poor source", group="source")
    top = TrainingSet(name="720p", filters=(good,), sources=("*/studio*", "*b.mp4"))
    ladder = Ladder(sets=(TrainingSet(name="256p", filters=(moves(1.0),)), top))
    sources = ["x/studio.mp4"] * 3 + ["x/b.mp4"] * 3 + ["x/c.mp4"]
    speeds = [9, 0, 0, 9, 9, 0, 9]
    result = climb([film(i, v, 1, source=s) for i, (v, s) in enumerate(zip(speeds, sources))], ladder, (), MEASURES)  # noqa: B905
    # A third of the studio's clips were good enough for 256p, two thirds of b's; c is of no source that is taken.
    assert [clip.sets for clip in result.clips] == [("256p",), (), (), *[("256p", "720p")] * 2, (), ("256p",)]


def test_sets_of_images_are_apart() -> None:
    ladder = Ladder(sets=(TrainingSet(name="256p", filters=(moves(1.0),)), TrainingSet(name="image", kind="image")))
    result = climb([film(0, 9, 1), make_clip(1, "image"), film(2, 0, 1)], ladder, (), MEASURES)
    assert sets_of(result) == [("256p",), ("image",), ()]
    assert [report.pool for report in result.reports] == [2, 1]


def proxied(*allowed: str) -> Ladder:
    high = TrainingSet(name="540p", filters=(moves(2.0),), refuse_proxies=True)
    low = TrainingSet(name="360p", filters=(clear(3.0), Filter(name="s", score="crop.left", at_least=0.8, reason="s")))
    return Ladder(sets=(low, high, TrainingSet(name="720p")), allow_proxy=allowed)


def test_proxies_do_not_build_the_upper_sets_unless_allowed_by_name(tmp_path: Path) -> None:
    clips = [film(0, 9.0, 1.0), film(1, 0.5, 9.0)]
    for allowed, lacking in ((), "clarity,text"), (("text",), "text,clarity"):
        result = climb(clips, proxied(*allowed), (), MEASURES)
        assert sets_of(result) == [("360p",), ()]
        assert "--allow-proxy " + lacking in str(result.reports[1].refused)
        assert result.reports[2].refused == result.reports[1].refused, "it rests on the set below"
        assert {c.set for _, c in result.columns} == {"360p"}
        write_sets(tmp_path, result)
        rows = [r for r in read_verdicts(tmp_path) if r["verdict"] == "refused"]
        assert [(r["clip"], r["set"]) for r in rows] == [(c.id, s) for s in ("540p", "720p") for c in clips]
        assert {r["reason"] for r in rows} == {result.reports[1].refused} and {r["filter"] for r in rows} == {None}
        assert all(r["reason"] is None for r in read_verdicts(tmp_path) if r not in rows)
    assert sets_of(climb(clips, proxied("clarity", "text"), (), MEASURES)) == [("360p", "540p", "720p"), ()]
    with pytest.raises(UserError, match=r"motion is no proxy.*clarity, text"):
        climb(clips, proxied("motion"), (), MEASURES)
    with pytest.raises(UserError, match="did you mean clarity"):
        climb(clips, proxied("clarty"), (), MEASURES)


def test_a_ladder_that_cannot_be_decided_is_refused() -> None:
    with pytest.raises(UserError, match="each once"):
        Ladder(sets=(TrainingSet(name="a"), TrainingSet(name="a")))
    wrong = Filter(name="motion", score="motion.sped", at_least=1, reason="x")
    for low, said in (
        (wrong, r"did you mean motion\.speed"),
        (Filter(name="motion", score="motion.camera_speed", at_least=1, reason="x"), "looks at"),
        (Filter(name="x", score="motion.speed", at_least=1, reason="x", group="ocr"), "Unknown group"),
        (Filter(name="x", score="motion.speed", at_least=1, at_most=2, reason="x", removes=1), "cannot be calibrated"),
    ):
        with pytest.raises(UserError, match=said):
            climb([], two((low,), (moves(1.0),)), (), MEASURES)
    with pytest.raises(UserError, match="did you mean 256p"):
        two((), ()).changed(tuple, "256")


def test_one_sets_threshold_changes_by_text() -> None:
    ladder = two((moves(1.0),), (moves(2.0),)).changed(
        lambda filters: with_threshold(filters, "motion.speed>=7", MEASURES), "360p"
    )
    assert [one.filters[0].at_least for one in ladder.sets] == [1.0, 7.0]


def test_a_new_filter_is_counted_where_its_measure_is() -> None:
    (one,) = with_threshold((), "motion.camera_speed<=9", MEASURES)
    assert one.group == "motion"


def test_the_recipes_thresholds_rise_and_add_up_to_the_report() -> None:
    ladder = LADDER_PLAN.ladder
    assert ladder is not None
    assert [(s.name, s.keep) for s in ladder.of("video")] == [
        ("256p", 0.5),
        ("360p", 0.25),
        ("540p", 0.1),
        ("720p", 0.02),
    ]
    limits: dict[tuple[str, str], list[float]] = {}
    for one in ladder.sets:
        for f in one.filters:
            limits.setdefault((one.kind, f.name), []).append(
                f.at_least if f.at_least is not None else -(f.at_most or 0.0)
            )
    assert all(values == sorted(values) for values in limits.values())
    # Duplicates (25) are found, not calibrated; what the filters take is the rest of each step of figure 4.
    assert [sum(f.removes for f in s.filters) for s in ladder.of("video")] == [25, 25, 15, 8]
    assert [s.name for s in ladder.sets if s.refuse_proxies] == ["540p", "720p"]
