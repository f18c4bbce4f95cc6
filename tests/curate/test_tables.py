"""Tables only grow, are whole at every moment, and are addressed by stage and content."""

import json
from pathlib import Path
from typing import ClassVar

import pyarrow
import pyarrow.parquet as parquet
import pytest
from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.curate import tables
from openhunyuan.curate.clip import Drop
from openhunyuan.curate.stage import Outcome, Stage
from openhunyuan.curate.tables import Table, all_tables, read_rows, store_file, stored, sweep


class Brightness(Stage):
    name: ClassVar[str] = "brightness"
    side: int = Field(default=8)


def test_the_key_changes_with_name_version_parameters_and_weights() -> None:
    class Newer(Brightness):
        version: ClassVar[int] = 2

    class Trained(Brightness):
        @property
        def weights(self) -> str:
            return "abc"

    keys = {Brightness().key, Brightness(side=9).key, Newer().key, Trained().key}
    assert len(keys) == 4
    assert Brightness().key == Brightness(side=8).key


def test_rows_come_back_with_their_types(tmp_path: Path) -> None:
    table = Table(tmp_path, Brightness())
    table.add([Outcome("a", ({"level": 3.5, "box": [1.0, 2.0], "jpeg": b"\xff\x00"},))])
    table.add([Outcome("b", drop=Drop(stage="s", reason="is dark", score=0.1)), Outcome("c", error="is broken")])
    table.add([Outcome("d", ({"level": 1.0, "box": [], "jpeg": None}, {"level": 2.0, "box": [3.0], "jpeg": None}))])
    rows = Table(tmp_path, Brightness()).rows()
    assert rows == table.rows() | {k: rows[k] for k in ("b", "c")}
    assert (rows["a"][0]["level"], rows["a"][0]["box"], rows["a"][0]["jpeg"]) == (3.5, [1.0, 2.0], b"\xff\x00")
    assert (rows["b"][0]["reason"], rows["b"][0]["score"]) == ("is dark", 0.1)
    assert rows["c"][0]["error"] == "is broken"
    assert [row["level"] for row in rows["d"]] == [1.0, 2.0]
    about = json.loads((table.folder / "_stage.json").read_text())
    assert about["parameters"] == {"side": 8}


def test_all_parts_have_the_same_columns_and_types(tmp_path: Path) -> None:
    table = Table(tmp_path, Brightness())
    table.add([Outcome("a", error="is broken")])
    table.add([Outcome("b", ({"level": 0, "box": [], "lines": 2, "jpeg": None},))])
    table.add([Outcome("c", ({"level": 0.25, "box": [1.0], "lines": 3, "jpeg": b"x"},))])
    table.add([Outcome("d", drop=Drop(stage="s", reason="is dark", score=0.1))])
    table.add([Outcome("e", ({"level": 1, "box": [2], "lines": 4, "jpeg": None},))])
    found = parquet.read_table(table.folder)
    assert found.sort_by("key")["level"].to_pylist() == [None, 0.0, 0.25, None, 1.0]
    assert found.schema.field("lines").type == pyarrow.int64() and found.schema.field("score").type == pyarrow.float64()
    assert len(list(table.folder.glob("*.parquet"))) == 3, "parts are only written anew where types change"
    again = Table(tmp_path, Brightness()).rows()
    assert (again["b"][0]["level"], again["e"][0]["box"], again["a"][0]["error"]) == (0, [2.0], "is broken")


def test_a_table_of_an_earlier_version_is_read_and_becomes_readable_to_others(tmp_path: Path) -> None:
    table = Table(tmp_path, Brightness())
    (table.folder / "_stage.json").rename(table.folder / "stage.json")
    common: dict[str, object] = {"error": None, "reason": None, "score": None}
    for number, row in enumerate(({}, {"level": 0}, {"level": 0.25})):
        part = pyarrow.Table.from_pylist([{"key": f"k{number}", **common, **row}])
        parquet.write_table(part, table.folder / f"{number:08d}.parquet")
    assert [t.folder for t in all_tables(tmp_path)] == [table.folder]
    new = Table(tmp_path, Brightness())
    assert [new.rows()[key][0].get("level") for key in ("k0", "k1", "k2")] == [None, 0, 0.25]
    assert len(all_tables(tmp_path)) == 1
    new.merge()
    assert parquet.read_table(table.folder)["level"].to_pylist() == [None, 0.0, 0.25]
    assert new.forget({"k1"}) == 1
    assert set(Table(tmp_path, Brightness()).rows()) == {"k0", "k2"}


def test_bulky_columns_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pictures(Brightness):
        bulky: ClassVar[tuple[str, ...]] = ("jpeg",)

    monkeypatch.setattr(tables, "MERGE_AT", 2)
    table = Table(tmp_path, Pictures())
    for name in "abc":
        table.add([Outcome(name, ({"level": 1.0, "jpeg": name.encode()},))])
    assert all("jpeg" not in row for row in (table.rows()["a"][0], Table(tmp_path, Pictures()).rows()["a"][0]))
    table.merge()
    table.forget({"b"})
    assert {key: rows[0]["jpeg"] for key, rows in tables.read_rows(table.folder).items()} == {"a": b"a", "c": b"c"}


def test_other_parameters_are_another_table(tmp_path: Path) -> None:
    Table(tmp_path, Brightness()).add([Outcome("a", ({"level": 1.0},))])
    assert Table(tmp_path, Brightness(side=9)).rows() == {}
    assert len(all_tables(tmp_path)) == 2


def test_merging_keeps_every_row_and_a_death_in_between_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MERGE_AT", 3)
    table = Table(tmp_path, Brightness())
    for name in "abcd":
        table.add([Outcome(name, ({"level": 1.0},))])
    parts = [p.read_bytes() for p in sorted(table.folder.glob("*.parquet"))]
    table.merge()
    assert len(list(table.folder.glob("*.parquet"))) == 1
    # As if the process had died after writing the merged part and before deleting the others:
    for number, content in enumerate(parts):
        (table.folder / f"{number:08d}.parquet").write_bytes(content)
    again = Table(tmp_path, Brightness()).rows()
    assert {key: len(rows) for key, rows in again.items()} == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_what_is_forgotten_is_in_no_file(tmp_path: Path) -> None:
    table = Table(tmp_path, Brightness())
    table.add([Outcome("a", ({"name": "secret-a"},)), Outcome("b", ({"name": "open-b"},))])
    assert table.forget({"a", "z"}) == 1
    assert set(Table(tmp_path, Brightness()).rows()) == {"b"}
    assert not any(b"secret-a" in p.read_bytes() for p in table.folder.iterdir())


def test_half_written_files_are_swept_and_a_broken_part_is_named(tmp_path: Path) -> None:
    table = Table(tmp_path, Brightness())
    table.add([Outcome("a", ({"level": 1.0},))])
    (table.folder / ".00000001.parquet.77.tmp").write_bytes(b"half")
    sweep(tmp_path)
    assert not list(table.folder.glob(".*.tmp"))
    (table.folder / "00000001.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match="delete it"):
        Table(tmp_path, Brightness()).rows()


def test_the_store_is_addressed_by_content(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).write_bytes(b"the same bytes")
    digests = {store_file(tmp_path, tmp_path / name) for name in ("one.mp4", "two.mp4")}
    (digest,) = digests
    assert (tmp_path / stored(digest)).read_bytes() == b"the same bytes"
    assert not (tmp_path / "one.mp4").exists()
    assert not (tmp_path / "two.mp4").exists()


def test_bulky_columns_are_read_some_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_AT_ONCE", 2)
    table = Table(tmp_path, Brightness())
    table.add([Outcome("broken", error="is broken")])
    table.add([Outcome(name, ({"look": [float(n), 0.5], "jpeg": bytes([n, n])},)) for n, name in enumerate("abcde")])
    table.add([Outcome("b", ({"look": [9.0, 0.5], "jpeg": b"xx"},))])
    bytes_of = {
        key: row.tobytes()
        for keys, rows in tables.read_arrays(table.folder, "jpeg")
        for key, row in zip(keys, rows, strict=True)
    }
    assert bytes_of == {"a": b"\0\0", "b": b"xx", "c": b"\2\2", "d": b"\3\3", "e": b"\4\4"}
    assert tables.read_vectors(table.folder, "look", ["e", "b"]).tolist() == [[4.0, 0.5], [9.0, 0.5]]
    monkeypatch.setattr(tables, "MERGE_AT", 2)
    monkeypatch.setattr(tables, "_GROUP", 1)
    before = read_rows(table.folder)
    table.merge()
    (part,) = table.folder.glob("*.parquet")
    assert read_rows(table.folder) == before and parquet.ParquetFile(part).num_row_groups > 2
    assert table.forget({"b", "c"}, [Outcome("c", ({"look": [1.0, 1.0], "jpeg": b"yy"},))]) == 2
    assert {*table.keys()} == {"broken", "a", "c", "d", "e"} and table.rows()["c"][0]["jpeg"] == b"yy"
