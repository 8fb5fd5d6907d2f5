"""The training objective of a config: where to look, what a look weighs, and what is refused."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vdm import laws, noise_levels, weightings
from vdm.choices import unknown
from vdm.laws import LAWS, Law, LawState, ScheduleLaw, Weighting
from vdm.model import VDM
from vdm.noise_levels import NoiseLevels
from vdm.run.config import ObjectiveConfig
from vdm.run.errors import UserError, as_user_error
from vdm.schedules.base import LogSnrFn

DRAWS = {
    "low_discrepancy": noise_levels.low_discrepancy,
    "stratified": noise_levels.stratified,
    "uniform": noise_levels.uniform,
}
WEIGHTINGS: Mapping[str, Callable[..., jax.Array]] = {
    "elbo": weightings.elbo,
    "simple": weightings.simple,
    "v": weightings.v,
    "edm": weightings.edm,
    "edm_monotone": weightings.edm_monotone,
    "min_snr": weightings.min_snr,
    "p2": weightings.p2,
    "sigmoid": weightings.sigmoid,
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective that has been checked against its model."""

    law: Law
    draw: str
    weighting: Weighting | None  # None is the bound
    num_steps: int | None

    @property
    def stratified(self) -> bool:
        """Whether the positions of a batch cover the interval evenly."""
        return self.draw != "uniform"

    def positions(self, key: jax.Array, n: int) -> jax.Array:
        """Return one set of positions for a whole batch, over all devices and micro-batches."""
        return DRAWS[self.draw](key, n)

    def levels(self, state: LawState, log_snr_fn: LogSnrFn, u: jax.Array) -> NoiseLevels:
        """Return the batch's noise levels under the law."""
        return self.law.levels(
            state, log_snr_fn, u, stratified=self.stratified, weighting=self.weighting
        )


def build(config: ObjectiveConfig, model: VDM) -> Objective:
    """Return the objective of a config; raises UserError for a bad name or a bad combination.

    Refused, because they would train something else than what is asked for: learned end
    points with a weighting (narrowing the range lowers a weighted loss at no cost), a
    learned interior whose law of λ is not the schedule's (it has no influence then), and a
    learned interior with finite T (its bound depends on the interior).
    """
    if config.draw not in DRAWS:
        raise UserError(unknown("objective.draw", config.draw, DRAWS))
    law = _construct("law", config.law, LAWS)
    weighting = None
    if config.weighting["name"] != "elbo" or len(config.weighting) > 1:
        weighting = _partial("weighting", config.weighting, WEIGHTINGS)
        with as_user_error("objective.weighting"):
            jax.eval_shape(weighting, jnp.zeros((1,)))
    if config.num_steps == "inf":
        num_steps = None
    elif config.num_steps.isdigit() and int(config.num_steps) > 0:
        num_steps = int(config.num_steps)
    else:
        raise UserError(f"objective.num_steps must be inf or at least 1: got {config.num_steps!r}")

    learned = jax.eval_shape(model.schedule.init, jax.random.key(0))
    learned_shape, learned_ends = bool(learned["shape"]), bool(learned["ends"])
    if weighting is not None and learned_ends:
        raise UserError(
            f"learned end points need the elbo weighting: got {config.weighting['name']!r}; "
            "narrowing the range of λ lowers a weighted loss at no cost"
        )
    if learned_shape and not isinstance(law, ScheduleLaw):
        raise UserError(
            f"a learned interior needs the law 'schedule': got {config.law['name']!r}, under "
            "which the interior has no influence"
        )
    if num_steps is not None and (learned_shape or weighting or not isinstance(law, ScheduleLaw)):
        raise UserError(
            f"objective.num_steps = {num_steps} goes with the elbo weighting, the law 'schedule' "
            "and no learned interior: a bound of finite T depends on λ(t) between the ends"
        )
    return Objective(law, config.draw, weighting, num_steps)


def _construct(what: str, block: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    function = _partial(what, block, options)
    with as_user_error(f"objective.{what}"):
        return function()


def _partial(what: str, block: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    arguments = dict(block)
    name = arguments.pop("name")
    if name not in options:
        raise UserError(unknown(f"objective.{what}", name, options))
    known = [key for key in inspect.signature(options[name]).parameters if key != "log_snr"]
    for key in arguments:
        if key not in known:
            names = [f"objective.{what}.{n}" for n in known]
            if not names:
                raise UserError(f"objective.{what} {name!r} takes no arguments: got {key!r}")
            raise UserError(unknown("config key", f"objective.{what}.{key}", names))
    return functools.partial(options[name], **arguments)


def for_evaluation(name: str, trained_with: Law) -> Law:
    """Return the law that evaluation asks for; "training" is the one of the run itself.

    Raises UserError for an unknown name, and for a histogram that the run does not have.
    """
    if name in ("training", laws.name_of(trained_with)):
        return trained_with
    if name not in LAWS:
        raise UserError(unknown("law", name, ("training", *LAWS)))
    if name == "adaptive":
        raise UserError(
            "the law 'adaptive' has its histogram from training: this run's law is "
            f"{laws.name_of(trained_with)!r}"
        )
    return LAWS[name]()
