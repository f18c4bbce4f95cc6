"""Clips compared with clips for duplicates, as jobs of the engine: which are compared, and what was found.

Clips stand in blocks of at most `BLOCK`. A clip that is measured for the first time joins a new block, and stays in it
for good; so every two blocks are compared once, block by block, and appended footage is compared with what is there and
with itself, and nothing else. A block is named by its clips, two blocks are the key of what was found between them, and
the stage's key has the parameters and the measure that is compared: the table is addressed like every other. A run that
is killed loses the pairs of blocks that its workers were at.

    data/tables/blocks/<key>/        clip → its block
    data/tables/duplicates/<key>/    <block>-<block> → lists `first`, `second` of clips: the second shows what the
                                     first shows, if it comes later in the footage (both orders are looked at)

All measured clips are compared, not only those that pass the filters. That is more work where many clips fail (if half
of them pass, four times as much), but what was found then does not depend on a threshold: a changed one compares
nothing. Groups are made of the pairs of those that pass (`pairs_of`), at every run.

Workers read the fingerprints of their two blocks, as the table has them, from one file in the data folder that lies
there while clips are compared; what they are sent is its path and two spans, what they answer is numbers. So nobody
holds more than two blocks of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from openhunyuan.base.errors import UserError
from openhunyuan.curate.duplicates import Duplicates, alike_pairs, described, same_pairs
from openhunyuan.curate.measures.fingerprint import thumbs_from
from openhunyuan.curate.stage import Outcome, Stage
from openhunyuan.curate.tables import TABLES, Table, all_tables, read_arrays, read_lists, read_rows

BLOCK = 1024
"""Most clips of a block: about a million comparisons in one job, some seconds."""

COLUMNS = {"fingerprint": "thumbs", "embedding": "vector"}
"""What is compared, by the measure's name."""

Map = Callable[[Sequence["PairJob"]], Iterable[Any]]
"""Has jobs done by `compare`; `engine.Result` of each as it comes."""


class Blocks(Stage):
    """Rows: `block`, the block that a clip is in. of: the key of the measure that is compared."""

    name: ClassVar[str] = "blocks"

    of: str


class Pairs(Stage):
    """Rows: lists `first` and `second`, of the pairs found between two blocks. of: as for `Blocks`."""

    name: ClassVar[str] = "duplicates"
    version: ClassVar[int] = 1
    bulky: ClassVar[tuple[str, ...]] = ("first", "second")

    config: Duplicates
    of: str


@dataclass(frozen=True)
class PairJob:
    """Two blocks to compare: rows [start, end) of a file, of so many bytes; twice the same: a block with itself."""

    key: str
    path: str
    row_bytes: int
    one: tuple[int, int]
    other: tuple[int, int]
    config: Duplicates


def compare(job: PairJob) -> np.ndarray:
    """Pairs of rows of the file, int32 [n, 2], that show the same, in their order (`duplicates.same_pairs`)."""
    spans = (job.one,) if job.one == job.other else (job.one, job.other)
    parts = []
    for start, end in spans:
        size = (end - start) * job.row_bytes
        part = np.fromfile(job.path, np.uint8, size, offset=start * job.row_bytes)
        if part.size != size:
            raise UserError(f"{job.path} is shorter than it was written.")
        parts.append(part.reshape(end - start, job.row_bytes))
    content = np.concatenate(parts)
    split = len(parts[0]) if len(parts) == 2 else 0
    if job.config.by == "embedding":
        found = alike_pairs(content.view(np.float32), job.config.cosine, split)
    else:
        found = same_pairs(described(thumbs_from(content)), job.config, split)
    rows = np.concatenate([np.arange(*span) for span in spans])
    return rows[found].astype(np.int32)


def compare_all(data: Path, table: Table, stage: Pairs, kinds: Iterable[Sequence[str]], map_: Map) -> Table:
    """Compare what was not compared yet; returns the table of what was found.

    table: of the measure that is compared. kinds: clips of each kind (videos, images), which have rows in it; kinds are
    not compared with each other.
    Raises UserError when two blocks could not be compared, after all others were.
    """
    blocks, found = Table(data, Blocks(of=stage.of)), Table(data, stage)
    rows = table.rows()
    # A row that was lost is made again, and its clip is then a new one.
    blocks.forget({clip for clip in blocks.rows() if clip not in rows or rows[clip][0]["error"]})
    lacking: dict[str, tuple[str, str]] = {}
    for clips in kinds:
        known = blocks.rows()
        blocks.add(_new_blocks([clip for clip in clips if clip not in known]))
        here = sorted({blocks.rows()[clip][0]["block"] for clip in clips})
        pairs = {f"{a}-{b}": (a, b) for a, b in combinations_with_replacement(here, 2)}
        lacking |= {key: pair for key, pair in pairs.items() if key not in found.rows()}
    blocks.merge()
    names, spans = _in_order(blocks, {block for pair in lacking.values() for block in pair})
    path = (data / ".work/compared").absolute()
    try:
        size = _write_compared(path, table.folder, COLUMNS[stage.config.by], names)
        jobs = [PairJob(key, str(path), size, spans[a], spans[b], stage.config) for key, (a, b) in lacking.items()]
        error = None
        for result in map_(jobs):
            if result.error:
                error = result.error
            else:
                found.add([_outcome(result.item.key, [(names[i], names[j]) for i, j in result.value.tolist()])])
    finally:
        path.unlink(missing_ok=True)
    if error:
        raise UserError(f"Not all clips could be compared ({error}); run again, and what was found stays.")
    found.merge()
    return found


def _new_blocks(clips: Sequence[str]) -> Iterator[Outcome]:
    for start in range(0, len(clips), BLOCK):
        members = sorted(clips[start : start + BLOCK])
        name = hashlib.sha256("|".join(members).encode()).hexdigest()[:16]
        yield from (Outcome(clip, ({"block": name},)) for clip in members)


def _in_order(blocks: Table, wanted: set[str]) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """(the clips of these blocks, block by block; where each block begins and ends in them)."""
    order = sorted((rows[0]["block"], clip) for clip, rows in blocks.rows().items() if rows[0]["block"] in wanted)
    spans = {}
    for block, members in groupby(range(len(order)), key=lambda place: order[place][0]):
        places = list(members)
        spans[block] = (places[0], places[-1] + 1)
    return [clip for _, clip in order], spans


def _write_compared(path: Path, folder: Path, column: str, clips: Sequence[str]) -> int:
    """Write what these clips have in a column behind each other; returns the bytes of each."""
    places = {clip: place for place, clip in enumerate(clips)}
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with path.open("wb") as file:
        for keys, values in read_arrays(folder, column) if clips else ():
            rows = values if values.dtype == np.uint8 else values.astype(np.float32)
            size = rows.itemsize * rows.shape[1]
            for key, row in zip(keys, rows, strict=True):
                if key in places:
                    file.seek(places[key] * size)
                    file.write(row.tobytes())
    return size


def pairs_of(folder: Path, places: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """The pairs that the table in a folder has between these clips, as places of theirs, in the order of the places."""
    for _, (first, second) in read_lists(folder, ("first", "second")):
        for one, other in zip(first, second, strict=True):
            i, j = places.get(one, -1), places.get(other, -1)
            if 0 <= i < j:
                yield i, j


def forget_pairs(data: Path, clips: set[str]) -> int:
    """Take these clips out of all that was found; returns out of how many pairs of blocks. To be called while their
    blocks are known: what was found with a block of which no clip is left goes as a whole."""
    blocks = [
        (row["block"], clip)
        for folder in data.glob(f"{TABLES}/{Blocks.name}/*")
        for clip, (row,) in read_rows(folder).items()
    ]
    emptied = {block for block, _ in blocks} - {block for block, clip in blocks if clip not in clips}
    count = 0
    for table in all_tables(data):
        if table.folder.parent.name != Pairs.name:
            continue
        gone, instead = set(), []
        for key, (first, second) in read_lists(table.folder, ("first", "second")):
            empty = not emptied.isdisjoint(key.split("-"))
            if empty or not clips.isdisjoint((*first, *second)):
                gone.add(key)
            if key in gone and not empty:
                kept = [pair for pair in zip(first, second, strict=True) if clips.isdisjoint(pair)]
                instead.append(_outcome(key, kept))
        count += table.forget(gone, instead)
    return count


def _outcome(key: str, pairs: Sequence[tuple[str, str]]) -> Outcome:
    """What was found between two blocks, as a table has it."""
    return Outcome(key, ({"first": [one for one, _ in pairs], "second": [other for _, other in pairs]},))
