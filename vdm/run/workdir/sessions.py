"""What a run was computed with: versions, hardware and time, a record for each session.

`sessions.json` in the workdir is a list. A session, one process's part of the training, adds a
record when it begins and updates it with every checkpoint. What a killed process did after its last
checkpoint is lost, and in no record. If it was killed while writing one, the next session begins
before the step that the record names.
"""

import dataclasses
import datetime
import importlib.metadata
import pathlib
import platform
import time
from typing import Annotated

import jax
from jax.sharding import Mesh

import vdm
from vdm.run.errors import UserError
from vdm.run.system import document
from vdm.run.system.document import FLAT, Count, NotNegative, Whole
from vdm.run.system.files import read_json, write_json
from vdm.run.system.progress import say

SESSIONS_FILE = "sessions.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
CPU_NAMES = pathlib.Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a process computed on."""

    platform: str
    device: str
    num_devices: Count
    num_processes: Count
    processor: str
    system: str


@dataclasses.dataclass(frozen=True)
class MadeWith:
    """The versions of Python and of the packages, and the hardware."""

    versions: dict[str, str]
    hardware: Hardware


@dataclasses.dataclass(frozen=True)
class SessionRecord:
    """The record of a session, its fields the keys in the file: when, how far, and with what."""

    began: datetime.datetime
    from_step: Whole
    to_step: Whole
    seconds: NotNegative
    made_with: Annotated[MadeWith, FLAT]


def read(workdir: pathlib.Path) -> tuple[SessionRecord, ...]:
    """Return the sessions of a workdir; raises UserError for a damaged file or another form."""
    path = workdir / SESSIONS_FILE
    return document.load(tuple[SessionRecord, ...], path) if path.exists() else ()


class Session:
    """The record of this session, kept up to date in the workdir."""

    def __init__(self, workdir: pathlib.Path, mesh: Mesh, step: int, started: float) -> None:
        """Add a record; `started` is the `time.perf_counter()` at which the session began."""
        self._path, self._started = workdir / SESSIONS_FILE, started
        self._before = _kept_before(workdir)
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        self._record = SessionRecord(now, step, step, 0.0, made_with(mesh))
        self.reached(step)

    def reached(self, step: int) -> None:
        """Record that the run is saved up to a step; raises UserError if it cannot be written."""
        seconds = time.perf_counter() - self._started
        self._record = dataclasses.replace(self._record, to_step=step, seconds=seconds)
        write_json(self._path, [*self._before, document.plain(self._record)])


def _kept_before(workdir: pathlib.Path) -> list[object]:
    """Return the earlier records as they are, with unknown keys; a bad file is set aside."""
    path = workdir / SESSIONS_FILE
    try:
        return read_json(path) if read(workdir) else []
    except UserError as error:
        # A mere record must not stop a training.
        aside = path.with_stem(f"{path.stem}_damaged")
        path.replace(aside)
        say(f"{error}; it is now {aside.name}, and the records begin anew")
        return []


class Nowhere:
    """The session record of the other processes: nothing."""

    def reached(self, step: int) -> None:
        """Do nothing."""


def made_with(mesh: Mesh) -> MadeWith:
    """Return the versions and the hardware that this process computes with on a mesh."""
    device = mesh.devices.flat[0]
    return MadeWith(
        versions={
            "vdm": vdm.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        hardware=Hardware(
            platform=device.platform,
            device=device.device_kind,
            num_devices=mesh.size,
            num_processes=jax.process_count(),
            processor=processor(),
            system=platform.system(),
        ),
    )


def processor() -> str:
    """Return the name of the machine's processor, as far as the system reports it."""
    if CPU_NAMES.exists():
        for line in CPU_NAMES.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
