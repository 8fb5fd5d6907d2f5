"""The SDE against the process that it is equal to.

For Gaussian data every step is an affine map of z and of the noise, so mean and covariance
are carried along a path without drawing anything, and the order of an error can be fitted.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import SKEWED, SKEWED_2D, arrays, exact_eps, keys, scales, within
from vdm import diffusion, schedules, sde

MEAN = np.asarray([0.7, -0.3, 1.1])
COVARIANCE = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]])
ENDS = (5.0, -6.0)
SCHEDULES = {
    "linear": schedules.linear(*ENDS),
    "shifted": schedules.cosine(*ENDS, shift=1.0),
    "beta_linear": schedules.beta_linear(*ENDS),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
NOISE_LEVELS = [0.0, 0.5, 1.0]
every_level = pytest.mark.parametrize("noise_level", NOISE_LEVELS)
every_sampler = pytest.mark.parametrize("sampler", [sde.euler_maruyama, sde.exponential])
GRIDS = {
    "even": lambda n: np.linspace(*ENDS[::-1], n + 1),
    "uneven": lambda n: ENDS[1] + (ENDS[0] - ENDS[1]) * np.linspace(0, 1, n + 1) ** 1.6,
}


def curve(schedule):
    return lambda t: schedule.log_snr(schedule.init(jax.random.key(0)), t)


def correlated_eps(z, log_snr):
    """E[ε|z] = σ (α²C + σ²I)⁻¹ (z − α m) for data N(m, C)."""
    a, s = scales(log_snr)
    total = a**2 * COVARIANCE + s**2 * jnp.eye(3)
    return s * jnp.linalg.solve(total, (z - a * MEAN[None]).T).T


def law(log_snr):
    """Mean and covariance of q(z_λ) for data N(m, C)."""
    a, s = scales(np.asarray(log_snr))
    return a * MEAN, a**2 * COVARIANCE + s**2 * np.eye(3)


def moments(sampler, grid):
    """Mean and covariance of z at every level of the grid, from q's own at the first."""

    @jax.jit
    @jax.vmap
    def maps(log_snr_t, log_snr_s):
        def step(z, noise):
            return sampler.step(correlated_eps, z, (), noise, log_snr_t, log_snr_s)[0]

        zero, unit = jnp.zeros((3, 3)), jnp.eye(3)
        offset = step(zero, zero)
        return (step(unit, zero) - offset).T, offset[0], (step(zero, unit) - offset).T

    mean, cov = law(grid[0])
    path = [(mean, cov)]
    for of_z, offset, of_noise in zip(
        *(np.asarray(part) for part in maps(grid[:-1], grid[1:])), strict=True
    ):
        mean, cov = of_z @ mean + offset, of_z @ cov @ of_z.T + of_noise @ of_noise.T
        path.append((mean, cov))
    return path


def errors(sampler, grid):
    """The largest error along the path, of the mean and of the covariance."""
    pairs = [(law(level), got) for level, got in zip(grid, moments(sampler, grid), strict=True)]
    return np.asarray(
        [max(np.abs(true[k] - got[k]).max() for true, got in pairs) for k in range(2)]
    )


@every_sampler
@every_level
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_reverse_samplers_keep_the_marginals_at_weak_order_one(sampler, noise_level, grid):
    few, many = (errors(sampler(noise_level), grid(n)) for n in (400, 800))
    # With x̂ frozen E x̂ = m: the mean of Gaussian data has no error at all.
    exact = np.asarray([sampler is sde.exponential, False])
    np.testing.assert_allclose(many[exact], 0.0, atol=1e-12)
    np.testing.assert_allclose(np.log2(few / many)[~exact], 1.0, atol=0.06)
    assert np.all(many < 0.02)


@every_sampler
@every_level
def test_reverse_samplers_keep_the_marginals_of_a_mixture(sampler, noise_level):
    size, stride, grid = 10001, 50, GRIDS["even"](250)
    sampler, eps_fn = sampler(noise_level), exact_eps(SKEWED_2D)
    weights, means, widths = (np.asarray(field) for field in SKEWED_2D)
    rng = np.random.default_rng(3)
    k = rng.choice(2, size, p=weights)
    x = means[k] + widths[k, None] * rng.normal(size=(size, 2))
    a, s = scales(grid[0])
    start = a * x + s * rng.normal(size=(size, 2))

    @jax.jit
    def follow(z, noise, levels):
        def step(state, given):
            z, carry = sampler.step(eps_fn, *state, *given)
            return (z, carry), z

        return jax.lax.scan(step, (z, sampler.init(z)), (noise, levels[:-1], levels[1:]))[1]

    path = np.asarray(follow(start, rng.normal(size=(len(grid) - 1, size, 2)), grid))
    centre = weights @ means
    spread = np.einsum("k,ki,kj->ij", weights, means - centre, means - centre)
    spread = spread + weights @ widths**2 * np.eye(2)
    for n in range(stride, len(grid), stride):
        a, s = scales(grid[n])
        z = path[n - 1]
        centred = z - a * centre
        assert within(z, a * centre), n
        products = centred[:, :, None] * centred[:, None, :]
        assert within(products, a**2 * spread + s**2 * np.eye(2)), n


def batch(rows=7):
    """z, the exact ε̂ there and noise, each row between levels of its own."""
    log_snr_t = np.linspace(-7.0, 9.0, rows)
    log_snr_s = log_snr_t + np.linspace(0.01, 5.0, rows)
    return arrays(0, (rows, 2)), arrays(1, (rows, 2)), log_snr_t, log_snr_s


def exponential_step(noise_level):
    z, noise, log_snr_t, log_snr_s = (jnp.asarray(part) for part in batch())
    sampler = sde.exponential(noise_level)
    z_s, carry = sampler.step(exact_eps(SKEWED_2D), z, (), noise, log_snr_t, log_snr_s)
    assert carry == ()
    return z_s


def test_the_exponential_step_of_the_ode_is_ddim():
    z, _, log_snr_t, log_snr_s = batch()
    (a_t, s_t), (a_s, s_s) = (scales(level[:, None]) for level in (log_snr_t, log_snr_s))
    eps_hat = np.asarray(exact_eps(SKEWED_2D)(jnp.asarray(z), jnp.asarray(log_snr_t)))
    expected = a_s * (z - s_t * eps_hat) / a_t + s_s * eps_hat
    np.testing.assert_allclose(exponential_step(0.0), expected, rtol=1e-10)


def test_the_exponential_step_of_the_reverse_sde_is_ancestral():
    z, noise, log_snr_t, log_snr_s = (jnp.asarray(part) for part in batch())
    eps_hat = exact_eps(SKEWED_2D)(z, log_snr_t)
    x_hat = diffusion.convert(eps_hat, z, log_snr_t, source="eps", target="x")
    mean, std = diffusion.posterior(z, x_hat, log_snr_t, log_snr_s)
    np.testing.assert_allclose(exponential_step(1.0), mean + std * noise, rtol=1e-10)


@every_level
def test_the_exponential_step_with_known_data_lands_on_the_process(noise_level):
    """With x̂ = x nothing is approximated: from q(z_t|x) it goes to q(z_s|x), at any length."""
    _, _, log_snr_t, log_snr_s = batch()
    x, zero = arrays(5, (7, 2)), np.zeros((7, 2))
    (a_t, s_t), (a_s, s_s) = (scales(level[:, None]) for level in (log_snr_t, log_snr_s))

    def eps_fn(z, log_snr):
        return diffusion.convert(jnp.asarray(x), z, log_snr, source="x", target="eps")

    def step(z, noise):
        level_t, level_s = jnp.asarray(log_snr_t), jnp.asarray(log_snr_s)
        args = eps_fn, jnp.asarray(z), (), jnp.asarray(noise), level_t, level_s
        return np.asarray(sde.exponential(noise_level).step(*args)[0])

    centre = step(a_t * x, zero)
    spread = np.hypot(step(a_t * x + s_t, zero) - centre, step(a_t * x, zero + 1) - centre)
    np.testing.assert_allclose(centre, a_s * x, rtol=1e-9)
    np.testing.assert_allclose(spread, np.broadcast_to(s_s, (7, 2)), rtol=1e-9)


@every_schedule
def test_forward_steps_of_euler_and_maruyama_reach_q_at_weak_order_one(schedule):
    x, error = 0.9, []
    for n in (200, 400):
        t = np.linspace(0.0, 1.0, n + 1)
        slope, g = jax.jit(
            lambda t: (
                sde.drift(jnp.ones((len(t), 1)), t, curve(schedule))[:, 0],
                sde.diffusion(t, curve(schedule)),
            )
        )(jnp.asarray(t))
        a, s = scales(np.asarray(curve(schedule)(jnp.asarray(t))))
        path = [(a[0] * x, s[0] ** 2)]
        for f, noise in zip(slope[:-1] / n, np.square(g[:-1]) / n, strict=True):
            mean, variance = path[-1]
            path.append(((1 + f) * mean, (1 + f) ** 2 * variance + noise))
        error.append(np.abs(np.asarray(path) - np.stack([a * x, s**2], 1)).max(0))
    np.testing.assert_allclose(np.log2(error[0] / error[1]), 1.0, atol=0.06)
    assert np.all(error[1] < 0.05)


TIMES = np.asarray([0.1, 0.25, 0.3, 0.7, 0.95])


def joint_law(path_fn):
    """Draws [b, n] of paths from one x, which are one-dimensional."""
    x = jnp.full((20001, 1), 0.9)
    draw = jax.jit(lambda key: path_fn(key, x, jnp.asarray(TIMES), curve(SCHEDULES["shifted"])))
    return np.asarray(draw(jax.random.key(7)))[..., 0].T


def has_law(paths, mean, cov):
    centred = paths - mean
    return within(paths, mean) and within(centred[:, :, None] * centred[:, None, :], cov)


def test_forward_paths_have_the_joint_law_of_the_process():
    """Cov(z_s, z_t) = σ_s² α_t/α_s for s ≤ t, at 5 standard errors."""
    a, s = scales(np.asarray(curve(SCHEDULES["shifted"])(jnp.asarray(TIMES))))
    first = np.minimum.outer(np.arange(5), np.arange(5))
    cov = s[first] ** 2 / a[first] ** 2 * np.outer(a, a)
    assert has_law(joint_law(sde.forward_paths), 0.9 * a, cov)


def test_paths_of_euler_and_maruyama_have_the_law_of_their_recursion():
    """Few steps, so that their law is far from that of the process."""
    log_snr, rate = schedules.log_snr_and_rate(curve(SCHEDULES["shifted"]), jnp.asarray(TIMES))
    a, s = scales(np.asarray(log_snr))
    mean, cov = np.full(5, a[0] * 0.9), np.full((5, 5), s[0] ** 2)
    for n, dt in enumerate(np.diff(TIMES)):
        kept = 1 + 0.5 * float(rate[n]) * s[n] ** 2 * dt
        mean[n + 1] = kept * mean[n]
        cov[n + 1, : n + 1] = cov[: n + 1, n + 1] = kept * cov[n, : n + 1]
        cov[n + 1, n + 1] = kept**2 * cov[n, n] - float(rate[n]) * s[n] ** 2 * dt
    paths = joint_law(sde.euler_maruyama_paths)
    assert has_law(paths, mean, cov)
    assert not within(paths, a * 0.9)


def residuals(slope, spread, sign):
    """∂p/∂t + ∂(slope p)/∂z − ½ sign spread² ∂²p/∂z², which Fokker and Planck say is 0.

    p is the density of q(z_t) for a skewed mixture; sign is −1 where time runs backwards.
    """
    weights, means, widths = (jnp.asarray(field) for field in SKEWED)
    log_snr_fn = curve(SCHEDULES["shifted"])

    def density(z, t):
        a, s = scales(log_snr_fn(t))
        variance = a**2 * widths**2 + s**2
        square = (z - a * means[:, 0]) ** 2 / variance
        return weights @ (jnp.exp(-0.5 * square) / jnp.sqrt(2 * jnp.pi * variance))

    def flow(z, t):
        return slope(z.reshape(1, 1), t, log_snr_fn)[0, 0] * density(z, t)

    def residual(z, t):
        curvature = jax.grad(jax.grad(density))(z, t)
        terms = (
            jax.grad(density, 1)(z, t),
            jax.grad(flow)(z, t),
            -0.5 * sign * spread(t, log_snr_fn) ** 2 * curvature,
        )
        return sum(terms), sum(abs(term) for term in terms)

    z, t = (part.ravel() for part in np.meshgrid(np.linspace(-2.5, 2.7, 14), [0.13, 0.4, 0.8]))
    left, size = jax.jit(jax.vmap(residual))(jnp.asarray(z), jnp.asarray(t))
    assert np.median(size) > 0.1
    return np.asarray(left)


def test_the_density_of_q_solves_the_forward_equation():
    np.testing.assert_allclose(residuals(sde.drift, sde.diffusion, 1.0), 0.0, atol=1e-9)


@every_level
def test_the_density_of_q_solves_every_reverse_equation(noise_level):
    left = residuals(
        lambda z, t, fn: sde.reverse_drift(z, t, fn, exact_eps(SKEWED), noise_level),
        lambda t, fn: noise_level * sde.diffusion(t, fn),
        -1.0,
    )
    np.testing.assert_allclose(left, 0.0, atol=1e-9)


def test_times_may_differ_from_example_to_example():
    z, t, fn = (
        jnp.asarray(arrays(0, (7, 2, 1))),
        jnp.linspace(0.1, 0.9, 7),
        curve(SCHEDULES["shifted"]),
    )
    for at in (sde.drift, lambda *args: sde.reverse_drift(*args, lambda z, log_snr: 0.3 * z)):
        each = [at(z[i : i + 1], t[i], fn)[0] for i in range(7)]
        np.testing.assert_allclose(at(z, t, fn), each, rtol=1e-12)


@every_sampler
def test_noise_levels_may_differ_from_example_to_example(sampler):
    z, noise, log_snr_t, log_snr_s = (jnp.asarray(part) for part in batch())
    eps_fn = exact_eps(SKEWED_2D)
    step = jax.jit(lambda *args: sampler(0.7).step(eps_fn, *args)[0])
    each = [
        step(z[i : i + 1], (), noise[i : i + 1], log_snr_t[i], log_snr_s[i])[0] for i in range(7)
    ]
    np.testing.assert_allclose(step(z, (), noise, log_snr_t, log_snr_s), each, rtol=1e-12)


@pytest.mark.parametrize("path_fn", [sde.forward_paths, sde.euler_maruyama_paths])
def test_paths_follow_their_own_keys(path_fn):
    many, x = keys(3, 7), jnp.asarray(arrays(0, (7, 2)))
    draw = jax.jit(lambda key, x: path_fn(key, x, jnp.asarray(TIMES), curve(SCHEDULES["linear"])))
    chosen = jnp.asarray([4, 0])
    np.testing.assert_array_equal(draw(many, x)[:, 4], draw(many[chosen], x[chosen])[:, 0])


def test_a_path_of_one_time_is_a_draw():
    x = jnp.full((3, 2), 0.9)
    path = sde.forward_paths(jax.random.key(0), x, jnp.asarray([0.5]), curve(SCHEDULES["linear"]))
    assert path.shape == (1, 3, 2)


@pytest.mark.float32
def test_short_steps_keep_their_digits_in_float32():
    zero, one = jnp.zeros((3, 1)), jnp.ones((3, 1))
    log_snr_t = jnp.asarray([-13.0, 0.0, 13.0])
    log_snr_s = log_snr_t + 1e-3

    def step(x_hat, noise):
        def eps_fn(z, log_snr):
            return diffusion.convert(x_hat, z, log_snr, source="x", target="eps")

        return sde.exponential(0.5).step(eps_fn, zero, (), noise, log_snr_t, log_snr_s)[0]

    t, s = (np.asarray(level, np.float64)[:, None] for level in (log_snr_t, log_snr_s))
    a, noise = scales(s)
    assert step(one, one).dtype == jnp.float32
    of_noise = noise * np.sqrt(-np.expm1(-0.25 * (s - t)))
    np.testing.assert_allclose(step(zero, one), of_noise, rtol=2e-5)
    # z = 0 is x̂ = 1 times α_s − (σ_s/σ_t) e^{−h/4} α_t, the weight of x̂.
    of_x = -a * np.expm1(-1.25 * (s - t) / 2)
    np.testing.assert_allclose(step(one, zero), of_x, rtol=2e-5)


@every_sampler
@pytest.mark.parametrize("noise_level", [0.0, 0.7])
def test_steps_have_derivatives_by_their_ends(sampler, noise_level):
    z = jnp.asarray(arrays(0, (3, 2)))

    @jax.jit
    def end(levels):
        args = exact_eps(SKEWED_2D), z, (), 0.5 * z, levels[0], levels[1]
        return jnp.sum(sampler(noise_level).step(*args)[0])

    levels, h = jnp.asarray([-1.0, 0.5]), 1e-6
    for k, gradient in enumerate(jax.grad(end)(levels)):
        move = h * jnp.eye(2)[k]
        slope = (end(levels + move) - end(levels - move)) / (2 * h)
        np.testing.assert_allclose(gradient, slope, rtol=1e-6)


@every_sampler
def test_samplers_are_equal_by_value(sampler):
    assert sampler() == sampler(1.0) != sampler(0.5)
    assert hash(sampler(0.5)) == hash(sampler(0.5))


@pytest.mark.parametrize("noise_level", [-0.1, 1.5, float("nan"), float("inf")])
def test_noise_levels_beyond_the_ends_are_refused(noise_level):
    def slope(noise_level):
        fn = curve(SCHEDULES["linear"])
        return sde.reverse_drift(
            jnp.ones((1, 1)), jnp.asarray(0.5), fn, lambda z, _: z, noise_level
        )

    for refuse in (sde.euler_maruyama, sde.exponential, slope):
        with pytest.raises(ValueError, match=rf"noise_level must lie .*: got {noise_level}"):
            refuse(noise_level)


@pytest.mark.parametrize(
    ("times", "message"),
    [([], "at least one time"), ([0.1, 0.1], "increase strictly"), ([0.9, 0.1], "increase")],
)
@pytest.mark.parametrize("path_fn", [sde.forward_paths, sde.euler_maruyama_paths])
def test_bad_times(path_fn, times, message):
    with pytest.raises(ValueError, match=message):
        path_fn(jax.random.key(0), jnp.ones((2, 1)), jnp.asarray(times), curve(SCHEDULES["linear"]))


@pytest.mark.usefixtures("unchecked")
def test_keys_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(\) or \(2,\)"):
        fn = curve(SCHEDULES["linear"])
        sde.forward_paths(keys(0, 3), jnp.ones((2, 1)), jnp.asarray([0.5]), fn)
