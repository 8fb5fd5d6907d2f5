"""Where a run writes its metrics: JSON lines always, TensorBoard events if asked for."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from vdm.run.errors import UserError
from vdm.run.system.files import check_is_file, replacing

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"


class Writer:
    """Writes records, numbers by name with the step among them; close it when done."""

    def __init__(self, workdir: pathlib.Path, *, tensorboard: bool):
        self._path = workdir / METRICS_FILE
        self._open = _events(workdir / EVENTS_FOLDER) if tensorboard else None
        self._events: Any = None

    def start(self, step: int) -> None:
        """Drop the records after a step, left by a run that was stopped or rolled back."""
        _cut(self._path, step)
        if self._open is not None:
            self.close()
            self._events = self._open(step)

    def write(self, record: Mapping[str, int | float]) -> None:
        """Append a record; raises UserError when the disk is full."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            if self._events is not None:
                for name, value in record.items():
                    if name != "step":
                        self._events.add_scalar(name, value, record["step"])
                self._events.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file of events, if there is one."""
        if self._events is not None:
            self._events.close()
            self._events = None


class Nowhere:
    """The writer of the other processes of a run: it writes nothing."""

    def start(self, step: int) -> None:
        """Do nothing."""

    def write(self, record: Mapping[str, int | float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _events(folder: pathlib.Path) -> Any:
    """Return a function from a step to a writer of the events after it."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "train.tensorboard needs tensorboardX: pip install 'vdm-jax[tensorboard]', or set "
            "train.tensorboard=False"
        ) from error

    def start(step: int) -> Any:
        # The file is named by the second; two starts within one must not share it. Readers of
        # the events drop those of earlier files from `purge_step` on.
        suffix = f".{time.time_ns()}"
        return SummaryWriter(str(folder), purge_step=step + 1, filename_suffix=suffix)

    return start


def _cut(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    check_is_file(path)
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step(line, path) <= step]
    if kept != lines:
        with replacing(path) as temporary:
            temporary.write_text("".join(kept))


def _step(line: str, path: pathlib.Path) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: cannot read the line {line.strip()[:60]!r}") from error
