"""The manifest on disk: a content-addressed store of clip files and one Parquet table a stage.

    data/store/ab/<sha256>.mp4                    clip files, named by their bytes; .png for images
    data/tables/<stage>/<stage key>/_stage.json   name, version, parameters, weights of the stage
    data/tables/<stage>/<stage key>/*.parquet     its rows, `key` = hash of what the stage read

A table only grows: rows are added as new part files, each written whole or not at all, so that a process that dies
takes with it only what had not been handed over. Parts are merged now and then; a key that is found twice (a death
between merging and deleting) is the same row twice and is read once. Nothing here depends on who computed a row.

All parts of a table have the same columns of the same types, so that any reader of Parquet takes its folder as one
table: where a row brings a column, or a fraction where only whole numbers were, the parts are written anew as one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic
from openhunyuan.base.require import require
from openhunyuan.curate.clip import file_sha256
from openhunyuan.curate.stage import Outcome, Stage

log = logging.getLogger(__name__)

STORE, TABLES = "store", "tables"
ABOUT, OLD_ABOUT = "_stage.json", "stage.json"
"""What a table is of; readers of Parquet pass over names that begin so, but not over the one that was used before."""

MERGE_AT = 64
"""Part files of a table before they are merged into one."""


class Table:
    """The rows of one stage with one set of parameters; `name` where it is not the stage's.

    Rows in memory lack the stage's bulky columns; `read_rows` of the folder has them.
    """

    _types: Any = None
    """The schema of all parts; None where there is none, or it is not known yet."""

    def __init__(self, data: Path, stage: Stage, name: str | None = None) -> None:
        self.folder = data / TABLES / (name or stage.name) / stage.key
        self._bulky = stage.bulky
        self._rows: dict[str, list[dict[str, Any]]] | None = None
        about, old = self.folder / ABOUT, self.folder / OLD_ABOUT
        if old.is_file():
            os.replace(old, about)
        if not about.is_file():
            write_atomic(about, (json.dumps(stage.describe(), indent=2, sort_keys=True) + "\n").encode())

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Key → the rows of that input, in the order in which they were made."""
        if self._rows is None:
            self._rows = read_rows(self.folder, self._bulky)
        return self._rows

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Append what a stage gave. It is on disk when this returns."""
        rows = self.rows()
        new = []
        for outcome in outcomes:
            whole = outcome.table_rows()
            rows[outcome.key] = [{k: v for k, v in row.items() if k not in self._bulky} for row in whole]
            new += whole
        if new:
            self._write(new)
            if len(self._parts()) >= 16 * MERGE_AT:
                self.merge()

    def merge(self) -> None:
        """Put all part files into one, if there are many, or if an earlier version wrote them with different types."""
        parts = self._parts()
        types, alike = self._schema()
        if len(parts) >= MERGE_AT or not alike:
            self._rewrite(read_rows(self.folder), types)

    def forget(self, keys: set[str]) -> int:
        """Remove the rows of these inputs; the only thing that ever takes rows out. Returns how many inputs went."""
        rows = self.rows()
        gone = [key for key in rows if key in keys]
        if gone:
            whole = read_rows(self.folder)
            for key in gone:
                del rows[key], whole[key]
            self._rewrite(whole, self._schema()[0])
        return len(gone)

    def _parts(self) -> list[Path]:
        return _parts(self.folder)

    def _schema(self) -> tuple[Any, bool]:
        """(the types of all parts together, None where they contradict each other; whether every part has them)."""
        if self._types is not None:
            return self._types, True
        schemas = [_read_schema(part) for part in self._parts()]
        if not schemas:
            return None, True
        types = _unified(schemas)
        alike = types is None or all(schema.equals(types) for schema in schemas)
        self._types = types if alike else None
        return types, alike

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        known, alike = self._schema()
        new = _table_of(rows).schema
        types = _unified([known, new]) if known is not None else new
        if alike and (known is None or types is None or types.equals(known)):
            self._part(rows, types)
            return
        whole: dict[str, list[dict[str, Any]]] = read_rows(self.folder)
        whole.update({row["key"]: [] for row in rows})
        for row in rows:
            whole[row["key"]].append(row)
        self._rewrite(whole, types)

    def _part(self, rows: Sequence[dict[str, Any]], types: Any) -> None:
        parts = self._parts()
        number = int(parts[-1].stem) + 1 if parts else 0
        write_parquet(self.folder / f"{number:08d}.parquet", rows, types)
        self._types = types

    def _rewrite(self, rows: dict[str, list[dict[str, Any]]], types: Any) -> None:
        """Put these rows in the place of all parts."""
        parts = self._parts()
        if rows:
            self._part([row for found in rows.values() for row in found], types)
        for part in parts:
            part.unlink(missing_ok=True)


def all_tables(data: Path) -> list[Table]:
    """Every table that lies in a data folder, whatever stage or version made it."""
    folders = {about.parent for name in (ABOUT, OLD_ABOUT) for about in data.glob(f"{TABLES}/*/*/{name}")}
    return [_Found(folder) for folder in sorted(folders)]


class _Found(Table):
    """A table opened by its folder, without the stage that made it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows, self._bulky = None, ()


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.parquet"))


def read_rows(folder: Path, without: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Key → rows of a table's folder, some columns left out. An input's rows are always in one part, and the newest
    part wins."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in _parts(folder):
        found: dict[str, list[dict[str, Any]]] = {}
        for row in _read(part, without):
            found.setdefault(row["key"], []).append(row)
        rows.update(found)
    return rows


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], types: Any = None) -> None:
    """Rows as one Parquet file, atomically. types: its schema; None: as the rows have it."""
    arrow: Any = require("pyarrow", extra="curate")
    parquet: Any = require("pyarrow.parquet", extra="curate")
    sink = arrow.BufferOutputStream()
    parquet.write_table(_table_of(rows, types), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def _table_of(rows: Sequence[dict[str, Any]], types: Any = None) -> Any:
    """Rows as an Arrow table. The columns that all tables have (`stage.Outcome`) have their types without a value."""
    arrow: Any = require("pyarrow", extra="curate")
    common = {"key": arrow.string(), "error": arrow.string(), "reason": arrow.string(), "score": arrow.float64()}
    kinds = common if types is None else dict(zip(types.names, types.types, strict=True))
    columns = types.names if types is not None else list(dict.fromkeys(name for row in rows for name in row))
    return arrow.table({n: arrow.array([row.get(n) for row in rows], type=kinds.get(n)) for n in columns})


def _unified(schemas: Sequence[Any]) -> Any:
    """One schema for all: whole numbers and fractions are fractions, what has no type yet takes the others'. None where
    types contradict each other."""
    arrow: Any = require("pyarrow", extra="curate")
    try:
        return arrow.unify_schemas(schemas, promote_options="permissive")
    except (arrow.ArrowTypeError, arrow.ArrowInvalid):
        return None


def _read_schema(path: Path) -> Any:
    arrow: Any = require("pyarrow", extra="curate")
    parquet: Any = require("pyarrow.parquet", extra="curate")
    try:
        return parquet.read_schema(path)
    except (OSError, arrow.ArrowException) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as Parquet ({error}); delete it, and its rows are made again.")


def _read(path: Path, without: Sequence[str]) -> list[dict[str, Any]]:
    arrow: Any = require("pyarrow", extra="curate")
    parquet: Any = require("pyarrow.parquet", extra="curate")
    try:
        columns = [name for name in _read_schema(path).names if name not in without]
        return parquet.read_table(path, columns=columns, partitioning=None).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise _broken(path, error) from None


def store_file(data: Path, made: Path) -> str:
    """Move a finished file into the store under the hash of its bytes; returns that hash."""
    digest = file_sha256(made)
    place = data / stored(digest, made.suffix)
    if place.is_file():
        made.unlink()
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, place)
    return digest


def stored(digest: str, suffix: str = ".mp4") -> str:
    """Where a file lies in a data folder, by its hash."""
    return f"{STORE}/{digest[:2]}/{digest}{suffix}"


@contextmanager
def alone(data: Path) -> Iterator[None]:
    """Be the only run that writes to a data folder. Raises UserError when there is another; a dead one is none."""
    with locked(data / ".lock", f"Another run is writing to {data}; wait until it ends, or name another folder."):
        yield


@contextmanager
def locked(path: Path, taken: str | None) -> Iterator[None]:
    """Hold the lock of this file. Where another holds it: raises UserError saying `taken`, or waits where that is
    None. A dead process holds none."""
    fcntl: Any = require("fcntl") if os.name == "posix" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError:
            raise UserError(str(taken)) from None
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): see to it that no one else writes there", path.parent, error.strerror
            )
        yield


def sweep(data: Path) -> None:
    """Remove what processes that died left half written."""
    for pattern in (f"{STORE}/**/.*.tmp*", f"{TABLES}/**/.*.tmp*", ".*.tmp"):
        for path in data.glob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(data / ".work", ignore_errors=True)
