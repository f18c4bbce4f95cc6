"""One process of a job that torchrun starts again, for ``test_elastic``: elastic.py DATA RUN FAULTY STALL."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from openhunyuan.parallel.apply import Layout
from openhunyuan.train.running import Running, run_with
from tests.parallel.program import trainer

KILLED, HUNG = (0, 1), (1, 3)
"""(restarts so far, step) at which process 1 is killed, and at which it hangs."""


def main() -> None:
    data, run_dir, faulty, stall = sys.argv[1:]
    torch.set_num_threads(1)
    running = Running(stall_seconds=float(stall), log=(), heartbeat_seconds=0.001)
    with run_with(running):
        made = trainer(Path(data), Path(run_dir), Layout())
    draw = made.source.batch

    def batch(step, stage, shape):
        if faulty == "True" and made.world.rank == 1:
            now = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), step
            if now == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            if now == HUNG:
                time.sleep(100_000)
        return draw(step, stage, shape)

    made.source.batch = batch
    made.run()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
