"""The engine that works on a Ray cluster, or on a Ray of its own on this machine.

Each worker is a Ray actor that is given one input at a time; rows of jobs are paths, numbers and hashes, so that no
frame ever lies in Ray's object store. Ray's own retries and checkpoints are not used: an input that dies must be named,
and what is known lies in our tables.

All nodes must see the footage and the data folder under the same paths, and must have the same versions of what reads
and writes pictures; that is checked before any work.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.require import require
from openhunyuan.curate.engine import Answer, Died, Engine, Worker, call, one_thread
from openhunyuan.curate.stage import Resources

DECIDING = ("openhunyuan", "av", "numpy", "opencv-python-headless", "scenedetect-headless", "dlib-bin")
"""Packages whose version may change a row."""

_STORE = 100 * 2**20
"""Bytes of the object store of a Ray of our own: it holds nothing but rows of jobs in flight."""

_KNOCK = 10.0
"""Seconds in which the address of a cluster must answer. Ray 2.60 tries 20 times before it says that nothing is there,
and a try takes 41 s."""

_PATIENCE = 60.0
"""Seconds without a single worker after which it is said that the cluster has no room."""

log = logging.getLogger(__name__)


class RayEngine(Engine):
    """Actors on a Ray cluster.

    workers: actors; None: as many as the cluster has CPUs. address: of a running cluster ("auto": the one of this
    machine); None: a Ray of our own, which listens on the loopback device only and ends with the engine. A Ray that
    this program has started already is used and left running.

    Raises UserError when Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, workers: int | None = None, timeout: float = 3600.0, address: str | None = None) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"workers is {workers}, but the engine ray needs 1 or more.")
        super().__init__(workers or 1, timeout)
        if address is None:
            # Read by Ray when it is imported: no node but this one, so nothing listens beyond this machine.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray: Any = require("ray", extra="ray")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect(workers, address)
        self.size = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._since, self._told = time.monotonic(), False

    def _connect(self, workers: int | None, address: str | None) -> None:
        quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
        if address is None:
            own = {"num_cpus": workers, "object_store_memory": _STORE, "include_dashboard": False}
            try:
                self._ray.init(address="local", **own, **quiet)
            except Exception as error:  # Ray gives its own processes half a minute to come up
                raise UserError(
                    f"Ray cannot be started ({_short(error)}); on a machine this busy use --engine processes."
                ) from None
            return
        try:
            knock(address)
            self._ray.init(address=address, **quiet)
        except Exception as error:  # Ray raises ValueError, RuntimeError, ConnectionError, or its own
            raise UserError(f"No Ray cluster can be reached at '{address}' ({_short(error)}).") from None

    def prepare(self, raw: str, data: str) -> None:
        """Raises UserError naming the first node that sees other files or has other packages than this machine."""
        strategy: Any = require("ray.util.scheduling_strategies", extra="ray")
        here = self._ray.get_runtime_context().get_node_id()
        nodes = [n for n in self._ray.nodes() if n["Alive"] and n["NodeID"] != here and n["Resources"].get("CPU", 0)]
        if not nodes:
            return
        probe = Path(data).resolve() / f".{uuid.uuid4().hex}.tmp"  # `tables.sweep` removes it, if this process dies
        probe.touch()
        try:
            expected = look_around(str(Path(raw).resolve()), str(probe))
            look = self._ray.remote(num_cpus=1, max_retries=0)(look_around)
            for node in nodes:
                name = node["NodeManagerAddress"]
                at = strategy.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answer = look.options(scheduling_strategy=at).remote(*expected.paths)
                try:
                    found = self._ray.get(answer, timeout=self.timeout)
                except Exception as error:  # most often: the package is not installed there
                    raise UserError(f"The Ray node {name} cannot work ({_short(error)}).") from None
                if why := expected.lacking(found):
                    raise UserError(f"The Ray node {name} {why}.")
        finally:
            probe.unlink(missing_ok=True)

    def start(self, resources: Resources) -> Worker:
        total = self._ray.cluster_resources()
        if self._ours and resources.gpus > total.get("GPU", 0):
            raise UserError(f"A stage needs {resources.gpus} GPU, and this Ray has {total.get('GPU', 0):g}.")
        return _Actor(self._ray, resources)

    def ready(self, workers: Sequence[Worker], seconds: float) -> list[Worker]:
        of = {w.answer: w for w in workers if isinstance(w, _Actor)}
        found, _ = self._ray.wait(list(of), num_returns=len(of), timeout=0)
        if not found:
            found, _ = self._ray.wait(list(of), num_returns=1, timeout=seconds)
        if found:
            self._since = time.monotonic()
        elif not self._told and all(w.state == "starting" for w in workers) and self._waited() > _PATIENCE:
            self._told = True
            log.warning("waiting for the Ray cluster: it has no room for a worker with %s", self._resources)
        return [of[answer] for answer in found]

    def _waited(self) -> float:
        return time.monotonic() - self._since

    def close(self) -> None:
        super().close()
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()


def knock(address: str) -> None:
    """Raise OSError when an address that names host and port ("head:6379", "ray://head:10001") does not answer."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        with contextlib.suppress(ValueError, OverflowError):  # not a port: Ray has a better word for it
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


class _Actor(Worker):
    """An actor with one call in flight."""

    def __init__(self, ray: Any, resources: Resources) -> None:
        super().__init__()
        self.ray = ray
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_restarts": 0, "max_task_retries": 0}
        self.actor = ray.remote(**options)(_Caller).remote()
        self.answer = self.actor.begin.remote()

    def send(self, function: Callable[[Any], Any], item: Any) -> None:
        self.answer = self.actor.call.remote(function, item)

    def receive(self) -> Answer | None:
        try:
            return self.ray.get(self.answer)
        except self.ray.exceptions.RayError as error:  # the actor, its node, or its memory
            raise Died(_short(error)) from None

    def close(self) -> None:
        self.ray.kill(self.actor, no_restart=True)


class _Caller:
    """What lives in the actor."""

    def begin(self) -> None:
        one_thread()

    def call(self, function: Callable[[Any], Any], item: Any) -> Answer:
        return call(function, item)


@dataclass(frozen=True)
class View:
    """What a node sees: which paths it can use, and the versions of its packages."""

    paths: tuple[str, ...]
    usable: tuple[bool, ...]
    versions: dict[str, str]

    def lacking(self, other: View) -> str | None:
        """The first thing that another node lacks, as the end of a sentence about it; None where it lacks nothing."""
        for path, mine, its in zip(self.paths, self.usable, other.usable, strict=True):
            if mine and not its:
                folder = Path(path).parent if path.endswith(".tmp") else path
                return f"does not see {folder}; footage and data must lie on storage that all nodes share"
        for name, version in self.versions.items():
            if other.versions.get(name) != version:
                return f"has {name} {other.versions.get(name)}, but {version} is used here; install the same everywhere"
        return None


def look_around(raw: str, probe: str) -> View:
    """What this node sees of the footage and of a file in the data folder."""
    versions = {}
    for name in DECIDING:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return View((raw, probe), (os.access(raw, os.R_OK), os.access(probe, os.W_OK)), versions)


def _short(error: Exception) -> str:
    """The kind of an error and its last words, where Ray puts the cause."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"
