"""Exact answers, derived apart from the library: data whose best denoiser is known.

Everything follows from one family, a mixture Σ w_k N(m_k, s_k² I): one component is
Gaussian data, zero widths are a table of discrete values. Noised at level λ it is the
mixture Σ w_k N(α m_k, α² s_k² + σ²), so E[ε|z], the density of z and hence every
mutual information are known. Integrals are deterministic quadrature in float64.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Mixture(NamedTuple):
    """Σ w_k N(m_k, s_k² I), hashable: weights [k], means [k][d] and widths [k]."""

    weights: tuple
    means: tuple
    widths: tuple


SKEWED = Mixture((0.7, 0.3), ((-0.6,), (1.4,)), (0.25, 0.6))
SKEWED_2D = Mixture((0.8, 0.2), ((-0.4, 0.1), (1.1, -0.9)), (0.3, 0.5))


def gaussian_data(mean, width):
    return Mixture((1.0,), (tuple(mean),), (width,))


def table(probs, levels):
    """P over all x in {0..levels-1}^D, given as an array with D axes; midpoints in [-1, 1]."""
    points = (2 * grid_of_levels(probs.ndim, levels) + 1) / levels - 1
    rows = tuple(tuple(float(v) for v in row) for row in points)
    return Mixture(tuple(probs.ravel().tolist()), rows, (0.0,) * len(rows))


def grid_of_levels(dim, levels):
    return np.indices((levels,) * dim).reshape(dim, -1).T


def skewed_probs(shape, seed=0):
    """A strictly positive table with no symmetry."""
    probs = np.random.default_rng(seed).gamma(0.7, size=shape) + 0.02
    return probs / probs.sum()


def scales(log_snr):
    """α and σ from their definition, α² + σ² = 1 and α²/σ² = e^λ."""
    snr = np.exp(log_snr) if isinstance(log_snr, float | np.ndarray) else jnp.exp(log_snr)
    return (snr / (1 + snr)) ** 0.5, (1 / (1 + snr)) ** 0.5


def exact_eps(data):
    """E[ε|z]: Σ_k P(k|z) σ (z − α m_k)/(α² s_k² + σ²), for z of any rank."""
    weights, means, widths = (jnp.asarray(field) for field in data)

    def eps_fn(z, log_snr):
        flat = z.reshape(len(z), -1)
        a, s = scales(jnp.broadcast_to(log_snr, (len(z),))[:, None])
        var = a**2 * widths[None] ** 2 + s**2
        gap = flat[:, None] - a[..., None] * means[None]
        logits = jnp.log(weights)[None] - 0.5 * (
            jnp.sum(gap**2, -1) / var + means.shape[1] * jnp.log(var)
        )
        # The constant divides out again; a gradient through max is NaN where rounding unties it.
        best = jnp.exp(logits - jax.lax.stop_gradient(logits.max(1, keepdims=True)))
        best = best / best.sum(1, keepdims=True)
        return (s * jnp.einsum("bk,bkd->bd", best / var, gap)).reshape(z.shape)

    return jax.jit(eps_fn)


def correlated_eps(mean, covariance):
    """E[ε|z] = σ (α²C + σ²I)⁻¹ (z − α m) for data N(m, C), z of shape [b, d] and one λ."""
    variance, axes = np.linalg.eigh(covariance)

    def eps_fn(z, log_snr):
        a, s = scales(log_snr)
        along = (z - a * mean[None]) @ axes / (a**2 * variance + s**2)[None]
        return s * along @ axes.T

    return eps_fn


def backward_transition(log_snr_t, log_snr_s):
    """q(z_s|z_t, x) = N(A z_t + B x, V), by Bayes' rule from q(z_s|x) q(z_t|z_s)."""
    (a_t, s_t), (a_s, s_s) = scales(log_snr_t), scales(log_snr_s)
    a_ts = a_t / a_s
    var_ts = s_t**2 - a_ts**2 * s_s**2
    variance = 1 / (1 / s_s**2 + a_ts**2 / var_ts)
    return variance * a_ts / var_ts, variance * a_s / s_s**2, variance


def ancestral_step(mean, covariance, log_snr_t, log_snr_s):
    """p(z_s|z_t) = N(M z_t + v, V I) of the exact denoiser of data N(m, C): M, v and V."""
    from_z, from_x, variance = backward_transition(log_snr_t, log_snr_s)
    a, noise = scales(log_snr_t)
    eye = np.eye(len(mean))
    gain = a * covariance @ np.linalg.inv(a**2 * covariance + noise**2 * eye)
    return from_z * eye + from_x * gain, from_x * (mean - a * gain @ mean), variance


def mixture_moments(data):
    """The mean and covariance of a mixture."""
    weights, means, widths = (np.asarray(field) for field in data)
    mean = weights @ means
    spread = np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    return mean, spread + weights @ widths**2 * np.eye(means.shape[1])


def mixture_draws(data, n, seed=0):
    """n exact draws of a mixture, without jax."""
    rng = np.random.default_rng(seed)
    weights, means, widths = (np.asarray(field) for field in data)
    k = rng.choice(len(weights), n, p=weights)
    return means[k] + widths[k][:, None] * rng.normal(size=(n, means.shape[1]))


def energy_p_value(first, second, permutations=999, seed=0):
    """The permutation p-value of the energy distance between two samples [n, d] and [m, d]."""
    pooled = np.concatenate([first, second])
    square = np.sum(pooled**2, 1)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2 * pooled @ pooled.T, 0))
    sign = np.concatenate(
        [np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))]
    )
    signs = np.random.default_rng(seed).permuted(np.tile(sign, (permutations, 1)), axis=1)
    every = np.concatenate([sign[None], signs])
    energy = -np.einsum("pi,pi->p", every @ distance, every)
    return np.mean(energy >= energy[0])


def said_as(head, eps, z, log_snr):
    """The same statement about z in another head, from the definitions."""
    a, s = (part.reshape(-1, *(1,) * (z.ndim - 1)) for part in scales(log_snr))
    x = (z - s * eps) / a
    return {"eps": eps, "x": x, "v": a * eps - s * x, "score": -eps / s}[head]


class ExactHead(nn.Module):
    """A network that knows its data and says so in the given head, off by `error` in ε."""

    data: Mixture
    head: str
    error: float = 0.0

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        gain = self.param("gain", nn.initializers.ones, ())
        eps = gain * exact_eps(self.data)(z, log_snr) + self.error * jnp.cos(3 * z)
        return said_as(self.head, eps, z, log_snr)


def mixture_density(data, z, log_snr):
    """The density of z_λ at the points z, shape [n, d]."""
    weights, means, widths = (np.asarray(field) for field in data)
    a, s = scales(float(log_snr))
    var = a**2 * widths**2 + s**2
    square = np.sum((z[:, None] - a * means) ** 2, -1)
    return np.exp(-0.5 * square / var) / (2 * np.pi * var) ** (z.shape[1] / 2) @ weights


def mutual_information(data, log_snr, nodes=400):
    """I(x; z_λ) = h(z_λ) − h(z_λ|x) in nats, h(z_λ) on a regular grid of one or two axes."""
    dim = len(data.means[0])
    a, s = scales(float(log_snr))
    means, width = a * np.asarray(data.means), np.hypot(a * np.asarray(data.widths), s).max()
    edges = [(c.min() - 9 * width, c.max() + 9 * width) for c in means.T]
    axes = [np.linspace(*edge, nodes) for edge in edges]
    z = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
    density = mixture_density(data, z, log_snr)
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    entropy = -cell * np.sum(density * np.log(np.maximum(density, 1e-300)))
    return entropy - 0.5 * dim * np.log(2 * np.pi * np.e * s**2)


def gaussian_mmse(width, log_snr):
    """E(ε − E[ε|z])² per dimension for data N(m, width²): Var(ε) minus what z explains."""
    a, s = scales(log_snr)
    return 1 - s**2 / (a**2 * width**2 + s**2)


def gaussian_diffusion(width, log_snr_max, log_snr_min):
    """½ ∫ mmse dλ per dimension = ½ log (1 + s² e^λ_max)/(1 + s² e^λ_min)."""
    return 0.5 * np.log((1 + width**2 * np.exp(log_snr_max)) / (1 + width**2 * np.exp(log_snr_min)))


def entropy(probs):
    return -np.sum(probs * np.log(probs))


def interval(n, low=0.0, high=1.0):
    """Gauss–Legendre nodes and weights on [low, high]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return low + (high - low) * (nodes + 1) / 2, (high - low) * weights / 2


def normal(n, dim=1, radius=8.5):
    """Nodes [n^dim, dim] and weights of E over N(0, I), the trapezoidal rule of a regular grid."""
    axis = np.linspace(-radius, radius, n)
    density = np.exp(-0.5 * axis**2)
    nodes = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    weights = density / density.sum()
    for _ in range(dim - 1):
        weights = np.outer(weights, density / density.sum()).ravel()
    return nodes, weights


def mixture_nodes(data, n):
    """Nodes x [m, d] and weights of an expectation over the mixture itself."""
    unit, unit_weights = normal(n, len(data.means[0]))
    x = [np.asarray(m) + s * unit for m, s in zip(data.means, data.widths, strict=True)]
    return np.concatenate(x), np.concatenate([w * unit_weights for w in data.weights])


def expectation(fn, x, *rules):
    """Σ weights · fn(x_i, *nodes) for each x_i over the product of the rules' nodes."""
    fn = jax.jit(fn)
    sizes = [len(weights) for _, weights in rules]
    index = np.indices(sizes).reshape(len(sizes), -1)
    nodes = [jnp.asarray(nodes[k]) for (nodes, _), k in zip(rules, index, strict=True)]
    results = []
    for one in np.asarray(x):
        values = fn(np.broadcast_to(one, (index.shape[1], *one.shape)), *nodes)
        values = np.asarray(values).reshape(sizes)
        for _, weights in reversed(rules):
            values = values @ weights
        results.append(values)
    return np.array(results)


def within(estimates, truth, standard_errors=5):
    """Whether the mean of independent estimates, along axis 0, agrees with the truth."""
    estimates = np.asarray(estimates, np.float64)
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    return bool(np.all(np.abs(estimates.mean(0) - truth) <= standard_errors * error))


def arrays(seed, shape):
    """Off-centre numbers without jax.random, which takes seconds to compile."""
    return np.random.default_rng(seed).normal(0.4, 0.9, shape)


def keys(seed, n):
    """Return n unrelated keys, without the compilation that jax.random.split costs."""
    words = np.random.default_rng(seed).integers(0, 2**32, (n, 2), np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words))
