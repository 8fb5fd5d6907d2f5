"""What a run was computed with: versions, hardware and time, a record for each process's turn.

`sessions.json` in the workdir is a list. A turn adds a record when it begins and brings it up to
date with every checkpoint that it begins to write. What a killed process did after its last one is
lost, and in no record; where it was killed while writing one, the next turn begins before its end.
"""

import datetime
import importlib.metadata
import pathlib
import platform
import time
from typing import Any

import jax
from jax.sharding import Mesh

import vdm
from vdm.run.system.files import read_json, write_json

SESSIONS_FILE = "sessions.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
CPU_NAMES = pathlib.Path("/proc/cpuinfo")


class Session:
    """The record of this process's turn at training, kept up to date in the workdir."""

    def __init__(self, workdir: pathlib.Path, mesh: Mesh, step: int, started: float):
        """Add a record; `started` is the `time.perf_counter()` at which the turn began."""
        self._path, self._started = workdir / SESSIONS_FILE, started
        self._before = read_json(self._path) if self._path.exists() else []
        self._record: dict[str, Any] = {
            "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "from_step": step,
            **made_with(mesh),
        }
        self.reached(step)

    def reached(self, step: int) -> None:
        """Write down that the run is saved up to a step; raises UserError where it cannot be."""
        self._record["to_step"] = step
        self._record["seconds"] = time.perf_counter() - self._started
        write_json(self._path, [*self._before, self._record])


class Nowhere:
    """The record that the other processes of a run keep."""

    def reached(self, step: int) -> None:
        """Do nothing."""


def made_with(mesh: Mesh) -> dict[str, Any]:
    """Return the versions and the hardware that this process computes with on a mesh."""
    device = mesh.devices.flat[0]
    return {
        "versions": {
            "vdm": vdm.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "hardware": {
            "platform": device.platform,
            "device": device.device_kind,
            "num_devices": mesh.size,
            "num_processes": jax.process_count(),
            "processor": processor(),
            "system": platform.system(),
        },
    }


def processor() -> str:
    """Return the name of the machine's processor, as far as the system tells it."""
    if CPU_NAMES.exists():
        for line in CPU_NAMES.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
