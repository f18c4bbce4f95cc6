"""Decisions: every filter answers for every clip; crops; the copy that is kept; thresholds by text."""

from typing import Any

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.clip import Clip, clip_id
from openhunyuan.curate.concepts import Concepts, cluster
from openhunyuan.curate.decide import Crop, Filter, Looks, decide, plan_crop, with_threshold
from openhunyuan.curate.duplicates import Duplicates
from openhunyuan.curate.measures.motion import Motion

MOVING = Filter(name="motion", score="motion.speed", at_least=1.0, reason="hardly moves")
CLEAR = Filter(name="clarity", score="clarity.edge_width", at_most=3.0, reason="is blurred")


def make_clip(number: int = 0, **changes: Any) -> Clip:
    fields: dict[str, Any] = dict(
        id=clip_id(str(number), 0, 48), source="a.mp4", source_sha256=str(number), start_frame=0, end_frame=48,
        fps=24.0, height=144, width=256,
    )  # fmt: skip
    return Clip(**{**fields, **changes})


def rows(speed: float | None, width: float, **others: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"motion": {"speed": speed}, "clarity": {"edge_width": width}, **others}


def decided(clip: Clip, found: dict[str, dict[str, Any]], crop: Crop | None = None) -> Clip:
    return decide([clip], {clip.id: found}, {}, (MOVING, CLEAR), crop, None, None).clips[0]


def test_every_filter_answers_and_the_first_that_failed_is_the_reason() -> None:
    clip = decided(make_clip(), rows(0.5, 9.0))
    assert [(d.filter, d.value, d.passed) for d in clip.decisions] == [("motion", 0.5, False), ("clarity", 9.0, False)]
    assert clip.dropped is not None
    assert (clip.dropped.stage, clip.dropped.score) == ("motion", 0.5)
    assert [d.allowed for d in clip.decisions] == ["at least 1", "at most 3"]


def test_limits_are_inclusive_and_what_could_not_be_had_passes() -> None:
    assert decided(make_clip(), rows(1.0, 3.0)).dropped is None
    clip = decided(make_clip(), rows(None, 1.0))
    assert clip.dropped is None
    assert clip.decisions[0].value is None


def test_a_clip_that_could_not_be_measured_is_dropped_with_the_error() -> None:
    clip = make_clip()
    result = decide([clip], {}, {clip.id: "could not be measured: oops"}, (MOVING,), None, None, None).clips[0]
    assert result.dropped is not None
    assert (result.dropped.stage, result.dropped.reason) == ("measured", "could not be measured: oops")


def test_borders_and_subtitles_are_cropped_together() -> None:
    border = {"share": 0.25, "box": [0.0, 0.125, 1.0, 0.875]}
    clip = make_clip()
    assert plan_crop(clip, {"border": border}, Crop()) == ((0, 18, 256, 126), 1.0)
    box, left = plan_crop(clip, {"text": {"subtitle_top": 0.85}}, Crop(margin=0.0))
    assert box == (0, 0, 256, 122)
    assert left == pytest.approx(122 / 144)
    # From row 118, all of the margin would leave 115 of 144 rows, less than 0.8; from row 116, a third of it too.
    for row in (118, 117):
        box, left = plan_crop(clip, {"text": {"subtitle_top": row / 144}}, Crop(margin=0.018))
        assert box == (0, 0, 256, 116) and left > 0.8
    assert plan_crop(clip, {"text": {"subtitle_top": 116 / 144}}, Crop(margin=0.018))[0] == (0, 0, 256, 144)
    # Inside the bars, the same subtitle takes more of the picture than is allowed: nothing is cropped for it.
    box, left = plan_crop(clip, {"border": border, "text": {"subtitle_top": 0.6}}, Crop())
    assert box == (0, 18, 256, 126)
    assert left < 0.8
    dropped = decided(clip, rows(5.0, 1.0, text={"subtitle_top": 0.6}), Crop()).dropped
    assert dropped is not None
    assert dropped.stage == "subtitles"
    assert plan_crop(clip, {"border": border}, Crop(border=False))[0] == (0, 0, 256, 144)


def test_groups_are_found_again_and_large_groups_weigh_less() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(6)[[0] * 40 + [1] * 10 + [2] * 5]
    vectors = centres + 0.05 * rng.standard_normal(centres.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups, weights = cluster(vectors, Concepts(count=3))
    assert [set(groups[a:b]) for a, b in ((0, 40), (40, 50), (50, 55))] == [{0}, {1}, {2}]
    assert weights.mean() == pytest.approx(1.0)
    assert weights[50] / weights[0] == pytest.approx((40 / 5) ** 0.5)
    again, _ = cluster(vectors, Concepts(count=3))
    assert (again == groups).all()
    assert len(cluster(np.zeros((0, 6)), Concepts())[0]) == 0


def test_thresholds_by_text() -> None:
    changed = with_threshold((MOVING, CLEAR), "motion.speed >= 2.5", (Motion(),))
    assert [f.at_least for f in changed] == [2.5, None]
    added = with_threshold((MOVING,), "motion.camera_speed<=4", (Motion(),))
    assert (added[1].name, added[1].at_most) == ("motion.camera_speed", 4.0)
    for text in ("motion.speed", "motion.speed>2", "motion.speed>=fast", "motion.sped>=1"):
        with pytest.raises(UserError):
            with_threshold((MOVING,), text, (Motion(),))


def test_duplicates_and_groups_of_what_passes() -> None:
    x = np.array([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0], [1.0, 0.05]])
    clips = [make_clip(i, width=256 + i) for i in range(5)]
    found: dict[str, Any] = {c.id: {"embedding": {}, "motion": {"speed": 9.0}} for c in clips}
    found[clips[4].id]["motion"]["speed"] = 0.0
    vector = {c.id: v / np.linalg.norm(v) for c, v in zip(clips, x, strict=True)}
    known = [(clips[i].id, clips[j].id) for i, j in ((0, 1), (1, 0), (3, 2), (1, 4), (2, 3), (4, 3))]
    looks = Looks(
        pairs=lambda at: [(at[a], at[b]) for a, b in known if a in at and b in at and at[a] < at[b]],
        vectors=lambda ids: np.stack([vector[one] for one in ids]),
    )
    plan = Duplicates(by="embedding"), Concepts(by="embedding", count=2)
    result = decide(clips, found, {}, (MOVING,), None, *plan, looks).clips
    # The wider one is kept; what another filter drops connects nothing.
    assert [c.duplicate_of for c in result] == [clips[1].id, None, clips[3].id, None, None]
    assert [c.dropped and c.dropped.stage for c in result] == ["duplicate", None, "duplicate", None, "motion"]
    assert {c.concept for c in result if not c.dropped} == {0, 1}
    # Where the measure was not run, clips are left as they are.
    assert not any(c.dropped or c.concept for c in decide(clips, {}, {}, (), None, *plan).clips)
