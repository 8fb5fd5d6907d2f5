"""The bits of examples under a trained run, each with its Monte Carlo error."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Num, PyTree, UInt32
from numpy.typing import ArrayLike

from vdm import noise_levels
from vdm.condition import Condition as Given
from vdm.laws import Law
from vdm.losses import VLB
from vdm.model import VDM, Params
from vdm.run import keys, mesh as meshes
from vdm.run.config import EvaluateConfig, fields
from vdm.run.config.rules import Word, split_words
from vdm.run.config.words import BOUNDS
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError
from vdm.run.evaluation import bound as bounds, ode, rows, units
from vdm.run.keys import Key
from vdm.run.run import Run
from vdm.run.scoring import given
from vdm.run.training.objective import for_evaluation

KEPT = 8  # programs, for as many runs, numbers of levels and meshes
FEWEST_LEVELS = 2  # with which a Monte Carlo error can be estimated


class Scores(NamedTuple):
    """Bits per dimension of examples, [n], and their Monte Carlo errors, [n], float64.

    `terms` [n, 3] are prior, reconstruction and diffusion, whose sum is the variational bound; None
    for the bound of the ODE. An error is NaN where it cannot be estimated: with one noise level,
    one random probe, or one draw of an integer's position in its bin.
    """

    bpd: np.ndarray
    error: np.ndarray
    terms: np.ndarray | None


def score(
    run: Run,
    x: ArrayLike,
    cond: given.Cond = None,
    *,
    key: Key,
    bound: str = "vlb",
    levels_per_example: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Scores:
    """Return the scores of any number of examples; see `vdm.run.trained.Trained.score`."""
    asked = {"levels_per_example": levels_per_example, "batch_size": batch_size}
    settings = settings_of(run, bound, {name: n for name, n in asked.items() if n is not None})
    data, condition = given.batch(run, x, cond)
    return of_dataset(run, data, condition, settings, key, what="score" if progress else None)


def settings_of(run: Run, bound: str, asked: Mapping[str, Any]) -> EvaluateConfig:
    """Return the settings of the run's evaluation for one bound, with those that are asked for.

    Two noise levels for each example are the fewest, unless one is asked for. Raises UserError for
    an unknown bound and for a value that its field does not take.
    """
    own = run.config.evaluate
    settings = dataclasses.replace(
        own, bound=bound, levels_per_example=max(FEWEST_LEVELS, own.levels_per_example)
    )
    settings = dataclasses.replace(settings, **asked)
    problem = Word(BOUNDS).problem("bound", bound)
    if problem is not None:
        raise UserError(problem)
    fields.check(settings, "")
    return settings


def of_dataset(
    run: Run,
    data: Dataset,
    condition: Condition,
    settings: EvaluateConfig,
    key: Key,
    *,
    what: str | None,
) -> Scores:
    """Return the scores of all examples of a data set, with a bar that is called `what`.

    They are the numbers that an evaluation of these examples keeps, from the same function of a
    row: the noise of an example follows from the key and its position. Raises UserError for an
    option that does not fit the model, and for a bound that is not finite.
    """
    numbers = keys.data(key)
    if settings.bound == "vlb":
        return _vlb(run, data, condition, settings, numbers, what)
    return _ode(run, data, condition, settings, numbers, what)


# One program for all calls with the same model, levels and batch size.
_vlb_rows = functools.lru_cache(maxsize=KEPT)(bounds.compiled)
_ode_rows = functools.lru_cache(maxsize=KEPT)(ode.compiled)


def _vlb(
    run: Run,
    data: Dataset,
    condition: Condition,
    settings: EvaluateConfig,
    key: np.ndarray,
    what: str | None,
) -> Scores:
    law, levels = for_evaluation(settings.law, run.law), settings.levels_per_example
    precision = settings.precision
    found = rows.of_examples(
        _vlb_rows(run.model, law, run.mesh, num_levels=levels, precision=precision),  # type: ignore[arg-type]  # frozen
        bounds.state(run, None, key),
        run.mesh,
        data,
        condition,
        per_example=levels,
        batch_size=settings.batch_size,
        what=what,
        show=lambda done: bounds.so_far(done, data, levels),
        problem=bounds.NOT_FINITE,
        fill=True,
    )
    terms = bounds.at_levels(found, data.dims).terms
    means, error = terms.mean(1), bounds.error(terms)
    return Scores(means.sum(1), np.full(len(data), np.nan) if error is None else error, means)


def _ode(
    run: Run,
    data: Dataset,
    condition: Condition,
    settings: EvaluateConfig,
    key: np.ndarray,
    what: str | None,
) -> Scores:
    num_samples, dequantisation = ode_draws(run, settings)
    # What the program does not depend on, so that it is the same one.
    fixed = dataclasses.replace(
        settings,
        num_samples=str(num_samples),
        seed=0,
        batch_size=1,
        levels_per_example=1,
        precision=ode.PRECISION,
    )
    fn = _ode_rows(run.model, run.mesh, fixed, dequantisation)
    ode.check_rows(fn, run, data, condition)
    found = rows.of_examples(
        fn,
        ode.state(run, key),
        run.mesh,
        data,
        condition,
        per_example=1,
        batch_size=settings.batch_size,
        what=what,
        show=lambda done: ode.so_far(done, data),
        problem=ode.NOT_FINISHED,
        fill=True,
    )
    weights = ode.weights(found)
    error = ode.error(weights, settings, dequantisation)
    bpd = ode.bound(weights, num_samples, data.dims)
    return Scores(bpd, units.in_bits(error, data.dims), None)


def ode_draws(run: Run, settings: EvaluateConfig) -> tuple[int, str | None]:
    """Return the number of draws K and the dequantisation of an ODE's score.

    They are the largest K of the settings, and the first dequantisation; one draw and None for real
    numbers.
    """
    if run.model.likelihood.levels is None:
        return 1, None
    return ode.most_draws(settings), split_words(settings.dequantisation)[0]


def vlb(run: Run, x: ArrayLike, cond: given.Cond = None, *, key: Key) -> VLB:
    """Return one estimate of the bound's terms; see `vdm.run.trained.Trained.vlb`."""
    data, condition = given.batch(run, x, cond)
    return _estimate(
        run.params,
        run.law_state,
        keys.data(key),
        data.x,
        condition.of_examples(data.take(np.arange(len(data)))),
        model=run.model,
        law=run.law,
        mesh=run.mesh,
        precision=run.config.evaluate.precision,
    )


@functools.partial(jax.jit, static_argnames=("model", "law", "mesh", "precision"))
def _estimate(
    params: Params,
    law_state: PyTree,
    key: UInt32[Array | np.ndarray, " k"],
    x: Num[Array, " b *d"],
    cond: Given | None,
    *,
    model: VDM,
    law: Law,
    mesh: Mesh,
    precision: str,
) -> VLB:
    key_u, key_order, key_noise = jax.random.split(keys.of(key), 3)
    # Neighbours in the batch are not to have neighbouring noise levels.
    u = jax.random.permutation(key_order, noise_levels.low_discrepancy(key_u, x.shape[0]))
    with meshes.under(mesh), jax.default_matmul_precision(precision):
        levels = law.levels(law_state, model.log_snr(params), u, stratified=True)
        terms = model.vlb(params, key_noise, x, cond, noise_levels=levels)
    return jax.lax.with_sharding_constraint(terms, meshes.whole(mesh))
