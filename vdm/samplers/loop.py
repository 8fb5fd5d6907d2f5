"""Walking a grid of noise levels with a sampler, one compiled loop for all steps."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vdm import draws
from vdm.choices import choose
from vdm.losses import EpsFn
from vdm.samplers.base import Carry, Sampler
from vdm.samplers.dpmpp import dpmpp_2m
from vdm.samplers.edm import heun
from vdm.samplers.first_order import ancestral, ddim

State = tuple[Float[Array, " b *d"], Carry]

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "heun": heun,
}


def sample(
    key: Key[Array, "..."],
    eps_fn: EpsFn,
    log_snrs: Float[Array, " n"],
    shape: tuple[int, ...],
    *,
    sampler: str | Sampler = "ancestral",
    start: Float[Array, " b *d"] | None = None,
) -> Float[Array, " b *d"]:
    """Return z_0 of the given shape, batch axis first, at noise level log_snrs[-1].

    `log_snrs` is an increasing grid of λ from noise to data (see `vdm.samplers.grids`) and
    each interval costs one step. z begins as standard normal noise, or as `start`, a z at
    level log_snrs[0]: so diffusion may start at any noise level. `key` is one key or one key per
    example; with keys per example, example i depends on key i alone. `sampler` is a name, which
    takes its defaults, or a value. All is in the precision of `log_snrs`. Raises ValueError for an
    unknown sampler, a start or keys that do not fit the shape, a grid of fewer than two entries or
    (where its values are known before compilation) one that is not finite or does not increase;
    TypeError for a key that is not a typed one.
    """
    chosen, z = begin(key, log_snrs, shape, sampler, start)
    step = _stepper(key, eps_fn, log_snrs, shape, chosen)
    return jax.lax.fori_loop(0, log_snrs.shape[0] - 1, step, (z, chosen.init(z)))[0]


def trajectory(
    key: Key[Array, "..."],
    eps_fn: EpsFn,
    log_snrs: Float[Array, " n"],
    shape: tuple[int, ...],
    *,
    sampler: str | Sampler = "ancestral",
    start: Float[Array, " b *d"] | None = None,
    kept: Sequence[int] | None = None,
) -> Float[Array, " kept b *d"]:
    """Return every z of the trajectory, entry i at noise level log_snrs[i].

    The first entry is the noise or `start`, the last is what `sample` returns for the same
    arguments. With `kept`, increasing positions in log_snrs, those entries alone are held in
    memory. Raises ValueError for other positions, and as `sample`.
    """
    chosen, z = begin(key, log_snrs, shape, sampler, start)
    step = _stepper(key, eps_fn, log_snrs, shape, chosen)
    if kept is not None:
        stops = _positions(kept, log_snrs.shape[0])

        def walk(state: State, ends: Int[Array, "2"]) -> tuple[State, Float[Array, " b *d"]]:
            state = jax.lax.fori_loop(ends[0], ends[1], step, state)
            return state, state[0]

        walks = jnp.asarray(np.stack([np.append(0, stops[:-1]), stops], axis=1))
        return jax.lax.scan(walk, (z, chosen.init(z)), walks)[1]

    def record(state: State, n: Int[Array, ""]) -> tuple[State, Float[Array, " b *d"]]:
        state = step(n, state)
        return state, state[0]

    _, later = jax.lax.scan(record, (z, chosen.init(z)), jnp.arange(log_snrs.shape[0] - 1))
    return jnp.concatenate([z[None], later])


def begin(
    key: Key[Array, "..."],
    log_snrs: Float[Array, " n"],
    shape: tuple[int, ...],
    sampler: str | Sampler,
    start: Float[Array, " b *d"] | None = None,
) -> tuple[Sampler, Float[Array, " b *d"]]:
    """Return the sampler as a value and the first z, once all arguments are checked.

    The errors are those of `sample`.
    """
    if isinstance(sampler, str):
        sampler = choose("sampler", sampler, SAMPLERS)()
    if not shape:
        raise ValueError("a shape must have a batch axis first: got ()")
    draws.check_key(key, shape[0])
    _check_grid(log_snrs)
    if start is None:
        return sampler, draws.normal(draws.fold_in(key, 0), shape, log_snrs.dtype)
    if start.shape != tuple(shape):
        raise ValueError(f"start must have the shape of the samples, {shape}: got {start.shape}")
    return sampler, jnp.asarray(start, log_snrs.dtype)


def _stepper(
    key: Key[Array, "..."],
    eps_fn: EpsFn,
    log_snrs: Float[Array, " n"],
    shape: tuple[int, ...],
    sampler: Sampler,
) -> Callable[[Array, State], State]:
    def step(n: Int[Array, ""], state: State) -> State:
        noise = draws.normal(draws.fold_in(key, n + 1), shape, log_snrs.dtype)
        return sampler.step(eps_fn, *state, noise, log_snrs[n], log_snrs[n + 1])

    return step


def _positions(kept: Sequence[int], size: int) -> np.ndarray:
    found = np.asarray(kept)
    if not (
        found.ndim == 1
        and found.size
        and found.dtype.kind in "iu"
        and np.all(np.diff(found, prepend=-1) > 0)
        and found[-1] < size
    ):
        raise ValueError(
            f"kept must be increasing positions among the {size} noise levels, from 0 to "
            f"{size - 1}: got {list(kept)}"
        )
    return found


def _check_grid(log_snrs: Float[Array, "..."]) -> None:
    if log_snrs.ndim != 1:
        raise ValueError(
            f"log_snrs must have one axis, the noise levels: got an array of shape {log_snrs.shape}"
        )
    if log_snrs.shape[0] < 2:
        raise ValueError(f"sampling needs at least one step: got a grid of {log_snrs.shape[0]}")
    if isinstance(log_snrs, jax.core.Tracer):
        return
    levels = np.asarray(log_snrs)
    if not np.all(np.isfinite(levels)):
        raise ValueError(f"log_snrs must be finite: got {levels[~np.isfinite(levels)][0]}")
    falls = np.flatnonzero(np.diff(levels) <= 0)
    if falls.size:
        first, second = levels[falls[0]], levels[falls[0] + 1]
        raise ValueError(
            f"log_snrs must increase strictly, from noise to data: got {first} before {second}"
        )
