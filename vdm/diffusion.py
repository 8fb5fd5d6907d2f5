"""The Gaussian diffusion process, written in its log signal-to-noise ratio.

Glossary, used throughout the library:

    x            data, already encoded as real numbers, batch axis first
    log_snr, λ   log(α²/σ²), strictly decreasing in time; the VDM paper's γ is −λ
    α², σ²       sigmoid(λ), sigmoid(−λ): the process preserves variance
    z, z_t       α x + σ ε, the noised data; ε is standard normal noise
    s < t        two times; z_s is the cleaner one, so λ_s > λ_t
    eps, x, v, score
                 the four equivalent ways to say what is noise and what is data in z

Every λ has shape [b] or is a scalar. Only log_sigmoid, softplus and expm1 of λ are
taken: `1 - sigmoid(λ)` loses every digit in float32 long before λ reaches 17.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGEST_LOG_SNR = 80.0  # exp of it, and of its negative, is a number in float32
PREDICTIONS = ("eps", "x", "v", "score")


def alpha(log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Return the signal's scale α = sqrt(sigmoid(λ)), elementwise (VDM, section 3.2)."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr))


def sigma(log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Return the noise's scale σ = sqrt(sigmoid(−λ)), elementwise (VDM, section 3.2)."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(-log_snr))


def expand(log_snr: Float[Array, "..."], like: Float[Array, " b *d"]) -> Float[Array, "..."]:
    """Append axes to a per-example value, shape [b] or scalar, so that it multiplies `like`.

    Raises ValueError when the value is neither a scalar nor one number per example.
    """
    log_snr = jnp.asarray(log_snr)
    if log_snr.ndim == 0:
        return log_snr
    if log_snr.shape != like.shape[:1]:
        raise ValueError(
            f"a noise level must be a scalar or have one value per example: got shape "
            f"{log_snr.shape} for data of shape {like.shape}, expected () or {like.shape[:1]}"
        )
    return log_snr.reshape(log_snr.shape + (1,) * (like.ndim - 1))


def q_sample(
    x: Float[Array, " b *d"], eps: Float[Array, " b *d"], log_snr: Float[Array, "..."]
) -> Float[Array, " b *d"]:
    """Return z = α x + σ ε, a draw from q(z|x) when ε is standard normal (VDM, eq. 1)."""
    log_snr = expand(log_snr, x)
    return alpha(log_snr) * x + sigma(log_snr) * eps


def posterior(
    z_t: Float[Array, " b *d"],
    x: Float[Array, " b *d"],
    log_snr_t: Float[Array, "..."],
    log_snr_s: Float[Array, "..."],
) -> tuple[Float[Array, " b *d"], Float[Array, "..."]]:
    """Return mean and standard deviation of q(z_s | z_t, x) for s < t.

    With c = 1 − SNR_t/SNR_s = −expm1(λ_t − λ_s), the mean is
    α_s [(1 − c) z_t/α_t + c x] and the variance c σ_s² (VDM, appendix A).
    The standard deviation has the shape of λ with axes appended, so that it
    multiplies noise of z's shape.
    """
    log_snr_t, log_snr_s = expand(log_snr_t, x), expand(log_snr_s, x)
    c = -jnp.expm1(log_snr_t - log_snr_s)
    kept = jnp.exp(log_snr_t - log_snr_s)  # 1 - c, without the cancellation
    mean = alpha(log_snr_s) * (kept * z_t / alpha(log_snr_t) + c * x)
    return mean, jnp.sqrt(c) * sigma(log_snr_s)


def transition(
    z_s: Float[Array, " b *d"],
    log_snr_s: Float[Array, "..."],
    log_snr_t: Float[Array, "..."],
) -> tuple[Float[Array, " b *d"], Float[Array, "..."]]:
    """Return mean and standard deviation of q(z_t | z_s) for s < t, from clean to noisy.

    The mean is (α_t/α_s) z_s and the variance c σ_t² with c = −expm1(λ_t − λ_s) (VDM,
    appendix A). The standard deviation has the shape of λ with axes appended.
    """
    log_snr_s, log_snr_t = expand(log_snr_s, z_s), expand(log_snr_t, z_s)
    c = -jnp.expm1(log_snr_t - log_snr_s)
    return alpha(log_snr_t) / alpha(log_snr_s) * z_s, jnp.sqrt(c) * sigma(log_snr_t)


def convert(
    prediction: Float[Array, " b *d"],
    z: Float[Array, " b *d"],
    log_snr: Float[Array, "..."],
    *,
    source: str,
    target: str,
) -> Float[Array, " b *d"]:
    """Convert a prediction from the kind `source` to the kind `target`.

    At a given z and λ the four kinds determine each other: z = α x + σ ε,
    v = α ε − σ x (Salimans & Ho 2022, appendix D) and score = −ε/σ.
    Raises ValueError for a kind that is not one of "eps", "x", "v", "score".
    """
    for kind in (source, target):
        if kind not in PREDICTIONS:
            raise ValueError(f"unknown prediction {kind!r}: expected one of {PREDICTIONS}")
    if source == target:
        return prediction
    log_snr = expand(log_snr, z)
    a, s = alpha(log_snr), sigma(log_snr)
    # Both members of the pair (x, ε) are formed straight from the source: going
    # through one of them would divide by α or σ once more than is needed.
    if source == "x":
        x, eps = prediction, (z - a * prediction) / s
    elif source == "v":
        x, eps = a * z - s * prediction, a * prediction + s * z
    else:
        eps = prediction if source == "eps" else -s * prediction
        x = (z - s * eps) / a
    if target == "x":
        return x
    if target == "v":
        return a * eps - s * x
    return eps if target == "eps" else -eps / s
