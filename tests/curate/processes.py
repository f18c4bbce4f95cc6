"""Processes that are there to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def in_a_process(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python that runs this script with our packages."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, timeout=900, capture_output=True, text=True)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
