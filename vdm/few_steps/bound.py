"""The diffusion term of a chain's bound: one step drawn at random, or all of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm.diffusion import expand, q_sample
from vdm.few_steps.chain import Chain, spread
from vdm.losses import EpsFn, sum_dims
from vdm.sets import Mask, wiped


def step_kl(
    eps: Float[Array, " b *d"],
    eps_hat: Float[Array, " b *d"],
    v: Float[Array, " b *d"] | None,
    log_snr_t: Float[Array, "..."],
    log_snr_s: Float[Array, "..."],
) -> Float[Array, " b"]:
    """Return KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) of a step whose reverse variance is c σ_s² (1 + κ v).

    ½ Σ [log(1 + κ v) + (1 + κ (x − x̂)²)/(1 + κ v) − 1] with κ = e^{λ_s} − e^{λ_t} and
    κ (x − x̂)² = (e^{λ_s − λ_t} − 1)(ε − ε̂)², in nats, [b]; without a v it is VDM's eq. 14.
    """
    gain = jnp.expm1(log_snr_s - log_snr_t)
    square = jnp.square(eps - eps_hat)
    if v is None:
        return 0.5 * gain * sum_dims(square)
    wide = spread(v, log_snr_t, log_snr_s)
    # (1 + a)/w − 1 = (a − (w − 1))/w, without the cancellation.
    excess = (expand(gain, eps) * square - (wide - 1.0)) / wide
    return 0.5 * sum_dims(jnp.log(wide) + excess)


def diffusion_loss(
    x: Float[Array, " b *d"],
    step: Int[Array, " b"],
    eps: Float[Array, " b *d"],
    chain: Chain,
    eps_fn: EpsFn,
) -> Float[Array, " b"]:
    """Return T times the step's KL at the given steps 1..T, in nats, [b]; x is encoded data.

    Its mean over steps uniform on 1..T and ε ~ N(0, I) is the diffusion term of the bound of this
    chain. Step 1 is the one next to the data.
    """
    log_snr_t, log_snr_s = chain.ends(step)
    log_snr_t, log_snr_s = log_snr_t.astype(x.dtype), log_snr_s.astype(x.dtype)
    z = q_sample(x, eps, log_snr_t)
    eps_hat = eps_fn(z, log_snr_t)
    v = chain.v(z, eps_hat, log_snr_t)
    if v is None:  # the very operations of `losses.diffusion_loss_steps`
        weight = 0.5 * chain.num_steps * jnp.expm1(log_snr_s - log_snr_t)
        return weight * sum_dims(jnp.square(eps - eps_hat))
    return chain.num_steps * step_kl(eps, eps_hat, v, log_snr_t, log_snr_s)


def all_steps(
    x: Float[Array, " b *d"],
    eps: Float[Array, " steps b *d"],
    chain: Chain,
    eps_fn: EpsFn,
) -> Float[Array, " b"]:
    """Return the diffusion term over all steps, ε of step i in row i − 1, in nats, [b].

    `eps_fn` is called once, with T examples for every one: it must take them in the order of
    `eps`, flattened, all of step 1 first. Raises ValueError for another number of rows.
    """
    num, size = eps.shape[:2]
    if num != chain.num_steps:
        raise ValueError(f"eps must have a row for each of {chain.num_steps} steps: got {num}")
    step = jnp.repeat(jnp.arange(1, num + 1), size)
    every = jnp.broadcast_to(x, eps.shape).reshape(num * size, *x.shape[1:])
    found = diffusion_loss(every, step, eps.reshape(every.shape), chain, eps_fn)
    return jnp.mean(found.reshape(num, size), axis=0)


def log_weights(
    x: Float[Array, " b *d"],
    fresh: Float[Array, " levels b *d"],
    chain: Chain,
    eps_fn: EpsFn,
    mask: Mask | None = None,
) -> tuple[Float[Array, " b *d"], Float[Array, " b"]]:
    """Return the ε of z_0 at the end of a whole path drawn from q, and log q − log p above z_0.

    The path is z_1 ~ q(z_1|x), then z_s ~ q(z_s|z_t, x) down to z_0, each with its own row of
    standard normal noise in `fresh`, from noise to data. With n the noise of a step and
    δ = √(e^{λ_s − λ_t} − 1) (ε̂ − ε) it is

        log q(z_1|x) − log N(z_1; 0, I) + ½ Σ_steps Σ [log w + (n + δ)²/w − n²],    w = 1 + κ v,

    in nats, [b]. Its mean is prior and diffusion term of the bound, and the mean of
    p(x|z_0) exp(−it) is P(x) of the chain itself, whose logarithm K draws bound more and more
    closely (Burda et al. 2016, theorem 1). `eps_fn` is called once, with T examples for every one,
    as in `all_steps` but in the order of the chain, from noise. A `mask` is that of sets, whose
    `x` and `fresh` are 0 in the padding.
    """
    num, size = chain.num_steps, len(x)
    levels = jnp.asarray(chain.log_snrs).astype(x.dtype)
    log_snr_t, log_snr_s = (jnp.repeat(part, size) for part in (levels[:-1], levels[1:]))

    def down(
        eps: Float[Array, " b *d"], n: Int[Array, ""]
    ) -> tuple[Float[Array, " b *d"], Float[Array, " b *d"]]:
        # The posterior z_s = α_s x + σ_s (√(1 − c) ε_t + √c n), 1 − c = e^{λ_t − λ_s}.
        length = levels[n] - levels[n + 1]
        after = jnp.exp(0.5 * length) * eps + jnp.sqrt(-jnp.expm1(length)) * fresh[n + 1]
        return after, eps

    last, before = jax.lax.scan(down, fresh[0], jnp.arange(num))
    eps = before.reshape(num * size, *x.shape[1:])
    every = jnp.broadcast_to(x, before.shape).reshape(eps.shape)
    z = q_sample(every, eps, log_snr_t)
    eps_hat = eps_fn(z, log_snr_t)
    wide = spread(chain.v(z, eps_hat, log_snr_t), log_snr_t, log_snr_s)
    n = fresh[1:].reshape(eps.shape)
    away = expand(jnp.sqrt(jnp.expm1(log_snr_s - log_snr_t)), eps) * (eps_hat - eps)
    each = jnp.log(wide) + jnp.square(n + away) / wide - jnp.square(n)
    steps = 0.5 * jnp.sum(sum_dims(each).reshape(num, size), axis=0)
    z_1 = q_sample(x, fresh[0], levels[0])
    log_variance = jax.nn.log_sigmoid(-levels[0])
    each = jnp.square(z_1) - jnp.square(fresh[0]) - log_variance
    start = 0.5 * sum_dims(wiped(each, mask))
    return last, start + steps
