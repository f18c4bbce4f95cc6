"""Removing a source and everything that was made from it, with a receipt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.curate.clip import clip_id, read_manifest
from openhunyuan.curate.ladder import forget_verdicts
from openhunyuan.curate.pairs import forget_pairs
from openhunyuan.curate.review import forget_answers
from openhunyuan.curate.run import (
    CUT,
    FORGOTTEN,
    FUNNEL,
    MANIFEST,
    QUARANTINE,
    SCAN,
    Sources,
    count_funnel,
    write_funnel,
    write_manifest,
)
from openhunyuan.curate.split import STAGE as SPLIT
from openhunyuan.curate.stills import Images
from openhunyuan.curate.tables import STORE, TABLES, Table, all_tables, alone, read_rows, stored, sweep

Removal = Callable[[set[str]], tuple[int, int]]


@dataclass(frozen=True)
class Receipt:
    """What was removed. The source itself is not touched; its hash stays here, so that no later run takes it again."""

    sha256: str
    paths: tuple[str, ...]
    time: str
    clips: tuple[str, ...]
    files: int
    rows: int
    latents: int = 0
    tars: int = 0


def find_source(data: Path | str, source: str) -> str:
    """The hash of a source by its path, its name or its hash. Raises UserError when none or several are meant."""
    data = Path(data)
    found = {
        row["sha256"]
        for folder in data.glob(f"{TABLES}/{Sources.name}/*")
        for rows in read_rows(folder).values()
        for row in rows
        if source in (row["path"], row["sha256"], Path(row["path"]).name)
        or (Path(source).exists() and Path(source).resolve() == Path(row["path"]).resolve())
    }
    if len(found) != 1:
        many = f"means {len(found)} sources; give its whole path or its hash" if found else "is no source"
        raise UserError(f"'{source}' {many} of {data}.")
    return found.pop()


def clips_from(data: Path | str, sha256: str) -> tuple[str, ...]:
    """Ids of all clips that were ever made of a source, in any version of the split."""
    spans = [
        (span["start_frame"], span["end_frame"])
        for stage in (SPLIT, Images.name)
        for folder in Path(data).glob(f"{TABLES}/{stage}/*")
        for row in read_rows(folder).get(sha256, [])
        for span in row.get("spans") or []
    ]
    found = {clip_id(sha256, start, end) for start, end in spans}
    frames = {clip_id(sha256, (start + end) // 2, (start + end) // 2 + 1) for start, end in spans}  # split.frame_of
    if frames := frames - found:
        measured = set().union(*(table.keys() for table in all_tables(Path(data))))
        found |= frames & measured
    return tuple(sorted(found))


def folders_with(data: Path, *patterns: str) -> list[Path]:
    """The folders below a data folder, at any depth, that hold files of these names; its store and tables are none."""
    tops = [path for path in data.iterdir() if path.is_dir() and path.name not in (STORE, TABLES)]
    return sorted({path.parent for top in tops for pattern in patterns for path in top.rglob(pattern)})


def forget(data: Path | str, source: str, remove: Removal | None = None) -> Receipt:
    """Remove rows, files and views of a source from a data folder, and write the receipt (`forgotten.jsonl`).

    source: as for `find_source`. remove: takes the samples of these clips out of what was made of the folder (latents,
    exports), and says how many of each.

    The receipt is written before anything but samples goes, and what the source is found by goes last: killed in
    between, it is gone on with by the same call. A file that another source's clip has too stays.
    """
    data = Path(data)
    with alone(data):
        sweep(data)  # a run that was killed left pictures of whichever source
        return _forget(data, find_source(data, source), remove)


def _forget(data: Path, sha256: str, remove: Removal | None) -> Receipt:
    clips = clips_from(data, sha256)
    latents, tars = remove(set(clips)) if remove else (0, 0)
    files, keys, paths = set(), {sha256, *clips}, set()
    others: set[str] = set()
    for folder in data.glob(f"{TABLES}/{CUT}/*"):
        for key, rows in read_rows(folder).items():
            ours, digest = key.split("-")[0] in clips, rows[0].get("sha256")
            if ours:
                keys.add(key)
            if digest:
                (files if ours else others).add(digest)
    files -= others
    for folder in data.glob(f"{TABLES}/{Sources.name}/*"):
        for key, rows in read_rows(folder).items():
            if rows[0]["sha256"] == sha256:
                keys.add(key)
                paths.add(rows[0]["path"])
    keys |= files  # captions are addressed by the file that they are of
    tables = sorted(all_tables(data), key=_lasting)
    rows_gone = sum(len(keys & table.keys()) for table in tables)
    receipts = _receipts(data)
    before = next((r for r in receipts if r["sha256"] == sha256), {})  # of a call that was killed, or of a return
    receipt = Receipt(
        sha256=sha256,
        paths=tuple(sorted(paths | set(before.get("paths", ())))),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        clips=tuple(sorted({*clips, *before.get("clips", ())})),
        files=max(len(files), before.get("files", 0)),
        rows=max(rows_gone, before.get("rows", 0)),
        latents=latents + before.get("latents", 0),
        tars=tars + before.get("tars", 0),
    )
    lines = [json.dumps(r, ensure_ascii=False) for r in receipts if r["sha256"] != sha256]
    lines.append(json.dumps(asdict(receipt), ensure_ascii=False))
    write_atomic(data / FORGOTTEN, "".join(line + "\n" for line in lines).encode())
    if (data / MANIFEST).is_file():
        left = [clip for clip in read_manifest(data / MANIFEST) if clip.source_sha256 != sha256]
        write_manifest(data, left)
        if (data / FUNNEL).is_file():
            stages = [row["stage"] for row in json.loads((data / FUNNEL).read_text(encoding="utf-8"))]
            write_funnel(data, count_funnel(left, stages))
    for name in ("drops.jsonl", QUARANTINE):
        path = data / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line).get("source") not in paths]
            write_atomic(path, "".join(line + "\n" for line in kept).encode())
    forget_verdicts(data, set(clips))
    forget_answers(data, set(clips))
    shutil.rmtree(data / SCAN, ignore_errors=True)
    (data / "report.html").unlink(missing_ok=True)  # it holds pictures; `curate report` makes it again
    for digest in files:
        for path in (data / stored(digest)).parent.glob(f"{digest}.*"):
            path.unlink()
    forget_pairs(data, set(clips))
    for table in tables:
        table.forget(keys)
    return receipt


def _lasting(table: Table) -> tuple[int, Path]:
    """Order in which tables are emptied: what says which clips a source has comes after all that was made of them,
    and what the source is found by at the very end."""
    stage = table.folder.parent.name
    return (2 if stage == Sources.name else 1 if stage in (SPLIT, Images.name) else 0), table.folder


def _receipts(data: Path) -> list[dict[str, Any]]:
    path = data / FORGOTTEN
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
