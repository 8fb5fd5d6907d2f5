"""Filling in what is missing of partly known examples, one key per sample."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from vdm import draws, samplers
from vdm.condition import Condition as Given, Conditions, take
from vdm.model import VDM, Params
from vdm.run import keys, mesh as meshes, sample as samples
from vdm.run.config import SampleConfig
from vdm.run.config.schema import RESAMPLE, TIMES
from vdm.run.data import asked, chosen
from vdm.run.data.beside import Called
from vdm.run.errors import UserError
from vdm.run.filling import known as partly
from vdm.run.filling.known import Known
from vdm.run.keys import Key
from vdm.run.run import Run, refuse_sets
from vdm.run.system.ahead import one_ahead
from vdm.run.system.progress import bar
from vdm.run.training import build, checks
from vdm.samplers import Sampler


def condition(
    run: Run, num: int, given: Conditions | None, called: Called = chosen.IN_ALL
) -> Given | None:
    """Return what the model is given of each of `num` samples.

    Raises UserError for a conditional model without a condition: one of its own choice would be
    another example's.
    """
    if given is not None:
        return run.condition.of_parts(num, given)
    if run.condition.names:
        raise asked.missing(run.condition, num, called)
    return run.condition.of_samples(np.arange(num))


def of_keys(
    run: Run,
    known: ArrayLike,
    mask: ArrayLike,
    cond: ArrayLike | Conditions | None,
    *,
    num: int | None,
    key: Key,
    resample: int,
    values: Mapping[str, Any],
) -> np.ndarray:
    """Return what `vdm.run.trained.Trained.inpaint` does; of `values` any may be None."""
    refuse_sets(run, "filling in")
    found = partly.check(run, known, mask)
    num = partly.number(found, num, 1)
    settings = dataclasses.replace(
        run.config.sample, **{name: value for name, value in values.items() if value is not None}
    )
    own = None if cond is None else samples.conditions_of(run, cond, num)
    given = condition(run, num, own, Called("cond", "cond", "cond"))
    return fill(run, found, num, settings, cond=given, resample=resample, key=key)


def fill(
    run: Run,
    known: Known,
    num: int,
    settings: SampleConfig,
    *,
    cond: Given | None,
    resample: int = RESAMPLE,
    key: Key | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return `num` samples as data [num, *shape], whose known entries are those of the examples.

    Sample i is of example i modulo their number, and depends only on the key and on i; the key is
    that of the settings' seed where none is given. `cond` is the condition of each sample. Raises
    UserError as `vdm.run.sample.chunks`, for a resample < 1 and for samples that are not finite.
    """
    checks.check_sampling(run.model, settings)
    if (problem := TIMES.problem("resample", resample)) is not None:
        raise UserError(problem)
    mesh, numbers = run.mesh, keys.data(settings.seed if key is None else key)
    size = meshes.padded(mesh, min(num, settings.batch_size))
    fixed, here = _fixed(run, settings, resample), meshes.rows_here(mesh, size)

    def dispatched(start: int) -> jax.Array:
        index = start + here
        rows = np.minimum(index, num - 1)  # the last batch is filled up
        of = rows % len(known.x)
        batch = (index, known.x[of], known.mask[of], take(cond, rows))
        batch = meshes.put(mesh, size, here, batch)
        return _draw(run.params, numbers, *batch, **fixed)

    drawn: list[np.ndarray] = []
    shown = bar("fill", num) if progress else contextlib.nullcontext(lambda done, text: None)
    with shown as advance:
        for batch in one_ahead(dispatched(start) for start in range(0, num, size)):
            x = np.asarray(batch)
            samples.check_finite(x, run, settings, "samples")
            drawn.append(x)
            text = f"{settings.sampler}, {settings.num_steps} steps, each {resample} times"
            advance(min(num, sum(map(len, drawn))), text)
    made = np.concatenate(drawn)[:num]
    of = np.arange(num) % len(known.x)
    # The model's own entries there have been encoded and decoded, which rounds real numbers.
    return np.where(known.mask[of], known.x[of], made)


class _Fixed(TypedDict):
    """What the function that fills in is compiled for."""

    model: VDM
    sampler: Sampler
    settings: SampleConfig
    resample: int
    mesh: Mesh


def _fixed(run: Run, settings: SampleConfig, resample: int) -> _Fixed:
    # Key and batch size do not belong to the settings of a program.
    return _Fixed(
        model=run.model,
        sampler=checks.sampler(settings.sampler),
        settings=dataclasses.replace(settings, seed=0, batch_size=1),
        resample=resample,
        mesh=run.mesh,
    )


def lowered(run: Run, settings: SampleConfig, resample: int, batch: Any) -> jax.stages.Lowered:
    """Return the program of a batch, from shapes alone (see `rows`), not compiled."""
    fixed = _fixed(run, settings, resample)
    return _draw.lower(run.params, keys.data(settings.seed), *batch, **fixed)


def rows(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one row of what the program takes beside conditions: index, example, mask."""
    x = build.blank(run.model, run.shape)
    return np.zeros(1, np.int64), x, x > 0


@functools.partial(jax.jit, static_argnames=("model", "sampler", "settings", "resample", "mesh"))
def _draw(
    params: Params,
    key: jax.Array | np.ndarray,
    index: jax.Array,
    x: jax.Array,
    mask: jax.Array,
    cond: Given | None,
    *,
    model: VDM,
    sampler: Sampler,
    settings: SampleConfig,
    resample: int,
    mesh: Mesh,
) -> jax.Array:
    own_keys = keys.of_examples(key, index)
    with meshes.under(mesh), jax.default_matmul_precision(settings.precision):
        eps_fn, log_snrs = samples.denoiser(model, params, cond, settings)
        encoded = model.likelihood.encode(x)
        z_0 = samplers.inpaint(
            own_keys, eps_fn, log_snrs, encoded, mask, sampler=sampler, resample=resample
        )
        if settings.final == "mode":
            made = model.likelihood.decode(z_0, log_snrs[-1])
        else:
            # The sampler has mixed 0 to num_steps × resample into the key.
            last = draws.fold_in(own_keys, settings.num_steps * resample + 1)
            made = model.likelihood.draw(last, z_0, log_snrs[-1])
    whole: jax.Array = jax.lax.with_sharding_constraint(made, meshes.whole(mesh))
    return whole
