"""One process of the saves of ``test_resharding``: checkpoint_program.py DATA RUNS.

Leaves in RUNS/kept a run of four steps, in RUNS/stopped the same one with a second start, in RUNS/full one that could
not write once, and in RUNS/found.json what every process saw of these and of a run whose files were taken away.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from openhunyuan.base.errors import UserError
from openhunyuan.parallel.apply import Layout
from openhunyuan.train import checkpoint
from tests.parallel.program import trainer


def steps(made, count: int) -> None:
    for _ in range(count):
        made.train_step(made.fetch(made.step))
        made.save(wait=False)  # written while the next step is made


def full(data: Path, run_dir: Path) -> str:
    """What a process is told when the disk of process 1 has no room."""
    made = trainer(data, run_dir, Layout())
    made.save()
    written = checkpoint.write_safetensors

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if made.world.rank == 1:
        checkpoint.write_safetensors = no_space
    told = ""
    try:
        steps(made, 1)
        made.saver.wait()
    except OSError as error:
        told = str(error)
    checkpoint.write_safetensors = written
    steps(made, 1)  # there is room again
    made.saver.wait()
    return told


def main() -> None:
    data, runs = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    kept = trainer(data, runs / "kept", Layout())
    kept.save()
    steps(kept, 4)
    kept.saver.wait()
    world, broken = kept.world, runs / "broken"
    world.once(lambda: shutil.copytree(runs / "kept", broken))

    stopped = trainer(data, runs / "stopped", Layout())
    steps(stopped, 3)
    stopped.saver.wait()
    again = trainer(data, runs / "stopped", Layout())
    assert again.resume() and again.step == 3
    steps(again, 1)
    again.saver.wait()

    found = {"full": full(data, runs / "full"), "newest": [str(checkpoint.newest(broken, world))]}
    for step in (3, 1):
        world.once(lambda step=step: shutil.rmtree(broken / "checkpoints" / f"step_{step:08d}"))
    for name in ("step_00000004/optimizers-00001.safetensors", "step_00000002/modules-00000.safetensors"):
        world.once((broken / "checkpoints" / name).unlink)
        found["newest"].append(str(checkpoint.newest(broken, world)))
    world.once(lambda: (broken / "checkpoints" / "step_00000000" / "ema-00001.safetensors").write_bytes(b"") and None)
    try:
        checkpoint.newest(broken, world)
    except UserError as error:
        found["none"] = str(error)
    both = world.every(lambda: found)
    if world.is_main:
        (runs / "found.json").write_text(json.dumps(both))
    world.leave()


if __name__ == "__main__":
    main()
