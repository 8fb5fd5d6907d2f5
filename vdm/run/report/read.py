"""What lies in a workdir, read without JAX: the records of training and evaluation."""

import dataclasses
import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from vdm.run import config as configs
from vdm.run.data import DATA_FILE, augment
from vdm.run.errors import UserError
from vdm.run.system.files import read_json
from vdm.run.workdir.metrics import METRICS_FILE
from vdm.run.workdir.sessions import SESSIONS_FILE

RESULT_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a workdir holds; what is not there is empty or None."""

    name: str
    workdir: pathlib.Path
    config: configs.Config
    data: dict[str, Any] | None
    metrics: tuple[dict[str, Any], ...]
    evaluation: dict[str, Any] | None
    sessions: tuple[dict[str, Any], ...]
    pages: tuple[pathlib.Path, ...]  # of samples, drawn while training

    @property
    def results(self) -> tuple[dict[str, Any], ...]:
        """Every record of the evaluation; there is one alone where an early version wrote it."""
        if self.evaluation is None:
            return ()
        return tuple(self.evaluation.get("results", [self.evaluation]))

    @property
    def differential(self) -> bool:
        """Whether the data are real numbers, whose bits are those of a density."""
        return self.config.model.likelihood["name"] == "gaussian"

    @property
    def given_classes(self) -> bool:
        """Whether the network is told the class of an example, whose bits are then not counted."""
        told, name = self.config.model.network.get("num_classes"), self.config.data.augment
        if told is None or name == "none":
            return told is not None
        return self.data is not None and told != augment.num_flags(name, tuple(self.data["shape"]))


def read(workdir: pathlib.Path, name: str | None = None) -> Run:
    """Return what a workdir holds; raises UserError where it holds no run, or a damaged file."""
    if not workdir.is_dir():
        raise UserError(f"no such workdir: {workdir}")
    config = configs.load(workdir)
    return Run(
        name=workdir.name or workdir.resolve().name if name is None else name,
        workdir=workdir,
        config=config,
        data=_json_or_none(workdir / DATA_FILE),
        metrics=_metrics(workdir / METRICS_FILE),
        evaluation=_json_or_none(workdir / RESULT_FILE),
        sessions=tuple(_json_or_none(workdir / SESSIONS_FILE) or ()),
        pages=_pages(workdir / "samples"),
    )


def step_of(page: pathlib.Path) -> int:
    """Return the step at which a page of samples was drawn; a million has more digits."""
    return int(page.stem.removeprefix("step_"))


def per_example(run: Run, record: dict[str, Any]) -> np.ndarray | None:
    """Return the bits per dimension of every example that a record is the mean of.

    None where they were not kept, or are of another evaluation.
    """
    path = run.workdir / f"evaluation_{record['split']}.npz"
    try:
        with np.load(path) as kept:
            values = [kept[name] for name in _columns(record)]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    total = np.sum(values, axis=0)
    mean, n = record["bpd"]["mean"], record["bpd"]["n"]
    if total.shape != (n,) or not np.isclose(total.mean(), mean, rtol=1e-9, atol=1e-12):
        return None
    return total


def _columns(record: dict[str, Any]) -> list[str]:
    """Return the names in evaluation_<split>.npz whose sum is the record's bound."""
    if record["bound"] == "ode":
        words = ["ode", record.get("dequantisation"), str(record["num_samples"])]
        return ["_".join(filter(None, words))]
    label = f"{record['num_steps']}" + ("_clipped" if record.get("clip_denoised") else "")
    return [f"{term}_{label}" for term in record["terms"]]


def _json_or_none(path: pathlib.Path) -> Any:
    return read_json(path) if path.exists() else None


def _pages(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Return the pages of samples in order; what else the user has put there is none."""
    found = folder.glob("step_*.png")
    return tuple(sorted((p for p in found if p.stem[len("step_") :].isdecimal()), key=step_of))


def _metrics(path: pathlib.Path) -> tuple[dict[str, Any], ...]:
    """Return the records of training; the last line of a run that was killed may be half there."""
    if not path.exists():
        return ()
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    try:
        return tuple(json.loads(line) for line in lines if line.endswith("\n"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
