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
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.base.files import write_atomic, writing_atomic
from openhunyuan.base.require import require
from openhunyuan.curate.clip import file_sha256
from openhunyuan.curate.stage import Outcome, Stage

log = logging.getLogger(__name__)

STORE, TABLES = "store", "tables"
ABOUT, OLD_ABOUT = "_stage.json", "stage.json"
"""What a table is of; readers of Parquet pass over names that begin so, but not over the one that was used before."""

MERGE_AT = 64
"""Part files of a table before they are merged into one."""

_AT_ONCE = 256  # rows that are read in one go where memory must not grow with a table
_GROUP = 16 * 2**20  # bytes of rows that are written in one go


class Table:
    """The rows of one stage with one set of parameters; `name` where it is not the stage's.

    Rows in memory lack the stage's bulky columns; `read_arrays` and `read_rows` of the folder have them.
    """

    _types: Any = None
    """The schema of all parts; None where there is none, or it is not known yet."""

    _number: int | None = None
    _count = 0
    """The next part's number and how many there are, known from the first part that was added on: a folder of a
    thousand is not listed again for every row."""

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

    def keys(self) -> Set[str]:
        """The inputs that have rows."""
        if self._rows is not None:
            return self._rows.keys()
        return {key for part in self._parts() for batch in _batches(part, ("key",)) for key in batch["key"].to_pylist()}

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
            if self._count >= 16 * MERGE_AT:
                self.merge()

    def merge(self) -> None:
        """Put all part files into one, if there are many, or if an earlier version wrote them with different types."""
        types, alike = self._schema()
        if types is not None and (len(self._parts()) >= MERGE_AT or not alike):
            self._rewrite(types)

    def forget(self, keys: set[str], instead: Sequence[Outcome] = ()) -> int:
        """Remove the rows of these inputs, and add others in one go with that; the only thing that ever takes rows out.
        Returns how many inputs went."""
        gone = {*self.keys()} & keys
        if gone:
            new = [row for outcome in instead for row in outcome.table_rows()]
            self._rewrite(self._schema()[0], new, gone)
            self._rows = None
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
        self._rewrite(types, rows)

    def _part(self, rows: Sequence[dict[str, Any]], types: Any) -> None:
        arrow: Any = require("pyarrow", extra="curate")
        parquet: Any = require("pyarrow.parquet", extra="curate")
        sink = arrow.BufferOutputStream()
        parquet.write_table(_table_of(rows, types), sink, compression="zstd")
        write_atomic(self._next(), sink.getvalue().to_pybytes())
        self._types = types

    def _next(self) -> Path:
        """Where the next part goes."""
        if self._number is None:
            parts = self._parts()
            self._number, self._count = int(parts[-1].stem) + 1 if parts else 0, len(parts)
        while (path := self.folder / f"{self._number:08d}.parquet").exists():  # another object's of this folder
            self._number += 1
        self._count += 1
        return path

    def _rewrite(self, types: Any, new: Sequence[dict[str, Any]] = (), without: Set[str] = frozenset()) -> None:
        """Put one part with these types in the place of all: their rows but those of some inputs, and new rows. Only
        some rows are in memory at a time."""
        arrow: Any = require("pyarrow", extra="curate")
        parquet: Any = require("pyarrow.parquet", extra="curate")
        compute: Any = require("pyarrow.compute", extra="curate")
        parts = self._parts()
        if types is None:
            raise UserError(
                f"The parts of {self.folder} have columns of different types; delete it, and it is made again."
            )
        # An input's rows are in one part, and the newest part wins.
        later = {row["key"] for row in new} | without
        taken = []
        for part in reversed(parts):
            here = {key for batch in _batches(part, ("key",)) for key in batch["key"].to_pylist()}
            taken.insert(0, (part, here & later))
            later |= here
        rows = size = 0
        self._number = None
        path = self._next()
        with writing_atomic(path) as file, parquet.ParquetWriter(file, types, compression="zstd") as writer:
            waiting: list[Any] = []

            def write() -> None:
                if waiting:
                    writer.write_table(arrow.concat_tables(waiting))
                    waiting.clear()

            for part, gone in taken:
                for batch in _batches(part):
                    if gone:
                        batch = batch.filter(compute.invert(compute.is_in(batch["key"], arrow.array(sorted(gone)))))
                    waiting.append(_with_types(batch, types))
                    rows, size = rows + batch.num_rows, size + waiting[-1].nbytes
                    if size >= _GROUP:
                        write()
                        size = 0
            if new:
                waiting.append(_table_of(new, types))
            write()
        if not rows and not new:
            path.unlink()
        self._types, self._number = types, None
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


def read_arrays(folder: Path, column: str) -> Iterator[tuple[list[str], np.ndarray]]:
    """Some keys of a table's folder, and what they have in a column of lists of numbers, [n, numbers], or of bytes,
    uint8 [n, bytes]; all rows, so many at a time. Rows without a value are left out; where a key comes again, the later
    one holds."""
    arrow: Any = require("pyarrow", extra="curate")
    for part in _parts(folder):
        if column not in _read_schema(part).names:
            continue
        for batch in _batches(part, ("key", column)):
            found = batch.filter(batch[column].is_valid())
            if not found.num_rows:
                continue
            values = found[column].combine_chunks()
            if arrow.types.is_list(values.type):
                numbers = values.flatten().to_numpy()
            else:
                numbers = np.frombuffer(b"".join(values.to_pylist()), np.uint8)
            yield found["key"].to_pylist(), numbers.reshape(found.num_rows, -1)


def read_lists(folder: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[list[str]]]]:
    """Each key of a table's folder with its lists in these columns, one at a time; where a key comes again, it is the
    same row."""
    for part in _parts(folder):
        for batch in _batches(part, ("key", *columns)):
            for number, key in enumerate(batch["key"].to_pylist()):
                yield key, [batch[column][number].as_py() for column in columns]


def read_vectors(folder: Path, column: str, keys: Sequence[str]) -> np.ndarray:
    """What these keys have in a column of lists of numbers: float64 [n, numbers]."""
    places = {key: place for place, key in enumerate(keys)}
    found = np.zeros((len(keys), 0))
    for some, numbers in read_arrays(folder, column):
        if not found.size:
            found = np.full((len(keys), numbers.shape[1]), np.nan)
        here = [number for number, key in enumerate(some) if key in places]
        found[[places[some[number]] for number in here]] = numbers[here]
    return found


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


def _batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """The rows of a part as Arrow tables of a few rows each."""
    arrow: Any = require("pyarrow", extra="curate")
    parquet: Any = require("pyarrow.parquet", extra="curate")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_AT_ONCE, columns=columns):
                yield arrow.Table.from_batches([batch])
    except (OSError, arrow.ArrowException) as error:
        raise _broken(path, error) from None


def _with_types(table: Any, types: Any) -> Any:
    """A part's rows with the types of all parts; columns that it lacks are empty."""
    arrow: Any = require("pyarrow", extra="curate")
    columns = [
        table[name].cast(kind) if name in table.column_names else arrow.nulls(table.num_rows, kind)
        for name, kind in zip(types.names, types.types, strict=True)
    ]
    return arrow.table(columns, schema=types)


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
