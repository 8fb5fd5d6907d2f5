"""Sets: examples of different numbers of points, filled up with padding to one shape.

An example is x [n_max, c] with a mask [n_max], True where there is a point. The mask is a part of
the condition (`vdm.condition.Conditions`): a model of sets is a model of the points given their
number, p(x|n), and the law of the number p(n) makes it a model of the whole,

    log p(x, n) = log p(n) + log p(x|n).

The law is a histogram (`number_law`), or with a condition c a network that is trained with the
model, p(n|c) (`vdm.networks.NumberNetwork`).

With a mask every sum over dimensions is one over points, and what stands in the padding has no
influence on anything. Points are in some order, of which a network of sets takes no notice; the
n! orders of a set are equally probable then, and the density of the set as such, unordered, is
n! times that of any of them: log p({x}) = log n! + log p(x, n).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vdm.choices import unknown
from vdm.condition import Condition, Conditions
from vdm.likelihoods import Likelihood

ORDERS = ("ordered", "unordered")
Mask = Bool[Array | np.ndarray, " b n"]


def mask_of(cond: Condition | None) -> Array | np.ndarray | None:
    """Return the mask of a batch as it is given, None where all examples are of one shape."""
    return cond.mask if isinstance(cond, Conditions) else None


def check_mask(mask: Array | np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise TypeError or ValueError unless the mask fits data of shape [b, n_max, c].

    Where its values are known, every example must have a point.
    """
    if len(shape) != 3:
        raise ValueError(
            f"a mask goes with sets of points, of shape [b, n_max, c]: got data of shape {shape}"
        )
    if mask.dtype != bool:
        raise TypeError(f"a mask must be booleans, True where there is a point: got {mask.dtype}")
    if mask.shape != shape[:2]:
        raise ValueError(
            f"a mask must say of every point if it is there, shape {shape[:2]}: got shape "
            f"{mask.shape}"
        )
    if isinstance(mask, jax.core.Tracer):
        return
    empty = np.flatnonzero(~np.asarray(mask).any(axis=1))
    if empty.size:
        raise ValueError(f"every set must have a point: example {empty[0]} is all padding")


def wiped(values: Num[Array, " b *d"], mask: Mask | None) -> Num[Array, " b *d"]:
    """Return the values with 0 in the padding; without a mask as they are."""
    if mask is None:
        return values
    return jnp.where(jnp.expand_dims(mask, range(2, values.ndim)), values, 0)


def filled(
    x: Num[Array, " b *d"], mask: Mask | None, likelihood: Likelihood
) -> Num[Array, " b *d"]:
    """Return raw data with, in the padding, what a likelihood encodes as 0, or next to 0."""
    if mask is None:
        return x
    zero = likelihood.decode(jnp.zeros(x.shape, float), jnp.zeros(())).astype(x.dtype)
    return jnp.where(mask[..., None], x, zero)


def keys_for(key: Key[Array, "..."], mask: Mask | None) -> Key[Array, "..."]:
    """Return one key per example for sets, by which noise does not depend on the padding."""
    return jax.random.split(key, len(mask)) if mask is not None and key.ndim == 0 else key


def padding_log_prob(
    x: Float[Array, " b n c"],
    mask: Mask,
    likelihood: Likelihood,
    log_snr_max: Float[Array, ""],
) -> Float[Array, " b"]:
    """Return the share of the padding in log p(x) of the ODE, in nats; x is raw data, `filled`.

    To the model the padding is independent of the points, standard normal at every λ, and 0: of
    each of its entries it is log N(0; 0, 1) + log α_0 + log |d encode/dx|.
    """
    _, slope = jax.jvp(likelihood.encode, (x,), (jnp.ones_like(x),))
    each = 0.5 * (jax.nn.log_sigmoid(log_snr_max) - math.log(2.0 * math.pi))
    every = jnp.log(jnp.abs(slope)) + each
    return jnp.sum(jnp.where(mask[..., None], 0.0, every), axis=(1, 2))


def num_dims(mask: Mask, channels: int) -> Int[Array, " b"]:
    """Return the number of dimensions of every example, c for each of its points."""
    return channels * jnp.sum(jnp.asarray(mask), axis=1)


def dims_of(x: Num[Array | np.ndarray, " b *d"], cond: Condition | None) -> int | Int[Array, " b"]:
    """Return the number of dimensions of the examples of a batch; of sets, of each by itself."""
    mask = mask_of(cond)
    return math.prod(x.shape[1:]) if mask is None else num_dims(mask, x.shape[2])


def trimmed(
    x: Num[np.ndarray, " b n c"], mask: Bool[np.ndarray, " b n"]
) -> tuple[Num[np.ndarray, " b m c"], Bool[np.ndarray, " b m"]]:
    """Return the sets with their points first, in their order, and no more padding than they need.

    What was in the padding is gone, 0 is there. However much of it there was, the same arrays come
    out, and so do the same numbers of whatever is computed from them, to the last bit.
    """
    check_mask(mask, x.shape)
    size = int(mask.sum(axis=1).max())
    order = np.argsort(~mask, axis=1, kind="stable")[:, :size]
    kept = np.take_along_axis(mask, order, axis=1)
    points = np.take_along_axis(x, order[..., None], axis=1)
    return np.where(kept[..., None], points, np.zeros((), x.dtype)), kept


def of_lengths(lengths: Int[Array | np.ndarray, " b"], size: int) -> Bool[np.ndarray, " b n"]:
    """Return the mask of examples whose points come first, n_max = `size`.

    Raises ValueError for a length that is not in 1..size.
    """
    found = np.asarray(lengths)
    bad = found[(found < 1) | (found > size)]
    if bad.size:
        raise ValueError(f"a set must have from 1 to {size} points: got {bad[0]}")
    return np.arange(size) < found[:, None]


@dataclasses.dataclass(frozen=True)
class NumberLaw:
    """The law of the number of points, p(n) for n = 1 … n_max; see `number_law`."""

    probs: tuple[float, ...]

    def __post_init__(self) -> None:
        found = np.asarray(self.probs)
        if not (found.ndim == 1 and found.size and np.all(found >= 0) and np.all(found <= 1)):
            raise ValueError(f"probs must be the probabilities of 1, 2, ... points: got {found}")
        if abs(found.sum() - 1.0) > 1e-9:
            raise ValueError(f"the probabilities of all numbers must sum to 1: got {found.sum()}")

    def log_prob(self, number: Int[Array, " b"]) -> Float[Array, " b"]:
        """Return log p(n) in nats, −∞ for a number that is not in 1..n_max."""
        place, inside = _place(number, len(self.probs))
        return jnp.where(inside, jnp.log(jnp.asarray(self.probs))[place], -jnp.inf)

    def quantile(self, u: Float[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the number of points at every u in [0, 1): drawn from the law for uniform u."""
        return _quantiles(np.asarray(self.probs)[None], u)


class NumberLaws(NamedTuple):
    """A law of the number of points for each example, log p(n) for n = 1 … n_max in nats.

    It is what a `vdm.networks.NumberNetwork` says of a batch of conditions.
    """

    log_probs: Float[Array | np.ndarray, " b n"]

    def log_prob(self, number: Int[Array, " b"]) -> Float[Array, " b"]:
        """Return log p(n) in nats, −∞ for a number that is not in 1..n_max."""
        table = jnp.asarray(self.log_probs)
        place, inside = _place(number, table.shape[1])
        found = jnp.take_along_axis(table, place[:, None], axis=1)[:, 0]
        return jnp.where(inside, found, -jnp.inf)

    def quantile(self, u: Float[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the number of points of each example at its u in [0, 1), as `NumberLaw`'s."""
        return _quantiles(np.exp(np.asarray(self.log_probs, np.float64)), u)


def _place(number: Int[Array, " b"], most: int) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Return where in a table from 1 to `most` a number stands, and whether it is there."""
    return jnp.clip(number, 1, most) - 1, (number >= 1) & (number <= most)


def _quantiles(
    probs: Float[np.ndarray, " laws n"], u: Float[np.ndarray, " b"]
) -> Int[np.ndarray, " b"]:
    """Return the quantiles of one law, or of one for each u."""
    ends = np.cumsum(probs, axis=1)
    found = 1 + np.sum(ends <= np.asarray(u)[:, None] * ends[:, -1:], axis=1)
    return np.minimum(found, probs.shape[1])


def number_law(numbers: Int[Array | np.ndarray, " n"], largest: int | None = None) -> NumberLaw:
    """Return the law of the numbers of points of training examples: p(n) ∝ count(n) + ½.

    For n = 1 … `largest`, by default the greatest number there is. The ½ for every n (Krichevsky &
    Trofimov 1981) leaves a finite price to numbers that were not seen. Raises ValueError for no
    examples, and for a number that is not in 1..largest.
    """
    found = np.asarray(numbers)
    if not found.size:
        raise ValueError(
            "the law of the number of points needs at least one example to count: got none"
        )
    most = int(found.max()) if largest is None else largest
    if found.min() < 1 or found.max() > most:
        raise ValueError(
            f"numbers of points must be in 1..{most}: got {found.min()} to {found.max()}"
        )
    counts = np.bincount(found, minlength=most + 1)[1:] + 0.5
    return NumberLaw(tuple((counts / counts.sum()).tolist()))


def number_term(
    law: NumberLaw | NumberLaws, mask: Mask, order: str = "unordered"
) -> Float[Array, " b"]:
    """Return −log p(n), less log n! for a set without an order, in nats, [b].

    Added to the bound of the points given their number, it makes that of the set: "unordered" is
    the density of the set itself, "ordered" that of its points in the order in which they stand.
    Raises ValueError for another order.
    """
    if order not in ORDERS:
        raise ValueError(unknown("order", order, ORDERS))
    number = jnp.sum(jnp.asarray(mask), axis=1)
    nats = -law.log_prob(number)
    if order == "unordered":
        nats = nats - jax.scipy.special.gammaln(number.astype(nats.dtype) + 1.0)
    return nats
