"""How much the latents know about the data: the profile of the error and its integrals.

Information and estimation are two sides of one thing. With ε* = E[ε|z_λ],

    d I(x; z_λ)/dλ = ½ E‖ε − ε*‖²      (I-MMSE: Guo, Shamai & Verdú 2005)

and the same holds for each x alone, where I becomes KL(q(z_λ|x) ‖ q(z_λ)) (Kong, Brekelmans
& Ver Steeg 2023). So one curve, E‖ε − ε̂‖² over λ, holds the mutual information at every
level and the log-likelihood of every example. A denoiser that is not exact can only raise
the curve in the mean over data: each integral below is then an upper bound in the mean.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vdm import draws
from vdm.losses import EpsFn, noise_error


class Curve(NamedTuple):
    """A quantity along λ for every example: log_snr [n], increasing, and values [n, b]."""

    log_snr: Float[Array, " n"]
    values: Float[Array, " n b"]

    @property
    def mean(self) -> Float[Array, " n"]:
        """The mean over examples."""
        return jnp.mean(self.values, axis=1)

    @property
    def standard_error(self) -> Float[Array, " n"]:
        """The standard error of that mean; not a number for a single example."""
        return jnp.std(self.values, axis=1, ddof=1) / math.sqrt(self.values.shape[1])


class Pointwise(NamedTuple):
    """A value of −log p(x) in nats, each [b]: the integral between the ends, and its tails.

    `below` and `above` are what the ends cut off, to leading order.
    """

    nats: Float[Array, " b"]
    below: Float[Array, " b"]
    above: Float[Array, " b"]

    @property
    def total(self) -> Float[Array, " b"]:
        """The integral with both tails put back."""
        return self.nats + self.below + self.above


def profile(
    key: Key[Array, "..."],
    x: Float[Array, " b *d"],
    log_snrs: Float[Array, " n"],
    eps_fn: EpsFn,
    *,
    num_draws: int = 1,
) -> Curve:
    """Return an estimate of E‖ε − ε̂(z_λ, λ)‖² for every example and λ of an increasing grid.

    x is encoded data. Each entry averages `num_draws` independent draws of ε, also
    independent between levels; `key` is one key or one key per example.
    Raises ValueError for a grid that is empty or (where its values are known before
    compilation) does not increase, for num_draws < 1 and for keys that do not fit.
    """
    draws.check_key(key, x.shape[0])
    _check_grid(log_snrs, at_least=1)
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1: got {num_draws}")

    def error(index: Int[Array, ""]) -> Float[Array, " b"]:
        eps = draws.normal(draws.fold_in(key, index), x.shape, x.dtype)
        return noise_error(x, eps, log_snrs[index // num_draws], eps_fn)

    # One level after the other: the memory is that of a single call of the denoiser.
    errors = jax.lax.map(error, jnp.arange(log_snrs.shape[0] * num_draws))
    return Curve(log_snrs, jnp.mean(errors.reshape(-1, num_draws, x.shape[0]), axis=1))


def mmse_x(log_snrs: Float[Array, " n"], errors: Float[Array, " n b"]) -> Curve:
    """Return the error in x, E‖x − x̂‖² = e^{−λ} E‖ε − ε̂‖², from a profile of the error in ε.

    Its mean is the minimum mean squared error with the exact denoiser, and an upper bound
    of it with any other. Raises ValueError for a grid that does not fit.
    """
    _check_curve(log_snrs, errors, at_least=1)
    return Curve(log_snrs, jnp.exp(-log_snrs)[:, None] * errors)


def mutual_information(log_snrs: Float[Array, " n"], errors: Float[Array, " n b"]) -> Curve:
    """Return I(x; z_λ) − I(x; z_{λ_min}) = ½ ∫ E‖ε − ε*‖² dλ in nats, for each λ of the grid.

    `errors` is a profile's, E‖ε − ε̂‖². The integral is the trapezoid rule's, and it is run for
    each example alone, so the standard error knows how values along λ go together; the
    rule's own error, of the order of the spacing squared, is not in it. What lies below
    the grid is at most ½ E‖x − E x‖² e^{λ_min}. The values of one example are
    KL(q(z_λ|x) ‖ q(z_λ)), less the same at λ_min, in the mean over ε.
    Raises ValueError for a grid of fewer than two levels or one that does not fit.
    """
    _check_curve(log_snrs, errors, at_least=2)
    return Curve(log_snrs, _running(log_snrs, 0.5 * errors))


def pointwise_discrete(
    log_snrs: Float[Array, " n"], errors: Float[Array, " n b"], *, levels: int
) -> Pointwise:
    """Return −log P(x) = ½ ∫ E‖ε − ε*‖² dλ for each x of discrete data, in nats.

    Over all λ this is exact (Kong, Brekelmans & Ver Steeg 2023). Between finite ends
    the integral lacks, exactly,

        below   KL(q(z|x) ‖ q(z)) at λ_min    = ½ e^{λ_min} ‖x − E x‖² (1 + O(e^{λ_min}))
        above   E[−log q(x|z) | x] at λ_max   > 0

    `below` is ½ E‖ε − ε̂‖² at λ_min. The integrand falls like exp(−e^λ Δ²/8) at the top, where
    Δ = 2/levels is the distance of neighbours in data encoded by `discretised(levels)`;
    `above` is 4 e^{−λ_max}/Δ² times the error at λ_max. It is somewhat too large, and noisy
    where errors are rare: `tail_bound` bounds the mean without any.
    Raises ValueError for levels < 2 and for a grid as in `mutual_information`.
    """
    _check_curve(log_snrs, errors, at_least=2)
    spacing = _spacing(levels)
    return Pointwise(
        nats=_running(log_snrs, 0.5 * errors)[-1],
        below=0.5 * errors[0],
        above=4.0 * jnp.exp(-log_snrs[-1]) / spacing**2 * errors[-1],
    )


def tail_bound(
    num_dims: int, log_snr_max: Float[Array, ""] | float, *, levels: int
) -> Float[Array, ""]:
    """Return a bound of E[−log q(x|z)] at λ_max for discrete data of any law, in nats.

    It is 2 D Σ_k exp(−e^{λ_max} Δ² k²/8) over k = 1 .. levels − 1, Δ = 2/levels: the entropy of
    x given z is at most the sum of those of x_i given z_i, each at most
    Σ √(P(x_i) P(x_i')) exp(−e^{λ_max} (x_i − x_i')²/8) over the pairs x_i ≠ x_i', since
    log(1 + u) ≤ √u (Bhattacharyya's bound), and √(PP') is at most the mean of P and P'.
    Raises ValueError for levels < 2.
    """
    distance = _spacing(levels) * jnp.arange(1, levels)
    closeness = jnp.exp(-0.125 * jnp.exp(jnp.asarray(log_snr_max)) * jnp.square(distance))
    return 2.0 * num_dims * jnp.sum(closeness)


def pointwise_density(
    log_snrs: Float[Array, " n"], errors: Float[Array, " n b"], variances: Float[Array, " d"]
) -> Pointwise:
    """Return −log p(x) for each x of data with a density, in nats of the encoded x.

    Held against Gaussian data of the given variances v_i > 0, one per dimension of x,

        −log p(x) = ½ Σ log(2πe v_i) + ½ ∫ [E‖ε − ε*‖² − Σ sigmoid(λ + log v_i)] dλ

    over all λ, for any v (Kong, Brekelmans & Ver Steeg 2023; v = 1 is the form with
    D sigmoid(λ)). The eigenvalues of the data's covariance leave the least to integrate.
    Between finite ends the integral lacks

        below   ½ e^{λ_min} (‖x − E x‖² − Σ v_i)                         + O(e^{2 λ_min})
        above   ½ e^{−λ_max} (Σ 1/v_i + 2 Δ log p(x) + ‖∇ log p(x)‖²)    + O(e^{−2 λ_max})

    the second for a smooth density. The integrand being proportional to e^{±λ} there,
    both are its value at that end, with the noise that the errors have there.
    Raises ValueError for variances that are not positive (where their values are known
    before compilation) and for a grid as in `mutual_information`.
    """
    _check_curve(log_snrs, errors, at_least=2)
    if not isinstance(variances, jax.core.Tracer) and not np.all(np.asarray(variances) > 0):
        raise ValueError(f"variances must be positive: the smallest is {np.min(variances)}")
    shifted = log_snrs[:, None] + jnp.log(variances)[None]
    excess = 0.5 * (errors - jnp.sum(jax.nn.sigmoid(shifted), axis=1)[:, None])
    entropy = 0.5 * jnp.sum(jnp.log(2.0 * math.pi * math.e * variances))
    return Pointwise(
        nats=entropy + _running(log_snrs, excess)[-1], below=excess[0], above=excess[-1]
    )


def _running(log_snrs: Float[Array, " n"], values: Float[Array, " n b"]) -> Float[Array, " n b"]:
    """Return the integral of values [n, b] from the first level to each, by trapezoids."""
    areas = 0.5 * jnp.diff(log_snrs)[:, None] * (values[1:] + values[:-1])
    return jnp.concatenate([jnp.zeros_like(values[:1]), jnp.cumsum(areas, axis=0)])


def _spacing(levels: int) -> float:
    if levels < 2:
        raise ValueError(f"levels must be at least 2: got {levels}")
    return 2.0 / levels


def _check_curve(
    log_snrs: Float[Array, "..."], errors: Float[Array, "..."], *, at_least: int
) -> None:
    _check_grid(log_snrs, at_least=at_least)
    if errors.ndim != 2 or errors.shape[0] != log_snrs.shape[0]:
        raise ValueError(
            f"errors must have shape [levels, examples], ({log_snrs.shape[0]}, b): got "
            f"{errors.shape}"
        )


def _check_grid(log_snrs: Float[Array, "..."], *, at_least: int) -> None:
    if log_snrs.shape[0] < at_least:
        raise ValueError(
            f"expected at least {at_least} noise levels: got a grid of {log_snrs.shape[0]}"
        )
    if not isinstance(log_snrs, jax.core.Tracer) and not np.all(np.diff(log_snrs) > 0):
        raise ValueError("log_snrs must increase strictly, from noise to data")
