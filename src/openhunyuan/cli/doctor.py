"""``openhunyuan doctor``: what this machine can do, measured, and whether the installation is whole."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import Field

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import console
from openhunyuan.base.record import Record
from openhunyuan.cli.parse import parse
from openhunyuan.infer.output import package_version


class DoctorOptions(Record):
    """Say what this machine can do, and check the installation. Exit code 1 when something needed does not work."""

    json_output: bool = Field(False, alias="json", description="Print JSON.")


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``ok`` is None for plain facts."""

    name: str
    text: str
    ok: bool | None = None


def run(args: Sequence[str]) -> int:
    """Look, measure, print."""
    options = parse(DoctorOptions, args, "openhunyuan doctor")
    findings: list[Finding] = []
    with console(stderr=True).status("Looking at this machine"):
        for check in (_python, _cpu, _memory, _disk, _torch, _gpus, _h264, _model, _optional):
            findings += _safely(check)
    healthy = all(finding.ok is not False for finding in findings)
    if options.json_output:
        print(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 0 if healthy else 1

    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    marks = {True: "[green]ok[/green]", False: "[red]no[/red]", None: ""}
    for finding in findings:
        table.add_row(marks[finding.ok], f"[bold]{finding.name}[/bold]", finding.text)
    console().print(table)
    return 0 if healthy else 1


def _safely(check: Callable[[], list[Finding]]) -> list[Finding]:
    """A broken part of the machine is a finding, not the end of the report."""
    try:
        return check()
    except Exception as error:
        return [Finding(check.__name__.strip("_"), f"{type(error).__name__}: {error}", False)]


def _python() -> list[Finding]:
    return [
        Finding("openhunyuan", package_version()),
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
    ]


def _cpu() -> list[Finding]:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Finding("cpu", f"{name}, {usable} cores usable")]


def _memory() -> list[Finding]:
    if not hasattr(os, "sysconf"):
        return []
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    return [Finding("memory", f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB available", free > 2**30)]


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    return [Finding("disk here", f"{free / 2**30:.1f} GiB free", free > 2**28)]


def _torch() -> list[Finding]:
    import torch

    from openhunyuan.base.device import measure_matmul

    cpu = torch.device("cpu")
    speeds = {
        name: measure_matmul(cpu, getattr(torch, name), size=512, seconds=0.2) for name in ("float32", "bfloat16")
    }
    ratio = speeds["bfloat16"] / speeds["float32"]
    return [
        Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", True),
        Finding(
            "cpu speed",
            f"float32 {speeds['float32']:.0f} GFLOP/s, bfloat16 {speeds['bfloat16']:.0f} GFLOP/s "
            f"({ratio:.1f}x; 512x512 matrix products)",
        ),
    ]


def _gpus() -> list[Finding]:
    import torch

    from openhunyuan.base.device import measure_matmul, pick_device, pick_dtype

    findings = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        speed = measure_matmul(device, pick_dtype(None, device), size=4096)
        findings.append(
            Finding(
                "gpu", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {speed / 1e3:.0f} TFLOP/s", True
            )
        )
    if not findings:
        findings.append(Finding("gpu", "none that torch sees; the embedded model runs on the CPU"))
    device = pick_device(None)
    findings.append(Finding("generate uses", f"{device.type}, {str(pick_dtype(None, device)).removeprefix('torch.')}"))
    return findings


def _h264() -> list[Finding]:
    import av
    import numpy as np

    from openhunyuan.base.video import read_video, write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        write_video(path, np.full((5, 32, 32, 3), 128, np.uint8), fps=8)
        frames, _ = read_video(path)
    good = frames.shape == (5, 32, 32, 3) and abs(float(frames.mean()) - 128) < 4
    return [Finding("h264", f"PyAV {av.__version__} writes and reads mp4" if good else "wrong frames came back", good)]


def _model() -> list[Finding]:
    from openhunyuan.models.zoo import MODELS, check_model, component_bytes, component_parameters, wrong_hashes

    findings = []
    for name in MODELS:
        try:
            folder, spec = check_model(name)
        except UserError as error:
            findings.append(Finding(f"model {name}", str(error), False))
            continue
        wrong = wrong_hashes(folder, spec)
        if wrong:
            findings.append(Finding(f"model {name}", f"changed or damaged: {', '.join(wrong)}; reinstall it", False))
        else:
            count, size = sum(component_parameters(folder).values()), sum(component_bytes(folder).values())
            text = f"{count / 1e6:.1f} M parameters, {size / 1e6:.1f} MB, hashes right"
            findings.append(Finding(f"model {name}", text, True))
    return findings


def _optional() -> list[Finding]:
    extras = {
        "tensorboard": "train",
        "scenedetect-headless": "curate",
        "opencv-python-headless": "curate",
        "pyarrow": "curate",
        "diffusers": "dev",
    }
    found = []
    for package, extra in extras.items():
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} no ([{extra}])")
    return [Finding("optional", ", ".join(found))]
