"""Processes that agree, and that find each other again after a restart."""

import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

from openhunyuan.parallel.world import World

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys, time
import torch
from openhunyuan.parallel.world import World
if sys.argv[1] == os.environ["RANK"]:
    time.sleep(3)
world = World.join(torch.device("cpu"), timeout=30)
apart = world.apart()
def odd():
    if world.rank == 1:
        raise ValueError("rank 1")
    return world.rank
try:
    apart.every(odd)
except ValueError as error:
    print(world.sum({"n": 1})["n"], world.every(lambda: world.rank), error, flush=True)
os._exit(0)
"""


def start(port: int, restarts: int, late: int) -> list[str]:
    """What two processes say; one comes later, and both leave as if they were killed."""
    shared = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(late)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [process.communicate(timeout=600)[0].strip() for process in started]


def test_after_a_restart_nobody_calls_the_processes_before_it() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True, wait_for_workers=False)  # torchrun's
    for restarts, late in ((0, 0), (1, 0), (2, 1)):
        assert start(store.port, restarts, late) == ["2.0 [0, 1] rank 1"] * 2


def test_alone_one_agrees_with_oneself() -> None:
    world = World()
    assert world.apart() is world and world.every(lambda: 3) == [3] and world.sum({"a": 1}) == {"a": 1}
