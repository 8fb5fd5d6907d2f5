"""The options of a solve as values: how the divergence is taken, and which steps are made.

    divergence = "exact" | "hutchinson" | hutchinson(num_probes=4)
    steps      = None | 32 | adaptive(rtol=1e-5, atol=1e-5)

A value holds only what belongs together, so the exact divergence has no probes and fixed
steps have no tolerances. Equal values have equal hashes: a function jitted with one as a static
argument is compiled once for all of them.
"""

import dataclasses
import math

import numpy as np

TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """The trace estimated from probes; see `hutchinson`."""

    num_probes: int = 1

    def __post_init__(self) -> None:
        check_count("num_probes", self.num_probes)


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Steps that adapt to the local error; see `adaptive`."""

    rtol: float = TOLERANCE
    atol: float = TOLERANCE

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite: got {value}")


Divergence = str | Hutchinson
Steps = int | Adaptive | None


def hutchinson(num_probes: int = 1) -> Hutchinson:
    """Return the estimate of a trace by `num_probes` products with the Jacobian.

    tr J = E[vᵀ J v] for entries ±1 of v, drawn once for a whole solve (Hutchinson 1990;
    Grathwohl et al. 2019, FFJORD). Raises ValueError unless num_probes is a whole number of
    at least 1.
    """
    return Hutchinson(num_probes)


def adaptive(rtol: float = TOLERANCE, atol: float = TOLERANCE) -> Adaptive:
    """Return steps as long as the local error δ allows, |δ| ≤ atol + rtol |z|.

    The size of δ is its root mean square over z, and its largest entry over the
    log-densities, in nats. Raises ValueError for a tolerance that is not positive and finite.
    """
    return Adaptive(rtol, atol)


def of_keywords(
    divergence: Divergence = "exact",
    steps: Steps = None,
    num_probes: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    num_steps: int | None = None,
) -> tuple[Divergence, Steps]:
    """Return divergence and steps as values, from them or from the older four keywords.

    Raises ValueError for both spellings of one option, for probes of the exact divergence,
    for tolerances of fixed steps, and for numbers that the values refuse.
    """
    if num_probes is not None:
        if isinstance(divergence, Hutchinson):
            raise ValueError(
                f"the probes are given twice: got divergence={divergence} with "
                f"num_probes={num_probes}, expected divergence=ode.hutchinson({num_probes}) alone"
            )
        if divergence == "exact":
            raise ValueError(
                f"the exact divergence takes no probes: got num_probes={num_probes} "
                "(did you mean divergence='hutchinson'?)"
            )
        # An unknown name is refused where the probes are drawn.
        divergence = Hutchinson(num_probes) if divergence == "hutchinson" else divergence
    older = {"num_steps": num_steps, "rtol": rtol, "atol": atol}
    given = {name: value for name, value in older.items() if value is not None}
    if not given:
        return divergence, steps
    words = ", ".join(f"{name}={value}" for name, value in given.items())
    if steps is not None:
        raise ValueError(f"the steps are given twice: got steps={steps} with {words}")
    if num_steps is None:
        return divergence, Adaptive(**given)
    if len(given) > 1:
        raise ValueError(
            f"fixed steps have no tolerances: got {words}, expected either num_steps or tolerances"
        )
    check_count("num_steps", num_steps)
    return divergence, num_steps


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless the value is a whole number of at least 1."""
    if not (isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1: got {value!r}")
