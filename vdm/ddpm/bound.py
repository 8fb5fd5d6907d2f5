"""The bound of a DDPM chain, term by term: L_T, L_{n−1} for every n, and L_0.

    −log p(x_0) ≤ L_T + Σ_{n=2..N} L_{n−1} + L_0                     (Ho et al. 2020, eq. 5)

in nats per example. L_T is `losses.prior_kl` at λ_N; here are the others. `eps_fn(z, log_snr)`
is any denoiser: it is given λ_n where DDPM's networks are given n.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from vdm import draws, losses
from vdm.ddpm.chain import Chain, check_latent
from vdm.ddpm.decoder import DiscretisedGaussian
from vdm.diffusion import convert, q_sample
from vdm.losses import VLB, EpsFn


def simple_loss(
    x: Float[Array, " b *d"],
    n: int | Int[Array | np.ndarray, "..."],
    eps: Float[Array, " b *d"],
    chain: Chain,
    eps_fn: EpsFn,
) -> Float[Array, " b"]:
    """Return ‖ε − ε̂(x_n)‖², summed over dimensions; its mean over n in 1..N is L_simple.

    Not a bound, since it weights every n equally (Ho et al. 2020, eq. 14). x is encoded, n a number
    or one per example. Raises ValueError for an n that is not in 1..N.
    """
    check_latent(n, 1, chain.num_latents)
    return losses.noise_error(x, eps, chain.log_snr(n, x.dtype), eps_fn)


def step_kl(
    x: Float[Array, " b *d"],
    n: int | Int[Array | np.ndarray, "..."],
    eps: Float[Array, " b *d"],
    chain: Chain,
    eps_fn: EpsFn,
    *,
    variance: str = "posterior",
) -> Float[Array, " b"]:
    """Return L_{n−1} = KL(q(x_{n−1}|x_n, x_0) ‖ p(x_{n−1}|x_n)) at x_n = α x + σ ε, in nats.

    ½ (SNR_{n−1}/SNR_n − 1) ‖ε − ε̂‖² for the "posterior" variance, the term of our bound with
    T = N − 1 steps; for "beta" that times β̃_n/β_n, plus `Chain.extra_kl` per dimension.
    x is encoded, n a number or one per example. Raises ValueError for an n that is not in 2..N
    or an unknown variance.
    """
    check_latent(n, 2, chain.num_latents)
    posterior, chosen = (chain.reverse_variances(name)[1:] for name in ("posterior", variance))
    weights = 0.5 * np.expm1(-np.diff(chain.log_snrs)) * posterior / chosen
    extra = chain.extra_kl(variance) * math.prod(x.shape[1:])
    weight, more = (jnp.asarray(table, x.dtype)[n - 2] for table in (weights, extra))
    return weight * losses.noise_error(x, eps, chain.log_snr(n, x.dtype), eps_fn) + more


def step_kls(
    key: Key[Array, "..."],
    chain: Chain,
    eps_fn: EpsFn,
    x: Float[Array, " b *d"],
    *,
    variance: str = "posterior",
) -> Float[Array, " n b"]:
    """Return one draw of L_{n−1} for every n = 2..N, shape [N − 1, b], in nats.

    It calls `eps_fn` N − 1 times, one after the other. x is encoded; `key` is one key or one
    per example. Raises ValueError for an unknown variance.
    """
    draws.check_key(key, x.shape[0])

    def at(n: Int[Array, ""]) -> Float[Array, " b"]:
        eps = draws.normal(draws.fold_in(key, n), x.shape, x.dtype)
        return step_kl(x, n, eps, chain, eps_fn, variance=variance)

    return jax.lax.map(at, jnp.arange(2, chain.num_latents + 1))


def reconstruction(
    x_raw: Integer[Array, " b *d"],
    eps: Float[Array, " b *d"],
    chain: Chain,
    eps_fn: EpsFn,
    *,
    decoder: DiscretisedGaussian,
    variance: str = "posterior",
) -> Float[Array, " b"]:
    """Return L_0 = −log p(x_0|x_1) at x_1 = α_1 x + σ_1 ε, in nats; x_raw is not yet encoded.

    The mean is μ_θ(x_1, 1) = x̂(x_1), the variance the first of `Chain.reverse_variances`:
    β̃_2, or β_1 for "beta". The paper's code decodes with β̃_2 in both cases.
    Raises TypeError for data that are not integers, ValueError for an unknown variance.
    """
    x = decoder.encode(x_raw)
    log_snr = chain.log_snr(1, x.dtype)
    x_1 = q_sample(x, eps, log_snr)
    mean = convert(eps_fn(x_1, log_snr), x_1, log_snr, source="eps", target="x")
    std = math.sqrt(chain.reverse_variances(variance)[0])
    return -decoder.log_prob(x_raw, mean, jnp.asarray(std, x.dtype))


def vlb(
    key: Key[Array, "..."],
    chain: Chain,
    eps_fn: EpsFn,
    x_raw: Integer[Array, " b *d"],
    *,
    decoder: DiscretisedGaussian,
    variance: str = "posterior",
    n: int | Int[Array | np.ndarray, "..."] | None = None,
) -> VLB:
    """Return the chain's negative bound with one draw of noise a term, each [b], in nats.

    `prior` is L_T, exactly; `reconstruction` is L_0; `diffusion` is Σ_n L_{n−1} over all
    n = 2..N, N − 1 calls of `eps_fn` in a row, or with given n the one term (N − 1) L_{n−1},
    which for n uniform on 2..N has the same mean. n is a number or one per example, `key` one
    key or one per example; x_raw is not yet encoded. Raises TypeError for data that are not
    integers, ValueError for an unknown variance, an n that is not in 2..N or keys that do not
    fit the batch.
    """
    draws.check_key(key, x_raw.shape[0])
    key_0, key_steps = draws.split(key, 2)
    x = decoder.encode(x_raw)
    if n is None:
        diffusion = step_kls(key_steps, chain, eps_fn, x, variance=variance).sum(0)
    else:
        eps = draws.normal(key_steps, x.shape, x.dtype)
        one = step_kl(x, n, eps, chain, eps_fn, variance=variance)
        diffusion = (chain.num_latents - 1) * one
    eps_0 = draws.normal(key_0, x.shape, x.dtype)
    return VLB(
        prior=losses.prior_kl(x, chain.log_snr(chain.num_latents, x.dtype)),
        reconstruction=reconstruction(
            x_raw, eps_0, chain, eps_fn, decoder=decoder, variance=variance
        ),
        diffusion=diffusion,
    )
