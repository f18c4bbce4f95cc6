"""What comparing clips for duplicates costs: processor time and memory, for more and more clips, before and after.

    python -m benchmarks.duplicates --clips 2000 4000 8000 --workers 1 2 --before 424d48b --most-before 4000

Clips are fingerprints of rendered scenes of the synthetic world, 8 moments each, of which an eighth are copies of
others (brighter, mirrored). "before" is `curate/duplicates.py` of another revision, from git, as it was used then: all
rows of the table in memory, all clips in one process. "after" is `curate.pairs`: jobs of so many worker processes,
and the groups made of the pairs in its table. Every side runs alone in a fresh process with one thread; the two must
find the same duplicates. Processor seconds are of the process and its workers together; memory is the highest resident
size of the process, and of the largest of its workers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from openhunyuan.curate.concepts import Concepts, cluster
from openhunyuan.curate.duplicates import NEAR, Duplicates, better_of, described, near_pairs, same_pairs
from openhunyuan.curate.engine import Processes
from openhunyuan.curate.measures.fingerprint import MOMENTS, Fingerprint, lab_thumbs, thumbs_of
from openhunyuan.curate.pairs import Pairs, compare, compare_all, pairs_of
from openhunyuan.curate.stage import Outcome
from openhunyuan.curate.tables import Table, read_rows, read_vectors
from openhunyuan.tiny.world import render, sample_scene

SIZE = (36, 64)
"""Height and width at which scenes are rendered; fingerprints are of 12 × 12 cells."""

SOURCE = "src/openhunyuan/curate/duplicates.py"


def films(count: int, seed: int) -> Iterator[np.ndarray]:
    """Thumbnails of scenes; every eighth is a copy of one before."""
    rng = np.random.default_rng(seed)
    made: list[np.ndarray] = []
    for number in range(count):
        if number % 8 == 7:
            copy = made[int(rng.integers(len(made)))].astype(np.float32)
            copy[..., 0] *= rng.uniform(1.0, 1.06)
            one = copy[:, :, ::-1] if number % 16 == 7 else copy
        else:
            scene = sample_scene(rng, "any", camera_prob=0.45, photo_prob=0.15)
            one = lab_thumbs(render(scene, MOMENTS, *SIZE))
        made.append(one.astype(np.float16))
        yield made[-1]


def names(count: int) -> list[str]:
    """Clip ids of the usual length."""
    return [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(count)]


def write(data: Path, count: int, seed: int) -> None:
    """The table of fingerprints, if it is not there."""
    table = Table(data, Fingerprint())
    if len(table.keys()) == count:
        return
    rng = np.random.default_rng(seed)
    waiting = []
    for name, thumbs in zip(names(count), films(count, seed), strict=True):
        appearance = rng.normal(size=192)
        row = {"thumbs": thumbs.tobytes(), "appearance": (appearance / np.linalg.norm(appearance)).tolist()}
        waiting.append(Outcome(name, (row,)))
        if len(waiting) == 500:
            table.add(waiting)
            waiting = []
    table.add(waiting)


def before(data: Path, count: int, revision: str) -> dict[str, str]:
    """Clip → the better one, as an earlier revision found it."""
    source = subprocess.run(["git", "show", f"{revision}:{SOURCE}"], check=True, capture_output=True, text=True).stdout
    module: Any = ModuleType("before")
    sys.modules["before"] = module
    exec(compile(source, SOURCE, "exec"), module.__dict__)  # our own code, of another revision
    rows = read_rows(Table(data, Fingerprint()).folder)
    candidates = [module.Candidate(name, thumbs_of(rows[name][0]), ()) for name in names(count)]
    return module.duplicates_of(candidates, module.Duplicates())


def after(data: Path, count: int, workers: int) -> dict[str, str]:
    """The same as jobs of so many workers."""
    ids = names(count)
    stage = Pairs(config=Duplicates(), of=Fingerprint().key)
    for folder in ("duplicates", "blocks"):
        shutil.rmtree(data / "tables" / folder, ignore_errors=True)
    with Processes(workers) as engine:
        table = Table(data, Fingerprint())
        found = compare_all(data, table, stage, [ids], lambda jobs: engine.map(compare, jobs))
    places = {name: place for place, name in enumerate(ids)}
    return better_of(ids, [()] * count, pairs_of(found.folder, places))


def run(side: str, data: Path, count: int, workers: int, revision: str) -> dict[str, Any]:
    """One side in this process: what it cost."""
    start = time.perf_counter()
    found = after(data, count, workers) if side == "after" else before(data, count, revision)
    wall = time.perf_counter() - start
    times = os.times()
    return {
        "side": side,
        "clips": count,
        "workers": workers,
        "cpu_s": times.user + times.system + times.children_user + times.children_system,
        "wall_s": wall,
        "peak_mib": peak_mib(),
        "worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if side == "after" else None,
        "duplicates": len(found),
        "hash": hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()[:12],
    }


def first_sight(data: Path, clips: int) -> str:
    """How much of the comparison of some clips is the first sight, which every pair needs."""
    rows = read_rows(Table(data, Fingerprint()).folder)
    seen = described(np.stack([thumbs_of(row) for (row,) in list(rows.values())[:clips]]))
    start = time.process_time()
    near = near_pairs(seen.mean, NEAR)
    first = time.process_time() - start
    same_pairs(seen, Duplicates())
    whole = time.process_time() - start - first
    return f"{len(seen.mean)} clips: {len(near)} near pairs, first sight {first:.3f} s of {whole:.2f} s"


def concepts(data: Path, count: int) -> str:
    """What grouping so many random vectors of the fingerprint's size costs, read from a table."""
    table, ids = Table(data, Fingerprint()), names(count)
    rng = np.random.default_rng(0)
    for start in range(0, count, 5000):
        vectors = rng.normal(size=(len(ids[start : start + 5000]), 192)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = zip(ids[start : start + 5000], vectors, strict=True)
        table.add([Outcome(name, ({"appearance": vector.tolist()},)) for name, vector in rows])
    start_s = time.process_time()
    found = read_vectors(table.folder, "appearance", ids)
    read_s = time.process_time() - start_s
    groups, _ = cluster(found, Concepts())
    return (
        f"{count} vectors ({found.nbytes / 2**20:.0f} MiB), {groups.max() + 1} groups: read {read_s:.1f} s, "
        f"grouped {time.process_time() - start_s - read_s:.1f} s, peak {peak_mib():.0f} MiB"
    )


def peak_mib() -> float:
    """Highest resident size of this process so far."""
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(peak[1]) / 1024 if peak else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[2000, 4000, 8000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--before", default="", help="a revision to compare with; empty: none")
    parser.add_argument("--most-before", type=int, default=4000, help="most clips that it is run with")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("outputs/duplicates"), help="where fingerprints are kept")
    parser.add_argument(
        "--one", choices=("before", "after"), help="run one side here (what this program does by itself)"
    )
    parser.add_argument("--concepts", type=int, help="only group so many vectors, in one thread")
    args = parser.parse_args()
    if args.concepts:
        print(concepts(args.folder / f"concepts-{args.concepts}", args.concepts))
        return
    if args.one:
        count = args.clips[0]
        print(json.dumps(run(args.one, args.folder, count, args.workers[0], args.before)))
        return
    print("| clips | side | workers | cpu s | elapsed s | peak MiB | of a worker | duplicates |")
    print("| --: | --- | --: | --: | --: | --: | --: | --: |")
    for count in args.clips:
        data = args.folder / str(count)
        write(data, count, args.seed)
        sides = [("before", 0)] if args.before and count <= args.most_before else []
        hashes = set()
        for side, workers in [*sides, *(("after", workers) for workers in args.workers)]:
            command = [sys.executable, "-m", "benchmarks.duplicates", "--one", side, "--clips", str(count)]
            command += ["--workers", str(workers), "--folder", str(data), "--before", args.before]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            done = subprocess.run(command, env={**os.environ, **threads}, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            hashes.add(row["hash"])
            worker = "" if row["worker_mib"] is None else f"{row['worker_mib']:.0f}"
            print(
                f"| {count} | {side} | {workers or ''} | {row['cpu_s']:.1f} | {row['wall_s']:.0f} | "
                f"{row['peak_mib']:.0f} | {worker} | {row['duplicates']} |",
                flush=True,
            )
        if len(hashes) > 1:
            raise SystemExit(f"The sides found different duplicates of {count} clips.")
    print(first_sight(args.folder / str(args.clips[-1]), 1000))


if __name__ == "__main__":
    main()
