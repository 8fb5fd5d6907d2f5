"""A control variate for the bound: the best linear denoiser, whose error is known.

For data of mean μ and covariance C = U diag(v) Uᵀ the best denoiser linear in z is that of
Gaussian data, ε̂ = σ (α² C + σ² I)⁻¹ (z − α μ). With y = Uᵀ(x − μ), n = Uᵀ ε,

    ε − ε̂ = U (g n − k y)      g = sigmoid(λ + log v),  k = e^{λ/2} sigmoid(−λ − log v)

so its error ‖ε − ε̂‖² = Σ (g n − k y)² follows the network's from draw to draw, and is
known in the mean: given x and λ, given x alone, and over data of these two moments.
A control is the error less a mean, so it is zero in the mean; an estimate less c times a
control has the same mean for every fixed c, and for c = Cov/Var the least variance. Fit c
(`cross_fitted`) rather than take 1: the closer the data are to Gaussian, the nearer c is to 1
and the more is gained, but far from it c = 1 adds many times what there was to take away.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm.diffusion import expand
from vdm.noise_levels import NoiseLevels


class Control(NamedTuple):
    """The two moments of flattened data: mean [d], eigenvectors [d, d] in columns, eigenvalues."""

    mean: Float[Array, " d"]
    eigenvectors: Float[Array, " d d"]
    eigenvalues: Float[Array, " d"]


def gaussian_control(x: Float[Array, " b *d"], *, floor: float = 0.0) -> Control:
    """Return the mean and the covariance's eigen-decomposition of encoded training data.

    Eigenvalues below `floor` are raised to it: where the training data never vary, an
    example that does would have an error of the order of e^λ. The controls are unbiased
    for any floor. The cost is that of a D×D eigen-decomposition, once.
    Raises ValueError for fewer than two examples and for a negative floor.
    """
    if x.shape[0] < 2:
        raise ValueError(f"a covariance needs at least two examples: got {x.shape[0]}")
    if not floor >= 0:
        raise ValueError(f"floor must not be negative: got {floor}")
    flat = x.reshape(x.shape[0], -1)
    mean = jnp.mean(flat, axis=0)
    centred = flat - mean[None]
    covariance = jnp.matmul(centred.T, centred, precision="highest") / x.shape[0]
    eigenvalues, eigenvectors = jnp.linalg.eigh(covariance)
    # Rounding makes the zero eigenvalues of rank-deficient data slightly negative.
    return Control(mean, eigenvectors, jnp.maximum(eigenvalues, floor))


def linear_error(
    control: Control,
    x: Float[Array, " b *d"],
    eps: Float[Array, " b *d"],
    log_snr: Float[Array, "..."],
) -> Float[Array, " b"]:
    """Return ‖ε − ε̂‖² = Σ (g n − k y)² of the linear denoiser at this noise."""
    of_noise, of_data = _shares(control, x, log_snr)
    noise = _project(control, eps.reshape(eps.shape[0], -1))
    return jnp.sum(jnp.square(of_noise * noise - of_data), axis=1)


def linear_error_given_x(
    control: Control, x: Float[Array, " b *d"], log_snr: Float[Array, "..."]
) -> Float[Array, " b"]:
    """Return the linear denoiser's E‖ε − ε̂‖² = Σ (g² + k² y²) over ε, for each x."""
    of_noise, of_data = _shares(control, x, log_snr)
    return jnp.sum(jnp.square(of_noise) + jnp.square(of_data), axis=1)


def linear_error_mean(control: Control, log_snr: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the linear denoiser's E‖ε − ε̂‖² = Σ g over ε and data of these two moments.

    It is the minimum mean squared error of Gaussian data, and bounds that of all data of
    the same moments from above; it is exact for the training data, not for others.
    """
    log_snr = jnp.asarray(log_snr)[..., None]
    log_variance = jnp.log(control.eigenvalues).reshape((1,) * (log_snr.ndim - 1) + (-1,))
    return jnp.sum(jax.nn.sigmoid(log_snr + log_variance), axis=-1)


def linear_diffusion(
    control: Control,
    x: Float[Array, " b *d"],
    log_snr_max: Float[Array, ""] | float,
    log_snr_min: Float[Array, ""] | float,
) -> Float[Array, " b"]:
    """Return the linear denoiser's diffusion term ½ ∫ E‖ε − ε̂‖² dλ for each x, in nats.

    With s = λ + log v it is ½ Σ [softplus(s) − sigmoid(s) + y² e^λ sigmoid(−s)], taken
    between the ends. With prior and reconstruction added it is the bound of the best
    Gaussian model, a baseline without any training.
    """
    log_variance = jnp.log(control.eigenvalues)
    squares = jnp.square(_project(control, x.reshape(x.shape[0], -1) - control.mean[None]))

    def antiderivative(log_snr: Float[Array, ""]) -> Float[Array, " b"]:
        shifted = log_snr + log_variance
        constant = jnp.sum(jax.nn.softplus(shifted) - jax.nn.sigmoid(shifted))
        return 0.5 * (constant + squares @ (jnp.exp(log_snr) * jax.nn.sigmoid(-shifted)))

    high, low = (jnp.asarray(end, squares.dtype) for end in (log_snr_max, log_snr_min))
    return antiderivative(high) - antiderivative(low)


def noise_control(
    control: Control, x: Float[Array, " b *d"], levels: NoiseLevels, eps: Float[Array, " b *d"]
) -> Float[Array, " b"]:
    """Return ½/p(λ) (‖ε − ε̂‖² − E[‖ε − ε̂‖² | x, λ]), zero in the mean over ε for every x and λ.

    It belongs to `losses.diffusion_loss_at` at the same x, levels and eps. What it takes
    away is the share of ε. Its coefficient may depend on λ and on x.
    """
    apart = linear_error(control, x, eps, levels.log_snr) - linear_error_given_x(
        control, x, levels.log_snr
    )
    return 0.5 * levels.inverse_density * apart


def level_control(
    control: Control,
    x: Float[Array, " b *d"],
    levels: NoiseLevels,
    eps: Float[Array, " b *d"],
    *,
    log_snr_max: Float[Array, ""] | float,
    log_snr_min: Float[Array, ""] | float,
) -> Float[Array, " b"]:
    """Return ½/p(λ) ‖ε − ε̂‖² − ½ ∫ E‖ε − ε̂‖² dλ, zero in the mean over λ and ε for every x.

    Every level must have been drawn from all of [λ_min, λ_max] with the density that
    `levels` states. What it takes away is the share of ε and of λ; its coefficient may
    depend on x, not on λ.
    """
    drawn = 0.5 * levels.inverse_density * linear_error(control, x, eps, levels.log_snr)
    return drawn - linear_diffusion(control, x, log_snr_max, log_snr_min)


def cross_fitted(
    values: Float[Array, " b"], controls: Float[Array, " b"], *, num_folds: int = 5
) -> Float[Array, " b"]:
    """Return values − c · controls, with each example's c fitted on the other folds.

    c = Σ (value − mean) control / Σ control², the coefficient of least variance of a control
    that is zero in the mean. Example i is in fold i mod num_folds, and its own draw has no
    part in its c: with independent examples each result has exactly the mean of its
    value, which a c fitted on all of them would spoil by O(1/b).
    Raises ValueError for num_folds < 2 or more folds than examples.
    """
    n = values.shape[0]
    if not 2 <= num_folds <= n:
        raise ValueError(
            f"num_folds must be from 2 to the number of examples, {n}: got {num_folds}"
        )
    fold = jnp.arange(n) % num_folds

    def coefficient(k: Int[Array, ""]) -> Float[Array, ""]:
        others = (fold != k).astype(values.dtype)
        centred = values - jnp.sum(others * values) / jnp.sum(others)
        square = jnp.sum(others * jnp.square(controls))
        # A control that is zero throughout has nothing to take away.
        return jnp.sum(others * centred * controls) / jnp.where(square > 0, square, 1.0)

    return values - jax.vmap(coefficient)(jnp.arange(num_folds))[fold] * controls


def _shares(
    control: Control, x: Float[Array, " b *d"], log_snr: Float[Array, "..."]
) -> tuple[Float[Array, " _ n"], Float[Array, " b n"]]:
    """Return g, [1 or b, d], and k y, [b, d]: what is left of noise and of data in the error."""
    flat = x.reshape(x.shape[0], -1)
    level = expand(log_snr, flat)
    shifted = level + jnp.log(control.eigenvalues)[None]
    leak = jnp.exp(0.5 * level) * jax.nn.sigmoid(-shifted)
    return jax.nn.sigmoid(shifted), leak * _project(control, flat - control.mean[None])


def _project(control: Control, flat: Float[Array, " b n"]) -> Float[Array, " b n"]:
    """Return the coordinates along the eigenvectors, in full precision on every device."""
    return jnp.matmul(flat, control.eigenvectors, precision="highest")
