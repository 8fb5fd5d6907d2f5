"""The record of an evaluation as typed values, and the three terms; all in bits per dimension.

The fields are the keys of `evaluation.json`, which `vdm.run.evaluation.files` reads and writes. A
field that is None or False by default is not written then. A field with a default may be absent:
early versions wrote fewer keys.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np

from vdm.run.system.document import FLAT, Count, NotNegative, Whole
from vdm.run.workdir.sessions import Hardware


class Estimate(NamedTuple):
    """A mean over n examples with its standard error, None for a single example."""

    mean: float
    sem: NotNegative | None
    n: Count


class Estimates(NamedTuple):
    """Means over examples, one for each place along λ, with their standard errors."""

    mean: tuple[float, ...]
    sem: tuple[NotNegative, ...] | None


class Terms(NamedTuple):
    """The three terms of the variational bound, in the order of `vdm.VLB`."""

    prior: Estimate
    reconstruction: Estimate
    diffusion: Estimate


TERMS = Terms._fields


class Profile(NamedTuple):
    """The denoiser over λ: the edges of the intervals, the error in each, bits up to each edge."""

    log_snr: tuple[float, ...]
    error: Estimates
    information: Estimates


class IMmse(NamedTuple):
    """−log P(x) by I-MMSE: `between` and `below` the ends of λ; the part `above` is left out."""

    bpd: float
    between: float
    below: float
    above_at_most: float


class Nfe(NamedTuple):
    """The number of evaluations of the network per draw of the ODE: mean and largest."""

    mean: NotNegative
    max: NotNegative


class Paths(NamedTuple):
    """The importance bound of K = num_paths whole paths, and how much looser the VLB is.

    `looser` is the mean of the same paths' negative log-weights, an estimate of the VLB, less the
    bound: not negative for any example.
    """

    num_paths: Count
    bpd: Estimate
    looser: Estimate


@dataclasses.dataclass(frozen=True)
class Origin:
    """What was evaluated: which examples, which parameters, with which noise."""

    dataset: str
    split: str
    num_dims: Count
    step: Whole
    dataset_version: str | None = None
    num_examples: Count | None = None
    params: str | None = None
    seed: int | None = None
    ids_checksum: str | None = None
    unconditional: bool = False  # of a model that can be conditioned on the class
    order: str | None = None  # of sets: whether a density is of the set, or of its points in order
    mean_dims: NotNegative | None = None  # of sets, whose sizes differ: num_dims is the largest

    @property
    def what(self) -> str:
        """The split, and whether its classes were left out."""
        return f"{self.split}, unconditional" if self.unconditional else self.split

    @property
    def averaged(self) -> bool:
        """Whether the parameters are the averaged ones, which early versions always used."""
        return self.params in (None, "ema")


@dataclasses.dataclass(frozen=True)
class VlbResult:
    """The variational bound of a split, T = num_steps; at T = "inf" with its profile over λ."""

    bound: ClassVar[str] = "vlb"
    bpd: Estimate
    terms: Terms
    num_steps: Count | Literal["inf"]
    origin: Annotated[Origin, FLAT]
    levels_per_example: Count = 1
    law: str | None = None  # of λ
    clip_denoised: bool = False
    diffusion_by_steps_law: float | None = None
    profile: Profile | None = None
    i_mmse: IMmse | None = None
    chain: str | None = None  # the variance of a fitted chain, such as "head"
    chain_checksum: str | None = None  # the name of its file in the workdir's folder `chains`
    paths: Paths | None = None
    precision: str | None = None  # how float32 was multiplied, not recorded by early versions

    @property
    def continuous(self) -> bool:
        """Whether it is the bound in continuous time."""
        return self.num_steps == "inf"

    @property
    def chain_name(self) -> str:
        """What a fitted chain is called, such as "head chain"; empty where there is none."""
        if self.chain in (None, "none"):  # with v = 0 only its levels are placed
            return "" if self.chain is None else "chain"
        return f"{self.chain} chain"

    @property
    def by_steps_law(self) -> float | None:
        """The bound with the diffusion term that the 1/T law predicts, None where there is none."""
        if self.diffusion_by_steps_law is None:
            return None
        rest = self.terms.prior.mean + self.terms.reconstruction.mean
        return rest + self.diffusion_by_steps_law

    @property
    def family(self) -> tuple[str, ...]:
        """What results that differ only in T have in common."""
        clipped = "clipped" if self.clip_denoised else ""
        return (self.origin.split, self.bound, clipped, self.chain or "")

    @property
    def size(self) -> float:
        """T, the number in which results of a family differ."""
        return float(self.num_steps)


@dataclasses.dataclass(frozen=True)
class OdeResult:
    """The bound of a split under the probability-flow ODE, with K = num_samples draws."""

    bound: ClassVar[str] = "ode"
    bpd: Estimate
    dequantisation: str | None
    num_samples: Count
    nfe: Nfe
    origin: Annotated[Origin, FLAT]
    divergence: str | None = None
    num_probes: Count | None = None
    probes_sem: NotNegative | None = None  # the part of the standard error that is due to probes
    tolerance: NotNegative | None = None
    ode_steps: Count | None = None
    precision: str | None = None
    moved: NotNegative | None = None  # by rounding; see `vdm.run.evaluation.ode.again`

    @property
    def by_rounding(self) -> bool:
        """Whether rounding moves the answer by more than its standard error."""
        return self.moved is not None and self.bpd.sem is not None and self.moved > self.bpd.sem

    @property
    def family(self) -> tuple[str, ...]:
        """What results that differ only in K have in common."""
        return (self.origin.split, self.bound, self.dequantisation or "")

    @property
    def size(self) -> float:
        """K, the number in which results of a family differ."""
        return float(self.num_samples)


Result = VlbResult | OdeResult


class Taken(NamedTuple):
    """The time, versions and hardware of an evaluation, as far as they were recorded."""

    seconds: NotNegative | None = None
    versions: dict[str, str] | None = None
    hardware: Hardware | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All results of an evaluation, and the one shown first."""

    headline: Result
    results: tuple[Result, ...]
    taken: Taken


def kind(result: Result) -> tuple[str | float, ...]:
    """Return what results of the same bound of the same split have in common."""
    return (*result.family, result.size)


def headline(results: Sequence[Result]) -> Result:
    """Return the result like the first one that has the largest T, or the most draws."""
    alike = [result for result in results if result.family == results[0].family]
    return max(alike, key=lambda result: result.size)


def estimate(values: np.ndarray) -> Estimate:
    """Return mean and standard error of the values of examples [n].

    Examples are independent draws, each with its own noise: their spread holds both the variance
    between examples and that of the Monte Carlo estimate.
    """
    n = len(values)
    sem = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(values.mean()), sem, n)
