"""The bound of examples at many conditions, with the same noise for every condition.

A set is K noise levels, at even times of the schedule with one random offset, and at each of them
the two draws ε and −ε. Sets are independent, so that the spread of their means is the error; the
levels within one are not. All conditions of an example see its very same noise: what the noise
does to all of them alike falls out of every difference.

Why pairs: where ε̂ is linear in z, the error ε − ε̂ is a part linear in ε and a part that depends on
x and θ, and the mean over ±ε has no product of the two. For Gaussian x the pair's mean depends on θ
through a part without noise, and even times integrate that part almost exactly.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from vdm import condition as conditions, draws, losses, noise_levels as levels
from vdm.condition import Condition
from vdm.few_steps import bound as chains
from vdm.few_steps.chain import Chain
from vdm.model import VDM, Params
from vdm.networks.condition import Kinds, checked
from vdm.ode.options import check_count

Data = Num[Array | np.ndarray, " n *d"]


def bounds(
    model: VDM,
    params: Params,
    keys: Key[Array, " n"],
    x: Num[Array, " n *d"],
    conds: Condition,
    num_steps: int | None,
    chain: Chain | None,
    *,
    num_sets: int,
    num_levels: int,
    batch_size: int,
) -> Float[Array, " n r m"]:
    """Return −VLB(x_i|θ_j), the mean over the draws of each of r sets, in nats."""
    steps = None if num_steps is None else jnp.asarray(num_steps)  # traced: all T, one compilation
    sizes = {"num_sets": num_sets, "num_levels": num_levels}
    moving = diffusion(
        params, keys, x, conds, steps, chain, model=model, batch_size=batch_size, **sizes
    )
    return moving + constants(params, keys, x, chain, model=model, **sizes)[..., None]


@functools.partial(jax.jit, static_argnames=("model", "num_sets", "num_levels", "batch_size"))
def diffusion(
    params: Params,
    keys: Key[Array, " n"],
    x: Num[Array, " n *d"],
    conds: Condition,
    num_steps: Int[Array, ""] | None,
    chain: Chain | None,
    *,
    model: VDM,
    num_sets: int,
    num_levels: int,
    batch_size: int,
) -> Float[Array, " n r m"]:
    """Return the diffusion term of the bounds, all of it that depends on θ."""
    encoded = model.likelihood.encode(x)
    shape = (len(x), num_sets, num_levels, conditions.num_rows(conds))
    key_t, key_eps, _ = draws.split(keys, 3)
    times = jax.vmap(
        jax.vmap(functools.partial(levels.low_discrepancy, n=num_levels)),
    )(numbered(key_t, num_sets)).astype(encoded.dtype)
    keys_eps = numbered(key_eps, num_sets * num_levels).reshape(shape[:3])
    clip = chain is not None and chain.clip_denoised

    def pairs(row: Int[Array, " b"]) -> Float[Array, " b"]:
        i, r, k, j = jnp.unravel_index(row, shape)
        noise = draws.normal(keys_eps[i, r, k], (len(row), *x.shape[1:]), encoded.dtype)
        both, i, j = jnp.concatenate([noise, -noise]), jnp.tile(i, 2), jnp.tile(j, 2)
        eps_fn = model.denoiser(params, conditions.take(conds, j), clip_denoised=clip)
        t = jnp.tile(times[i[: len(row)], r, k], 2)
        if chain is not None:
            step = losses.step_of(t, chain.num_steps)
            found = chains.diffusion_loss(encoded[i], step, both, chain, eps_fn)
        elif num_steps is not None:
            step = losses.step_of(t, num_steps)
            found = losses.diffusion_loss_steps(
                encoded[i], step, both, model.log_snr(params), eps_fn, num_steps=num_steps
            )
        else:
            found = losses.diffusion_loss(encoded[i], t, both, model.log_snr(params), eps_fn)
        return jnp.mean(found.reshape(2, -1), axis=0)

    found = in_batches(pairs, shape, max(1, batch_size // 2))
    return jnp.mean(found, axis=2)


@functools.partial(jax.jit, static_argnames=("model", "num_sets", "num_levels"))
def constants(
    params: Params,
    keys: Key[Array, " n"],
    x: Num[Array, " n *d"],
    chain: Chain | None,
    *,
    model: VDM,
    num_sets: int,
    num_levels: int,
) -> Float[Array, " n r"]:
    """Return prior and reconstruction term, with as many draws as the diffusion term."""
    dtype = model.likelihood.encode(x[:1]).dtype
    if chain is None:
        low, high = (model.log_snr(params)(jnp.asarray(t, dtype)) for t in (1.0, 0.0))
    else:
        low, high = (jnp.asarray(chain.log_snrs, dtype)[n] for n in (0, -1))
    _, _, key_0 = draws.split(keys, 3)

    def one(given: tuple[Key[Array, ""], Num[Array, "*d"]]) -> Float[Array, " r"]:
        key, example = given
        noise = jax.random.normal(key, (num_sets * 2 * num_levels, *example.shape), dtype)
        raw = jnp.broadcast_to(example, noise.shape)
        lost = losses.reconstruction(raw, noise, high, model.likelihood)
        prior = losses.prior_kl(model.likelihood.encode(example[None]), low)
        return jnp.mean(lost.reshape(num_sets, -1), axis=1) + prior

    return jax.lax.map(one, (key_0, x))


def in_batches(
    fn: Callable[[Int[Array, " b"]], Float[Array, " b"]], shape: tuple[int, ...], batch_size: int
) -> Float[Array, "*shape"]:
    """Return fn(0 … N − 1) in this shape of N entries, evaluated in batches of equal size.

    A gradient passes through a batch once more, and keeps nothing of the others.
    """
    num = int(np.prod(shape))
    num_batches = -(-num // batch_size)
    if num_batches == 1:
        return fn(jnp.arange(num)).reshape(shape)
    rows = jnp.arange(num_batches * -(-num // num_batches))
    rows = jnp.minimum(rows, num - 1).reshape(num_batches, -1)
    return jax.lax.map(jax.checkpoint(fn), rows).reshape(-1)[:num].reshape(shape)


def numbered(keys: Key[Array, " n"], num: int) -> Key[Array, " n num"]:
    """Return `num` keys of each key, the first of them the same for every `num`."""
    return jax.vmap(lambda n: draws.fold_in(keys, n), out_axes=1)(jnp.arange(num))


def check(
    model: VDM,
    x: Data,
    key: Key[Array, "..."],
    conds: Condition | None,
    num_steps: int | None = None,
    chain: Chain | None = None,
) -> tuple[Num[Array, " n *d"], Key[Array, " n"], Condition]:
    """Return data, keys of examples and conditions as arrays, or raise what `profile` does."""
    x, keys = check_data(model, x, key, num_steps, chain)
    return x, keys, check_conditions(model, conds, x.shape[1:])


def check_data(
    model: VDM, x: Data, key: Key[Array, "..."], num_steps: int | None, chain: Chain | None
) -> tuple[Num[Array, " n *d"], Key[Array, " n"]]:
    """Return data as an array and a key for each example, or raise what `profile` does."""
    x = jnp.asarray(x)
    if x.ndim == 0 or not len(x):
        raise ValueError(f"x must be at least one example, [n, *d]: got shape {x.shape}")
    draws.check_key(key, len(x))
    model.likelihood.encode(x)  # under jit the values of integers cannot be looked at
    if chain is not None and num_steps is not None:
        raise ValueError(
            f"a chain takes the place of num_steps: got num_steps={num_steps} and a chain of "
            f"{chain.num_steps} steps"
        )
    if num_steps is not None:
        check_count("num_steps", num_steps)
    return x, jax.random.split(key, len(x)) if key.ndim == 0 else key


def check_conditions(model: VDM, conds: Condition | None, shape: tuple[int, ...]) -> Condition:
    """Return conditions as arrays; raises TypeError or ValueError where the network takes none."""
    if getattr(model.network, "masked", False):
        raise ValueError(
            "vdm.inference is for examples of one shape: got a network of sets of points, "
            f"{type(model.network).__name__}"
        )
    conds = conditions.as_arrays(conds)
    parts = jax.tree.leaves(conds)
    if conds is None or not parts or any(part.ndim == 0 for part in parts):
        got = "None" if conds is None or not parts else "a single one"
        raise ValueError(f"conds must be m conditions, batch axis first: got {got}")
    num = conditions.num_rows(conds)
    if num == 0:
        raise ValueError("conds must be m conditions, m at least 1: got none")
    network = model.network
    kinds = Kinds(
        num_classes=getattr(network, "num_classes", None),
        cond_dim=getattr(network, "cond_dim", None),
        cond_channels=getattr(network, "cond_channels", None),
        optional=getattr(network, "optional_cond", False),
    )
    if kinds.names:
        checked(conds, (num, *shape), kinds)
    return conds


def check_samples(num_samples: int, num_sets: int, least: int, batch_size: int) -> int:
    """Return the number of levels in a set, K = num_samples / (2 num_sets), or raise ValueError."""
    check_count("batch_size", batch_size)
    check_count("num_samples", num_samples)
    check_count("num_sets", num_sets)
    if num_sets < least:
        raise ValueError(f"an error needs at least {least} independent sets: got {num_sets}")
    if num_samples % (2 * num_sets):
        raise ValueError(
            f"num_samples must be a multiple of {2 * num_sets}, for {num_sets} sets of pairs ±ε: "
            f"got {num_samples}"
        )
    return num_samples // (2 * num_sets)
