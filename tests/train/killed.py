"""A run that is killed or hangs, for ``test_killed``: killed.py RUN kill|hang STEP."""

import os
import signal
import sys
import time

from openhunyuan.train.loop import Trainer
from openhunyuan.train.running import Running
from tests.train.test_loop import Regression, config

CONFIG = config(60, log_every=4, validate_every=10, sample_every=20)  # records lie across checkpoints


def main() -> None:
    run_dir, what, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
    task = Regression()
    draw = task.batch

    def batch(at, stage, shape):
        if at == step:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        return draw(at, stage, shape)

    task.batch = batch
    Trainer(CONFIG, task, task, run_dir, running=Running(stall_seconds=10.0, log=())).run()


if __name__ == "__main__":
    main()
