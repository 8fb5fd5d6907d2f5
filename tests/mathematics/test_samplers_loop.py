"""Walking a grid: keys of single samples, whole trajectories, given starts, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import arrays, keys
from vdm import samplers

GRID = np.linspace(-5.0, 4.0, 13)
EVERY = [*samplers.SAMPLERS, samplers.heun(0.2)]


def eps_fn(z, log_snr):
    """Any denoiser will do; a small one is compiled sooner."""
    return 0.6 * z + 0.3 * jnp.sin(z + log_snr)


def test_samples_follow_their_own_keys():
    draw = jax.jit(lambda key: samplers.sample(key, eps_fn, jnp.asarray(GRID), (len(key), 2, 1)))
    batch = keys(3, 7)
    np.testing.assert_array_equal(draw(batch)[4], draw(batch[jnp.asarray([4, 0])])[0])


@pytest.mark.float32
@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_one_batch_of_64_is_64_batches_of_one(sampler):
    draw = jax.jit(
        lambda key: samplers.sample(
            key, eps_fn, jnp.asarray(GRID, jnp.float32), (len(key), 2), sampler=sampler
        )
    )
    batch = keys(4, 64)
    together = draw(batch)
    apart = np.concatenate([draw(batch[n : n + 1]) for n in range(64)])
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert len(np.unique(np.round(apart, 4), axis=0)) == 64


@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp_2m"])
def test_a_trajectory_goes_from_the_noise_to_the_sample(sampler):
    shape = (49, 2)

    def walk(function, grid):
        grid = jnp.asarray(grid)
        run = jax.jit(lambda key: function(key, eps_fn, grid, shape, sampler=sampler))
        return np.asarray(run(jax.random.key(5)))

    path = walk(samplers.trajectory, GRID)
    assert path.shape == (13, 49, 2)
    np.testing.assert_allclose(path[-1], walk(samplers.sample, GRID), rtol=1e-12)
    np.testing.assert_allclose(path[:5], walk(samplers.trajectory, GRID[:5]), rtol=1e-12)
    assert stats.kstest(path[0].ravel(), "norm").pvalue > 1e-3


def test_the_first_noise_is_the_key_s_alone():
    """Neither the denoiser, the sampler nor the rest of the grid moves it."""

    def first(sampler, eps_fn, grid):
        path = samplers.trajectory(
            jax.random.key(6), eps_fn, jnp.asarray(grid), (5, 2), sampler=sampler
        )
        return np.asarray(path[0])

    noise = first("ddim", eps_fn, GRID)
    np.testing.assert_array_equal(noise, first("heun", lambda z, log_snr: 0.1 * z, [-1.0, 1.0]))


def test_noise_differs_from_step_to_step():
    """With ε̂ = 0, ancestral steps add independent noise on top of α_s/α_t z."""
    grid = jnp.asarray([-2.0, -1.0, 0.0, 1.0])
    path = np.asarray(
        samplers.trajectory(
            jax.random.key(7), lambda z, log_snr: jnp.zeros_like(z), grid, (2001, 1)
        )
    )[..., 0]
    scale = np.asarray(jax.nn.sigmoid(grid)) ** 0.5
    added = np.stack([path[0], *np.diff(path / scale[:, None], axis=0)])
    correlation = np.corrcoef(added) - np.eye(4)
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(2001)


def test_a_start_takes_the_place_of_the_noise():
    """A path that is cut and begun again from where it was is the same path."""
    start = jnp.asarray(arrays(1, (5, 2)))

    def walk(grid, z):
        return samplers.trajectory(
            jax.random.key(8), eps_fn, jnp.asarray(grid), (5, 2), sampler="heun", start=z
        )

    whole = walk(GRID, start)
    np.testing.assert_array_equal(whole[0], start)
    np.testing.assert_allclose(walk(GRID[6:], whole[6])[-1], whole[-1], rtol=1e-12)
    alone = samplers.sample(
        jax.random.key(9), eps_fn, jnp.asarray(GRID), (5, 2), sampler="heun", start=start
    )
    np.testing.assert_allclose(alone, whole[-1], rtol=1e-12)


def attempt(grid=(-1.0, 1.0), sampler="ancestral", key=None, function=samplers.sample, start=None):
    key = jax.random.key(0) if key is None else key
    return function(
        key, lambda z, log_snr: z, jnp.asarray(grid), (3, 2), sampler=sampler, start=start
    )


def test_a_sampler_is_a_name_or_a_value():
    for name, build in samplers.SAMPLERS.items():
        assert build() == build() and hash(build()) == hash(build())
        assert isinstance(build(), samplers.Sampler)
        np.testing.assert_array_equal(attempt(sampler=name), attempt(sampler=build()))
    assert samplers.ddim(0.5) != samplers.ddim()


def test_another_person_s_sampler():
    """Anything with `init` and `step` will do, whatever it carries."""

    class Counting:
        def init(self, z):
            return {"steps": jnp.zeros((), int)}

        def step(self, eps_fn, z_t, carry, noise, log_snr_t, log_snr_s):
            return jnp.full_like(z_t, carry["steps"] + 1), {"steps": carry["steps"] + 1}

    np.testing.assert_array_equal(attempt((-1.0, 0.0, 1.0, 2.0), Counting()), np.full((3, 2), 3.0))


@pytest.mark.float32
def test_samples_stay_float32():
    for name in samplers.SAMPLERS:
        assert attempt(sampler=name).dtype == jnp.float32


@pytest.mark.parametrize("function", [samplers.sample, samplers.trajectory])
def test_unknown_sampler(function):
    with pytest.raises(ValueError, match=r"unknown sampler 'ancestrall'.*Did you mean 'ancestral'"):
        attempt(sampler="ancestrall", function=function)


@pytest.mark.parametrize("grid", [(1.0, -1.0), (-1.0, 0.0, 0.0, 1.0)])
def test_grid_that_does_not_increase(grid):
    with pytest.raises(ValueError, match=r"increase strictly.*got (1\.0 before -1|0\.0 before 0)"):
        attempt(grid)


@pytest.mark.parametrize("end", [float("nan"), float("inf")])
def test_grid_that_is_not_finite(end):
    with pytest.raises(ValueError, match=f"must be finite: got {end}"):
        attempt((-1.0, end))


def test_grid_without_a_step():
    with pytest.raises(ValueError, match="at least one step: got a grid of 1"):
        attempt((1.0,))


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit():
    with pytest.raises(TypeError, match="typed key"):
        attempt(key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match=r"\(\) or \(3,\)"):
        attempt(key=keys(0, 4))
    with pytest.raises(ValueError, match=r"start must have the shape .*\(3, 2\): got \(3, 1\)"):
        attempt(start=jnp.zeros((3, 1)))
    with pytest.raises(
        ValueError, match=r"one axis, the noise levels: got an array of shape \(1, 2\)"
    ):
        attempt(((-1.0, 1.0),))
    with pytest.raises(ValueError, match=r"batch axis first: got \(\)"):
        samplers.sample(jax.random.key(0), lambda z, log_snr: z, jnp.asarray([-1.0, 1.0]), ())
