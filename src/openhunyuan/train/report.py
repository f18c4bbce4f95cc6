"""A run as one HTML page: curves from ``metrics.jsonl``, strips of its samples, faults. Nothing is fetched by it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.base.video import read_video
from openhunyuan.train.heartbeat import COLUMNS, read_beats, rows, standings
from openhunyuan.train.metrics import read_metrics

Series = dict[str, list[tuple[int, float]]]
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 240, 64, 20
_COLOURS = ("#1f6f8b", "#d1495b", "#66a182", "#edae49", "#6b4c9a", "#8d5524", "#2e4057", "#c06c84")
_STRIPS = 3
"""Sample folders shown: the first, the last, and those between."""


def series_of(records: Sequence[Mapping]) -> Series:
    """Every number of the records, by name: (step, value) in order."""
    found: Series = {}
    for record in records:
        for name, value in record.items():
            if name not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((int(record["step"]), float(value)))
    return found


def charts_of(series: Series) -> dict[str, Series]:
    """Curves that belong on one chart: training losses, those of a bucket by noise level, utilization of all buckets,
    validation by what is measured, all else alone."""
    charts: dict[str, Series] = {}
    for name, points in series.items():
        if name.startswith("val/"):
            title = "val/" + name.removeprefix("val/").split("_")[0]
        elif name.startswith("loss_by_level/"):
            title = name.rsplit("/", 1)[0]
        elif name.startswith("loss"):
            title = "loss"
        elif name.startswith(("mfu", "hfu")):
            title = name[:3]
        else:
            title = name
        charts.setdefault(title, {})[name] = points
    return dict(
        sorted(charts.items(), key=lambda item: (not item[0].startswith("loss"), not item[0].startswith("val/")))
    )


def chart(title: str, series: Series) -> str:
    """One chart as SVG; logarithmic where the values are positive and span more than a factor of 100."""
    values = [value for points in series.values() for _, value in points]
    steps = [step for points in series.values() for step, _ in points]
    log = min(values) > 0 and max(values) > 100 * min(values)
    low, high = (math.log10(min(values)), math.log10(max(values))) if log else (min(values), max(values))
    first, last = min(steps), max(steps)

    def place(step: int, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT) * (step - first) / max(1, last - first)
        height = ((math.log10(value) if log else value) - low) / ((high - low) or 1)
        return f"{x:.1f},{(_HEIGHT - _BOTTOM) * (1 - height) + 4:.1f}"

    lines, legend = [], []
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(place(*point) for point in points)
        if len(points) == 1:
            x, y = path.split(",")
            lines.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        else:
            lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        legend.append(f'<span style="color:{colour}">{escape(name)} {points[-1][1]:.4g}</span>')
    scale = " (logarithmic)" if log else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{scale} {' '.join(legend)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<text x="0" y="12">{max(values):.4g}</text><text x="0" y="{_HEIGHT - _BOTTOM}">{min(values):.4g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 2}">step {first}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 2}" text-anchor="end">{last}</text>{"".join(lines)}</svg></figure>'
    )


def strip(path: Path) -> str:
    """A sample as an embedded PNG: a picture as it is, of a video the first, middle and last frame side by side."""
    if path.suffix == ".mp4":
        frames = read_video(path)[0]
        picks = sorted({0, len(frames) // 2, len(frames) - 1})
        picture = Image.fromarray(np.concatenate([frames[i] for i in picks], axis=1))
    else:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(path.name)}" title="{escape(path.name)}">'


def _samples(run_dir: Path) -> list[str]:
    folders = sorted(path for path in (run_dir / "samples").glob("step_*") if any(path.iterdir()))
    if len(folders) > _STRIPS:
        folders = [folders[round(i * (len(folders) - 1) / (_STRIPS - 1))] for i in range(_STRIPS)]
    parts = []
    for folder in folders:
        shown = [strip(path) for path in sorted(folder.iterdir()) if path.suffix in (".png", ".mp4")]
        if shown:
            parts.append(f"<h3>step {int(folder.name.split('_')[1])}</h3><div>{''.join(shown)}</div>")
    return parts


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's directory and return its path.

    Raises:
        UserError: the directory holds no run.
    """
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{run_dir} holds no run (run.json is missing); give the directory of one.")
    about = read_json(run_dir / "run.json")
    records = read_metrics(run_dir / "metrics.jsonl")
    faults = read_metrics(run_dir / "faults.jsonl")
    name = escape(str(about.get("train", {}).get("name", run_dir.name)))
    last = max((record["step"] for record in records), default=0)
    planned = sum(stage["steps"] for stage in about.get("train", {}).get("stages", []))
    body = [f"<h1>{name}</h1><p>{last} of {planned} steps</p>"]
    if faults:
        lines = "".join(
            f"<tr><td>{int(f['step'])}</td><td>{escape(f['reason'])}</td><td>{int(f['went_back_to'])}</td></tr>"
            for f in faults
        )
        body.append(f"<h2>Steps left out</h2><table><tr><th>step<th>reason<th>went back to</tr>{lines}</table>")
    if beats := read_beats(run_dir):
        cells = (f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows(standings(beats)))
        body.append(f"<h2>Processes</h2><table><tr><th>{'<th>'.join(COLUMNS)}</tr>{''.join(cells)}</table>")
    if records:
        curves = (chart(title, series) for title, series in charts_of(series_of(records)).items())
        body.append(f"<h2>Curves</h2><div class=charts>{''.join(curves)}</div>")
    if samples := _samples(run_dir):
        body.append(f"<h2>Samples</h2>{''.join(samples)}")
    body.append(f"<h2>Config</h2><pre>{escape(json.dumps(about, indent=1))}</pre>")
    style = (
        "body{font:14px system-ui;max-width:1340px;margin:2em auto;padding:0 1em}.charts{display:grid;gap:1em;"
        "grid-template-columns:repeat(auto-fill,minmax(420px,1fr))}figure{margin:0}svg{width:100%;background:#f6f6f6}"
        "svg text{font-size:11px;fill:#555}figcaption span{margin-left:.6em}img{margin:2px;image-rendering:pixelated;"
        "min-width:128px}td,th{padding:.1em .8em;text-align:left}"
    )
    page = f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{style}</style>{''.join(body)}\n"
    path = run_dir / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path
