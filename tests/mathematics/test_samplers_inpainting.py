"""Inpainting of Gaussian data, whose moments are carried exactly from step to step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import ancestral_step, correlated_eps, keys, scales, within
from vdm import samplers
from vdm.likelihoods import discretised

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.3, 0.0], [0.3, 0.4, -0.2], [0.0, -0.2, 0.8]])
EPS = correlated_eps(MEAN, COVARIANCE)
KNOWN = np.asarray([True, False, False])
X = np.asarray([1.9, np.nan, np.nan])  # more than a standard deviation from its mean
GRID = np.linspace(-8.0, 5.0, 14)


@functools.partial(jax.jit, static_argnames=("eps_fn", "n", "resample", "sampler"))
def inpaint(key, log_snrs, eps_fn=EPS, n=1, resample=1, sampler="ancestral"):
    """n samples of one x; whatever stands for the missing part, nan too, is not looked at."""
    x, mask = (jnp.asarray(np.tile(row, (n, 1))) for row in (X, KNOWN))
    return samplers.inpaint(key, eps_fn, log_snrs, x, mask, sampler=sampler, resample=resample)


def exact_moments(grid, resample, covariance=COVARIANCE):
    """Mean and covariance of the chain: each of its moves is affine in z with Gaussian noise."""
    eye, known = np.eye(3), np.where(KNOWN, X, 0.0)

    def with_known(mean, cov, level):
        a, s = scales(float(level))
        keep = np.diag(1.0 - KNOWN)
        return keep @ mean + a * known, keep @ cov @ keep + s**2 * np.diag(1.0 * KNOWN)

    mean, cov = with_known(np.zeros(3), eye, grid[0])
    for t, s in itertools.pairwise(grid):
        matrix, shift, variance = ancestral_step(MEAN, covariance, float(t), float(s))
        ratio = scales(float(t))[0] / scales(float(s))[0]
        for repetition in range(resample):
            mean, cov = matrix @ mean + shift, matrix @ cov @ matrix.T + variance * eye
            mean, cov = with_known(mean, cov, s)
            if repetition < resample - 1:
                # q(z_t|z_s): what is not signal from z_s is noise, α² + σ² = 1.
                mean, cov = ratio * mean, ratio**2 * cov + (1 - ratio**2) * eye
    return mean, cov


@pytest.mark.parametrize(
    ("resample", "grid"), [(1, GRID), (3, GRID), (1, np.asarray([0.0, 2.0]))], ids=str
)
def test_the_chain_of_gaussian_data(resample, grid):
    """From almost pure noise, and one step from λ = 0, where the known part is in the start."""
    z = np.asarray(inpaint(jax.random.key(1), jnp.asarray(grid), n=8001, resample=resample))
    mean, cov = exact_moments(grid, resample)
    centred = z - mean
    assert within(z, mean)
    assert within(centred[:, :, None] * centred[:, None, :], cov)


def test_independent_parts_are_sampled_as_without_inpainting():
    """The missing coordinates have the law of the plain chain, whatever is known."""
    covariance = np.diag(np.diag(COVARIANCE))
    eps_fn = correlated_eps(MEAN, covariance)
    z = np.asarray(inpaint(jax.random.key(2), jnp.asarray(GRID), eps_fn, n=8001))
    mean, cov = np.zeros(3), np.eye(3)
    for t, s in itertools.pairwise(GRID):
        matrix, shift, variance = ancestral_step(MEAN, covariance, float(t), float(s))
        mean, cov = matrix @ mean + shift, matrix @ cov @ matrix.T + variance * np.eye(3)
    missing = z[:, ~KNOWN] - mean[~KNOWN]
    assert within(missing, 0.0)
    assert within(missing[:, :, None] * missing[:, None, :], cov[1:, 1:])


def test_resampling_approaches_the_conditional_mean():
    """Of the missing part's shift by the known one most is missed at first, little in the end."""
    a, _ = scales(float(GRID[-1]))
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    plain, shift = a * MEAN[1:], a * gain * (X[0] - MEAN[0])

    def missed(resample):
        z = np.asarray(inpaint(jax.random.key(3), jnp.asarray(GRID), n=4001, resample=resample))
        return np.linalg.norm(z[:, 1:].mean(0) - plain - shift) / np.linalg.norm(shift)

    once, four, sixteen = (missed(resample) for resample in (1, 4, 16))
    assert once > 1.5 * four > 1.5 * 1.5 * sixteen
    assert sixteen < 0.15


@pytest.mark.parametrize("sampler", [*samplers.SAMPLERS, samplers.heun(0.2)], ids=str)
def test_known_values_come_back(sampler):
    """z_0 there is α_0 x + σ_0 ε, which the likelihood decodes into x."""
    likelihood = discretised(17)
    raw = np.random.default_rng(4).integers(0, 17, (49, 3))
    mask = np.random.default_rng(5).random((49, 3)) < 0.5
    log_snrs = jnp.asarray(np.linspace(-8.0, 9.0, 8))
    draw = jax.jit(
        lambda x: samplers.inpaint(
            jax.random.key(6), EPS, log_snrs, x, jnp.asarray(mask), sampler=sampler, resample=2
        )
    )
    x = likelihood.encode(jnp.asarray(raw))
    z = np.asarray(draw(x))
    decoded = np.asarray(likelihood.decode(jnp.asarray(z), log_snrs[-1]))
    np.testing.assert_array_equal(decoded[mask], raw[mask])
    assert np.mean(decoded[~mask] == raw[~mask]) < 0.5
    a, s = scales(9.0)
    noise = (z - a * np.asarray(x))[mask] / s
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)


def test_nothing_known_is_plain_sampling():
    """In law: the mean and covariance of a chain of which nothing was known."""
    shape = (8001, 3)
    draw = jax.jit(
        lambda key: samplers.inpaint(
            key, EPS, jnp.asarray(GRID), jnp.zeros(shape), jnp.zeros(shape, bool)
        )
    )
    z = np.asarray(draw(jax.random.key(7)))
    mean, cov = np.zeros(3), np.eye(3)
    for t, s in itertools.pairwise(GRID):
        matrix, shift, variance = ancestral_step(MEAN, COVARIANCE, float(t), float(s))
        mean, cov = matrix @ mean + shift, matrix @ cov @ matrix.T + variance * np.eye(3)
    assert within(z, mean)
    centred = z - mean
    assert within(centred[:, :, None] * centred[:, None, :], cov)


def test_every_repetition_of_a_step_remembers_the_same():
    """A sampler that writes the number of its step into z, for two steps of three repetitions."""

    class Counting:
        def init(self, z):
            return jnp.zeros((), int)

        def step(self, eps_fn, z_t, carry, noise, log_snr_t, log_snr_s):
            return jnp.full_like(z_t, carry + 1), carry + 1

    z = inpaint(jax.random.key(9), jnp.asarray(GRID[:3]), n=5, resample=3, sampler=Counting())
    np.testing.assert_array_equal(z[:, ~KNOWN], np.full((5, 2), 2.0))


def test_samples_follow_their_own_keys():
    batch = keys(8, 5)
    together = inpaint(batch, jnp.asarray(GRID), n=5, resample=2, sampler="dpmpp_2m")
    alone = inpaint(batch[3:4], jnp.asarray(GRID), n=1, resample=2, sampler="dpmpp_2m")
    np.testing.assert_allclose(together[3], alone[0], rtol=1e-9)


@pytest.mark.float32
def test_inpainting_stays_float32():
    grid = jnp.asarray([-1.0, 1.0])
    x = jnp.ones((1, 2))
    z = samplers.inpaint(jax.random.key(0), lambda z, log_snr: z, grid, x, x > 0)
    assert z.dtype == jnp.float32


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments():
    grid, x = jnp.asarray([-1.0, 1.0]), jnp.zeros((3, 2))

    def attempt(mask, log_snrs=grid, sampler="ddim", resample=1):
        return samplers.inpaint(
            jax.random.key(0),
            lambda z, log_snr: z,
            log_snrs,
            x,
            mask,
            sampler=sampler,
            resample=resample,
        )

    mask = jnp.zeros((3, 2), bool)
    with pytest.raises(ValueError, match=r"resample must be at least 1, .*: got 0"):
        attempt(mask, resample=0)
    with pytest.raises(ValueError, match=r"shape of x, \(3, 2\): got \(2,\)"):
        attempt(mask[0])
    with pytest.raises(ValueError, match=r"unknown sampler 'dim'.*'ddim'"):
        attempt(mask, sampler="dim")
    with pytest.raises(ValueError, match="increase strictly"):
        attempt(mask, grid[::-1])
