"""Training in a notebook: one call for data that fit into memory."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, Num

from vdm import noise_levels as levels
from vdm.condition import Condition, as_arrays, num_rows, take
from vdm.losses import bits_per_dim
from vdm.model import VDM, Params
from vdm.networks import NumberNetwork, wiener
from vdm.noise_levels import NoiseLevels
from vdm.sets import dims_of, mask_of
from vdm.variance import two_gradients

# Positions in [0, 1) as times of the schedule, or noise levels with their density.
LevelsFn = Callable[[jax.Array, int], NoiseLevels | jax.Array]
SHOW_EVERY = 0.5  # seconds between two readings of the loss


def fit(
    model: VDM,
    params: Params,
    x: Num[Array | np.ndarray, " n *d"],
    *,
    key: Key[Array, ""],
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    cond: Condition | None = None,
    noise_levels: LevelsFn | None = None,
    progress: bool = False,
) -> tuple[Params, Float[np.ndarray, " num_steps"]]:
    """Return trained parameters and the loss of every step, in bits per dimension.

    The loss is the negative bound in continuous time (VDM, eq. 11 and 17), one noise level per
    example. A batch is drawn without replacement: every epoch passes through `x` in a new order,
    of which the last n mod batch_size examples are left out. `cond` has one condition per
    example; of sets, with their mask, the loss is the mean over sets of the bits per dimension of
    each, except that a number network learns from −log p(n|c), in which all sets weigh the same.
    `noise_levels(key, batch_size)` gives the times of a batch, or its noise levels with
    their density; by default low-discrepancy times of the schedule. The interior of a learned
    schedule descends the variance of the diffusion term, everything else the bound
    (`vdm.variance`). Dropout is on. `params` is not changed. `progress` shows a bar with the
    step, the time that remains, the rate and the loss.
    Raises ValueError for fewer than one step, a batch_size that is not in 1..n, conditions of
    another number than n, or a set of more points than a number network knows; TypeError for data
    that the likelihood does not model.
    """
    x = jnp.asarray(x)
    cond = as_arrays(cond)
    _check(len(x), num_steps, batch_size, cond)
    _check_numbers(model, cond)
    key_order, key_steps = jax.random.split(key)
    # One function for all calls: a second one with equal parts is not compiled again.
    step = functools.partial(_step, model=model, optimizer=optimizer, noise_levels=noise_levels)
    # The caller's own are not donated. Of a stated dtype, or a weak one would be traced again.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)
    # Copied: some optimisers keep the parameters, and a buffer is not donated twice.
    state, losses = jax.tree.map(jnp.copy, optimizer.init(params)), []
    with _bar(num_steps, shown=progress) as advance:
        for n, index in enumerate(_batches(key_order, len(x), batch_size, num_steps)):
            params, state, loss = step(
                params, state, x, cond, index, jax.random.fold_in(key_steps, n)
            )
            losses.append(loss)
            advance(loss)
    return params, np.asarray(jax.device_get(losses))


@functools.partial(
    jax.jit,
    static_argnames=("model", "optimizer", "noise_levels"),
    donate_argnames=("params", "state"),
)
def _step(
    params: Params,
    state: optax.OptState,
    x: jax.Array,
    cond: Condition | None,
    index: jax.Array,
    key: jax.Array,
    *,
    model: VDM,
    optimizer: optax.GradientTransformation,
    noise_levels: LevelsFn | None,
) -> tuple[Params, optax.OptState, jax.Array]:
    """Return the next parameters and state, in the memory of the last ones, and the loss."""
    key_levels, key_noise, key_dropout = jax.random.split(key, 3)
    batch = jnp.take(x, index, axis=0)
    given = take(cond, index)
    to_bpd = functools.partial(bits_per_dim, num_dims=dims_of(batch, given))

    def levels_of(schedule: Params) -> NoiseLevels:
        draw = levels.low_discrepancy if noise_levels is None else noise_levels
        drawn = draw(key_levels, len(batch))
        if isinstance(drawn, NoiseLevels):
            return drawn
        return levels.from_times(functools.partial(model.schedule.log_snr, schedule), drawn)

    def loss_of(params: Params, where: NoiseLevels) -> tuple[jax.Array, tuple[None, jax.Array]]:
        held, zero = model.number_apart(params, given)
        terms = model.vlb(
            held, key_noise, batch, given, noise_levels=where, dropout_key=key_dropout
        )
        return jnp.mean(to_bpd(terms.total)) + zero, (None, jnp.asarray(to_bpd(terms.diffusion)))

    both = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (loss, _), gradient, _ = two_gradients(both, levels_of, params)
    updates, state = optimizer.update(gradient, state, params)
    updates = wiener.held(model.network, updates)
    return optax.apply_updates(params, updates), state, loss


def _batches(key: jax.Array, size: int, batch_size: int, num_steps: int) -> Iterator[jax.Array]:
    """Yield the examples of every step."""
    per_epoch = size // batch_size
    for n in range(num_steps):
        epoch, place = divmod(n, per_epoch)
        if place == 0:
            order = jax.random.permutation(jax.random.fold_in(key, epoch), size)
        yield order[place * batch_size : (place + 1) * batch_size]


def _check(size: int, num_steps: int, batch_size: int, cond: Condition | None) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1: got {num_steps}")
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size must be from 1 to the {size} examples: got {batch_size}")
    if cond is not None and num_rows(cond) != size:
        raise ValueError(
            f"cond must have one condition for each of {size} examples: got {num_rows(cond)}"
        )


@contextlib.contextmanager
def _bar(num_steps: int, *, shown: bool) -> Iterator[Callable[[jax.Array], None]]:
    """Yield the function to call with the loss of every step; it seldom waits for it."""
    if not shown:
        yield lambda loss: None
        return
    from rich.progress import (  # late: who asks for no bar need not wait for it
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("fit"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    began = looked = time.monotonic()
    done = 0
    with Progress(*columns) as bar:
        task = bar.add_task("fit", total=num_steps, text="")

        def advance(loss: jax.Array) -> None:
            nonlocal done, looked
            done += 1
            now = time.monotonic()
            if now - looked > SHOW_EVERY or done == num_steps:
                text = f"{done / (now - began):.1f} steps/s  loss {float(loss):.3f} bpd"
                bar.update(task, completed=done, text=text)
                looked = now

        yield advance


def _check_numbers(model: VDM, cond: Condition | None) -> None:
    """Raise ValueError for a set that has no probability: the loss would be no number."""
    mask, law = mask_of(cond), model.number_law
    if mask is None or not isinstance(law, NumberNetwork):
        return
    most = int(np.asarray(mask).sum(axis=1).max())
    if most > law.largest:
        raise ValueError(
            f"the number network knows up to {law.largest} points (largest): got a set of {most}"
        )
