"""The bound of a chain of few steps: with v = 0, with the exact v, and summed over all data."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import (
    ExactHead,
    arrays,
    backward_transition,
    correlated_eps,
    expectation,
    grid_of_levels,
    keys,
    normal,
    scales,
    skewed_probs,
    table,
    within,
)
from vdm import VDM, few_steps, losses, samplers
from vdm.dequantisation import importance_weighted
from vdm.likelihoods import discretised, gaussian
from vdm.schedules import cosine

PROBS = skewed_probs((3, 3), seed=1)
X = jnp.asarray(grid_of_levels(2, 3))
WIDTHS, MEAN = np.asarray([0.3, 2.0, 0.9]), np.asarray([0.5, -0.2, 0.1])
TURNED = np.asarray([[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.8]])


def build(error=0.0, likelihood=None):
    """A model of a table on two pixels, off by `error` in ε."""
    network = ExactHead(table(PROBS, 3), "eps", error)
    return VDM(cosine(4.0, -4.0), network, likelihood or discretised(3))


PARAMS = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.asarray(1.0)}}
HEAD = few_steps.VarianceHead(width=5, num_layers=1, levels=3)


def random_head(pixels=2):
    """A head whose every weight is random, so that v differs from place to place."""
    z = jnp.zeros((1, pixels))
    start = HEAD.init(jax.random.key(0), z, z, jnp.zeros(1))
    leaves, tree = jax.tree.flatten(start["params"])
    noise = [jnp.asarray(0.3 * arrays(i, leaf.shape)) for i, leaf in enumerate(leaves)]
    return few_steps.Head(HEAD, jax.tree.unflatten(tree, noise))


def chain_of(kind, num_steps, pixels=2):
    """A chain on uneven levels. The table is the mean error of the exact denoiser, about."""
    levels = np.linspace(-4.0, 3.0, num_steps + 1) + 0.3 * np.sin(np.arange(num_steps + 1))
    levels[-1] = 3.0
    if kind == "head":
        return few_steps.Chain(levels, random_head(pixels))
    v = 0.25 * np.exp(-0.5 * (levels[:-1, None] + 3) * np.asarray([[0.5, 0.9]])[:, :pixels])
    return few_steps.Chain(levels, few_steps.Table(v), kind == "clipped")


@pytest.mark.parametrize("num_steps", [1, 7])
def test_even_levels_without_v_are_num_steps_bit_for_bit(num_steps):
    model, key, x = build(error=0.3), jax.random.key(num_steps), X
    chain = few_steps.even(model, PARAMS, num_steps)
    assert chain.num_steps == num_steps
    got = model.vlb(PARAMS, key, x, chain=chain)
    expected = model.vlb(PARAMS, key, x, num_steps=num_steps)
    for term, same in zip(got, expected, strict=True):
        np.testing.assert_array_equal(term, same)
    # The bound takes i/T, the sampler a linspace: their times differ in the last digit.
    own = samplers.grids.uniform_in_time(model.log_snr(PARAMS), num_steps)
    np.testing.assert_allclose(chain.log_snrs, own, rtol=1e-14)
    chain = few_steps.Chain(own)
    options = {"final": "draw", "clip_denoised": True}
    got = model.sample(PARAMS, key, (5, 2), chain=chain, **options)
    expected = model.sample(PARAMS, key, (5, 2), num_steps=num_steps, **options)
    np.testing.assert_array_equal(got, expected)
    open_ended = build(error=0.3, likelihood=gaussian(0.1))
    got = open_ended.sample(PARAMS, key, (5, 2), chain=chain)
    np.testing.assert_array_equal(got, open_ended.sample(PARAMS, key, (5, 2), num_steps=num_steps))


def test_a_step_is_the_divergence_of_two_normal_laws():
    """KL(N(m, q) ‖ N(m̂, p)), the means by Bayes' rule and p widened by 1 + κ v."""
    x, eps, eps_hat = (arrays(seed, (4, 3)) for seed in range(3))
    v = arrays(3, (4, 3)) ** 2
    t, s = np.asarray([-3.0, 0.5, -1.0, 2.0]), np.asarray([-1.0, 0.6, 5.0, 4.0])
    got = few_steps.step_kl(*(jnp.asarray(part) for part in (eps, eps_hat, v, t, s)))
    a, noise = scales(t[:, None])
    x_hat = x + noise / a * (eps - eps_hat)  # from the same z
    _, from_x, q = backward_transition(t[:, None], s[:, None])
    p = q * (1 + (np.exp(s) - np.exp(t))[:, None] * v)
    each = 0.5 * (np.log(p / q) + (q + from_x**2 * (x - x_hat) ** 2) / p - 1)
    np.testing.assert_allclose(got, each.sum(1), rtol=1e-9)


def gaussian_steps(num_steps):
    """Uneven levels between fixed ends, of which no two steps have the same length."""
    return -6.0 + 9.0 * (np.arange(num_steps + 1) / num_steps) ** 1.7


def expected_diffusion(chain, axes, widths, eps_fn):
    """The diffusion term in the mean over x = m + A (s u) and ε.

    It is quadratic in u and ε, for which signs ±1 in all combinations stand for normal numbers:
    they are the nodes of Gauss–Hermite quadrature of order two.
    """
    signs = np.asarray(list(itertools.product([-1.0, 1.0], repeat=6)))
    x = MEAN + (signs[:, :3] * widths) @ axes.T
    eps = np.broadcast_to(signs[:, 3:], (chain.num_steps, 64, 3))
    return np.mean(few_steps.all_steps(jnp.asarray(x), jnp.asarray(eps), chain, eps_fn))


def conditional_variance(covariance, log_snrs):
    """Var[x|z] in every dimension at every level: the diagonal of (C⁻¹ + SNR)⁻¹."""
    precision = np.linalg.inv(covariance)
    return np.stack([np.diag(np.linalg.inv(precision + np.exp(at) * np.eye(3))) for at in log_snrs])


def test_of_gaussian_data_the_bound_is_the_same_at_every_number_of_steps():
    """With the exact v, 1 + κ v = (1 + SNR_s s²)/(1 + SNR_t s²): the logarithms telescope."""
    covariance = np.diag(WIDTHS**2)
    eps_fn = jax.jit(correlated_eps_rows(covariance))
    high, low = 3.0, -6.0
    exact = np.log1p(np.exp(high) * WIDTHS**2) - np.log1p(np.exp(low) * WIDTHS**2)
    for num_steps in (1, 2, 5, 50):
        levels = gaussian_steps(num_steps)
        v = conditional_variance(covariance, levels[:-1])
        got = {}
        for factor in (0.8, 1.0, 1.25):
            chain = few_steps.Chain(levels, few_steps.Table(factor * v))
            got[factor] = expected_diffusion(chain, np.eye(3), WIDTHS, eps_fn)
        np.testing.assert_allclose(got[1.0], 0.5 * exact.sum(), rtol=1e-9)
        assert min(got[0.8], got[1.25]) > got[1.0] + 1e-4  # it is the best v
        plain = expected_diffusion(few_steps.Chain(levels), np.eye(3), WIDTHS, eps_fn)
        gain = np.diff(np.exp(levels))[:, None] * v
        np.testing.assert_allclose(plain, 0.5 * gain.sum(), rtol=1e-9)


def test_of_correlated_data_a_variance_in_every_dimension_costs_what_it_does_not_see():
    """½ Σ log(1 + κ Var[x_d|z]) at every step: more than the exact, less with more T."""
    variance, axes = np.linalg.eigh(TURNED)
    eps_fn = jax.jit(correlated_eps_rows(TURNED))
    before = np.inf
    for num_steps in (1, 5, 50):
        levels = gaussian_steps(num_steps)
        v = conditional_variance(TURNED, levels[:-1])
        chain = few_steps.Chain(levels, few_steps.Table(v))
        got = expected_diffusion(chain, axes, np.sqrt(variance), eps_fn)
        each = np.log1p(np.diff(np.exp(levels))[:, None] * v)
        np.testing.assert_allclose(got, 0.5 * each.sum(), rtol=1e-9)
        exact = np.log1p(np.exp(3.0) * variance) - np.log1p(np.exp(-6.0) * variance)
        assert 0.5 * exact.sum() < got < before
        before = got


def correlated_eps_rows(covariance):
    """The exact denoiser of N(m, C), for a level of its own for every example."""
    one = correlated_eps(MEAN, covariance)
    return jax.vmap(lambda z, log_snr: one(z[None], log_snr)[0])


@functools.cache
def terms(kind, num_steps, error):
    """Prior, reconstruction and diffusion of every possible datum, by quadrature over ε."""
    model, chain = build(error), chain_of(kind, num_steps)
    eps_fn = model.denoiser(PARAMS, clip_denoised=chain.clip_denoised)
    encoded, noise = model.likelihood.encode(X), normal(31, 2, 6.0)
    steps = np.arange(1, num_steps + 1), np.full(num_steps, 1 / num_steps)
    top, bottom = (jnp.asarray(chain.log_snrs[at]) for at in (-1, 0))
    return (
        np.asarray(losses.prior_kl(encoded, bottom)),
        expectation(lambda x, e: losses.reconstruction(x, e, top, model.likelihood), X, noise),
        expectation(
            lambda x, i, e: few_steps.diffusion_loss(x, i, e, chain, eps_fn), encoded, steps, noise
        ),
    )


KINDS = ("table", "head", "clipped")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_over_all_data_the_bound_s_probabilities_sum_to_at_most_one(kind, num_steps):
    sums = [np.exp(-sum(terms(kind, num_steps, error))).sum() for error in (0.0, 0.2)]
    assert 0.04 < sums[1] < sums[0] < 1
    assert sums[0] > 0.5  # close enough to one to show what is missing


def chain_probabilities(model, chain, pixels):
    """P(x) of the chain: the density of z carried from step to step on a grid, then p(x|z_0).

    Given z_t the pixels of z_s are independent, so that one step is a product of matrices.
    """
    eps_fn = model.denoiser(PARAMS, clip_denoised=chain.clip_denoised)
    size = {1: 1401, 2: 141}[pixels]
    axis = np.linspace(-7.0, 7.0, size)
    z = np.stack(np.meshgrid(*[axis] * pixels, indexing="ij"), -1).reshape(-1, pixels)
    cell = axis[1] - axis[0]
    density = np.exp(-0.5 * np.sum(z**2, 1)) / (2 * np.pi) ** (pixels / 2)
    for step, (t, s) in enumerate(itertools.pairwise(float(at) for at in chain.log_snrs)):
        a, noise = scales(t)
        x_hat = (z - noise * np.asarray(eps_fn(jnp.asarray(z), jnp.asarray(t)))) / a
        from_z, from_x, variance = backward_transition(t, s)
        if isinstance(chain.variance, few_steps.Head):
            given = jnp.asarray(z), jnp.asarray(x_hat), jnp.full(len(z), t)
            v = np.exp(np.asarray(HEAD.apply({"params": chain.variance.params}, *given)))
        else:
            v = np.broadcast_to(chain.variance.values[step], z.shape)
        wide = (variance * (1 + (np.exp(s) - np.exp(t)) * v))[..., None]
        gap = axis - (from_z * z + from_x * x_hat)[..., None]  # [z, pixel, axis]
        law = np.exp(-0.5 * gap**2 / wide) / np.sqrt(2 * np.pi * wide) * cell
        left = density if pixels == 1 else density[:, None] * law[:, 1]
        density = (law[:, 0].T @ left).ravel()
    a, noise = scales(float(chain.log_snrs[-1]))
    near = np.exp(-0.5 * ((axis[:, None] - a * (2 * np.arange(3) - 2) / 3) / noise) ** 2)
    near = near / near.sum(1, keepdims=True) * cell
    return (
        near.T @ density if pixels == 1 else near.T @ density.reshape(size, size) @ near
    ).ravel()


@pytest.mark.parametrize(
    ("kind", "num_steps", "nodes", "radius", "rtol"),
    [("table", 2, 81, 13, 1e-4), ("head", 1, 601, 36, 1e-3), ("clipped", 1, 401, 15, 2e-3)],
)
def test_the_mean_weight_of_a_path_is_the_chain_s_probability(kind, num_steps, nodes, radius, rtol):
    """E w = P(x), by quadrature over the whole path: no draws, for where 1 + κ v > 2 the variance
    of a weight is infinite. Clipping has kinks, on which quadrature converges slowly."""
    probs = np.asarray([0.6, 0.1, 0.3])
    model = VDM(cosine(4.0, -4.0), ExactHead(table(probs, 3), "eps", 0.1), discretised(3))
    chain = chain_of(kind, num_steps, pixels=1)
    eps_fn = model.denoiser(PARAMS, clip_denoised=chain.clip_denoised)
    nodes, weights = normal(nodes, num_steps + 1, radius)

    @jax.jit
    def every(x):
        fresh = jnp.asarray(nodes.T[..., None])
        x = jnp.broadcast_to(x, fresh.shape[1:])
        eps_0, above = few_steps.log_weights(model.likelihood.encode(x), fresh, chain, eps_fn)
        top = jnp.asarray(chain.log_snrs[-1])
        return -losses.reconstruction(x, eps_0, top, model.likelihood) - above

    got = [weights @ np.exp(every(jnp.asarray(x))) for x in range(3)]
    exact = chain_probabilities(model, chain, pixels=1)
    np.testing.assert_allclose(exact.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(got, exact, rtol=rtol)


@pytest.mark.parametrize(
    ("kind", "num_steps"), [("table", 1), ("table", 5), ("head", 2), ("clipped", 2)]
)
def test_the_bound_of_many_paths_lies_between_the_bound_and_log_p(kind, num_steps):
    """For every x: E log w = VLB ≤ E log mean w ≤ log P(x), within 5 standard errors."""
    model, chain = build(0.1), chain_of(kind, num_steps)
    exact = chain_probabilities(model, chain, pixels=2)
    np.testing.assert_allclose(exact.sum(), 1, atol=1e-6)
    vlb = -sum(terms(kind, num_steps, 0.1))
    assert np.all(vlb < np.log(exact))

    @jax.jit
    def paths(key):
        x = jnp.tile(X, (1000, 1))
        return model.path_weights(PARAMS, key, x, chain=chain).reshape(1000, 9)

    log_weights = jnp.stack([paths(key) for key in keys(num_steps, 20)])
    assert within(log_weights.reshape(-1, 9), vlb)
    many = np.stack([importance_weighted(draw) for draw in log_weights])
    error = many.std(0, ddof=1) / np.sqrt(len(many))
    assert np.all(many.mean(0) < np.log(exact) + 5 * error)
    assert np.all(many.mean(0) > vlb + 5 * error)


@pytest.mark.parametrize("all_steps", [False, True])
@pytest.mark.parametrize("per_example", [False, True])
def test_vlb_estimates_each_term_of_a_chain_without_bias(all_steps, per_example):
    model, chain, expected = build(0.1), chain_of("clipped", 5), terms("clipped", 5, 0.1)

    @jax.jit
    @jax.vmap
    def estimate(key):
        key = jax.random.split(key, 9) if per_example else key
        return jnp.stack(model.vlb(PARAMS, key, X, chain=chain, all_steps=all_steps))

    found = np.asarray(estimate(keys(3, 1500)))
    np.testing.assert_allclose(found[:, 0], np.broadcast_to(expected[0], found[:, 0].shape))
    assert within(found[:, 1:], np.stack(expected[1:]))


class Told(nn.Module):
    """ε̂ that depends on z and on a condition of the example."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * jnp.sin(3 * z) + cond[:, None]


def test_every_step_has_its_own_example_noise_and_condition():
    """All steps in one batch are what each example has alone, and what each step has."""
    model, chain = VDM(cosine(4.0, -4.0), Told(), discretised(3)), chain_of("table", 3)
    x, cond, key = X[2:5], jnp.asarray(arrays(0, 3)), keys(0, 3)  # as many examples as steps
    batch = model.vlb(PARAMS, key, x, cond, chain=chain, all_steps=True).diffusion
    paths = model.path_weights(PARAMS, key, x, cond, chain=chain)
    for i in range(3):
        one = key[i : i + 1], x[i : i + 1], cond[i : i + 1]
        alone = model.vlb(PARAMS, *one, chain=chain, all_steps=True).diffusion
        np.testing.assert_allclose(batch[i], alone[0], rtol=1e-9)
        alone = model.path_weights(PARAMS, *one, chain=chain)
        np.testing.assert_allclose(paths[i], alone[0], rtol=1e-9)
    encoded, eps = model.likelihood.encode(x), jnp.asarray(arrays(1, (3, 3, 2)))
    whole = few_steps.all_steps(encoded, eps, chain, model.denoiser(PARAMS, jnp.tile(cond, 3)))
    each = [
        few_steps.diffusion_loss(
            encoded, jnp.full(3, i), eps[i - 1], chain, model.denoiser(PARAMS, cond)
        )
        for i in (1, 2, 3)
    ]
    np.testing.assert_allclose(whole, np.mean(each, axis=0), rtol=1e-9)


def test_a_chain_says_whether_x_is_clipped():
    """As the keyword does, wherever a chain is taken; here x̂ is far out of range."""
    model, key, plain = build(2.0), keys(1, 9), chain_of("table", 2)
    clipped = dataclasses.replace(plain, clip_denoised=True)

    def every(chain, **options):
        one = model.vlb(PARAMS, key, X, chain=chain, **options).diffusion
        paths = model.path_weights(PARAMS, key, X, chain=chain, **options)
        drawn = model.sample(PARAMS, key, (9, 2), chain=chain, **options)
        return [np.asarray(part) for part in (one, paths, drawn)]

    for said, asked, without in zip(
        every(clipped), every(plain, clip_denoised=True), every(plain), strict=True
    ):
        np.testing.assert_array_equal(said, asked)
        assert np.any(said != without)


def test_steps_are_counted_from_the_data():
    chain = few_steps.Chain(np.asarray([-4.0, -1.0, 0.5, 3.0]))
    noisy, clean = chain.ends(jnp.asarray([1, 3]))
    np.testing.assert_array_equal(noisy, [0.5, -4.0])
    np.testing.assert_array_equal(clean, [3.0, -1.0])


@pytest.mark.parametrize("row", [(), (1,), (4,), (3, 1), (2, 3, 4)])
def test_a_row_of_a_table_is_broadcast_to_the_example(row):
    """As numpy broadcasts it to one example, whatever the size of the batch."""
    values = arrays(0, (3, *row)) ** 2
    chain = few_steps.Chain(np.asarray([-4.0, -1.0, 0.5, 3.0]), few_steps.Table(values))
    few_steps.check(chain, (2, 3, 4))
    z = jnp.zeros((3, 2, 3, 4))  # a batch as large as one of the axes, which shows a mix-up
    v = chain.v(z, z, jnp.asarray([0.4, -3.9, -1.2]))  # the nearest of the levels
    for example, at in zip(v, (2, 0, 1), strict=True):
        np.testing.assert_array_equal(example, np.broadcast_to(values[at], (2, 3, 4)))


def test_what_a_chain_excludes():
    model, key, chain = build(), jax.random.key(0), chain_of("table", 2)
    with pytest.raises(ValueError, match="got num_steps=3 and a chain of 2 steps"):
        model.vlb(PARAMS, key, X, chain=chain, num_steps=3)
    with pytest.raises(ValueError, match="all_steps=True needs a chain"):
        model.vlb(PARAMS, key, X, all_steps=True)
    with pytest.raises(ValueError, match="expected no noise_levels"):
        times = jnp.linspace(0, 1, 9)
        model.vlb(PARAMS, key, X, chain=chain, all_steps=True, noise_levels=times)
    with pytest.raises(ValueError, match="a row for each of 2 steps: got 3"):
        eps = jnp.zeros((3, 9, 2))
        few_steps.all_steps(eps[0], eps, chain, model.denoiser(PARAMS))
    short = few_steps.Chain(chain.log_snrs, few_steps.Table(np.ones((1, 2))))
    with pytest.raises(ValueError, match="a chain of 2 steps needs a table of as many rows: got 1"):
        model.vlb(PARAMS, key, X, chain=short)
    for options in ({"sampler": "ddim"}, {"grid": "lambda"}, {"num_steps": 2}):
        with pytest.raises(ValueError, match="a chain is its own grid, for the ancestral sampler"):
            model.sample(PARAMS, key, (2, 2), chain=chain, **options)


@pytest.mark.parametrize(
    ("levels", "values", "words"),
    [
        ([1.0], None, r"at least two noise levels: got shape \(1,\)"),
        ([1.0, 0.0], None, "finite and increase strictly"),
        ([0.0, 0.0], None, "finite and increase strictly"),
        ([0.0, np.inf], None, "finite and increase strictly"),
        (
            [0.0, 1.0],
            [[0.1], [0.1]],
            r"for 1 steps of examples \[5, 2\] was expected: got \[2, 1\]",
        ),
        ([0.0, 1.0], [[0.1, 0.1, 0.1]], r"got \[1, 3\]"),
        ([0.0, 1.0], [[[[0.1]]]], r"got \[1, 1, 1, 1\]"),
        ([0.0, 1.0], [[-0.1]], "finite and not negative"),
        ([0.0, 1.0], [[np.nan]], "finite and not negative"),
    ],
)
def test_an_unsound_chain(levels, values, words):
    variance = None if values is None else few_steps.Table(np.asarray(values))
    with pytest.raises(ValueError, match=words):
        few_steps.check(few_steps.Chain(np.asarray(levels), variance), (5, 2))


@pytest.mark.float32
@pytest.mark.parametrize("kind", ["table", "head"])
def test_far_ends_in_float32(kind):
    """Nothing overflows between λ = −13 and 13, with a row of the table at zero."""
    model = build(0.3)
    levels = np.asarray([-13.0, -2.0, 4.0, 12.9, 13.0], np.float32)
    table_of = few_steps.Table(np.asarray([[1.0], [0.2], [1e-9], [0.0]], np.float32))
    head = few_steps.Head(HEAD, jax.tree.map(jnp.float32, random_head().params))
    chain = few_steps.Chain(levels, table_of if kind == "table" else head)
    few_steps.check(chain, (2,))
    x, key = X.astype(jnp.int32), jax.random.key(0)

    @jax.jit
    def every(params):
        bound = model.vlb(params, key, x, chain=chain, all_steps=True).total
        return bound, model.path_weights(params, key, x, chain=chain)

    params = jax.tree.map(jnp.float32, PARAMS)
    bound, weights = every(params)
    assert bound.dtype == weights.dtype == jnp.float32
    assert np.all(np.isfinite(bound)) and np.all(np.isfinite(weights))
    assert np.all(np.isin(model.sample(params, key, (7, 2), chain=chain), range(3)))
