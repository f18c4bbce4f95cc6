"""The charts of the report: heights, shades and marks say what the numbers say."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from openhunyuan.curate.charts import COLOURS, KEPT, PUBLISHED, SHADES, Limit, Step, funnel, histogram, legend


def rects(svg: str) -> list[tuple[str, float, float]]:
    """(fill, y, height) of every bar of a chart."""
    found = ElementTree.fromstring(svg).iter("rect")
    return [(r.attrib["fill"], float(r.attrib["y"]), float(r.attrib["height"])) for r in found]


def test_the_funnel_stacks_what_was_kept_and_what_each_group_took() -> None:
    steps = [
        Step("256p", "50 clips", 50.0, {"duplicates": 25.0, "motion": 20.0, "other": 5.0}),
        Step("<360p>", "see below", None, {}),
    ]
    svg = funnel("100 clips", steps)
    bars = rects(svg)
    full = bars[0][2]
    assert [fill for fill, _, _ in bars] == [KEPT, KEPT, COLOURS["duplicates"], COLOURS["motion"], COLOURS["other"]]
    assert [round(height / full, 3) for _, _, height in bars] == [1.0, 0.5, 0.25, 0.2, 0.05]
    # Each lies on the one before, and together they are as high as the pool.
    for (_, below, _), (_, y, height) in pairwise(bars[1:]):
        assert y + height == pytest.approx(below, abs=0.11)
    assert bars[-1][1] == pytest.approx(bars[0][1], abs=0.11)
    assert "not built" in svg and "&lt;360p&gt;" in svg and "the report kept 50 %" in svg
    assert legend(["motion"], True).count("<i") == 3 and "figure 4" not in legend([], False)


def test_the_published_shares_add_up() -> None:
    before = 100.0
    for kept, lost in PUBLISHED.values():
        assert kept + sum(lost.values()) == pytest.approx(before)
        before = kept
        assert set(lost) <= set(COLOURS)


def test_a_histogram_shades_by_thresholds_and_loses_nobody() -> None:
    values = np.concatenate([np.full(10, 1.0), np.full(20, 5.0), np.full(30, 9.0)])
    svg = histogram("motion.speed", values, [Limit("256p", 3.0, None), Limit("360p", 7.0, None)])
    shares: dict[str, int] = {}
    for rect in ElementTree.fromstring(svg).iter("rect"):
        title = rect.find("title")
        assert title is not None and title.text
        count = int(re.findall(r": (\d+) of", title.text)[0])
        shares[rect.attrib["fill"]] = shares.get(rect.attrib["fill"], 0) + count
    assert shares == {SHADES[0]: 10, SHADES[2]: 20, SHADES[4]: 30}
    words = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    assert words == ["256p 3", "360p 7", "1", "9"]
    again = histogram("x", values, [Limit("256p", 3.0, None), Limit("360p", 3.0, None), Limit("540p", 3.0, None)])
    assert "from 256p 3" in again, "a threshold that is inherited is named once"


def test_two_sides_of_a_threshold_in_one_bin_have_their_own_shades_and_a_tail_stays_visible() -> None:
    values = np.array([0.0] * 1000 + [1e6])
    svg = histogram("x", values, [Limit("", None, 0.0)])
    bars = rects(svg)
    assert {fill for fill, _, _ in bars} == {SHADES[0], SHADES[-1]}
    assert min(height for _, _, height in bars) >= 1.5
    flat = histogram("x", np.zeros(5), [Limit("", 0.0, None)])
    assert sum(1 for _ in rects(flat)) == 1
