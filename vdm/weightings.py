"""Weightings w(λ): every training objective of the literature as a weight on one error.

The weighted loss is ½ ∫ w(λ) E‖ε − ε̂‖² dλ (Kingma & Gao 2023): w = 1 is the
bound. A weight belongs to the error of ε whatever the network predicts, and it takes in
the density of λ that the objective was first used with. Only ratios of w matter, so
constant factors are left out where that makes the formula plainer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def elbo(log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Return 1: the bound itself."""
    return jnp.ones_like(log_snr)


def simple(log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Return sech(λ/2): the error of ε at uniform times of the cosine schedule (Ho et al. 2020)."""
    return 1.0 / jnp.cosh(0.5 * log_snr)


def v(log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Return e^{−λ/2}: the error of v at uniform times of the cosine schedule.

    Also flow matching at uniform times (Kingma & Gao 2023; Salimans & Ho 2022).
    """
    return jnp.exp(-0.5 * log_snr)


def edm(
    log_snr: Float[Array, "*b"], mean: float = 2.4, std: float = 2.4, sigma_data: float = 0.5
) -> Float[Array, "*b"]:
    """Return N(λ; mean, std²)(e^{−λ} + σ_d²): EDM's loss and noise law (Karras et al. 2022).

    Raises ValueError unless std is positive.
    """
    _check_positive(std=std)
    density = jnp.exp(-0.5 * jnp.square((log_snr - mean) / std))
    return density * (jnp.exp(-log_snr) + sigma_data**2)


def edm_monotone(
    log_snr: Float[Array, "*b"], mean: float = 2.4, std: float = 2.4, sigma_data: float = 0.5
) -> Float[Array, "*b"]:
    """Return EDM's weight, constant at its peak for every noisier level (Kingma & Gao 2023).

    Non-increasing in λ, so the objective is an average of bounds of noised data.
    Raises ValueError unless std is positive, and where EDM's weight has two peaks (a std
    well above 2).
    """
    _check_positive(std=std)
    # d log w/dλ = −(λ − mean)/std² − e^{−λ}/(e^{−λ} + σ_d²) is positive at the lower edge,
    # negative at the upper one, and falls throughout for std ≤ 2.
    grid = np.linspace(mean - std**2 - 1.0, mean, 100_001)
    share = 1.0 / (1.0 + sigma_data**2 * np.exp(grid))
    slope = -(grid - mean) / std**2 - share
    turns = np.flatnonzero(np.diff(np.sign(slope)))
    if len(turns) > 1:
        raise ValueError(
            f"EDM's weight has two peaks for mean={mean}, std={std}, sigma_data={sigma_data}: "
            "expected one, to make it monotone"
        )
    peak = grid[turns[0]]
    return edm(jnp.maximum(log_snr, peak), mean, std, sigma_data)


def min_snr(
    log_snr: Float[Array, "*b"], gamma: float = 5.0, soft: bool = False
) -> Float[Array, "*b"]:
    """Return sech(λ/2) min(1, γ e^{−λ}), or its soft form sech(λ/2) γ/(γ + e^λ).

    The error of ε at uniform times of the cosine schedule, no heavier than γ errors of x
    (Hang et al. 2023; soft: Crowson et al. 2024). Raises ValueError unless γ is positive.
    """
    _check_positive(gamma=gamma)
    ratio = jax.nn.sigmoid(jnp.log(gamma) - log_snr)
    hard = jnp.minimum(1.0, gamma * jnp.exp(-log_snr))
    return simple(log_snr) * (ratio if soft else hard)


def p2(log_snr: Float[Array, "*b"], k: float = 1.0, gamma: float = 1.0) -> Float[Array, "*b"]:
    """Return sech(λ/2)/(k + e^λ)^γ: perception-prioritised weights (Choi et al. 2022).

    Raises ValueError unless k is positive.
    """
    _check_positive(k=k)
    return simple(log_snr) * jnp.exp(-gamma * jnp.logaddexp(jnp.log(k), log_snr))


def sigmoid(log_snr: Float[Array, "*b"], bias: float = 0.0) -> Float[Array, "*b"]:
    """Return a sigmoid of b − λ, which leaves out the finest details (Kingma & Gao 2023)."""
    return jax.nn.sigmoid(bias - log_snr)


def _check_positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive: got {value}")
