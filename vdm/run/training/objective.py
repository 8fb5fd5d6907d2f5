"""The training objective of a config: law of λ, weighting, and which combinations are errors."""

import dataclasses

import jax
import jax.numpy as jnp

from vdm import laws
from vdm.laws import LAWS, Law, LawState, ScheduleLaw, Weighting
from vdm.model import VDM
from vdm.noise_levels import NoiseLevels
from vdm.run.config import ObjectiveConfig, fields
from vdm.run.config.blocks import construct, partial
from vdm.run.config.rules import Word
from vdm.run.config.words import DRAWS, EVALUATION_LAWS, WEIGHTINGS
from vdm.run.errors import UserError, as_user_error
from vdm.schedules.base import LogSnrFn


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

    Errors, because they would not train what the config asks for: learned end points with a
    weighting (narrowing the range lowers a weighted loss at no cost), a learned interior whose law
    of λ is not the schedule's (it has no influence then), and a learned interior with finite T (its
    bound depends on the interior).
    """
    fields.check(config, "objective.")
    law = construct("objective.law", config.law, LAWS)
    weighting = None
    if config.weighting["name"] != "elbo" or len(config.weighting) > 1:
        weighting = partial(
            "objective.weighting", config.weighting, WEIGHTINGS, left_out=("log_snr",)
        )
        with as_user_error("objective.weighting"):
            jax.eval_shape(weighting, jnp.zeros((1,)))
    num_steps = None if config.num_steps == "inf" else int(config.num_steps)
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
            f"objective.num_steps = {num_steps} needs the elbo weighting, the law 'schedule' and "
            "no learned interior: a bound with finite T depends on λ(t) between the ends"
        )
    return Objective(law, config.draw, weighting, num_steps)


def for_evaluation(name: str, trained_with: Law) -> Law:
    """Return the law of an evaluation; "training" is the run's own.

    Raises UserError for a histogram that the run does not have.
    """
    if name in ("training", laws.name_of(trained_with)):
        return trained_with
    if name == "adaptive":
        others = Word([law for law in EVALUATION_LAWS if law != name])
        raise UserError(
            "the law 'adaptive' needs a histogram from training: this run's law is "
            f"{laws.name_of(trained_with)!r}, expected {others}"
        )
    return LAWS[name]()
