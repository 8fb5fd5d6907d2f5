"""What evaluation, scoring and sampling ask of a run: a model, its parameters and what it takes.

`vdm.run.trained.Trained` has it all. It stands above them in the order of imports, since its
methods call them.
"""

from typing import Protocol, runtime_checkable

from jax.sharding import Mesh

from vdm.laws import Law, LawState
from vdm.model import VDM, Params
from vdm.run.config import Config, EvaluateConfig
from vdm.run.data import side_file, validation
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError
from vdm.run.training import checks


@runtime_checkable
class Run(Protocol):
    """A model with its parameters on a mesh of devices, and the run they come from."""

    @property
    def config(self) -> Config:
        """The config of the run."""
        ...

    @property
    def model(self) -> VDM:
        """The model that the config describes."""
        ...

    @property
    def mesh(self) -> Mesh:
        """The devices to compute on."""
        ...

    @property
    def params(self) -> Params:
        """The model's parameters."""
        ...

    @property
    def step(self) -> int:
        """The step of training that they are of."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        ...

    @property
    def condition(self) -> Condition:
        """What the model is given of an example: its class, how it was augmented."""
        ...

    @property
    def kind(self) -> str:
        """Which parameters these are, "ema" or "raw"."""
        ...

    @property
    def law(self) -> Law:
        """The law of λ in training."""
        ...

    @property
    def law_state(self) -> LawState:
        """The last state of that law."""
        ...


def condition_of(run: Run, settings: EvaluateConfig) -> Condition:
    """Return what the model is given of an example: nothing for an unconditional result."""
    return run.condition.without() if settings.unconditional else run.condition


def refuse_sets(run: Run, what: str) -> None:
    """Raise UserError for a run of sets of points, whose examples are not of one shape."""
    if run.condition.points is not None:
        raise UserError(f"{what} is for examples of one shape, and this run is of sets of points")


def dataset(run: Run, split: str) -> Dataset:
    """Return a split of the run's data set, whose examples are of the kind that it models.

    "validation" is the one that it was watched with while it trained.

    Raises UserError where the data set is not at hand, or holds examples of another kind by now.
    """
    found = validation.load(run.config, split)
    names = run.condition.vector_names
    found = side_file.joined(found, run.config.data.path, run.model.network, names)
    checks.check_data(run.model, run.shape, run.condition, found)
    return found
