"""What is particular to Ray: nodes that see something else, and nodes that go away."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from openhunyuan.base.errors import UserError
from openhunyuan.curate.ray_engine import RayEngine, knock, look_around
from openhunyuan.curate.run import curate
from tests.curate.films import save, shot
from tests.curate.processes import in_a_process
from tests.curate.test_hostile import PLAN


def test_a_node_that_sees_other_files_or_has_other_packages_is_named(tmp_path: Path) -> None:
    raw, probe = tmp_path / "raw", tmp_path / "data/.probe.tmp"
    raw.mkdir()
    probe.parent.mkdir()
    probe.touch()
    here = look_around(str(raw), str(probe))
    assert here.usable == (True, True)
    assert here.lacking(look_around(str(raw), str(probe))) is None
    probe.unlink()
    assert f"does not see {probe.parent}" in str(here.lacking(look_around(str(raw), str(probe))))
    other = replace(here, versions={**here.versions, "av": "1.0"})
    assert str(here.lacking(other)).startswith("has av 1.0, but ")


def test_no_workers_are_refused_before_ray_is_looked_for() -> None:
    with pytest.raises(UserError, match="needs 1 or more"):
        RayEngine(0)


def test_an_address_that_nothing_answers_at_is_known_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        knock(f"127.0.0.1:{port}")
        knock(f"ray://127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(OSError):
            knock(address)
    knock("auto")  # names no place: Ray knows where to look


CLUSTER = """
import json, os, sys
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
from pathlib import Path
from ray.cluster_utils import Cluster
from openhunyuan.base.errors import UserError
from openhunyuan.curate.ray_engine import RayEngine
from openhunyuan.curate.run import curate
from tests.curate.test_hostile import PLAN

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
doomed = cluster.add_node(num_cpus=1)
steps = []

def progress(step, done, total):
    steps.append([step, done, total])
    if step == "shots" and done == 1:
        cluster.remove_node(doomed, allow_graceful=False)

try:
    RayEngine(address="127.0.0.1:1")
except UserError as error:
    print(error, file=sys.stderr)
with RayEngine(2, address=cluster.address) as engine:
    result = curate(sys.argv[1], sys.argv[2], PLAN, on_progress=progress, engine=engine)
print(json.dumps({"failures": len(result.failures), "kept": len(result.kept)}))
"""


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_in_the_middle_gives_the_same(tmp_path: Path) -> None:
    """Two nodes, really two sets of Ray's processes; what the lost one was at is done by the other."""
    pytest.importorskip("ray", reason="Ray is not installed; it comes with: pip install 'openhunyuan[ray]'")
    for number in range(4):
        save(tmp_path / f"raw/{number}.mp4", shot(number, 12, side=32))
    done = in_a_process(CLUSTER, tmp_path / "raw", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "No Ray cluster can be reached at '127.0.0.1:1'" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"failures": 0, "kept": 4}
    curate(tmp_path / "raw", tmp_path / "plain", PLAN)
    assert (tmp_path / "data/manifest.jsonl").read_bytes() == (tmp_path / "plain/manifest.jsonl").read_bytes()
