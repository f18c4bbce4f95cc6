"""A run as a whole: what is known is not computed again, what changed is, and nothing vanishes."""

import importlib.util
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate import run as module
from openhunyuan.curate.clip import read_manifest
from openhunyuan.curate.decide import Filter
from openhunyuan.curate.engine import Processes
from openhunyuan.curate.footage import Mark
from openhunyuan.curate.forget import clips_from
from openhunyuan.curate.measures.camera import Camera
from openhunyuan.curate.measures.clear_start import ClearStart
from openhunyuan.curate.measures.measure import ClipSpan
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.measures.strip import Strip
from openhunyuan.curate.report import write_report
from openhunyuan.curate.run import SCAN, Plan, curate, in_parts, read_clips
from openhunyuan.curate.split import Parts, Seen, Split, find_shots, packed
from openhunyuan.curate.stage import Outcome
from openhunyuan.curate.tables import Table, read_rows
from tests.curate.films import encode, save, shot
from tests.curate.processes import in_a_process, is_alive

MOVING = Filter(name="motion", score="motion.speed", at_least=0.5, reason="hardly moves")
PLAN = Plan(measures=(ClearStart(), Motion(), Quality(), Strip()), filters=(MOVING,))


def still(seed: int, count: int) -> np.ndarray:
    return np.repeat(shot(seed, 1), count, axis=0)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    save(folder / "a.mp4", shot(1, 24), still(2, 20))
    save(folder / "sub/ü b.mp4", shot(3, 20))
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the steps run, by name."""
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        function = getattr(module, name)

        def wrapped(*args: object) -> object:
            calls[name] += 1
            return function(*args)

        monkeypatch.setattr(module, name, wrapped)

    for name in ("_hash", "_find_shots", "analyse", "_cut"):
        count(name)
    return calls


def test_nothing_vanishes(raw: Path, tmp_path: Path) -> None:
    result = curate(raw, tmp_path / "data", PLAN)
    clips = read_clips(tmp_path / "data")
    assert clips == list(result.clips)
    assert [(Path(c.source).name, c.start_frame, c.end_frame) for c in clips] == [
        ("a.mp4", 0, 24),
        ("a.mp4", 24, 44),
        ("ü b.mp4", 0, 20),
    ]
    dropped = clips[1].dropped
    assert dropped is not None
    assert (dropped.stage, dropped.reason) == ("motion", "hardly moves")
    assert dropped.score is not None
    assert dropped.score < 0.5
    for clip in result.kept:
        assert clip.path is not None
        assert (tmp_path / "data" / clip.path).is_file()
        assert clip.decisions[0].passed
        assert clip.scores["motion.speed"] == clip.decisions[0].value or clip.decisions[0].value is not None
    drops = [json.loads(line) for line in (tmp_path / "data/drops.jsonl").read_text().splitlines()]
    assert [d["clip"] for d in drops] == [clips[1].id]
    rows = json.loads((tmp_path / "data/funnel.json").read_text())
    funnel = {row["stage"]: (row["seen"], row["kept"]) for row in rows}
    assert funnel == {"split": (3, 3), "measured": (3, 3), "motion": (3, 2), "cut": (2, 2)}


def test_a_second_run_computes_nothing_and_gives_the_same(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    curate(raw, tmp_path / "data", PLAN)
    before = (tmp_path / "data/manifest.jsonl").read_bytes()
    assert counted == {"_hash": 2, "_find_shots": 2, "analyse": 2, "_cut": 2}
    counted.clear()
    curate(raw, tmp_path / "data", PLAN)
    assert counted == {}
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == before


def test_a_changed_threshold_decides_anew_without_measuring(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    curate(raw, tmp_path / "data", PLAN)
    counted.clear()
    softer = replace(PLAN, filters=(MOVING.model_copy(update={"at_least": 0.0}),))
    assert len(curate(raw, tmp_path / "data", softer).kept) == 3
    assert counted == {"_cut": 1}, "only the clip that was let in is cut"


def test_a_changed_parameter_runs_its_own_stage_again(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    curate(raw, tmp_path / "data", PLAN)
    counted.clear()
    changed = replace(PLAN, measures=(ClearStart(share=0.5), *PLAN.measures[1:]))
    curate(raw, tmp_path / "data", changed)
    assert counted["analyse"] == 2
    assert counted["_find_shots"] == counted["_hash"] == 0
    tables = list((tmp_path / "data/tables/motion").iterdir())
    assert len(list(tables[0].glob("*.parquet"))) == 2, "motion was not written again"


def test_a_changed_file_is_noticed_and_a_renamed_one_costs_nothing(
    raw: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    first = curate(raw, tmp_path / "data", PLAN)
    counted.clear()
    save(raw / "a.mp4", shot(7, 24))
    (raw / "sub/ü b.mp4").rename(raw / "z.mp4")
    second = curate(raw, tmp_path / "data", PLAN)
    assert counted == {"_hash": 2, "_find_shots": 1, "analyse": 1, "_cut": 1}
    assert second.clips[0].id != first.clips[0].id
    assert second.clips[-1].id == first.clips[-1].id


def test_the_same_bytes_under_two_names_are_one_source(raw: Path, tmp_path: Path) -> None:
    shutil.copy(raw / "a.mp4", raw / "copy.mp4")
    result = curate(raw, tmp_path / "data", PLAN)
    assert (result.sources, result.repeated, len(result.clips)) == (3, 1, 3)


def test_a_lost_clip_file_is_made_again(raw: Path, tmp_path: Path) -> None:
    result = curate(raw, tmp_path / "data", PLAN)
    path = tmp_path / "data" / str(result.kept[0].path)
    before = path.read_bytes()
    path.unlink()
    curate(raw, tmp_path / "data", PLAN)
    assert path.read_bytes() == before


def test_poison_is_quarantined_counted_and_not_read_again(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    (raw / "empty.mp4").write_bytes(b"")
    (raw / "text.mp4").write_text("not a video")
    whole = (raw / "a.mp4").read_bytes()
    (raw / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    save(raw / "one-frame.mp4", shot(5, 1))
    result = curate(raw, tmp_path / "data", PLAN)
    names = {Path(f.source).name for f in result.failures}
    assert names == {"empty.mp4", "text.mp4", "truncated.mp4"}
    assert len(result.kept) == 2
    one = next(c for c in result.clips if Path(c.source).name == "one-frame.mp4")
    assert one.dropped is not None
    assert one.dropped.stage == "split"
    lines = (tmp_path / "data/quarantine.jsonl").read_text().splitlines()
    assert {Path(json.loads(line)["source"]).name for line in lines} == names
    counted.clear()
    assert len(curate(raw, tmp_path / "data", PLAN).failures) == 3
    assert counted == {}
    curate(raw, tmp_path / "data", PLAN, retry=True)
    assert counted["_find_shots"] == 3


def test_no_clip_is_an_error_after_everything_is_written(tmp_path: Path) -> None:
    save(tmp_path / "raw/a.mp4", still(1, 30))
    with pytest.raises(UserError, match=r"No clip was kept of 1 videos.*motion"):
        curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert len(read_clips(tmp_path / "data")) == 1
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="unreadable"):
        curate(tmp_path / "bad", tmp_path / "other", PLAN)
    with pytest.raises(UserError, match="No video"):
        curate(tmp_path / "data", tmp_path / "other", PLAN)


def test_a_folder_that_cannot_be_read_is_reported(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path):  # noqa: ANN001, ANN202
        if not isinstance(path, int) and Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = curate(raw, tmp_path / "data", PLAN)
    assert [(Path(f.source).name, f.stage) for f in result.failures] == [("sub", "find")]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from openhunyuan.curate.run import curate
from tests.curate.test_run import PLAN

def children():
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rsplit(")", 1)[1].split()[1] == str(os.getpid()):
                found.append(int(stat.parent.name))
        except OSError:
            pass
    return found

def progress(step, done, total):
    if step == sys.argv[3] and done == 1:
        Path(sys.argv[5]).write_text(json.dumps(children()))
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[4] == "ray":
    from openhunyuan.curate.ray_engine import RayEngine as Engine
else:
    from openhunyuan.curate.engine import Processes as Engine
curate(sys.argv[1], sys.argv[2], PLAN, on_progress=progress, engine=Engine(1))
"""


@pytest.mark.parametrize(
    "engine, step", [("processes", "measuring"), pytest.param("ray", "cutting", marks=pytest.mark.slow)]
)
def test_a_killed_run_loses_only_what_it_was_at(
    raw: Path, tmp_path: Path, counted: Counter[str], engine: str, step: str
) -> None:
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with: pip install 'openhunyuan[ray]'")
    killed = in_a_process(KILLED, raw, tmp_path / "data", step, engine, tmp_path / "children")
    assert killed.returncode == -9, killed.stderr
    left = json.loads((tmp_path / "children").read_text())
    assert left, "something worked for it"
    until = time.monotonic() + 120
    while any(map(is_alive, left)):
        assert time.monotonic() < until, "what worked for it goes on"
        time.sleep(0.1)
    curate(raw, tmp_path / "data", PLAN)
    assert counted[{"measuring": "analyse", "cutting": "_cut"}[step]] == 1, "the first of two was kept"
    curate(raw, tmp_path / "whole", PLAN)
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == (tmp_path / "whole/manifest.jsonl").read_bytes()


@pytest.mark.parametrize(
    "engine, step",
    [("processes", "measuring"), ("processes", "cutting"), pytest.param("ray", "measuring", marks=pytest.mark.slow)],
)
def test_a_run_killed_in_the_middle_of_one_source_keeps_its_finished_clips(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch, engine: str, step: str
) -> None:
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with: pip install 'openhunyuan[ray]'")
    save(tmp_path / "raw/a.mp4", shot(1, 24), shot(2, 24), shot(3, 24), shot(4, 24))
    script = KILLED.replace(
        "if sys.argv[4]", "from openhunyuan.curate import run; run.PART_SECONDS = 1.0\nif sys.argv[4]"
    )
    killed = in_a_process(script, tmp_path / "raw", tmp_path / "data", step, engine, tmp_path / "children")
    assert killed.returncode == -9, killed.stderr
    monkeypatch.setattr(module, "PART_SECONDS", 1.0)
    curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert counted[{"measuring": "analyse", "cutting": "_cut"}[step]] == 3, "the first of four was kept"
    assert step == "measuring" or counted["analyse"] == 0
    monkeypatch.setattr(module, "PART_SECONDS", 120.0)
    curate(tmp_path / "raw", tmp_path / "whole", PLAN)
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == (tmp_path / "whole/manifest.jsonl").read_bytes()
    for folder in sorted((tmp_path / "whole").glob("tables/*/*")):
        assert read_rows(tmp_path / "data" / folder.relative_to(tmp_path / "whole")) == read_rows(folder)


SCAN_KILLED = """
import os, signal, sys
from openhunyuan.curate import run, split
from tests.curate.test_run import PLAN

run.PART_SECONDS, add = 1.0, split.Parts.add

def dying(self, seen, frames, cuts):
    add(self, seen, frames, cuts)
    if frames:
        os.kill(os.getpid(), signal.SIGKILL)

split.Parts.add = dying
run.curate(sys.argv[1], sys.argv[2], PLAN)
"""


def test_a_run_killed_in_a_scan_goes_on_behind_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "raw/a.mp4", shot(1, 24), shot(2, 24), shot(3, 24), shot(4, 24))
    killed = in_a_process(SCAN_KILLED, tmp_path / "raw", tmp_path / "data")
    assert killed.returncode == -9, killed.stderr
    assert len(list((tmp_path / "data" / SCAN).glob("*/*.npz"))) == 2
    started: list[int] = []
    read = Parts.read

    def reading(self: Parts) -> Seen:
        seen = read(self)
        started.append(len(seen.pts))
        return seen

    monkeypatch.setattr(Parts, "read", reading)
    curate(tmp_path / "raw", tmp_path / "data", PLAN)
    assert started == [48], "two parts of a second were kept"
    assert not (tmp_path / "data" / SCAN).exists()
    curate(tmp_path / "raw", tmp_path / "whole", PLAN)
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == (tmp_path / "whole/manifest.jsonl").read_bytes()


def test_parts_are_bounded_and_sought_only_where_times_are_in_order(tmp_path: Path) -> None:
    shots = find_shots(save(tmp_path / "a.mp4", shot(1, 24))).model_copy(
        update={"num_frames": 24 * 1000, "times": packed(range(0, 24_000 * 512, 512))}
    )
    spans = [(at, at + 480) for at in range(0, 24_000, 480)]
    parts = in_parts(spans, spans, shots)
    assert [one for part, _ in parts for one in part] == spans
    assert all(part[-1][1] - part[0][0] <= 24 * 120 for part, _ in parts)
    assert parts[1][1][0] == Mark(parts[1][0][0][0], 512 * parts[1][0][0][0])
    twice = shots.model_copy(update={"times": packed([0, *range(0, 23_999 * 512, 512)])})
    parts = in_parts(spans, spans, twice)
    assert 1 < len(parts) <= 5
    assert all(marks == () for _, marks in parts)


def test_lengths_are_decided_without_looking_for_shots_again(raw: Path, tmp_path: Path, counted: Counter[str]) -> None:
    curate(raw, tmp_path / "data", PLAN)
    counted.clear()
    shorter = replace(PLAN, split=Split(min_seconds=0.1, max_seconds=0.5))
    clips = curate(raw, tmp_path / "data", shorter).clips
    assert (counted["_find_shots"], counted["analyse"]) == (0, 2)
    assert [c.num_frames for c in clips] == [12, 12, 10, 10, 10, 10]
    assert {c.id for c in clips} < set(clips_from(tmp_path / "data", clips[0].source_sha256)) | set(
        clips_from(tmp_path / "data", clips[-1].source_sha256)
    ), "forgetting a source finds its pieces"
    assert json.loads((tmp_path / "data/run.json").read_text())["lengths"] == {"min_seconds": 0.1, "max_seconds": 0.5}
    counted.clear()
    dropped = curate(raw, tmp_path / "data", replace(PLAN, split=Split(min_seconds=0.9))).clips[1].dropped
    assert dropped is not None and dropped.stage == "split"
    assert counted == {}


def test_uneven_frames_are_measured_in_their_own_time(tmp_path: Path) -> None:
    """The same two shots at 50 and at 5 frames a second: in one file of uneven times, and in two of even ones."""
    fast, slow = shot(1, 100, side=96), shot(2, 30, side=96)
    times = [*range(0, 2000, 20), *range(2000, 8000, 200)]
    encode(tmp_path / "uneven/a.mp4", np.concatenate([fast, slow]), pts=times)
    encode(tmp_path / "even/a.mp4", fast, pts=times[:100], rate=50)
    encode(tmp_path / "even/b.mp4", slow, pts=range(0, 6000, 200), rate=5)
    plan = Plan(split=Split(max_seconds=3.0), measures=(Motion(), Camera(), Quality()))
    even = curate(tmp_path / "even", tmp_path / "e", plan).clips
    uneven = curate(tmp_path / "uneven", tmp_path / "u", plan).clips
    assert ["variable frame rate" in c.tags for c in (*even, *uneven)] == [False] * len(even) + [True] * len(uneven)
    assert [c.end_frame - c.start_frame for c in uneven] == [c.end_frame - c.start_frame for c in even] == [100, 15, 15]
    for one, other in zip(even, uneven, strict=True):
        assert other.scores["clip.seconds"] == pytest.approx(one.scores["clip.seconds"], rel=0.02)
        assert other.scores["motion.speed"] == pytest.approx(one.scores["motion.speed"], rel=0.15)
        assert other.num_frames / other.fps == pytest.approx(one.num_frames / one.fps, rel=0.05), "the files' lengths"
    speeds = [clip.scores["motion.speed"] for clip in uneven]
    assert speeds[0] > 4 * speeds[1]


def test_a_clip_of_uneven_frames_is_measured_as_it_is_on_screen(tmp_path: Path) -> None:
    """A pan in frames that last 20 and 60 ms by turns, in frames of 40 ms, and one that stands still for four times
    as long as it moves."""
    pan = shot(1, 180, side=96)  # a frame every 20 ms
    times = np.cumsum([0, *[1, 3] * 45])
    encode(tmp_path / "raw/even.mp4", pan[::2], pts=range(0, 3600, 40), rate=25)
    encode(tmp_path / "raw/turns.mp4", pan[times[:-1]], pts=[20 * int(t) for t in times[:-1]])
    encode(tmp_path / "raw/waits.mp4", pan[:42], pts=[*range(0, 800, 20), 800, 4000])
    plan = Plan(measures=(Motion(), Camera(), Quality()))
    clips = {Path(c.source).stem: c for c in curate(tmp_path / "raw", tmp_path / "data", plan).clips}
    assert ["variable frame rate" in clips[name].tags for name in ("even", "turns", "waits")] == [False, True, True]
    even, turns = clips["even"].scores, clips["turns"].scores
    assert turns["motion.speed"] == pytest.approx(even["motion.speed"], rel=0.1)
    assert turns["camera.shake"] == pytest.approx(even["camera.shake"], abs=0.1)
    assert clips["waits"].scores["motion.speed"] < 0.5 < even["motion.speed"]
    assert clips["waits"].scores["quality.frozen_share"] > 0.6 and turns["quality.frozen_share"] == 0
    span = ClipSpan.uneven("x", 7, 12, np.array([3.0, 3.1, 3.12, 3.14, 3.4, 3.5]))
    assert span.shown == (0, 1, 3, 3, 4) and [list(span.indices(n)) for n in range(7, 12)] == [
        [0],
        [1],
        [],
        [2, 3],
        [4],
    ]


def test_rows_that_took_uneven_frames_for_even_ones_are_made_again(tmp_path: Path, counted: Counter[str]) -> None:
    encode(tmp_path / "raw/a.mp4", shot(1, 60), pts=[*range(0, 600, 20), *range(600, 6600, 200)])
    plan = Plan(measures=(Motion(),))
    (clip,) = curate(tmp_path / "raw", tmp_path / "data", plan).clips
    counted.clear()
    for number, older in enumerate(({}, {"clock": "frames"}), start=1):
        Table(tmp_path / "data", Motion()).add([Outcome(clip.id, ({"speed": 1e6, **older},))])
        (again,) = curate(tmp_path / "raw", tmp_path / "data", plan).clips
        assert counted == {"analyse": number}
        assert again.scores == clip.scores


EVERY_WRITE = """
import json, os, signal, sys
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.run import Plan, curate
from openhunyuan.curate.split import Split
import cv2, pyarrow.parquet, scenedetect.detectors  # once, before the forks

PLAN = Plan(split=Split(min_seconds=0.3), measures=(Quality(),))
replace, writes = os.replace, 0

def run(data, deadly):
    # Killed instead of its write number `deadly`; 0: never.
    def dying(*args, **kwargs):
        global writes
        writes += 1
        if writes == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args, **kwargs)
    pid = os.fork()
    if pid == 0:
        os.replace = dying
        curate(sys.argv[1], data, PLAN)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def lying(data):
    files = (os.path.join(folder, n) for folder, _, names in os.walk(data) for n in names)
    return {path: open(path, "rb").read() for path in files if path.endswith(".parquet") and "/." not in path}

states, kept = [], True
while (status := run(data := f"{sys.argv[2]}/{len(states) // 2}", len(states) // 2 + 1)) != 0:
    before = lying(data)
    states += [status, run(data, 0)]
    now = lying(data)
    kept = kept and all(now.get(path) == content for path, content in before.items())
print(json.dumps({"states": states, "kept": kept}))
"""


def test_a_run_killed_at_every_single_write_gets_there_and_loses_no_row(tmp_path: Path) -> None:
    """Killed instead of its first write, its second and so on, it goes on; the rows that were there stay, byte for
    byte."""
    save(tmp_path / "raw/a.mp4", shot(1, 12, side=32))
    save(tmp_path / "raw/b.mp4", shot(2, 12, side=32))
    (tmp_path / "data").mkdir()
    done = in_a_process(EVERY_WRITE, tmp_path / "raw", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["states"] == [-9, 0] * (len(answer["states"]) // 2)
    assert len(answer["states"]) > 2 * 12
    assert answer["kept"]
    curate(tmp_path / "raw", tmp_path / "whole", Plan(split=Split(min_seconds=0.3), measures=(Quality(),)))
    for number in range(len(answer["states"]) // 2):
        for name in ("manifest.jsonl", "quarantine.jsonl", "funnel.json", "run.json", "drops.jsonl"):
            assert (tmp_path / f"data/{number}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("kind", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_every_engine_gives_the_same_and_does_again_only_what_changed(
    raw: Path, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    engine = Processes(1) if kind == "processes" else request.getfixturevalue("ray")(2)
    data = tmp_path / "data"
    (raw / "text.mp4").write_text("not a video")

    def jobs(plan: Plan) -> list[int]:
        """How many inputs each step was given: hashing, shots, measuring, cutting."""
        asked: dict[str, int] = {}
        curate(raw, data, plan, on_progress=lambda step, done, total: asked.update({step: total}), engine=engine)
        return list(asked.values())

    def same(plan: Plan, here: Path) -> bool:
        curate(raw, here, plan)
        views = ("manifest.jsonl", "quarantine.jsonl", "drops.jsonl", "funnel.json", "run.json")
        return all((data / name).read_bytes() == (here / name).read_bytes() for name in views)

    with engine:
        assert jobs(PLAN) == [3, 3, 2, 2]
        assert same(PLAN, tmp_path / "here")
        for folder in sorted((tmp_path / "here").glob("tables/*/*")):
            assert read_rows(data / folder.relative_to(tmp_path / "here")) == read_rows(folder)
        assert jobs(PLAN) == [0, 0, 0, 0], "neither the dropped clip nor the poison is looked at again"
        softer = replace(PLAN, filters=(MOVING.model_copy(update={"at_least": 0.0}),))
        assert jobs(softer) == [0, 0, 0, 1]
        changed = replace(PLAN, measures=(ClearStart(share=0.5), *PLAN.measures[1:]))
        assert jobs(changed)[:3] == [0, 0, 2]
        (motion,) = data.glob("tables/motion/*")
        assert len(list(motion.glob("*.parquet"))) == 2, "motion was not written again"
        save(raw / "a.mp4", shot(7, 24))
        (raw / "sub/ü b.mp4").rename(raw / "z.mp4")
        assert jobs(PLAN) == [2, 1, 1, 1]
        assert same(PLAN, tmp_path / "anew")


def test_a_plan_has_each_measure_once() -> None:
    with pytest.raises(UserError, match="once"):
        Plan(measures=(Motion(), Motion(method="h264")))
    with pytest.raises(UserError):
        Split(max_seconds=0)


def test_the_report_shows_what_was_dropped_and_why(raw: Path, tmp_path: Path) -> None:
    (raw / "<text>.mp4").write_text("not a video")
    curate(raw, tmp_path / "data", PLAN)
    page = write_report(tmp_path / "data").read_text()
    assert "Dropped by motion" in page
    assert "hardly moves" in page
    assert page.count("<img") == 3
    assert "<b>motion.speed</b> <span class='muted'>1 of 3 fail; median" in page
    assert "hardly moves (" in page and ", at least 0.5" in page
    assert "<td>motion</td><td class='left'><code>motion.speed</code> ≥ 0.5</td>" in page
    assert "&lt;text&gt;.mp4" in page
    assert "<text>" not in page
    with pytest.raises(UserError, match="holds no"):
        write_report(tmp_path)


def test_the_manifest_reads_back(raw: Path, tmp_path: Path) -> None:
    curate(raw, tmp_path / "data", Plan())
    path = tmp_path / "data/manifest.jsonl"
    assert len(read_manifest(path)) == 3
    path.write_text(path.read_text() + '{"id": 3}\n')
    with pytest.raises(UserError, match="Line 4"):
        read_manifest(path)
