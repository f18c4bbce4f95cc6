"""Pairs of clips that show the same: each two compared once, whatever stops or changes."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate import pairs as module
from openhunyuan.curate.clip import Clip
from openhunyuan.curate.concepts import Concepts
from openhunyuan.curate.decide import Filter, Looks, decide
from openhunyuan.curate.duplicates import Duplicates, described, same_pairs
from openhunyuan.curate.engine import Processes, Result
from openhunyuan.curate.forget import clips_from, find_source, forget
from openhunyuan.curate.measures.fingerprint import Fingerprint, thumbs_of
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.pairs import Pairs, compare, compare_all, forget_pairs, pairs_of
from openhunyuan.curate.run import Plan, curate
from openhunyuan.curate.split import Split
from openhunyuan.curate.stage import Outcome
from openhunyuan.curate.tables import Table, read_rows
from tests.curate.conftest import OpenEngine
from tests.curate.films import save, shot
from tests.curate.processes import in_a_process
from tests.curate.test_duplicates import crowd

FAST = Filter(name="motion", score="motion.speed", at_least=0.0, reason="hardly moves")
PLAN = Plan(
    split=Split(min_seconds=0.3),
    measures=(Fingerprint(), Motion()),
    filters=(FAST,),
    duplicates=Duplicates(),
    concepts=Concepts(count=2),
)
STAGE = Pairs(config=Duplicates(), of=Fingerprint().key)


def measured(data: Path, films: list[np.ndarray]) -> tuple[Table, list[str]]:
    """The table of fingerprints of films, and the names of the clips in their order."""
    table = Table(data, Fingerprint())
    names = [f"clip{number:03d}" for number in range(len(films))]
    for name, film in zip(names, films, strict=True):
        table.add([Outcome(name, ({"thumbs": film.astype(np.float16).tobytes(), "appearance": [1.0]},))])
    return table, names


class Here:
    """Does jobs here and remembers which; dies after so many."""

    def __init__(self, most: int = 1000) -> None:
        self.keys: list[str] = []
        self.most = most

    def __call__(self, jobs):  # noqa: ANN001, ANN204
        for job in jobs:
            if len(self.keys) == self.most:
                raise KeyboardInterrupt
            self.keys.append(job.key)
            yield Result(job, compare(job))


def found(table: Table, names: list[str]) -> set[tuple[int, int]]:
    return {*pairs_of(table.folder, {name: place for place, name in enumerate(names)})}


def whole(films: list[np.ndarray]) -> set[tuple[int, int]]:
    """What comparing all of them in one go gives."""
    seen = np.stack(films).astype(np.float16)
    return {(i, j) for i, j in same_pairs(described(seen), Duplicates()).tolist() if i < j}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)


@pytest.mark.usefixtures("small")
def test_block_by_block_is_as_all_at_once_and_in_any_order_of_the_clips(tmp_path: Path) -> None:
    films = crowd(30)
    table, names = measured(tmp_path, films)
    here = Here()
    result = compare_all(tmp_path, table, STAGE, [names], here)
    assert len(here.keys) == len({*here.keys}) == 4 * 5 / 2
    wanted = whole(films)
    assert wanted and found(result, names) == wanted
    # As if files were renamed: nothing is compared again, and what is found is as if it was.
    back = names[::-1]
    again = Here()
    result = compare_all(tmp_path, table, STAGE, [back], again)
    assert again.keys == []
    assert found(result, back) == whole(films[::-1]) != {(29 - j, 29 - i) for i, j in wanted}
    assert not (tmp_path / ".work/compared").exists()


@pytest.mark.usefixtures("small")
def test_what_is_appended_is_compared_with_what_is_there_and_with_itself(tmp_path: Path) -> None:
    films = crowd(30)
    table, names = measured(tmp_path, films)
    first, second, third = Here(), Here(), Here()
    compare_all(tmp_path, table, STAGE, [names[10:]], first)
    compare_all(tmp_path, table, STAGE, [names], second)
    assert len(first.keys) == 3 * 4 / 2
    assert len(second.keys) == 2 * 3 + 3 and not {*second.keys} & {*first.keys}
    result = compare_all(tmp_path, table, STAGE, [names], third)
    assert third.keys == [] and found(result, names) == whole(films)
    other = Here()
    stricter = Pairs(config=Duplicates(event=0.99), of=STAGE.of)
    compare_all(tmp_path, table, stricter, [names], other)
    assert {*other.keys} == {*first.keys, *second.keys}, "other parameters are another table, of the same blocks"


@pytest.mark.usefixtures("small")
def test_what_is_stopped_goes_on_and_what_fails_is_said(tmp_path: Path) -> None:
    films = crowd(20)
    table, names = measured(tmp_path, films)
    stopped, rest = Here(most=4), Here()
    with pytest.raises(KeyboardInterrupt):
        compare_all(tmp_path, table, STAGE, [names], stopped)
    assert not (tmp_path / ".work/compared").exists()
    with pytest.raises(UserError, match=r"Not all clips could be compared \(took too long"):
        compare_all(tmp_path, table, STAGE, [names], lambda jobs: [Result(job, error="took too long") for job in jobs])
    result = compare_all(tmp_path, table, STAGE, [names], rest)
    assert not {*stopped.keys} & {*rest.keys} and len(stopped.keys + rest.keys) == 6
    assert found(result, names) == whole(films)


@pytest.mark.usefixtures("small")
def test_kinds_are_not_compared_with_each_other_and_lost_rows_make_new_clips(tmp_path: Path) -> None:
    films = [*crowd(4), *crowd(4)]
    table, names = measured(tmp_path, films)
    result = compare_all(tmp_path, table, STAGE, [names[:4], names[4:]], Here())
    assert not any(i < 4 <= j for i, j in found(result, names))
    assert len(result.rows()) == 2
    lost, again = Here(), Here()
    table.forget({names[0]})
    compare_all(tmp_path, table, STAGE, [names[1:4]], lost)
    assert lost.keys == []
    table.add([Outcome(names[0], ({"thumbs": films[0].astype(np.float16).tobytes(), "appearance": [1.0]},))])
    compare_all(tmp_path, table, STAGE, [names[:4]], again)
    assert len(again.keys) == 2, "with itself, and with the block that it was in"


@pytest.mark.usefixtures("small")
def test_forgotten_clips_are_in_no_pair_and_come_back_as_new_ones(tmp_path: Path) -> None:
    films = crowd(20)
    table, names = measured(tmp_path, films)
    compare_all(tmp_path, table, STAGE, [names], Here())
    gone = {*names[:9]}  # a whole block and one clip more
    assert forget_pairs(tmp_path, gone) > 0
    assert forget_pairs(tmp_path, gone) == 0
    Table(tmp_path, module.Blocks(of=STAGE.of)).forget(gone)
    held = read_rows(Table(tmp_path, STAGE).folder)
    left = {clip for (row,) in held.values() for clip in (*row["first"], *row["second"])}
    assert left and not left & gone
    kept = compare_all(tmp_path, table, STAGE, [names[9:]], Here(most=0))
    assert found(kept, names[9:]) == whole(films[9:])
    back = Here()
    result = compare_all(tmp_path, table, STAGE, [names], back)
    assert back.keys and found(result, names) == whole(films)


def write_copies(raw: Path, first: int = 0) -> None:
    """Three films and a copy of each, a little brighter."""
    for number in range(first, first + 3):
        one = shot(number, 12, side=32)
        save(raw / f"{number}.mp4", one)
        save(raw / f"{number} again.mp4", np.clip(one * 1.02, 0, 255))


def jobs_of(raw: Path, data: Path, plan: Plan, **more: object) -> dict[str, int]:
    """How many inputs each step of a run was given."""
    asked: dict[str, int] = {}
    curate(raw, data, plan, on_progress=lambda step, done, total: asked.update({step: total}), **more)  # type: ignore[arg-type]
    return asked


def by_definition(raw: Path, data: Path, plan: Plan) -> list[Clip]:
    """The decisions of a run, made of all fingerprints in one process."""
    scored = curate(raw, data, replace(plan, duplicates=None, concepts=None, filters=())).clips
    rows = {clip.id: {m.name: read_rows(Table(data, m).folder)[clip.id][0] for m in plan.measures} for clip in scored}
    films = {clip: thumbs_of(row["fingerprint"]) for clip, row in rows.items()}

    def pairs(places):  # noqa: ANN001, ANN202
        chosen = described(np.stack([films[clip] for clip in places]))
        return [(i, j) for i, j in same_pairs(chosen, plan.duplicates or Duplicates()).tolist() if i < j]

    looks = Looks(pairs, lambda ids: np.array([rows[clip]["fingerprint"]["appearance"] for clip in ids]))
    plain = [clip.model_copy(update={"decisions": ()}) for clip in scored]
    return list(decide(plain, rows, {}, plan.filters, None, plan.duplicates, plan.concepts, looks).clips)


def test_a_run_on_every_engine_finds_the_same_and_compares_nothing_twice(
    tmp_path: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    raw, data = tmp_path / "raw", tmp_path / "data"
    write_copies(raw)
    with open_engine(2) as engine:
        assert jobs_of(raw, data, PLAN, engine=engine)["comparing"] == 3
        first = (data / "manifest.jsonl").read_bytes()
        wanted = by_definition(raw, tmp_path / "plain", PLAN)
        clips = [Clip(**json.loads(line)) for line in first.splitlines()]
        assert [c.duplicate_of for c in clips] == [c.duplicate_of for c in wanted]
        assert [(c.concept, c.weight) for c in clips] == [(c.concept, c.weight) for c in wanted]
        assert sum(c.duplicate_of is not None for c in clips) == 3
        curate(raw, tmp_path / "here", PLAN)
        assert (tmp_path / "here/manifest.jsonl").read_bytes() == first
        for folder in sorted((tmp_path / "here").glob("tables/*/*")):
            assert read_rows(data / folder.relative_to(tmp_path / "here")) == read_rows(folder)
        speed = sorted(clip.scores["motion.speed"] for clip in clips)[2]
        stricter = replace(PLAN, filters=(FAST.model_copy(update={"at_least": speed}),))
        assert jobs_of(raw, data, stricter, engine=engine)["comparing"] == 0, "a threshold compares nothing"
        changed = replace(PLAN, duplicates=Duplicates(look=4.5))
        assert jobs_of(raw, data, changed, engine=engine)["comparing"] == 3, "other parameters compare anew"
        write_copies(raw, first=3)
        assert jobs_of(raw, data, PLAN, engine=engine)["comparing"] == 2 * 2 + 3, "new with old, and new with new"
        curate(raw, tmp_path / "anew", PLAN)
        assert (data / "manifest.jsonl").read_bytes() == (tmp_path / "anew/manifest.jsonl").read_bytes()


KILLED = """
import os, signal, sys
from openhunyuan.curate import pairs
from openhunyuan.curate.run import curate
from tests.curate.test_pairs import PLAN
pairs.BLOCK = 4

def progress(step, done, total):
    if step == "comparing" and done == 1:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "ray":
    from openhunyuan.curate.ray_engine import RayEngine as Engine
else:
    from openhunyuan.curate.engine import Processes as Engine
curate(sys.argv[1], sys.argv[2], PLAN, on_progress=progress, engine=Engine(1))
"""


@pytest.mark.parametrize("engine", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_run_killed_while_it_compares_loses_only_what_it_was_at(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with: pip install 'openhunyuan[ray]'")
    raw, data = tmp_path / "raw", tmp_path / "data"
    write_copies(raw)
    killed = in_a_process(KILLED, raw, data, engine)
    assert killed.returncode == -9, killed.stderr
    monkeypatch.setattr(module, "BLOCK", 4)
    with Processes(0) as here:
        asked = jobs_of(raw, data, PLAN, engine=here)
    assert (asked["measuring"], asked["comparing"]) == (0, 2), "the first of three was kept"
    curate(raw, tmp_path / "whole", PLAN)
    assert (data / "manifest.jsonl").read_bytes() == (tmp_path / "whole/manifest.jsonl").read_bytes()


def test_a_forgotten_source_is_in_no_table_and_takes_no_other_pair_along(tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"
    write_copies(raw)
    curate(raw, data, PLAN)
    (gone,) = clips_from(data, find_source(data, "0.mp4"))
    (pairs,) = data.glob("tables/duplicates/*")
    assert sum(gone in (*row["first"], *row["second"]) for (row,) in read_rows(pairs).values()) == 1
    forget(data, "0.mp4")
    (row,) = (row for (row,) in read_rows(pairs).values())
    assert gone not in (*row["first"], *row["second"]) and len({*row["first"]}) == 4
    held = b"".join(p.read_bytes() for p in sorted((data / "tables").rglob("*")) if p.is_file())
    assert gone.encode() not in held
    (raw / "0.mp4").unlink()
    assert jobs_of(raw, data, PLAN)["comparing"] == 0
