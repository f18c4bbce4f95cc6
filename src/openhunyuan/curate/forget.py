"""Removing a source and everything that was made from it, with a receipt."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.curate.clip import clip_id, read_manifest
from openhunyuan.curate.ladder import forget_verdicts
from openhunyuan.curate.review import forget_answers
from openhunyuan.curate.run import CUT, FORGOTTEN, MANIFEST, QUARANTINE, Sources, write_manifest
from openhunyuan.curate.split import STAGE as SPLIT
from openhunyuan.curate.stills import Images
from openhunyuan.curate.tables import STORE, TABLES, all_tables, alone, read_rows, stored


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
        measured = {key for table in all_tables(Path(data)) for key in table.rows()}
        found |= frames & measured
    return tuple(sorted(found))


def folders_with(data: Path, *patterns: str) -> list[Path]:
    """The folders below a data folder, at any depth, that hold files of these names; its store and tables are none."""
    tops = [path for path in data.iterdir() if path.is_dir() and path.name not in (STORE, TABLES)]
    return sorted({path.parent for top in tops for pattern in patterns for path in top.rglob(pattern)})


def forget(data: Path | str, sha256: str, latents: int = 0, tars: int = 0) -> Receipt:
    """Remove rows, files and views of a source from a data folder, and write the receipt (`forgotten.jsonl`).

    The receipt is written first: a run that comes between does not bring the source back. `latents`, `tars`:
    samples that the caller removed from datasets and from exports, for the receipt.
    """
    with alone(Path(data)):
        return _forget(Path(data), sha256, latents, tars)


def _forget(data: Path, sha256: str, latents: int, tars: int) -> Receipt:
    clips = clips_from(data, sha256)
    files, keys, paths = set(), {sha256, *clips}, set()
    for folder in data.glob(f"{TABLES}/{CUT}/*"):
        for key, rows in read_rows(folder).items():
            if key.split("-")[0] in clips:
                keys.add(key)
                files |= {rows[0]["sha256"]} if rows[0].get("sha256") else set()
    for folder in data.glob(f"{TABLES}/{Sources.name}/*"):
        for key, rows in read_rows(folder).items():
            if rows[0]["sha256"] == sha256:
                keys.add(key)
                paths.add(rows[0]["path"])
    keys |= files  # captions are addressed by the file that they are of
    tables = all_tables(data)
    rows_gone = sum(len(keys & set(table.rows())) for table in tables)
    receipt = Receipt(
        sha256=sha256,
        paths=tuple(sorted(paths)),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        clips=clips,
        files=len(files),
        rows=rows_gone,
        latents=latents,
        tars=tars,
    )
    before = (data / FORGOTTEN).read_bytes() if (data / FORGOTTEN).is_file() else b""
    write_atomic(data / FORGOTTEN, before + (json.dumps(asdict(receipt), ensure_ascii=False) + "\n").encode())
    if (data / MANIFEST).is_file():
        left = [clip for clip in read_manifest(data / MANIFEST) if clip.source_sha256 != sha256]
        write_manifest(data, left)
    for name in ("drops.jsonl", QUARANTINE):
        path = data / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line).get("source") not in paths]
            write_atomic(path, "".join(line + "\n" for line in kept).encode())
    forget_verdicts(data, set(clips))
    forget_answers(data, set(clips))
    (data / "report.html").unlink(missing_ok=True)  # it holds pictures; `curate report` makes it again
    for digest in files:
        for path in (data / stored(digest)).parent.glob(f"{digest}.*"):
            path.unlink()
    for table in tables:
        table.forget(keys)
    return receipt
