"""One HTML page about a data folder: what was kept, what was left out and why, and what it looks like.

The page stands alone (pictures inside), so that it can be sent. With a ladder it has the funnel in the shape of the
report's figure 4, and for every set what each filter took, and what it alone took: what one would get back without it.
Histograms show every score, with the thresholds of all sets; contact strips show clips of every set, and those that a
filter left out, the closest to its threshold first, for that is where a threshold is wrong; duplicates stand beside the
clip that was kept instead.
"""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from openhunyuan.base.files import write_atomic
from openhunyuan.base.record import read_json
from openhunyuan.curate.charts import COLOURS, PUBLISHED, Limit, Step, funnel, histogram, legend
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.decide import DUPLICATE
from openhunyuan.curate.find import has_image_name
from openhunyuan.curate.ladder import FAILED, SetReport, read_sets, read_verdicts
from openhunyuan.curate.models.choice import PACKAGED
from openhunyuan.curate.review import SFT, VIEWS, Review, has_review, read_rule
from openhunyuan.curate.run import FUNNEL, QUARANTINE, RUN, read_clips
from openhunyuan.curate.split import STAGE as SPLIT
from openhunyuan.curate.tables import TABLES, read_rows

REPORT = "report.html"
GROUPS, SOURCES = 24, 20
"""Most looks and sources that the page shows."""


@dataclass(frozen=True)
class _Data:
    """All that the page is made of."""

    data: Path
    clips: Sequence[Clip]
    sets: Sequence[SetReport]
    about: dict[str, Any]
    failures: Sequence[dict[str, Any]]
    pictures: dict[str, bytes]
    most: int


def write_report(data: Path | str, strips: int = 12) -> Path:
    """Write `report.html` into a data folder; at most `strips` clips are shown a reason. Returns its path.

    Raises UserError when the folder holds no manifest.
    """
    data = Path(data)
    clips = read_clips(data)
    about = read_json(data / RUN) if (data / RUN).is_file() else {"filters": [], "stages": [], "proxies": {}}
    all_ = _Data(data, clips, read_sets(data), about, _json_lines(data / QUARANTINE), _pictures(data), strips)
    sections = {
        "funnel": _ladder(all_) if all_.sets else _plain_funnel(all_),
        "scores": _histograms(all_),
        "kept": _kept(all_),
        "left out": _left_out(all_),
        "looks": _looks(all_),
        "people": _people(all_),
        "sources": _sources(all_),
        "unreadable": _quarantine(all_.failures),
        "run": _run(all_),
    }
    links = [f"<a href='#{name.replace(' ', '-')}'>{name}</a>" for name, lines in sections.items() if lines]
    page = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Curation report</title>",
        "<meta name='viewport' content='width=device-width'>",
        f"<style>{files('openhunyuan.curate').joinpath('report.css').read_text('utf-8')}</style></head><body>",
        f"<nav>{''.join(links)}</nav>",
        *_head(all_),
    ]
    for name, lines in sections.items():
        if lines:
            page += [f"<section id='{name.replace(' ', '-')}'>", *lines, "</section>"]
    path = data / REPORT
    write_atomic(path, "\n".join([*page, "</body></html>\n"]).encode())
    return path


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _pictures(data: Path) -> dict[str, bytes]:
    """Clip → its strip."""
    found = {}
    for folder in sorted(data.glob(f"{TABLES}/strip/*")):
        found.update({key: rows[0]["jpeg"] for key, rows in read_rows(folder).items() if rows[0].get("jpeg")})
    return found


# ---------------------------------------------------------------------------------------------------------------- head


def _head(all_: _Data) -> list[str]:
    clips, about = all_.clips, all_.about
    lines = ["<h1>Curation report</h1>"]
    for kind, word in (("video", "clips"), ("image", "images")):
        every = [clip for clip in clips if clip.kind == kind]
        kept = [clip for clip in every if not clip.dropped]
        if not every:
            continue
        length = f", {_time(every)} → {_time(kept)}" if kind == "video" else ""
        share = _share(len(kept), len(every))
        lines.append(f"<p class='lead'><b>{len(kept)}</b> of {len(every)} {word} kept ({share}{length})</p>")
    facts = [f"{about.get('sources', '?')} files"]
    facts += [f"{about['repeated']} repeat the bytes of another"] if about.get("repeated") else []
    facts += [f"{about['forgotten']} are to be forgotten"] if about.get("forgotten") else []
    facts += [f"{len(all_.failures)} could not be read or measured"] if all_.failures else []
    return [*lines, f"<p class='muted'>{' · '.join(facts)}</p>"]


def _time(clips: Iterable[Clip]) -> str:
    seconds = sum(clip.num_frames / clip.fps for clip in clips)
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _share(part: int, whole: int) -> str:
    percent = 100 * part / max(1, whole)
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


# -------------------------------------------------------------------------------------------------------------- funnel


def _ladder(all_: _Data) -> list[str]:
    lines = ["<h2>Funnel</h2>"]
    for kind in ("video", "image"):
        reports = [report for report in all_.sets if report.kind == kind]
        if not reports:
            continue
        pool = reports[0].pool
        steps = [_step(all_, report) for report in reports]
        if kind == "video" and (people := _people_step(all_, reports)):
            steps.append(people)
        groups = [g for g in COLOURS if any(step.lost.get(g) for step in steps)]
        split = sum(1 for c in all_.clips if c.kind == kind and c.dropped and c.dropped.stage == SPLIT)
        what = "clips" if kind == "video" else "images"
        lines.append(f"<h3>{'Videos' if kind == 'video' else 'Images'}: a pool of {pool} {what}</h3>")
        published = any(step.name in PUBLISHED for step in steps)
        lines += [legend(groups, published), funnel(f"{pool} {what}", steps)]
        if split:
            lines.append(f"<p class='muted'>{split} shots were too short to be in the pool.</p>")
        for reason in dict.fromkeys(report.refused for report in reports if report.refused):
            names = ", ".join(report.name for report in reports if report.refused == reason)
            lines.append(f"<p class='note'><b>{names} not built:</b> {escape(str(reason))}.</p>")
        lines += [f"<p class='note'>{escape(report.lacks)}</p>" for report in reports if report.lacks]
        below: SetReport | None = None
        for report in reports:
            if not report.refused:
                lines += _attribution(report, below, pool)
                below = report
    return lines


def _step(all_: _Data, report: SetReport) -> Step:
    if report.refused:
        return Step(report.name, "see below", None, {})
    lost: Counter[str] = Counter()
    for line in report.filters:
        lost[line.group] += line.removed
    percent = {group: 100 * lost[group] / max(1, report.pool) for group in COLOURS if lost[group]}
    amount = f"{report.kept} images"
    if report.kind == "video":
        amount = f"{report.kept} clips, {_time([c for c in all_.clips if report.name in c.sets])}"
    return Step(report.name, amount, 100 * report.share, percent)


def _people_step(all_: _Data, reports: Sequence[SetReport]) -> Step | None:
    """The set that people chose, out of the set that they reviewed."""
    if not has_review(all_.data):
        return None
    review = _review_of(all_)
    if review is None:
        return None
    counts, pool = review.counts(), max(1, reports[0].pool)
    lost = {"manual": 100 * counts["failed"] / pool}
    return Step(SFT, f"{counts['passed']} clips, {counts['open']} open", 100 * counts["passed"] / pool, lost)


def _review_of(all_: _Data) -> Review | None:
    from openhunyuan.base.errors import UserError

    try:
        return Review(all_.data, all_.clips, read_rule(all_.data))
    except UserError:  # the set that was reviewed is empty now
        return None


def _attribution(report: SetReport, below: SetReport | None, pool: int) -> list[str]:
    """What each filter of one set took; those that are as in the set below are named only."""
    before = {line.filter: (line.at_least, line.at_most) for line in below.filters} if below else {}
    own = [a for a in report.filters if a.removed or before.get(a.filter) != (a.at_least, a.at_most)]
    inherited = [a.filter for a in report.filters if a not in own]
    lines = [
        f"<h3>Into {escape(report.name)}: {report.before} → {report.kept} "
        f"<span class='muted'>{_share(report.kept, pool)} of the pool</span></h3>",
    ]
    if report.name in PUBLISHED:
        kept, lost = PUBLISHED[report.name]
        took = ", ".join(f"{group} {percent:g}" for group, percent in lost.items())
        lines.append(f"<p class='muted'>The report kept {kept:g} % of its pool, and took away in per cent: {took}.</p>")
    lines.append(
        "<table class='filters'><tr><th>filter</th><th class='left'>threshold</th><th>taken away</th>"
        "<th>of the pool</th><th></th><th>by it alone</th><th>fail in the pool</th></tr>"
    )
    most = max([line.removed for line in own], default=0) or 1
    for line in own:
        style = f"width:{160 * line.removed / most:.0f}px;background:{COLOURS[line.group]}"
        quiet = " class='muted'" if not line.removed else ""
        lines.append(
            f"<tr{quiet}><td>{escape(line.filter)}</td>"
            f"<td class='left'>{_threshold(line.score, line.at_least, line.at_most)}</td>"
            f"<td>{line.removed or '–'}</td><td>{_share(line.removed, pool) if line.removed else ''}</td>"
            f"<td class='left' style='width:170px'><span class='bar' style='{style}'></span></td>"
            f"<td>{line.alone or '–'}</td><td>{line.fails or '–'}</td></tr>"
        )
    lost = report.before - report.kept
    empty = "<td></td>" * 3
    lines.append(
        f"<tr class='total'><td>all</td><td></td><td>{lost}</td><td>{_share(lost, pool)}</td>{empty}</tr></table>"
    )
    if inherited:
        lines.append(f"<p class='muted'>As in the set below: {escape(', '.join(inherited))}.</p>")
    return lines


def _threshold(score: str, at_least: float | None, at_most: float | None) -> str:
    if score == DUPLICATE:
        return "no better copy"
    if at_least is None and at_most is None:
        return "a score at all"
    parts = [f"≥ {at_least:.4g}"] if at_least is not None else []
    parts += [f"≤ {at_most:.4g}"] if at_most is not None else []
    return f"<code>{escape(score)}</code> {' and '.join(parts)}"


def _plain_funnel(all_: _Data) -> list[str]:
    """Filters of a run without sets, in their order."""
    path = all_.data / FUNNEL
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if not rows:
        return []
    full = max(1, rows[0]["seen"])
    alone = _alone(all_.clips)
    limits = {one["name"]: _threshold(one["score"], one["at_least"], one["at_most"]) for one in all_.about["filters"]}
    lines = [
        "<h2>Funnel</h2>",
        "<table><tr><th>filter</th><th class='left'>threshold</th><th></th><th>left</th><th>of all</th>"
        "<th>dropped here</th><th>by it alone</th></tr>",
    ]
    for row in rows:
        lost = row["seen"] - row["kept"]
        bars = (
            f"<span class='bar' style='width:{420 * row['kept'] / full:.1f}px;background:#2f62b0'></span>"
            f"<span class='bar' style='width:{420 * lost / full:.1f}px;background:#e2a33d'></span>"
        )
        lines.append(
            f"<tr><td>{escape(row['stage'])}</td><td class='left'>{limits.get(row['stage'], '')}</td>"
            f"<td class='left funnel'>{bars}</td>"
            f"<td>{row['kept']}</td><td>{_share(row['kept'], full)}</td><td>{lost or ''}</td>"
            f"<td>{alone[row['stage']] or ''}</td></tr>"
        )
    return [*lines, "</table>"]


def _alone(clips: Iterable[Clip]) -> Counter[str]:
    """Filter → clips that nothing else would have dropped."""
    found: Counter[str] = Counter()
    for clip in clips:
        failed = [decision.filter for decision in clip.decisions if not decision.passed]
        if len(failed) == 1:
            found[failed[0]] += 1
    return found


# -------------------------------------------------------------------------------------------------------------- scores


def _histograms(all_: _Data) -> list[str]:
    lines: list[str] = []
    for kind in ("video", "image"):
        clips = [c for c in all_.clips if c.kind == kind and not (c.dropped and c.dropped.stage == SPLIT)]
        limits = _limits(all_, kind)
        charts = [chart for score, found in limits.items() if (chart := _chart(score, found, clips))]
        others = sorted({score for clip in clips for score in clip.scores} - set(limits))
        more = [chart for score in others if (chart := _chart(score, (), clips))]
        if charts or more:
            title = "Scores and thresholds" + (" of the images" if kind == "image" else "")
            lines += [
                f"<h2>{title}</h2>",
                "<p class='muted'>Clips of the pool by score; darker: more sets let them in.</p>",
            ]
            lines += ["<div class='hists'>", *charts, "</div>"]
        if more:
            lines += [
                f"<details><summary>{len(more)} scores without a threshold</summary><div class='hists'>",
                *more,
                "</div></details>",
            ]
    return lines


def _limits(all_: _Data, kind: str) -> dict[str, list[Limit]]:
    """Score → its thresholds, from the first set to the last."""
    found: dict[str, list[Limit]] = {}
    if not all_.sets:
        for one in all_.about["filters"]:
            found.setdefault(one["score"], []).append(Limit("", one["at_least"], one["at_most"]))
    for report in all_.sets:
        for line in report.filters if report.kind == kind else ():
            if line.at_least is not None or line.at_most is not None:
                found.setdefault(line.score, []).append(Limit(report.name, line.at_least, line.at_most))
    return found


def _chart(score: str, limits: Sequence[Limit], clips: Sequence[Clip]) -> str | None:
    values = np.array([clip.scores[score] for clip in clips if score in clip.scores], dtype=float)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    missing = len(clips) - values.size
    said = f"{values.size} clips"
    if limits:
        failed = sum(not limits[0].passes(float(value)) for value in values)
        said = f"{failed} of {values.size} fail{f' {limits[0].set}' if limits[0].set else ''}"
    said += f"; {missing} without a score" if missing else ""
    return (
        f"<div><b>{escape(score)}</b> <span class='muted'>{said}; median {median(values.tolist()):.3g}</span><br>"
        f"{histogram(score, values, limits)}</div>"
    )


# -------------------------------------------------------------------------------------------------------------- strips


def _kept(all_: _Data) -> list[str]:
    """Clips of every set that are in no higher one; of a run without sets, all that were kept."""
    order = [report.name for report in all_.sets if not report.refused][::-1]
    groups: dict[str, list[Clip]] = {name: [] for name in order}
    for clip in all_.clips:
        if not clip.dropped:
            groups.setdefault(clip.sets[-1] if clip.sets else "kept", []).append(clip)
    lines = []
    for name, clips in groups.items():
        shown = _spread([clip for clip in clips if clip.id in all_.pictures], all_.most)
        if shown:
            title = "All that were kept" if name == "kept" else f"In {name}, and in no higher set"
            lines += [f"<h3>{escape(title)} <span class='muted'>{len(shown)} of {len(clips)}</span></h3>"]
            lines += [_grid(shown), *(_figure(all_, clip, _about_kept(clip)) for clip in shown), "</div>"]
    return ["<h2>Kept</h2>", *lines] if lines else []


def _about_kept(clip: Clip) -> str:
    if clip.captions:
        return clip.captions[-1].text[:200]
    return " · ".join(f"{name.split('.')[1]} {clip.scores[name]:.3g}" for name in _SHOWN if name in clip.scores)


_SHOWN = ("motion.speed", "clarity.edge_width", "blur.width", "quality.contrast", "quality.colourfulness")


def _spread(clips: Sequence[Clip], most: int) -> list[Clip]:
    """At most so many clips, from one end of the list to the other."""
    picks = np.unique(np.linspace(0, max(0, len(clips) - 1), min(most, len(clips))).round().astype(int))
    return [clips[i] for i in picks]


@dataclass(frozen=True)
class _Out:
    """A clip that a filter left out of a set: how far its score is from the threshold, and what else it failed."""

    clip: Clip
    said: str
    far: float
    others: tuple[str, ...] = ()


def _left_out(all_: _Data) -> list[str]:
    groups = _out_of_sets(all_) if all_.sets else {}
    for clip in all_.clips:
        if clip.dropped and (not all_.sets or clip.dropped.stage in (SPLIT, "measured", "cut")):
            decision = next((d for d in clip.decisions if d.filter == clip.dropped.stage), None)
            score = "" if clip.dropped.score is None else f" ({clip.dropped.score:.3g})"
            wanted = f", {decision.allowed}" if decision and score else ""
            others = tuple(d.filter for d in clip.decisions if not d.passed and d.filter != clip.dropped.stage)
            out = _Out(clip, f"{clip.dropped.reason}{score}{wanted}", _far(clip, decision and decision.allowed), others)
            groups.setdefault((f"Dropped by {clip.dropped.stage}", clip.dropped.stage), []).append(out)
    lines = []
    for (title, _), members in groups.items():
        lines.append(f"<h3>{escape(title)} <span class='muted'>{len(members)}</span></h3>")
        seen = [out for out in members if out.clip.id in all_.pictures]
        if not seen:  # never measured: there is no picture, but there is a reason
            reasons = Counter(str(out.clip.dropped.reason) for out in members if out.clip.dropped)
            said = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(5))
            lines.append(f"<p>{escape(said)}</p>")
            continue
        seen.sort(key=lambda out: out.far)
        # Two thirds from the threshold on, where it may be wrong; the rest spread over the clear cases.
        near = seen[: max(1, 2 * all_.most // 3)]
        far = _spread([out.clip for out in seen[len(near) :]], all_.most - len(near))
        shown = near + [out for out in seen if out.clip in far]
        lines += [_grid([out.clip for out in shown]), *(_out_figure(all_, out) for out in shown), "</div>"]
    if not lines:
        return []
    about = "<p class='muted'>Closest to the threshold first; then some clear cases.</p>"
    return ["<h2>Left out</h2>", about, *lines]


def _out_of_sets(all_: _Data) -> dict[tuple[str, str], list[_Out]]:
    """Clips by the set that they did not reach and the filter that kept them out."""
    failed: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in read_verdicts(all_.data):
        if row["verdict"] == FAILED:
            failed[row["clip"], row["set"]].append(row)
    reasons = {(r.name, line.filter): number for r in all_.sets for number, line in enumerate(r.filters)}
    groups: dict[tuple[str, str], list[_Out]] = {}
    for number, report in enumerate(all_.sets):
        if report.refused:
            continue
        before = all_.sets[number - 1] if number and all_.sets[number - 1].kind == report.kind else None
        for line in report.filters:
            groups[f"Not in {report.name}: {line.filter}", line.filter] = []
        for clip in all_.clips:
            if clip.kind != report.kind or report.name in clip.sets or (before and before.name not in clip.sets):
                continue
            rows = sorted(failed[clip.id, report.name], key=lambda row: reasons[report.name, row["filter"]])
            if rows:
                first = rows[0]
                others = tuple(row["filter"] for row in rows[1:])
                out = _Out(clip, _said(first, clip), _distance(first), others)
                groups[f"Not in {report.name}: {first['filter']}", first["filter"]].append(out)
    return {key: members for key, members in groups.items() if members}


def _said(row: dict[str, Any], clip: Clip) -> str:
    if row["filter"] == DUPLICATE:
        return "shows the same as the one below, which was kept"
    limit = f"≥ {row['at_least']:.4g}" if row["at_least"] is not None and row["value"] < row["at_least"] else ""
    limit = limit or f"≤ {row['at_most']:.4g}"
    return f"{row['score']} is {row['value']:.4g}, wanted {limit}"


def _distance(row: dict[str, Any]) -> float:
    """How far a score is from its threshold."""
    limits = [limit for limit in (row["at_least"], row["at_most"]) if limit is not None]
    return min((abs(row["value"] - limit) for limit in limits), default=0.0)


def _far(clip: Clip, allowed: str | None) -> float:
    """How far the score that dropped a clip is from the limits, which a manifest holds in words."""
    if clip.dropped is None or clip.dropped.score is None or not allowed:
        return 0.0
    limits = []
    for word in allowed.split():
        try:
            limits.append(float(word))
        except ValueError:
            continue
    return min((abs(clip.dropped.score - limit) for limit in limits), default=0.0)


def _out_figure(all_: _Data, out: _Out) -> str:
    said = out.said + (f" · also fails {', '.join(out.others)}" if out.others else "")
    twin = all_.pictures.get(out.clip.duplicate_of or "")
    return _figure(all_, out.clip, said, twin)


def _figure(all_: _Data, clip: Clip, said: str, below: bytes | None = None) -> str:
    place = f" {clip.start_time:.2f}–{clip.end_time:.2f} s"
    if clip.kind == "image":
        place = "" if has_image_name(clip.source) else f" at {clip.start_time:.2f} s"
    where = f"{Path(clip.source).name}{place}"
    if clip.crop:
        where += f" · cropped to {clip.crop[2] - clip.crop[0]}×{clip.crop[3] - clip.crop[1]}"
    second = _image(below) if below else ""
    return (
        f"<figure title='{clip.id}'>{_image(all_.pictures[clip.id])}{second}"
        f"<figcaption><b>{escape(where)}</b> · {escape(said)}</figcaption></figure>"
    )


def _grid(clips: Sequence[Clip]) -> str:
    return f"<div class='{'stills' if all(clip.kind == 'image' for clip in clips) else 'strips'}'>"


def _image(jpeg: bytes) -> str:
    return f"<img loading='lazy' alt='' src='data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}'>"


# --------------------------------------------------------------------------------------------------------------- looks


def _looks(all_: _Data) -> list[str]:
    lines: list[str] = []
    for kind in ("video", "image"):
        groups: dict[int, list[Clip]] = defaultdict(list)
        for clip in all_.clips:
            if clip.concept is not None and clip.kind == kind:
                groups[clip.concept].append(clip)
        if not groups:
            continue
        total = sum(len(members) for members in groups.values())
        lines.append(f"<h3>{'Videos' if kind == 'video' else 'Images'}: {len(groups)} groups of {total}</h3>")
        lines.append("<div class='looks'>")
        for number, members in sorted(groups.items())[:GROUPS]:
            shown = [_image(all_.pictures[c.id]) for c in _spread(members, 3) if c.id in all_.pictures]
            weight = members[0].weight or 0.0
            lines.append(
                f"<div><b>group {number}</b> <span class='muted'>{len(members)} ({_share(len(members), total)}), "
                f"each weighs {weight:.2f}</span>{''.join(shown)}</div>"
            )
        lines.append("</div>")
        if len(groups) > GROUPS:
            lines.append(f"<p class='muted'>and {len(groups) - GROUPS} smaller ones</p>")
    if not lines:
        return []
    by = (all_.about.get("concepts") or {}).get("by")
    title, words = (
        ("Concepts", "By embeddings") if by == "embedding" else ("Looks", "By colours and edges, not meaning")
    )
    about = f"{words}; a clip's weight makes what is rare less rare in training."
    return [f"<h2>{title}</h2>", f"<p class='muted'>{about}</p>", *lines]


# -------------------------------------------------------------------------------------------------------------- people


def _people(all_: _Data) -> list[str]:
    review = _review_of(all_) if has_review(all_.data) else None
    if review is None:
        return []
    counts, rule = review.counts(), review.rule
    lines = [
        "<h2>Judged by people</h2>",
        f"<p>Of {len(review.clips)} clips of the set {escape(rule.reviewed)}, {counts['passed']} pass, "
        f"{counts['failed']} do not, {counts['open']} are open. Each needs {rule.people} to judge it, and everyone "
        f"judges {100 * rule.overlap:g} % of them.</p>",
        "<table><tr><th>person</th><th>judged</th><th>skipped</th><th>seconds a clip</th>"
        + "".join(f"<th>{escape(view.name)}</th>" for view in VIEWS)
        + "</tr>",
    ]
    by_name: dict[str, list[Any]] = defaultdict(list)
    for answer in review.answers.newest().values():
        by_name[answer.annotator].append(answer)
    for name, answers in sorted(by_name.items()):
        judged = [answer for answer in answers if answer.skipped is None]
        seconds = f"{median(a.seconds for a in judged):.0f}" if judged else "–"
        cells = []
        for view in VIEWS:
            said = [answer.views[view.key] for answer in judged if view.key in answer.views]
            cells.append(f"<td>{_share(sum(said), len(said)) if said else '–'} good</td>")
        lines.append(
            f"<tr><td>{escape(name)}</td><td>{len(judged)}</td><td>{len(answers) - len(judged)}</td><td>{seconds}</td>"
            f"{''.join(cells)}</tr>"
        )
    lines += [
        "</table>",
        "<h3>Agreement</h3><table><tr><th>view</th><th>judged twice or more</th><th>alike</th><th>Fleiss' kappa</th>"
        "<th class='left'>Cohen's kappa of two</th></tr>",
    ]
    for one in review.agreement():
        pairs = ", ".join(f"{a}–{b} {_number(kappa)} ({n})" for a, b, n, kappa in one.pairs)
        alike = "–" if one.alike is None else f"{100 * one.alike:.0f} %"
        name = next(view.name for view in VIEWS if view.key == one.view)
        lines.append(
            f"<tr><td>{name}</td><td>{one.clips}</td><td>{alike}</td><td>{_number(one.fleiss)}</td>"
            f"<td class='left'>{escape(pairs)}</td></tr>"
        )
    return [*lines, "</table>"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


# --------------------------------------------------------------------------------------------------------- the rest


def _sources(all_: _Data) -> list[str]:
    """Where clips come from, and what became of them; image files by their folder."""
    names = [report.name for report in all_.sets if not report.refused] or ["kept"]
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in all_.clips:
        groups[str(Path(clip.source).parent) if has_image_name(clip.source) else clip.source].append(clip)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = [
        "<h2>Sources</h2>",
        f"<table><tr><th>source</th><th>clips</th><th>minutes</th>{head}<th class='left'>mostly dropped by</th></tr>",
    ]
    for source, clips in ordered[:SOURCES]:
        counts = [sum(name in c.sets or (name == "kept" and not c.dropped) for c in clips) for name in names]
        why = Counter(clip.dropped.stage for clip in clips if clip.dropped).most_common(2)
        said = ", ".join(f"{stage} ({count})" for stage, count in why)
        minutes = sum(c.num_frames / c.fps for c in clips if c.kind == "video") / 60
        cells = "".join(f"<td>{count or '–'}</td>" for count in counts)
        lines.append(
            f"<tr><td title='{escape(source, quote=True)}'>{escape(Path(source).name)}</td><td>{len(clips)}</td>"
            f"<td>{minutes:.1f}</td>{cells}<td class='left muted'>{escape(said)}</td></tr>"
        )
    more = len(ordered) - SOURCES
    return [*lines, "</table>", *([f"<p class='muted'>and {more} more</p>"] if more > 0 else [])]


def _quarantine(failures: Sequence[dict[str, Any]]) -> list[str]:
    if not failures:
        return []
    lines = ["<h2>Could not be read or measured</h2>", "<table><tr><th>source</th><th class='left'>step</th>"]
    lines.append("<th class='left'>error</th></tr>")
    for failure in failures[:200]:
        cells = "".join(f"<td class='left'>{escape(str(failure[k]))}</td>" for k in ("source", "stage", "error"))
        lines.append(f"<tr>{cells}</tr>")
    more = len(failures) - 200
    return [*lines, "</table>", *([f"<p class='muted'>and {more} more: see quarantine.jsonl</p>"] if more > 0 else [])]


def _run(all_: _Data) -> list[str]:
    about = all_.about
    stages = [f"<code>{escape(s['name'])}</code> {escape(s['key'])}" for s in about.get("stages", [])]
    own, published = (
        [
            f"<li><code>{escape(s['name'])}</code>: weights {escape(s['weights'][:16])}</li>"
            for s in about.get("stages", [])
            if s.get("weights") and (s["name"] in PACKAGED) == packaged
        ]
        for packaged in (True, False)
    )
    proxies = [f"<li><code>{escape(k)}</code>: {escape(v)}</li>" for k, v in about.get("proxies", {}).items()]
    lines = ["<h2>What was run</h2>", f"<p>{', '.join(stages)}</p>"] if stages else []
    lines += ["<p>These stages ran a published network:</p><ul>", *published, "</ul>"] if published else []
    lines += ["<p>These stages ran weights of this package, or made by it:</p><ul>", *own, "</ul>"] if own else []
    lines += ["<p>These scores stand in for models:</p><ul>", *proxies, "</ul>"] if proxies else []
    ladder = about.get("ladder")
    if ladder:
        how = "calibrated to the report's shares" if ladder["calibrated"] else "as given"
        allowed = f"; proxies allowed: {escape(', '.join(ladder['allow_proxy']))}" if ladder["allow_proxy"] else ""
        lines.append(f"<p>Thresholds are {how}{allowed}.</p>")
    return lines
