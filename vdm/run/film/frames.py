"""What the model takes the data to be, at several noise levels on the way of each sample."""

import dataclasses
import functools
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm import draws, samplers
from vdm.condition import Condition as Given, Conditions, take
from vdm.diffusion import alpha, convert
from vdm.model import VDM, Params
from vdm.run import keys, mesh as meshes, sample
from vdm.run.config import SampleConfig
from vdm.run.config.schema import COLUMNS
from vdm.run.errors import UserError
from vdm.run.keys import Key
from vdm.run.run import Run
from vdm.run.system.progress import bar
from vdm.run.training import checks
from vdm.samplers import Sampler


class Film(NamedTuple):
    """Frames [n, columns, *shape] as data, and the noise level λ of each column, [columns].

    A frame is x̂(z, λ), the data that the denoiser expects, and that of the last column the sample.
    """

    x: np.ndarray
    log_snrs: np.ndarray


def positions(num_steps: int, columns: int) -> tuple[int, ...]:
    """Return which of num_steps + 1 noise levels the columns show, evenly, both ends too.

    Raises UserError for fewer than two columns, and for more than there are levels.
    """
    problem = COLUMNS.problem("--trajectory", columns)
    if problem is None and columns > num_steps + 1:
        problem = (
            f"--trajectory must be at most {num_steps + 1}, the noise levels of {num_steps} steps: "
            f"got {columns}"
        )
    if problem is not None:
        raise UserError(problem)
    return tuple(int(i) for i in np.linspace(0, num_steps, columns).round())


def condition(run: Run, num: int, given: Conditions | None) -> Given | None:
    """Return what the model is given of each of `num` samples: these conditions, or the usual."""
    if given is None:
        return run.condition.of_samples(np.arange(num))
    return run.condition.of_parts(num, given)


def draw(
    run: Run,
    num: int,
    columns: int,
    settings: SampleConfig,
    *,
    cond: Given | None,
    key: Key | None = None,
) -> Film:
    """Return the film of `num` samples: those that `vdm.run.sample.chunks` draws with these values.

    `cond` is the condition of each sample. Raises UserError as `chunks` and as `positions`.
    """
    checks.check_sampling(run.model, settings)
    numbers = keys.data(settings.seed if key is None else key)
    size = meshes.padded(run.mesh, min(num, settings.batch_size))
    fixed, here = _fixed(run, settings, columns, size), meshes.rows_here(run.mesh, size)
    parts: list[np.ndarray] = []
    with bar("sample", num) as advance:
        for start in range(0, num, size):
            index = start + here
            given = take(cond, np.minimum(index, num - 1))
            batch = meshes.put(run.mesh, size, here, (index, given))
            x, log_snrs = (np.asarray(part) for part in _draw(run.params, numbers, *batch, **fixed))
            sample.check_finite(x, run, settings, "frames")
            parts.append(np.moveaxis(x, 0, 1))
            advance(
                min(num, start + size),
                f"{settings.sampler}, {settings.num_steps} steps, {columns} columns",
            )
    return Film(np.concatenate(parts)[:num], log_snrs)


class _Fixed(TypedDict):
    """What the function that draws a film is compiled for."""

    model: VDM
    shape: tuple[int, ...]
    sampler: Sampler
    settings: SampleConfig
    kept: tuple[int, ...]
    mesh: Mesh


def _fixed(run: Run, settings: SampleConfig, columns: int, size: int) -> _Fixed:
    # Key and batch size do not belong to the settings of a program.
    return _Fixed(
        model=run.model,
        shape=(size, *run.shape),
        sampler=checks.sampler(settings.sampler),
        settings=dataclasses.replace(settings, seed=0, batch_size=1),
        kept=positions(settings.num_steps, columns),
        mesh=run.mesh,
    )


def lowered(
    run: Run, settings: SampleConfig, columns: int, size: int, batch: Any
) -> jax.stages.Lowered:
    """Return the program that draws a film of `size` samples, from shapes alone, not compiled."""
    fixed = _fixed(run, settings, columns, size)
    return _draw.lower(run.params, keys.data(settings.seed), *batch, **fixed)


@functools.partial(
    jax.jit, static_argnames=("model", "shape", "sampler", "settings", "kept", "mesh")
)
def _draw(
    params: Params,
    key: jax.Array | np.ndarray,
    index: jax.Array,
    cond: Given | None,
    *,
    model: VDM,
    shape: tuple[int, ...],
    sampler: Sampler,
    settings: SampleConfig,
    kept: tuple[int, ...],
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    own_keys = keys.of_examples(key, index)
    with meshes.under(mesh), jax.default_matmul_precision(settings.precision):
        eps_fn, log_snrs = sample.denoiser(model, params, cond, settings)
        z = samplers.trajectory(own_keys, eps_fn, log_snrs, shape, sampler=sampler, kept=kept)
        shown = log_snrs[jnp.asarray(kept)]

        def expected(frame: tuple[jax.Array, jax.Array]) -> jax.Array:
            z_t, log_snr = frame
            x_hat = convert(eps_fn(z_t, log_snr), z_t, log_snr, source="eps", target="x")
            return model.likelihood.decode(alpha(log_snr) * x_hat, log_snr)

        before = jax.lax.map(expected, (z[:-1], shown[:-1]))
        if settings.final == "mode":
            last = model.likelihood.decode(z[-1], shown[-1])
        else:
            # The sampler has mixed 0 to num_steps into the key: as `VDM.sample`.
            own = draws.fold_in(own_keys, settings.num_steps + 1)
            last = model.likelihood.draw(own, z[-1], shown[-1])
        x = jnp.concatenate([before, last[None]])
    return jax.lax.with_sharding_constraint((x, shown), meshes.whole(mesh))
