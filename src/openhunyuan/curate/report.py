"""One HTML page about a data folder: what was kept, what was dropped and why, and what it looks like.

The page stands alone (pictures inside), so that it can be sent. Funnel: bars in the order of the filters. Histograms:
every score that a filter looks at, with its limits. Contact strips: kept clips, and dropped ones by reason, with the
score that decided.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.files import write_atomic
from openhunyuan.base.record import read_json
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.run import QUARANTINE, RUN, read_clips
from openhunyuan.curate.tables import TABLES, read_rows

REPORT = "report.html"
BINS = 40

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;color:#1c2330;background:#fff;max-width:1180px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin:0 0 .2em}h2{font-size:1.15em;margin:2em 0 .6em;border-bottom:1px solid #dde}
.muted{color:#667}table{border-collapse:collapse}td,th{padding:.15em .7em;text-align:right}
td:first-child,th:first-child{text-align:left}
.bar{display:inline-block;height:14px;background:#3568b8;vertical-align:middle}
.lost{background:#e2a33d}.hist{display:inline-block;margin:0 1.2em 1.2em 0;vertical-align:top}
figure{display:inline-block;margin:0 .8em .8em 0}figcaption{font-size:11px;color:#556;max-width:520px}
img{display:block;border-radius:3px}code{background:#f2f3f7;padding:0 .25em}
"""


def write_report(data: Path | str, strips: int = 12) -> Path:
    """Write `report.html` into a data folder; at most `strips` clips are shown a reason. Returns its path.

    Raises UserError when the folder holds no manifest.
    """
    data = Path(data)
    clips = read_clips(data)
    about = read_json(data / RUN) if (data / RUN).is_file() else {"filters": [], "stages": [], "proxies": {}}
    failures = _json_lines(data / QUARANTINE)
    page = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Curation report</title>",
        f"<style>{_STYLE}</style></head><body>",
        *_head(clips, about, failures),
        *_funnel(data),
        *_histograms(clips, about["filters"]),
        *_strips(data, clips, strips),
        *_concepts(clips, about),
        *_quarantine(failures),
        *_plan(about),
        "</body></html>\n",
    ]
    path = data / REPORT
    write_atomic(path, "\n".join(page).encode())
    return path


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _head(clips: Sequence[Clip], about: dict[str, Any], failures: Sequence[Any]) -> list[str]:
    kept = [clip for clip in clips if not clip.dropped]
    seconds, kept_seconds = _seconds(clips), _seconds(kept)
    share = 100 * len(kept) / len(clips) if clips else 0.0
    facts = [
        f"{about.get('sources', '?')} videos, {len(clips)} clips, {_time(seconds)}",
        f"kept: {len(kept)} clips ({share:.0f} %), {_time(kept_seconds)}",
    ]
    facts += [f"{about['repeated']} videos repeat the bytes of another"] if about.get("repeated") else []
    facts += [f"{about['forgotten']} videos are to be forgotten"] if about.get("forgotten") else []
    facts += [f"{len(failures)} could not be read or measured"] if failures else []
    return ["<h1>Curation report</h1>", f"<p>{' · '.join(facts)}</p>"]


def _seconds(clips: Sequence[Clip]) -> float:
    return sum(clip.num_frames / clip.fps for clip in clips)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _funnel(data: Path) -> list[str]:
    path = data / "funnel.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if not rows:
        return []
    full = max(1, rows[0]["seen"])
    lines = [
        "<h2>Funnel</h2>",
        "<table><tr><th>filter</th><th></th><th>left</th><th>of all</th><th>dropped here</th></tr>",
    ]
    for row in rows:
        lost = row["seen"] - row["kept"]
        bars = (
            f"<span class='bar' style='width:{420 * row['kept'] / full:.1f}px'></span>"
            f"<span class='bar lost' style='width:{420 * lost / full:.1f}px'></span>"
        )
        lines.append(
            f"<tr><td>{_text(row['stage'])}</td><td style='text-align:left;width:430px'>{bars}</td>"
            f"<td>{row['kept']}</td><td>{100 * row['kept'] / full:.1f} %</td><td>{lost or ''}</td></tr>"
        )
    return [*lines, "</table>"]


def _histograms(clips: Sequence[Clip], filters: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["<h2>Scores and thresholds</h2>"] if filters else []
    for one in filters:
        values = np.array([c.scores[one["score"]] for c in clips if one["score"] in c.scores])
        values = values[np.isfinite(values)]
        if values.size:
            lines.append(histogram(one["name"], one["score"], values, one["at_least"], one["at_most"]))
    return lines


def histogram(name: str, score: str, values: np.ndarray, at_least: float | None, at_most: float | None) -> str:
    """One score as a picture (SVG): bars in blue where a clip passes, in orange where it does not, limits as lines."""
    limits = [limit for limit in (at_least, at_most) if limit is not None]
    # The far tail would squeeze everything else: the last bins hold all that lies beyond.
    low, high = np.quantile(values, (0.005, 0.995))
    low, high = min([low, *limits]), max([high, *limits])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    width, height, top = 340, 110, max(1, counts.max())
    step = width / BINS
    parts = []
    for i, count in enumerate(counts):
        middle = (edges[i] + edges[i + 1]) / 2
        out = (at_least is not None and middle < at_least) or (at_most is not None and middle > at_most)
        tall = height * count / top
        colour = "#e2a33d" if out else "#3568b8"
        parts.append(
            f"<rect x='{i * step:.1f}' y='{height - tall:.1f}' width='{step - 1:.1f}' height='{tall:.1f}' "
            f"fill='{colour}'/>"
        )
    for limit in limits:
        x = (limit - low) / (high - low) * width
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{height}' stroke='#b3261e' stroke-width='1.5'/>")
    words = " and ".join(
        ([f"at least {at_least:g}"] if at_least is not None else [])
        + ([f"at most {at_most:g}"] if at_most is not None else [])
    )
    failed = sum(int((at_least is not None and v < at_least) or (at_most is not None and v > at_most)) for v in values)
    return (
        f"<div class='hist'><b>{_text(name)}</b> <span class='muted'>{_text(score)}, {words}; "
        f"{failed} of {len(values)} fail</span><br>"
        f"<svg width='{width}' height='{height + 16}'>{''.join(parts)}"
        f"<text x='0' y='{height + 13}' font-size='11' fill='#667'>{low:.3g}</text>"
        f"<text x='{width}' y='{height + 13}' font-size='11' fill='#667' text-anchor='end'>{high:.3g}</text>"
        "</svg></div>"
    )


def _strips(data: Path, clips: Sequence[Clip], most: int) -> list[str]:
    pictures: dict[str, bytes] = {}
    for folder in sorted(data.glob(f"{TABLES}/strip/*")):
        for key, rows in read_rows(folder).items():
            if rows[0].get("jpeg"):
                pictures[key] = rows[0]["jpeg"]
    groups: dict[str, list[Clip]] = {"kept": [clip for clip in clips if not clip.dropped]}
    for clip in clips:
        if clip.dropped:
            groups.setdefault(clip.dropped.stage, []).append(clip)
    lines = []
    for name, members in groups.items():
        shown = [clip for clip in members if clip.id in pictures]
        if not members:
            continue
        # Spread over the scores: the clear cases and, more to the point, the close ones.
        shown.sort(key=lambda c: (c.dropped.score or 0.0) if c.dropped else 0.0)
        if not shown:  # never measured: there is no picture, but there is a reason
            reasons = sorted({str(clip.dropped.reason) for clip in members if clip.dropped})
            lines += [f"<h2>Dropped by {_text(name)} <span class='muted'>({len(members)})</span></h2>"]
            lines += [f"<p>{_text('; '.join(reasons[:5]))}</p>"]
            continue
        picks = np.unique(np.linspace(0, len(shown) - 1, min(most, len(shown))).round().astype(int))
        title = "Kept" if name == "kept" else f"Dropped by {name}"
        lines.append(f"<h2>{_text(title)} <span class='muted'>({len(members)})</span></h2>")
        lines += [_figure(shown[i], pictures[shown[i].id]) for i in picks]
    return lines


def _figure(clip: Clip, jpeg: bytes) -> str:
    source = base64.b64encode(jpeg).decode("ascii")
    said = f"{Path(clip.source).name} {clip.start_time:.2f}–{clip.end_time:.2f} s"
    if clip.dropped:
        score = "" if clip.dropped.score is None else f" ({clip.dropped.score:.3g})"
        said += f" · {clip.dropped.reason}{score}"
    elif clip.captions:
        said += f" · {clip.captions[-1].text[:160]}"
    if clip.crop:
        said += f" · cropped to {clip.crop[2] - clip.crop[0]}×{clip.crop[3] - clip.crop[1]}"
    return (
        f"<figure><img loading='lazy' alt='' src='data:image/jpeg;base64,{source}'>"
        f"<figcaption>{_text(said)}</figcaption></figure>"
    )


def _concepts(clips: Sequence[Clip], about: dict[str, Any]) -> list[str]:
    groups: dict[int, list[Clip]] = {}
    for clip in clips:
        if clip.concept is not None:
            groups.setdefault(clip.concept, []).append(clip)
    if not groups:
        return []
    by = (about.get("concepts") or {}).get("by")
    title, words = ("Concepts", "by embeddings") if by == "embedding" else ("Looks", "by colours and edges")
    lines = [
        f"<h2>{title}</h2><p class='muted'>Groups {words}, and how much a clip of each weighs.</p>",
        "<table><tr><th>group</th><th>clips</th><th>weight</th></tr>",
    ]
    for number, members in sorted(groups.items())[:50]:
        lines.append(f"<tr><td>{number}</td><td>{len(members)}</td><td>{members[0].weight:.2f}</td></tr>")
    return [*lines, "</table>"]


def _quarantine(failures: Sequence[dict[str, Any]]) -> list[str]:
    if not failures:
        return []
    lines = ["<h2>Quarantine</h2>", "<table><tr><th>source</th><th>step</th><th>error</th></tr>"]
    for failure in failures[:200]:
        cells = "".join(f"<td style='text-align:left'>{_text(failure[k])}</td>" for k in ("source", "stage", "error"))
        lines.append(f"<tr>{cells}</tr>")
    return [*lines, "</table>"]


def _plan(about: dict[str, Any]) -> list[str]:
    stages = [f"<code>{_text(s['name'])}</code> {_text(s['key'])}" for s in about.get("stages", [])]
    models = [
        f"<li><code>{_text(s['name'])}</code>: weights {_text(s['weights'][:16])}</li>"
        for s in about.get("stages", [])
        if s.get("weights")
    ]
    proxies = [f"<li><code>{_text(k)}</code>: {_text(v)}</li>" for k, v in about.get("proxies", {}).items()]
    lines = ["<h2>What was run</h2>", f"<p>{', '.join(stages)}</p>"] if stages else []
    lines += ["<p>These stages ran a published network:</p><ul>", *models, "</ul>"] if models else []
    return [*lines, *(["<p>These scores stand in for models:</p><ul>", *proxies, "</ul>"] if proxies else [])]


def _text(value: Any) -> str:
    return html.escape(str(value))
