"""The pictures of the curation report, as SVG text: the funnel of training sets, and scores with thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

COLOURS = {
    "duplicates": "#8f7ac0",
    "motion": "#e2a33d",
    "text": "#d1495b",
    "clarity": "#4fa3a5",
    "aesthetic": "#d77fa1",
    "source": "#8d6e53",
    "manual": "#5d9e59",
    "other": "#a9b0bd",
}
"""Of the groups of reasons, as figure 4 of the report tells them apart."""

KEPT, LOST, INK, MUTED = "#2f62b0", "#e9c48b", "#1c2330", "#616b7c"
SHADES = ("#e9c48b", "#b9cdea", "#86a9dc", "#5785c6", "#2f62b0")
"""Of clips that pass no threshold, and one, two, three or more of the rising ones."""

BINS = 40

PUBLISHED = {
    "256p": (50.0, {"duplicates": 25.0, "motion": 20.0, "other": 5.0}),
    "360p": (25.0, {"text": 12.0, "clarity": 10.0, "other": 3.0}),
    "540p": (10.0, {"aesthetic": 13.0, "other": 2.0}),
    "720p": (2.0, {"source": 8.0}),
    "sft": (0.5, {"manual": 1.5}),
}
"""Figure 4 of the report, in per cent of the pool: what each set kept, and what was taken away on the way into it."""


@dataclass(frozen=True)
class Step:
    """One set of the funnel: how much it is in words, per cent of the pool that it kept (None: not built), and lost to
    each group."""

    name: str
    amount: str
    kept: float | None
    lost: Mapping[str, float]


def funnel(pool: str, steps: Sequence[Step]) -> str:
    """Sets side by side in the shape of figure 4: what was kept, above it what was taken away by each group, and a
    mark where the report's set ends."""
    width, height, top, bottom, gap = 150, 250, 26, 62, 34
    count = len(steps) + 1
    full = count * (width + gap)
    parts: list[str] = []

    def y(percent: float) -> float:
        return top + height * (1 - percent / 100)

    def text(x: float, y: float, words: str, size: int = 12, colour: str = INK, weight: str = "normal") -> None:
        parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
            f'text-anchor="middle">{escape(words)}</text>'
        )

    def bar(x: float, start: float, end: float, colour: str, title: str) -> None:
        tall = max(y(start) - y(end), 1.5)
        parts.append(
            f'<rect x="{x:.1f}" y="{y(start) - tall:.1f}" width="{width}" height="{tall:.1f}" fill="{colour}">'
            f"<title>{escape(title)}</title></rect>"
        )

    for percent in (25, 50, 75, 100):
        parts.append(f'<line x1="0" x2="{full}" y1="{y(percent):.1f}" y2="{y(percent):.1f}" stroke="#e3e6ee"/>')
    for number, step in enumerate([Step("pool", pool, 100.0, {}), *steps]):
        x = number * (width + gap) + gap / 2
        middle = x + width / 2
        text(middle, top + height + 20, step.name, 14, weight="600")
        if step.kept is None:
            text(middle, top + height - 8, "not built", 12, MUTED)
            text(middle, top + height + 37, step.amount, 11, MUTED)
            continue
        bar(x, 0, step.kept, KEPT, f"{step.name}: {step.amount}, {step.kept:.1f} %")
        at = step.kept
        for group, lost in step.lost.items():
            if lost > 0:
                bar(x, at, at + lost, COLOURS[group], f"{group}: −{lost:.1f} %")
                if height * lost / 100 >= 13:
                    text(middle, y(at + lost / 2) + 4, f"{group} −{_per_cent(lost)}", 11, INK)
            at += lost
        inside = height * step.kept / 100 >= 22
        label = y(step.kept) + 16 if inside else y(at) - 6
        text(middle, label, f"{_per_cent(step.kept)} %", 14, "#fff" if inside else KEPT, "600")
        text(middle, top + height + 37, step.amount, 12, MUTED)
        if step.name in PUBLISHED:
            wanted = PUBLISHED[step.name][0]
            parts.append(
                f'<line x1="{x - 8:.1f}" x2="{x + width + 8:.1f}" y1="{y(wanted):.1f}" y2="{y(wanted):.1f}" '
                f'stroke="{INK}" stroke-width="1.5" stroke-dasharray="5 3"/>'
            )
            text(middle, top + height + 53, f"the report kept {wanted:g} %", 11, MUTED)
    return (
        f'<svg viewBox="0 0 {full} {top + height + bottom}" width="100%" style="max-width:{full}px" role="img" '
        f'aria-label="Share of the pool in each set">{"".join(parts)}</svg>'
    )


def legend(groups: Sequence[str], published: bool) -> str:
    """What the colours of the funnel mean; published: whether the report's shares are marked."""
    dots = [f'<span class="key"><i style="background:{KEPT}"></i>kept</span>']
    dots += [f'<span class="key"><i style="background:{COLOURS[g]}"></i>{escape(g)}</span>' for g in groups]
    dots += ['<span class="key"><i class="dash"></i>figure 4 of the report</span>'] if published else []
    return f'<p class="legend">{"".join(dots)}</p>'


@dataclass(frozen=True)
class Limit:
    """A threshold on a score, and the set that has it ("" where there are no sets)."""

    set: str
    at_least: float | None
    at_most: float | None

    def passes(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def histogram(score: str, values: np.ndarray, limits: Sequence[Limit]) -> str:
    """One score: how many clips have which value, darker the more thresholds they pass, and the thresholds as lines.

    The outermost bins hold all that lies beyond; bins with few clips keep a visible height.
    """
    marks = [(m, one.set) for one in limits for m in (one.at_least, one.at_most) if m is not None]
    low, high = np.quantile(values, (0.005, 0.995))
    low, high = min([low, *(m for m, _ in marks)]), max([high, *(m for m, _ in marks)])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    ends = f"{low:.3g}", f"{high:.3g}"
    # A threshold at the very edge could not be told from the frame.
    low, high = low - 0.02 * (high - low), high + 0.02 * (high - low)
    clipped = np.clip(values, low, high)
    counts, edges = np.histogram(clipped, bins=BINS, range=(low, high))
    passed = np.array([sum(one.passes(float(v)) for one in limits) for v in values])
    width, height, top = 400, 110, 42
    step, most = width / BINS, max(1, int(counts.max()))
    place = np.minimum(((clipped - low) / (high - low) * BINS).astype(int), BINS - 1)
    parts = []
    for i, count in enumerate(counts):
        base = float(top + height)
        # One bin may hold clips on both sides of a threshold: each part has its own shade.
        for number in sorted(set(passed[place == i].tolist())):
            share = int(((place == i) & (passed == number)).sum())
            tall = max(height * share / most, 1.5)
            shade = SHADES[_shade(number, len(limits))]
            title = f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {share} of {count}"
            parts.append(
                f'<rect x="{i * step:.1f}" y="{base - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}" '
                f'fill="{shade}"><title>{title}</title></rect>'
            )
            base -= tall
    for row, (mark, name) in enumerate(_merged(marks)):
        x = (mark - low) / (high - low) * width
        at = 10 + 11 * (row % 3)
        anchor = "end" if x > 0.75 * width else "start"
        shift = -3 if anchor == "end" else 3
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{at - 8}" y2="{top + height}" stroke="#b3261e"/>')
        parts.append(
            f'<text x="{x + shift:.1f}" y="{at}" font-size="10" fill="#b3261e" text-anchor="{anchor}">'
            f"{escape(name)} {mark:.3g}</text>"
        )
    parts.append(f'<line x1="0" x2="{width}" y1="{top + height}" y2="{top + height}" stroke="#c5cbd8"/>')
    return (
        f'<svg width="{width}" height="{top + height + 16}" role="img" aria-label="{escape(score)}">{"".join(parts)}'
        f'<text x="0" y="{top + height + 13}" font-size="11" fill="{MUTED}">{ends[0]}</text>'
        f'<text x="{width}" y="{top + height + 13}" font-size="11" fill="{MUTED}" text-anchor="end">{ends[1]}</text>'
        "</svg>"
    )


def _shade(passed: int, limits: int) -> int:
    """The shade of clips that pass so many of so many thresholds; all of them is the darkest."""
    return round((len(SHADES) - 1) * passed / limits) if limits else len(SHADES) - 1


def _merged(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Thresholds in order, each with the sets that have it: their name, or "from" the first of several."""
    names: dict[float, list[str]] = {}
    for mark, name in marks:
        names.setdefault(mark, []).append(name)
    return [(mark, f"from {found[0]}" if len(found) > 1 else found[0]) for mark, found in sorted(names.items())]


def _per_cent(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
