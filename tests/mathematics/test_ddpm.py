"""The DDPM chain against the formulas of its paper, against our bound, and by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from oracles import (
    SKEWED,
    SKEWED_2D,
    arrays,
    exact_eps,
    expectation,
    gaussian_data,
    gaussian_mmse,
    keys,
    mixture_nodes,
    normal,
    scales,
    skewed_probs,
    table,
    within,
)
from vdm import ddpm, likelihoods, losses

BETAS = np.asarray([0.01, 0.03, 0.02, 0.08, 0.15, 0.1, 0.3, 0.4, 0.55])
CHAIN = ddpm.from_betas(BETAS)
N = len(BETAS)
LINEAR = np.linspace(1e-4, 0.02, 1000)
# The paper's own symbols, straight from their definitions; entry n − 1 belongs to x_n.
ALPHAS = 1 - BETAS
BARS = np.cumprod(ALPHAS)
BARS_BEFORE = np.concatenate([[1.0], BARS[:-1]])
BETA_TILDES = BETAS * (1 - BARS_BEFORE) / (1 - BARS)
VARIANCES = {"posterior": BETA_TILDES, "beta": BETAS}
every_variance = pytest.mark.parametrize("variance", VARIANCES)
every_step = pytest.mark.parametrize("n", range(2, N + 1))


def curve(chain):
    schedule = chain.schedule
    return lambda t: schedule.log_snr(schedule.init(jax.random.key(0)), t)


def test_a_chain_is_the_product_of_its_betas():
    np.testing.assert_allclose(CHAIN.alpha_bars, BARS, rtol=1e-13)
    np.testing.assert_allclose(CHAIN.log_snrs, np.log(BARS / (1 - BARS)), rtol=1e-12)
    np.testing.assert_allclose(CHAIN.log_snr(jnp.arange(1, N + 1)), CHAIN.log_snrs, rtol=1e-15)
    assert (N, np.inf) == (CHAIN.num_latents, CHAIN.log_snr(0))
    assert CHAIN == ddpm.from_betas(list(BETAS)) != CHAIN.strided(5)
    assert hash(CHAIN) == hash(ddpm.Chain(tuple(BETAS.tolist())))


def posterior_mean(x_n, x_0, n):
    """Equation 7 of the paper."""
    of_data = np.sqrt(BARS_BEFORE[n - 1]) * BETAS[n - 1] / (1 - BARS[n - 1])
    of_latent = np.sqrt(ALPHAS[n - 1]) * (1 - BARS_BEFORE[n - 1]) / (1 - BARS[n - 1])
    return of_data * x_0 + of_latent * x_n


def model_mean(x_n, eps_hat, n):
    """Equation 11 of the paper."""
    scaled = BETAS[n - 1] / np.sqrt(1 - BARS[n - 1]) * eps_hat
    return (x_n - scaled) / np.sqrt(ALPHAS[n - 1])


@pytest.mark.parametrize("n", range(1, N + 1))
def test_posterior_is_that_of_the_paper(n):
    x_n, x_0 = arrays(0, (5, 2)), arrays(1, (5, 2))
    mean, variance = CHAIN.posterior(jnp.asarray(x_n), jnp.asarray(x_0), n)
    np.testing.assert_allclose(mean, posterior_mean(x_n, x_0, n), rtol=1e-9)
    np.testing.assert_allclose(variance, BETA_TILDES[n - 1], rtol=1e-10)


def test_posterior_of_examples_at_steps_of_their_own():
    n = np.asarray([9, 1, 4])
    x_n, x_0 = arrays(0, (3, 2)), arrays(1, (3, 2))
    mean, variance = jax.jit(CHAIN.posterior)(x_n, x_0, n)
    expected = [posterior_mean(*row) for row in zip(x_n, x_0, n, strict=True)]
    np.testing.assert_allclose(mean, expected, rtol=1e-9)
    np.testing.assert_allclose(variance[:, 0], BETA_TILDES[n - 1], rtol=1e-10)


@every_variance
def test_reverse_variances(variance):
    expected = VARIANCES[variance].copy()
    if variance == "posterior":
        expected[0] = expected[1]
    np.testing.assert_allclose(CHAIN.reverse_variances(variance), expected, rtol=1e-12)


def divergence(mean_q, variance_q, mean_p, variance_p):
    """KL between two normal laws by quadrature of q log q/p."""
    q, p = (
        stats.norm(mean, np.sqrt(variance))
        for mean, variance in ((mean_q, variance_q), (mean_p, variance_p))
    )
    edges = q.ppf([1e-15, 0.5]), q.isf([0.5, 1e-15])
    return sum(
        integrate.quad(
            lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), *edge, epsabs=1e-13, epsrel=1e-10
        )[0]
        for edge in edges
    )


def test_the_beta_variance_costs_the_divergence_of_two_widths():
    expected = [divergence(0, BETA_TILDES[k], 0, BETAS[k]) for k in range(1, N)]
    np.testing.assert_allclose(CHAIN.extra_kl("beta"), expected, rtol=1e-7, atol=1e-10)
    assert not np.any(CHAIN.extra_kl("posterior"))


@every_variance
@every_step
def test_each_term_is_the_divergence_of_its_two_gaussians(variance, n):
    x, eps, eps_fn = arrays(0, (3, 2)), arrays(1, (3, 2)), exact_eps(SKEWED_2D)
    got = ddpm.step_kl(jnp.asarray(x), n, jnp.asarray(eps), CHAIN, eps_fn, variance=variance)
    x_n = np.sqrt(BARS[n - 1]) * x + np.sqrt(1 - BARS[n - 1]) * eps
    log_snr = np.log(BARS[n - 1] / (1 - BARS[n - 1]))
    eps_hat = np.asarray(eps_fn(jnp.asarray(x_n), jnp.asarray(log_snr)))
    means = posterior_mean(x_n, x, n), model_mean(x_n, eps_hat, n)
    expected = [
        sum(
            divergence(of_q, BETA_TILDES[n - 1], of_p, VARIANCES[variance][n - 1])
            for of_q, of_p in zip(*rows, strict=True)
        )
        for rows in zip(*means, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


def test_a_perfect_mean_costs_the_stated_extra_and_nothing_else():
    x, eps = jnp.asarray(arrays(0, (5, 2, 3))), jnp.asarray(arrays(1, (5, 2, 3)))
    for n in range(2, N + 1):
        free, costly = (
            ddpm.step_kl(x, n, eps, CHAIN, lambda z, log_snr: eps, variance=variance)
            for variance in ("posterior", "beta")
        )
        assert not np.any(free)
        extra = divergence(0, BETA_TILDES[n - 1], 0, BETAS[n - 1])
        np.testing.assert_allclose(costly, 6 * extra, rtol=1e-7, atol=1e-9)


def test_the_chain_is_our_bound_with_one_step_less_than_it_has_latents():
    x, eps, eps_fn = arrays(0, (N - 1, 2)), arrays(1, (N - 1, 2)), exact_eps(SKEWED_2D)
    i = jnp.arange(1, N)

    def ours(num_steps):
        loss = losses.diffusion_loss_steps(
            jnp.asarray(x), i, jnp.asarray(eps), curve(CHAIN), eps_fn, num_steps=num_steps
        )
        return np.asarray(loss) / num_steps

    terms = ddpm.step_kl(jnp.asarray(x), i + 1, jnp.asarray(eps), CHAIN, eps_fn)
    np.testing.assert_allclose(terms, ours(N - 1), rtol=1e-9)
    assert np.all(np.abs(terms / ours(N) - 1) > 0.01)


@every_variance
def test_terms_of_gaussian_data(variance):
    """By E‖ε − ε̂‖² in closed form, summed over the chain."""
    width, data = 0.6, gaussian_data([0.8], 0.6)
    x, weights = mixture_nodes(data, 41)
    steps = (np.arange(2, N + 1), np.ones(N - 1))

    def term(x, n, eps):
        return ddpm.step_kl(x, n, eps, CHAIN, exact_eps(data), variance=variance)

    got = weights @ expectation(term, x, steps, normal(41))
    log_snr = np.log(BARS / (1 - BARS))
    ratio = BETA_TILDES[1:] / VARIANCES[variance][1:]
    mean_part = 0.5 * np.expm1(log_snr[:-1] - log_snr[1:]) * gaussian_mmse(width, log_snr[1:])
    expected = ratio @ mean_part + np.sum(0.5 * (ratio - 1 - np.log(ratio)))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.float32
@every_variance
def test_terms_keep_their_digits_in_float32(variance):
    chain = ddpm.from_betas(LINEAR)
    bars = np.cumprod(1 - LINEAR)
    eps = jnp.ones((999, 1))
    got = ddpm.step_kl(
        eps, jnp.arange(2, 1001), eps, chain, lambda z, log_snr: 0 * z, variance=variance
    )
    tildes = LINEAR[1:] * (1 - bars[:-1]) / (1 - bars[1:])
    ratio = 1.0 if variance == "posterior" else tildes / LINEAR[1:]
    snr = bars / (1 - bars)
    expected = 0.5 * ratio * (snr[:-1] / snr[1:] - 1) + 0.5 * (ratio - 1 - np.log(ratio))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_simple_loss_is_the_error_of_the_noise_at_x_n():
    x, eps = arrays(0, (5, 2, 3)), arrays(1, (5, 2, 3))
    n = np.asarray([1, 9, 4, 2, 3])
    bars = BARS[n - 1][:, None, None]
    got = ddpm.simple_loss(jnp.asarray(x), n, jnp.asarray(eps), CHAIN, lambda z, log_snr: 0.3 * z)
    square = (eps - 0.3 * (np.sqrt(bars) * x + np.sqrt(1 - bars) * eps)) ** 2
    np.testing.assert_allclose(got, square.sum((1, 2)), rtol=1e-11)


def mass(decoder, x, mean, std):
    """The decoder's probability of x for each of the means."""
    mean = jnp.asarray(mean).reshape(-1, 1)
    x = jnp.full(mean.shape, x)
    return np.exp(decoder.log_prob(x, mean, jnp.asarray(std)))


@pytest.mark.parametrize("edge", [1.0, 1 - 1 / 16])
@pytest.mark.parametrize("std", [0.01, 0.3, 5.0])
def test_decoder_is_a_gaussian_summed_over_bins(edge, std):
    decoder = ddpm.discretised_gaussian(16, edge)
    means = np.asarray([-1.3, -1.0, -0.07, 0.4, 0.99, 2.2])
    centres = edge * np.linspace(-1, 1, 16)
    cuts = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
    for x in range(16):
        below, above = (stats.norm.cdf(cut, means, std) for cut in (cuts[x], cuts[x + 1]))
        np.testing.assert_allclose(
            mass(decoder, x, means, std), above - below, rtol=1e-9, atol=1e-14
        )


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [0.004, 0.5])
def test_decoder_sums_to_one_over_its_levels(levels, std):
    decoder = ddpm.discretised_gaussian(levels)
    means = np.linspace(-1.4, 1.2, 14)
    total = sum(mass(decoder, x, means, std) for x in range(levels))
    np.testing.assert_allclose(total, 1.0, rtol=1e-10)


@pytest.mark.float32
@pytest.mark.parametrize(("x", "sign"), [(200, 1), (55, -1)])
def test_decoder_keeps_its_digits_far_out_in_float32(x, sign):
    """Some 60 standard deviations off, on either side: log ∫ φ by quadrature of φ over its top."""
    mean, std = -0.02 * sign, 0.01
    got = ddpm.discretised_gaussian().log_prob(
        jnp.asarray([[x]]), jnp.asarray([[mean]]), jnp.asarray(std)
    )
    low, high = np.sort(sign * ((2 * x + np.asarray([-1, 1])) / 255 - 1 - mean) / std)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u = low + (high - low) * (nodes + 1) / 2
    scaled = weights @ np.exp(-0.5 * (u**2 - low**2)) * (high - low) / 2
    expected = np.log(scaled) - 0.5 * low**2 - 0.5 * np.log(2 * np.pi)
    assert low > 50
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("x", [0, 3, 7])
def test_decoder_has_derivatives_in_open_bins(x):
    decoder = ddpm.discretised_gaussian(8)

    def log_prob(mean):
        return decoder.log_prob(jnp.asarray([[x]]), mean.reshape(1, 1), jnp.asarray(0.3))[0]

    for mean in (-0.8, 0.1, 1.3):
        gradient = jax.grad(log_prob)(jnp.asarray(mean))
        h = 1e-5
        slope = (log_prob(jnp.asarray(mean + h)) - log_prob(jnp.asarray(mean - h))) / (2 * h)
        np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-8)


def test_decoder_encodes_as_the_paper_or_as_our_likelihood():
    x = jnp.arange(17).reshape(1, 17)
    ours = likelihoods.discretised(17).encode(x)
    np.testing.assert_allclose(
        ddpm.discretised_gaussian(17, 1 - 1 / 17).encode(x), ours, rtol=1e-14
    )
    paper = ddpm.discretised_gaussian().encode(jnp.arange(256).reshape(1, 256))
    np.testing.assert_allclose(paper[0], np.arange(256) / 127.5 - 1, atol=1e-15)


@pytest.mark.parametrize(("variance", "first"), [("posterior", BETA_TILDES[1]), ("beta", BETAS[0])])
def test_the_last_term_decodes_around_the_mean_of_the_chain(variance, first):
    x_raw, eps = np.asarray([[0, 5, 9], [7, 15, 2]]), arrays(0, (2, 3))
    got = ddpm.reconstruction(
        jnp.asarray(x_raw),
        jnp.asarray(eps),
        CHAIN,
        lambda z, log_snr: 0.3 * z,
        decoder=ddpm.discretised_gaussian(16),
        variance=variance,
    )
    x_1 = np.sqrt(BARS[0]) * (x_raw / 7.5 - 1) + np.sqrt(1 - BARS[0]) * eps
    mean = model_mean(x_1, 0.3 * x_1, 1)
    low = np.where(x_raw == 0, -np.inf, (x_raw - 0.5) / 7.5 - 1)
    high = np.where(x_raw == 15, np.inf, (x_raw + 0.5) / 7.5 - 1)
    law = stats.norm(mean, np.sqrt(first))
    np.testing.assert_allclose(got, -np.log(law.cdf(high) - law.cdf(low)).sum(1), rtol=1e-9)


def exact_terms(chain, probs, variance):
    """E over noise of L_0, of Σ L_{n−1} and L_T for every x of a table, with its own denoiser."""
    levels = len(probs)
    decoder, eps_fn = (
        ddpm.discretised_gaussian(levels, 1 - 1 / levels),
        exact_eps(table(probs, levels)),
    )
    x_raw = np.arange(levels)[:, None]
    steps = (np.arange(2, chain.num_latents + 1), np.ones(chain.num_latents - 1))

    def last(x, eps):
        return ddpm.reconstruction(x, eps, chain, eps_fn, decoder=decoder, variance=variance)

    def term(x, n, eps):
        return ddpm.step_kl(decoder.encode(x), n, eps, chain, eps_fn, variance=variance)

    noise = normal(121)
    prior = losses.prior_kl(decoder.encode(jnp.asarray(x_raw)), jnp.asarray(chain.log_snrs[-1]))
    return (
        expectation(last, x_raw, noise),
        expectation(term, x_raw, steps, noise),
        np.asarray(prior),
    )


@every_variance
def test_the_bound_of_every_value_sums_to_no_more_than_one(variance):
    """And to nearly one where the denoiser is exact and the steps short; λ_1 leaves L_0 to do."""
    log_snr = np.concatenate([[4.5], np.linspace(3.7, -2.0, 150)])
    bars = np.concatenate([[1.0], 1 / (1 + np.exp(-log_snr))])
    chain, probs = ddpm.from_betas(1 - bars[1:] / bars[:-1]), skewed_probs((8,))
    terms = exact_terms(chain, probs, variance)
    total = np.exp(-sum(terms))
    assert 0.8 < total.sum() <= 1
    assert np.all(-np.log(probs) @ probs <= sum(terms) @ probs)
    for k in range(2):
        assert np.exp(terms[k] - sum(terms)).sum() > 1.05


@every_variance
def test_vlb_is_an_unbiased_estimate_of_its_terms(variance):
    """All steps, one step for all and one for each, at 5 standard errors."""
    x, size, probs = 2, 4001, skewed_probs((8,))
    chain = ddpm.from_betas(BETAS)
    decoder, eps_fn = ddpm.discretised_gaussian(8, 1 - 1 / 8), exact_eps(table(probs, 8))
    truth = [part[x] for part in exact_terms(chain, probs, variance)]
    x_raw = jnp.full((size, 1), x)

    @jax.jit
    def draw(key, n):
        return ddpm.vlb(key, chain, eps_fn, x_raw, decoder=decoder, variance=variance, n=n)

    random = np.random.default_rng(0).integers(2, N + 1, size)
    for n in (None, random):
        terms = draw(jax.random.key(1), n)
        np.testing.assert_allclose(terms.prior, truth[2], rtol=1e-10)
        assert within(terms.reconstruction, truth[0])
        assert within(terms.diffusion, truth[1])
        np.testing.assert_allclose(
            terms.total, terms.prior + terms.reconstruction + terms.diffusion, rtol=1e-12
        )


def test_one_step_stands_for_all_of_them():
    """Without an error of ε̂ each term is its extra alone, and nothing is left to chance."""
    decoder, x_raw = ddpm.discretised_gaussian(8), jnp.asarray([[1, 6], [2, 2], [0, 7]])
    x = 2 * x_raw / 7 - 1

    def eps_fn(z, log_snr):
        a, s = (part.reshape(-1, 1) for part in scales(log_snr))
        return (z - a * x) / s

    def draw(n):
        key = jax.random.key(0)
        return ddpm.vlb(key, CHAIN, eps_fn, x_raw, decoder=decoder, variance="beta", n=n).diffusion

    ratio = BETA_TILDES[1:] / BETAS[1:]
    extra = 2 * 0.5 * (ratio - 1 - np.log(ratio))
    np.testing.assert_allclose(draw(None), extra.sum(), rtol=1e-9)
    np.testing.assert_allclose(draw(4), (N - 1) * extra[2], rtol=1e-9)
    n = jnp.asarray([2, 9, 5])
    np.testing.assert_allclose(draw(n), (N - 1) * extra[n - 2], rtol=1e-9)


def test_every_term_has_noise_of_its_own():
    x = jnp.zeros((5, 2))
    terms = ddpm.step_kls(jax.random.key(0), CHAIN, lambda z, log_snr: 0 * z, x)
    log_snr = np.log(BARS / (1 - BARS))
    squares = terms / (0.5 * np.expm1(log_snr[:-1] - log_snr[1:]))[:, None]
    assert terms.shape == (N - 1, 5)
    assert len(np.unique(np.round(squares, 9))) == 5 * (N - 1)


def test_terms_follow_their_own_keys():
    many, x_raw = keys(3, 7), jnp.arange(14).reshape(7, 2) % 8
    decoder, eps_fn = ddpm.discretised_gaussian(8), exact_eps(SKEWED_2D)
    draw = jax.jit(lambda key, x: ddpm.vlb(key, CHAIN, eps_fn, x, decoder=decoder).total)
    chosen = jnp.asarray([4, 0])
    np.testing.assert_allclose(draw(many, x_raw)[chosen], draw(many[chosen], x_raw[chosen]))


@pytest.mark.parametrize("num_latents", [2, 4, 5, N])
def test_a_strided_chain_keeps_the_marginals_of_what_it_keeps(num_latents):
    strided = CHAIN.strided(num_latents)
    kept = {2: [1, 9], 4: [1, 4, 6, 9], 5: [1, 3, 5, 7, 9], N: range(1, N + 1)}[num_latents]
    index = np.asarray(kept) - 1
    np.testing.assert_allclose(strided.alpha_bars, BARS[index], rtol=1e-12)
    # Each new beta is the variance of the product of the steps that it stands for.
    expected = [
        1 - np.prod(ALPHAS[low:high]) for low, high in itertools.pairwise([0, *(index + 1)])
    ]
    np.testing.assert_allclose(strided.betas, expected, rtol=1e-12)


MEAN, SPREAD = np.asarray([0.7, -0.3]), np.asarray([[0.5, 0.2], [0.2, 0.3]])


def correlated_eps(z, log_snr):
    """E[ε|z] = σ (α²C + σ²I)⁻¹ (z − α m) for data N(m, C)."""
    a, s = scales(log_snr)
    total = a**2 * SPREAD + s**2 * jnp.eye(2)
    return s * jnp.linalg.solve(total, (z - a * MEAN[None]).T).T


def recursion(betas, variance):
    """Mean and covariance of what algorithm 2 of the paper returns for data N(m, C)."""
    bars = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], bars[:-1]])
    noise = betas if variance == "beta" else betas * (1 - before) / (1 - bars)
    mean, cov = np.zeros(2), np.eye(2)
    for n in range(len(betas), 0, -1):
        beta, bar = betas[n - 1], bars[n - 1]
        of_eps = np.sqrt(1 - bar) * np.linalg.inv(bar * SPREAD + (1 - bar) * np.eye(2))
        pull = beta / np.sqrt(1 - bar) * of_eps
        matrix = (np.eye(2) - pull) / np.sqrt(1 - beta)
        mean = matrix @ mean + pull @ (np.sqrt(bar) * MEAN) / np.sqrt(1 - beta)
        cov = matrix @ cov @ matrix.T + (noise[n - 1] if n > 1 else 0.0) * np.eye(2)
    return mean, cov


@every_variance
def test_samples_have_the_law_of_the_paper_s_algorithm(variance):
    draw = jax.jit(
        lambda key: ddpm.sample(key, CHAIN, correlated_eps, (20001, 2), variance=variance)
    )
    x = np.asarray(draw(jax.random.key(2)))
    mean, cov = recursion(BETAS, variance)
    centred = x - mean
    assert within(x, mean)
    assert within(centred[:, :, None] * centred[:, None, :], cov)


@every_variance
def test_many_steps_reach_gaussian_data(variance):
    """A check of the recursion, whose last step takes the mean: it leaves out σ_1²."""
    mean, cov = recursion(LINEAR, variance)
    np.testing.assert_allclose(mean, MEAN, atol=3e-3)
    np.testing.assert_allclose(cov, SPREAD, atol=6e-3)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_each_variance_is_right_for_one_kind_of_data(variance):
    """ "beta" for N(0, 1) and "posterior" for a point: from q(x_n) to q(x_{n−1}) exactly."""
    width = {"posterior": 0.0, "beta": 1.0}[variance]
    data = gaussian_data([0.9 * (1 - width)], width)
    sampler = ddpm.reverse(variance)
    for n in range(2, N + 1):
        (a_n, s_n), (a_b, s_b) = (scales(CHAIN.log_snrs[m - 1]) for m in (n, n - 1))
        levels = CHAIN.log_snr(n), CHAIN.log_snr(n - 1)

        def step(z, noise, levels=levels):
            args = exact_eps(data), jnp.full((1, 1), z), (), jnp.full((1, 1), noise), *levels
            z, carry = sampler.step(*args)
            assert carry == ()
            return float(z[0, 0])

        mean_n, std_n = a_n * data.means[0][0], np.hypot(a_n * width, s_n)
        centre = step(mean_n, 0.0)
        spread = np.hypot(step(mean_n + std_n, 0.0) - centre, step(mean_n, 1.0) - centre)
        np.testing.assert_allclose(centre, a_b * data.means[0][0], atol=1e-10)
        np.testing.assert_allclose(spread, np.hypot(a_b * width, s_b), rtol=1e-9)


def test_steps_of_examples_at_levels_of_their_own():
    z, noise = jnp.asarray(arrays(0, (3, 2))), jnp.asarray(arrays(1, (3, 2)))
    levels = jnp.asarray([-3.0, 0.5, 2.0]), jnp.asarray([-2.0, 0.6, 5.0])
    eps_fn, sampler = exact_eps(SKEWED_2D), ddpm.reverse("beta")
    each = [
        sampler.step(eps_fn, z[i : i + 1], (), noise[i : i + 1], levels[0][i], levels[1][i])[0][0]
        for i in range(3)
    ]
    np.testing.assert_allclose(sampler.step(eps_fn, z, (), noise, *levels)[0], each, rtol=1e-12)


def test_samples_follow_their_own_keys():
    many, chosen = keys(3, 7), jnp.asarray([4, 0])
    draw = jax.jit(lambda key: ddpm.sample(key, CHAIN, exact_eps(SKEWED), (len(key), 1)))
    np.testing.assert_array_equal(draw(many)[4], draw(many[chosen])[0])


@pytest.mark.float32
def test_samples_stay_float32():
    x = ddpm.sample(jax.random.key(0), CHAIN, lambda z, log_snr: z, (1, 2))
    assert x.dtype == jnp.float32


@pytest.mark.parametrize(
    "attempt",
    [
        lambda name: ddpm.reverse(name),
        lambda name: CHAIN.extra_kl(name),
        lambda name: CHAIN.reverse_variances(name),
        lambda name: ddpm.step_kl(ONE, 2, ONE, CHAIN, IDENTITY, variance=name),
        lambda name: ddpm.sample(jax.random.key(0), CHAIN, IDENTITY, (1, 1), variance=name),
    ],
)
def test_unknown_variance(attempt):
    with pytest.raises(ValueError, match=r"unknown variance 'betas'.*Did you mean 'beta'"):
        attempt("betas")


ONE = jnp.ones((1, 1))


def IDENTITY(z, log_snr):
    return z


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: CHAIN.posterior(ONE, ONE, 0), "n must be from 1 to 9: got 0"),
        (lambda: CHAIN.posterior(ONE, ONE, 10), "n must be from 1 to 9: got 10"),
        (lambda: ddpm.simple_loss(ONE, 10, ONE, CHAIN, IDENTITY), "n must be from 1 to 9: got 10"),
        (lambda: ddpm.step_kl(ONE, 1, ONE, CHAIN, IDENTITY), "n must be from 2 to 9: got 1"),
        (
            lambda: ddpm.step_kl(ONE, jnp.asarray([12]), ONE, CHAIN, IDENTITY),
            "n must be from 2 to 9: got 12",
        ),
    ],
)
def test_latents_that_do_not_exist(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


@pytest.mark.parametrize("num_latents", [1, 10, 2.5])
@pytest.mark.usefixtures("unchecked")
def test_bad_strides(num_latents):
    with pytest.raises(ValueError, match=f"from 2 to the chain's 9: got {num_latents}"):
        CHAIN.strided(num_latents)


@pytest.mark.parametrize(
    ("betas", "message"),
    [([0.1], "at least 2"), ([[0.1, 0.2]], "at least 2"), ([0.1, 1.0], "between 0 and 1: got 1.0")],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        ddpm.from_betas(betas)


@pytest.mark.usefixtures("unchecked")
def test_bad_decoders_and_data():
    with pytest.raises(ValueError, match="levels must be a whole number of at least 2: got 1"):
        ddpm.discretised_gaussian(1)
    with pytest.raises(ValueError, match="edge must be positive and finite: got 0"):
        ddpm.discretised_gaussian(8, 0.0)
    with pytest.raises(TypeError, match=r"integers 0..7: got float64 data"):
        ddpm.discretised_gaussian(8).encode(jnp.zeros((1, 1)))


@pytest.mark.usefixtures("unchecked")
def test_keys_that_do_not_fit():
    decoder = ddpm.discretised_gaussian(8)
    for n in (None, 2):
        with pytest.raises(ValueError, match=r"\(\) or \(1,\)"):
            ddpm.vlb(keys(0, 3), CHAIN, IDENTITY, jnp.ones((1, 1), int), decoder=decoder, n=n)
    with pytest.raises(ValueError, match=r"\(\) or \(1,\)"):
        ddpm.sample(keys(0, 3), CHAIN, IDENTITY, (1, 1))
