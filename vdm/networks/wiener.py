"""The Wiener filter: the best linear estimate of x from z, which a network is given beside z.

Of data with mean m and covariance C = U diag(s) Uᵀ it is

    x̂(z, λ) = m + U diag(α s/(α² s + σ²)) Uᵀ (z − α m),    α² = sigmoid(λ), σ² = sigmoid(−λ),

which for Gaussian data is the mean of p(x|z) (Bishop 2006, "Pattern Recognition and Machine
Learning", eq. 2.116). It sees all of z at once, where a few convolutions see a part of it. m, U and
s are measured once, from training examples, and are parameters that no step changes.

"full" has a covariance of all numbers of an example. "stationary" is for fields in which it depends
only on the displacement between two places, and not on its sign along an axis: then cosines
diagonalise it along an axis with ends (padding "zero"), if each field goes on as its mirror image,
and sines and cosines along one that closes (padding "wrap"). For each frequency there is a
covariance of the channels. Of other data "stationary" is an approximation.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm.choices import unknown
from vdm.diffusion import alpha, expand, sigma

NAME = "wiener"  # of the module among a network's, and of its parameters
KINDS = ("none", "stationary", "full")
# Numbers of an example in "full", places along an axis in "stationary": their square is kept.
LARGEST = 4096

Batches = Iterable[Float[Array | np.ndarray, "..."]]


class Statistics(NamedTuple):
    """Mean of the data, and the eigenvectors (columns) and eigenvalues of their covariances.

    With "full" for all numbers of an example, d = [] and m of them; with "stationary" for the m
    channels at each frequency, *d of them.
    """

    mean: Float[Array | np.ndarray, " *size"]
    basis: Float[Array | np.ndarray, " *d m m"]
    variance: Float[Array | np.ndarray, " *d m"]


class Wiener(nn.Module):
    """The filter as part of a network; `padding` has a word for each spatial axis of z.

    Its parameters are those of `Statistics`. Before they are measured they say that the data are
    white noise of variance 1, of which x̂ is αz.
    """

    kind: str
    padding: tuple[str, ...]

    @nn.compact
    def __call__(
        self, z: Float[Array, " b *size c"], log_snr: Float[Array, " b"]
    ) -> Float[Array, " b *size c"]:
        size = z.shape[1:]
        form = (math.prod(size),) if self.kind == "full" else size
        if max(form[:-1] or form) > LARGEST:
            what = "an example's numbers" if self.kind == "full" else "the places along an axis"
            raise ValueError(
                f"wiener={self.kind!r} keeps the square of {what}: expected at most {LARGEST}, got "
                f"{max(form[:-1] or form)}"
            )
        starts: dict[str, Callable[[], Array]] = {
            "mean": lambda: jnp.zeros(size, jnp.float32),
            "basis": lambda: jnp.broadcast_to(
                jnp.eye(form[-1], dtype=jnp.float32), (*form, form[-1])
            ),
            "variance": lambda: jnp.ones(form, jnp.float32),
        }
        found = {
            name: jax.lax.stop_gradient(self.param(name, lambda _, made=made: made()))
            for name, made in starts.items()
        }
        return estimate(Statistics(**found), z, log_snr, self.padding)


def check_kind(kind: str, kinds: Sequence[str] = KINDS) -> None:
    """Raise ValueError for a kind of filter that there is not, or that a network does not take."""
    if kind not in kinds:
        raise ValueError(unknown("wiener", kind, kinds))


def estimated(
    kind: str, padding: tuple[str, ...], z: Float[Array, " b *size c"], log_snr: Float[Array, " b"]
) -> Float[Array, " b *size c"] | None:
    """Return what a filter of a kind makes of z, None for "none"; a child of the calling module."""
    return None if kind == "none" else Wiener(kind, padding, name=NAME)(z, log_snr)


# On accelerators too: close to the clean end x̂ and z differ by little.
@jax.default_matmul_precision("highest")
def estimate(
    statistics: Statistics,
    z: Float[Array, " b *size c"],
    log_snr: Float[Array, " b"],
    padding: Sequence[str],
) -> Float[Array, " b *size c"]:
    """Return x̂ = m + U diag(α s/(α² s + σ²)) Uᵀ (z − α m), of z's shape and precision.

    z has shape [b, *size, c] and λ shape [b]; `padding` has a word for each axis of `size`, and
    counts for statistics of the kind "stationary" only. Raises ValueError for another number of λ.
    """
    mean, basis, variance = (jnp.asarray(part, z.dtype) for part in statistics)
    full = variance.ndim == 1 and z.ndim > 2
    matrices = [] if full else _matrices(z.shape[1:-1], padding)
    apart = z - expand(alpha(log_snr), z) * mean[None]
    h = apart.reshape(len(z), -1) if full else _turned(apart, matrices)
    h = jnp.einsum("b...c,...cm->b...m", h, basis)
    at, noise, variance = expand(alpha(log_snr), h), expand(sigma(log_snr), h), variance[None]
    h = at * variance / (at**2 * variance + noise**2) * h
    h = jnp.einsum("b...m,...cm->b...c", h, basis)
    return mean[None] + (h.reshape(z.shape) if full else _turned(h, [m.T for m in matrices]))


def measured(batches: Batches, kind: str, padding: Sequence[str]) -> Statistics:
    """Return the statistics of encoded examples, that come in batches, in float64.

    Raises ValueError for fewer than two examples, with "full" for no more than an example has
    numbers, and for an unknown kind.
    """
    check_kind(kind)
    count, total, second = 0, np.zeros(()), np.zeros(())
    size: tuple[int, ...] = ()
    matrices: list[np.ndarray] = []
    for batch in batches:
        z = np.asarray(batch, np.float64)
        size = z.shape[1:] or (1,)
        if kind == "full":
            h = z.reshape(len(z), -1)
        else:
            matrices = _matrices(size[:-1], padding)
            h = _turned(z, matrices)
        columns = np.moveaxis(h, 0, -1)
        count, total = count + len(z), total + h.sum(axis=0)
        second = second + columns @ np.swapaxes(columns, -1, -2)
    check_number(count, math.prod(size), kind)
    mean = total / count
    wrapped = [axis for axis, word in enumerate(padding) if word == "wrap"]
    if kind == "stationary":
        for axis in wrapped:
            # Nothing depends on where along it something is: only the constant wave has a mean.
            np.moveaxis(mean, axis, 0)[1:] = 0.0
    covariance = second / count - mean[..., :, None] * mean[..., None, :]
    if kind == "stationary":
        for axis in wrapped:
            covariance = _turned(covariance[None], [_pooled(size[axis])], axis + 1)[0]
        mean = _turned(mean[None], [m.T for m in matrices])[0]
    variance, basis = np.linalg.eigh(covariance)
    return Statistics(mean.reshape(size), basis, np.maximum(variance, 0.0))


def check_number(count: int, num_dims: int, kind: str) -> None:
    """Raise ValueError where there are too few examples to measure the statistics from."""
    least = max(2, num_dims + 1) if kind == "full" else 2
    if count < least:
        raise ValueError(
            f"wiener={kind!r} needs at least {least} examples of {num_dims} numbers to be measured "
            f"from: got {count}" + ("; 'stationary' needs fewer" if kind == "full" else "")
        )


def fitted(network: object, params: Any, batches: Batches) -> Any:
    """Return the parameters of a model with the statistics that its network's filter needs.

    `params` is a tree as `VDM.init` gives it, `batches` are encoded examples
    (`model.likelihood.encode`). Raises ValueError for a network without a filter, and as
    `measured`.
    """
    statistics = measured_for(network, batches)._asdict()
    own = params["network"][NAME]
    placed = {name: jnp.asarray(statistics[name], own[name].dtype) for name in own}
    return {**params, "network": {**params["network"], NAME: placed}}


def measured_for(network: object, batches: Batches) -> Statistics:
    """Return the statistics that a network's filter needs; raises ValueError as `fitted`."""
    kind = of(network)
    if kind == "none":
        kinds = " or ".join(KINDS[1:])
        raise ValueError(
            f"{type(network).__name__} has no filter: expected one with wiener={kinds}"
        )
    return measured(batches, kind, padding_of(network))


def padding_of(network: Any) -> tuple[str, ...]:
    """Return the padding of each axis of a network that has a filter."""
    found: tuple[str, ...] = network.wiener_padding
    return found


def of(network: object) -> str:
    """Return the kind of a network's filter, "none" where it has none."""
    kind = getattr(network, "wiener", "none")
    # A network of the user's own may mean something else by the name.
    own = isinstance(network, nn.Module) and hasattr(network, "wiener_padding")
    return kind if own else "none"


def held(network: object, updates: Any) -> Any:
    """Return updates of a model's parameters that leave its statistics as they are."""
    if of(network) == "none":
        return updates
    own = jax.tree.map(jnp.zeros_like, updates["network"][NAME])
    return {**updates, "network": {**updates["network"], NAME: own}}


def _turned(h: Any, matrices: Sequence[np.ndarray], first: int = 1) -> Any:
    """Return h with its axes from `first` on multiplied by a matrix each."""
    xp = np if isinstance(h, np.ndarray) else jnp
    for axis, matrix in enumerate(matrices, start=first):
        made = xp.tensordot(xp.asarray(matrix, dtype=h.dtype), h, axes=(1, axis))
        h = xp.moveaxis(made, 0, axis)
    return h


def _matrices(sizes: Sequence[int], padding: Sequence[str]) -> list[np.ndarray]:
    """Return for each axis the orthogonal matrix whose rows are its waves."""
    waves = {"zero": _cosines, "wrap": _circle}
    return [waves[word](n) for word, n in zip(padding, sizes, strict=True)]


def _cosines(n: int) -> np.ndarray:
    """Return the discrete cosine transform (DCT-II) of n places, [n, n], orthogonal."""
    k, place = np.arange(n)[:, None], np.arange(n) + 0.5
    scale = np.where(k == 0, 1.0, 2.0) / n
    return np.sqrt(scale) * np.cos(math.pi * k * place / n)


def _circle(n: int) -> np.ndarray:
    """Return the discrete Fourier transform of n real places, [n, n], orthogonal.

    Row 0 is constant, rows 2k − 1 and 2k are the cosine and the sine of k turns.
    """
    row, place = np.arange(n)[:, None], np.arange(n)
    k = (row + 1) // 2
    angle = 2 * math.pi * ((k * place) % n) / n
    scale = np.where((k == 0) | (2 * k == n), 1.0, 2.0) / n
    return np.sqrt(scale) * np.where((row % 2 == 1) | (k == 0), np.cos(angle), np.sin(angle))


def _pooled(n: int) -> np.ndarray:
    """Return the matrix that takes the mean of what a sine and a cosine of equal turns have."""
    k = (np.arange(n) + 1) // 2
    same = (k[:, None] == k).astype(np.float64)
    return same / same.sum(axis=1, keepdims=True)
