"""What a workdir holds: the records of training and evaluation."""

import dataclasses
import json
import pathlib

from vdm.run import config as configs, data
from vdm.run.data import augment
from vdm.run.errors import UserError
from vdm.run.evaluation import files
from vdm.run.evaluation.record import TERMS, Evaluation, Result
from vdm.run.system import document
from vdm.run.system.document import Place
from vdm.run.system.files import check_is_file
from vdm.run.workdir import phases, sessions
from vdm.run.workdir.metrics import METRICS_FILE
from vdm.run.workdir.phases import Phase
from vdm.run.workdir.sessions import SessionRecord

# The metrics that the page draws.
ENDS = ("log_snr_max", "log_snr_min")
DRAWN = ("step", "loss", *TERMS, "gradient_norm", "steps_per_second", *ENDS)
# Those that are drawn where a record has them.
VALIDATED = ("validation", "validation_raw")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a workdir holds; what is missing is empty or None."""

    name: str
    workdir: pathlib.Path
    config: configs.Config
    data: data.Kept | None
    metrics: tuple[dict[str, float], ...]
    evaluation: Evaluation | None
    sessions: tuple[SessionRecord, ...]
    grids: tuple[pathlib.Path, ...]  # of samples, drawn in training
    phases: tuple[Phase, ...]  # none where there is only one

    @property
    def results(self) -> tuple[Result, ...]:
        """Every result of the evaluation."""
        return () if self.evaluation is None else self.evaluation.results

    @property
    def headline(self) -> Result | None:
        """The result shown first."""
        return None if self.evaluation is None else self.evaluation.headline

    @property
    def differential(self) -> bool:
        """Whether the data are real numbers, whose bits are those of a density."""
        return self.config.model.likelihood["name"] == "gaussian"

    def given(self, result: Result) -> tuple[str, ...]:
        """Return what a result is conditioned on, whose bits are then not counted."""
        return () if result.origin.unconditional else self.conditions

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the network is conditioned on in words: the class, a vector, a field."""
        network = self.config.model.network
        found = ["the class"] if self.class_conditional else []
        found += ["a vector"] if network.get("cond_dim") else []
        return (*found, *(["a field"] if network.get("cond_channels") else []))

    @property
    def class_conditional(self) -> bool:
        """Whether the network is conditioned on the class."""
        num_classes, name = self.config.model.network.get("num_classes"), self.config.data.augment
        if num_classes is None or name == "none":
            return num_classes is not None
        return self.data is not None and num_classes != augment.num_flags(name, self.data.shape)


def read(workdir: pathlib.Path, name: str | None = None) -> Run:
    """Return what a workdir holds; raises UserError where it holds no run, or a damaged file."""
    if not workdir.is_dir():
        raise UserError(f"no such workdir: {workdir}")
    config = configs.load(workdir)
    return Run(
        name=workdir.name or workdir.resolve().name if name is None else name,
        workdir=workdir,
        config=config,
        data=data.kept(workdir) if (workdir / data.DATA_FILE).exists() else None,
        metrics=_metrics(workdir / METRICS_FILE),
        evaluation=files.read(workdir),
        sessions=sessions.read(workdir),
        grids=_grids(workdir / "samples"),
        phases=phases.read(workdir),
    )


def step_of(path: pathlib.Path) -> int:
    """Return the step at which a grid of samples was drawn; a million has more digits."""
    return int(path.stem.removeprefix("step_"))


def _grids(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Return the grids of samples in order; other files are ignored."""
    found = folder.glob("step_*.png")
    return tuple(sorted((p for p in found if p.stem[len("step_") :].isdecimal()), key=step_of))


def _metrics(path: pathlib.Path) -> tuple[dict[str, float], ...]:
    """Return the records of training; the last line of a run that was killed may be incomplete."""
    if not path.exists():
        return ()
    check_is_file(path)
    try:
        lines = path.read_text(errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    whole = [line for line in lines if line.endswith("\n")]
    return tuple(_metric(line, Place(path, f"line {i}")) for i, line in enumerate(whole, start=1))


def _metric(line: str, place: Place) -> dict[str, float]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place.path} is damaged: {place.key}: {error}") from error
    if isinstance(value, dict):  # what is not drawn may be anything
        value = {name: value[name] for name in (*DRAWN, *VALIDATED) if name in value}
    found = document.read(dict[str, float], value, place)
    for name in DRAWN:
        if name not in found:
            raise place.missing(name, "a finite number")
    return found
