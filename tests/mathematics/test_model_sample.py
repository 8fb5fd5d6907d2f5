"""Sampling from a model: grids of its own choice, starts, clipping, and the last draw."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import ExactHead, arrays, keys, normal, scales, table
from vdm import VDM, samplers
from vdm.likelihoods import discretised, gaussian
from vdm.schedules import cosine

PROBS = np.asarray([0.5, 0.05, 0.15, 0.3])
TOP = 3.0  # a noisy end of the data, so that the last step has something to decide


class Rough(nn.Module):
    """A network that predicts x far out of range."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        return self.param("gain", nn.initializers.constant(1.7), ()) * jnp.sign(z)


def build(network=None, likelihood=None, schedule=None, prediction="x"):
    network = Rough() if network is None else network
    likelihood = discretised(4) if likelihood is None else likelihood
    return VDM(schedule or cosine(TOP, -9.0), network, likelihood, prediction)


MODEL = build()
PARAMS = {"schedule": {"ends": {}, "shape": {}}, "network": {"gain": jnp.asarray(1.7)}}


@functools.partial(
    jax.jit,
    static_argnames=("model", "shape", "num_steps", "sampler", "grid", "clip_denoised", "final"),
)
def draw(model, params, key, shape, levels=None, grid="time", **options):
    grid = grid if levels is None else levels
    return model.sample(params, key, shape, grid=grid, **options)


def from_level_to_level():
    """P(decided level | x) at λ = TOP by quadrature over z_0: most probable, and drawn."""
    a, s = scales(TOP)
    nodes, weights = normal(2001)
    values = (2 * np.arange(4) + 1) / 4 - 1
    mode, drawn = np.zeros((4, 4)), np.zeros((4, 4))
    for level, value in enumerate(values):
        density = stats.norm.pdf(a * value + s * nodes, a * values, s)
        drawn[level] = weights @ (density / density.sum(1, keepdims=True))
        mode[level] = np.bincount(density.argmax(1), weights, minlength=4)
    return {"mode": mode, "draw": drawn}


@pytest.mark.parametrize("final", ["mode", "draw"])
def test_the_last_step_is_the_likelihood_s(final):
    """z_0 is right in law (an exact head, a second-order sampler): a χ² test at level 10⁻³."""
    model = build(ExactHead(table(PROBS, 4), "eps"), prediction="eps")
    params = {"schedule": PARAMS["schedule"], "network": {"gain": jnp.asarray(1.0)}}
    x = draw(
        model,
        params,
        jax.random.key(1),
        (20001, 1),
        num_steps=200,
        sampler="dpmpp_2m",
        grid="lambda",
        final=final,
    )
    expected = {name: PROBS @ matrix for name, matrix in from_level_to_level().items()}
    counts = np.bincount(np.asarray(x)[:, 0], minlength=4)
    assert stats.chisquare(counts, 20001 * expected[final]).pvalue > 1e-3
    other = expected["mode" if final == "draw" else "draw"]
    assert stats.chisquare(counts, 20001 * other).pvalue < 1e-3


def test_the_last_draw_has_noise_of_its_own():
    """A Gaussian likelihood of scale 1 adds noise that no step has used."""
    model = build(likelihood=gaussian(1.0))
    shape = (2001, 1)
    for num_steps in (1, 3):
        options = {"num_steps": num_steps, "sampler": "ancestral"}
        mode = np.asarray(draw(model, PARAMS, jax.random.key(2), shape, **options))
        noise = np.asarray(draw(model, PARAMS, jax.random.key(2), shape, final="draw", **options))
        noise = noise - mode
        assert stats.kstest(noise[:, 0], "norm").pvalue > 1e-3
        path = samplers.trajectory(
            jax.random.key(2),
            model.denoiser(PARAMS),
            samplers.grids.on_schedule("time", model.log_snr(PARAMS), num_steps),
            shape,
        )
        for z in path:
            assert abs(np.corrcoef(np.asarray(z)[:, 0], noise[:, 0])[0, 1]) < 5 / np.sqrt(2001)


@pytest.mark.parametrize("grid", ["time", "lambda", "edm"])
def test_a_grid_by_name_is_its_levels(grid):
    model = build(likelihood=gaussian(0.1))
    levels = samplers.grids.on_schedule(grid, model.log_snr(PARAMS), 5)
    named = draw(model, PARAMS, jax.random.key(3), (7, 2), num_steps=5, grid=grid)
    given = draw(model, PARAMS, jax.random.key(3), (7, 2), levels=levels)
    np.testing.assert_allclose(named, given, rtol=1e-9)
    z_0 = samplers.sample(jax.random.key(3), model.denoiser(PARAMS), levels, (7, 2))
    np.testing.assert_allclose(named, z_0 / scales(TOP)[0], rtol=1e-9)


def test_levels_may_end_apart_from_the_schedule():
    """Decoding takes place at the grid's own clean end."""
    model = build(likelihood=gaussian(0.1))
    levels = jnp.asarray([-2.0, 0.0, 1.0])
    z_0 = samplers.sample(jax.random.key(4), model.denoiser(PARAMS), levels, (7, 2))
    got = draw(model, PARAMS, jax.random.key(4), (7, 2), levels=levels)
    np.testing.assert_allclose(got, z_0 / scales(1.0)[0], rtol=1e-9)


def test_a_start_is_where_sampling_begins():
    model = build(likelihood=gaussian(0.1))
    start, levels = jnp.asarray(arrays(0, (7, 2))), jnp.asarray([-2.0, 0.0, 1.0])
    eps_fn, key = model.denoiser(PARAMS), jax.random.key(5)
    z_0 = samplers.sample(key, eps_fn, levels, (7, 2), sampler="ddim", start=start)
    got = draw(model, PARAMS, key, (7, 2), levels=levels, sampler="ddim", start=start)
    np.testing.assert_allclose(got, z_0 / scales(1.0)[0], rtol=1e-9)


@pytest.mark.parametrize(("gain", "inside"), [(-1.7, False), (-0.4, True)])
def test_clipping_holds_the_prediction_within_the_data(gain, inside):
    """One DDIM step from z to λ = 0 gives z_0/α_0 = x̂ + (z − α x̂)/σ with x̂ = gain · sign z."""
    model, (a, s) = build(likelihood=discretised(1001)), scales(-9.0)
    z = np.linspace(0.1, 0.9, 7)[:, None] * np.asarray([1.0, -1.0])
    options = {"levels": jnp.asarray([-9.0, 0.0]), "sampler": "ddim", "start": jnp.asarray(z)}
    params = {**PARAMS, "network": {"gain": jnp.asarray(gain)}}
    for clip in (False, True):
        x = draw(model, params, jax.random.key(6), (7, 2), clip_denoised=clip, **options)
        x_hat = gain * np.sign(z)
        x_hat = np.clip(x_hat, -1000 / 1001, 1000 / 1001) if clip else x_hat
        level = np.round(((x_hat + (z - a * x_hat) / s + 1) * 1001 - 1) / 2)
        np.testing.assert_array_equal(x, np.clip(level, 0, 1000))
        assert inside or clip == bool(np.all((level > 0) & (level < 1000)))


def test_samples_follow_their_own_keys_to_the_last_draw():
    batch = keys(7, 5)
    options = {"num_steps": 3, "final": "draw"}
    whole = draw(MODEL, PARAMS, batch, (5, 3), **options)
    np.testing.assert_array_equal(draw(MODEL, PARAMS, batch[2:3], (1, 3), **options)[0], whole[2])


def test_bad_options():
    def attempt(model=MODEL, **options):
        return model.sample(PARAMS, jax.random.key(0), (5, 3), **options)

    with pytest.raises(ValueError, match=r"unknown final 'drawn'.*Did you mean 'draw'"):
        attempt(num_steps=2, final="drawn")
    with pytest.raises(ValueError, match=r"unknown grid 'tim'.*Did you mean 'time'"):
        attempt(num_steps=2, grid="tim")
    with pytest.raises(ValueError, match="'time' needs num_steps"):
        attempt()
    with pytest.raises(ValueError, match="number of steps itself"):
        attempt(num_steps=2, grid=jnp.asarray([-1.0, 1.0]))
    with pytest.raises(ValueError, match=r"range of encoded data.*Gaussian\(scale=0\.1"):
        attempt(build(likelihood=gaussian(0.1)), num_steps=2, clip_denoised=True)
