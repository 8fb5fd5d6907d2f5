"""The model is plain functions: of its parameters, of each example's key, of the whole batch."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import keys
from vdm import VDM, VLB, bits_per_dim, losses
from vdm.likelihoods import discretised, gaussian
from vdm.schedules import learned_linear, linear

SHAPES = [(49, 3), (1, 2, 3), (7, 2, 3, 1), (5, 2, 2, 3, 2)]


class Network(nn.Module):
    """A small network that is sensitive to z, λ, cond and dropout."""

    dtype: str = "float64"

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        z, level = z.astype(self.dtype), log_snr.astype(self.dtype)
        gain = self.param("gain", nn.initializers.constant(0.4), ()).astype(self.dtype)
        mix = self.param("mix", nn.initializers.normal(), (2, z.shape[-1])).astype(self.dtype)
        if cond is not None:
            level = level + cond.astype(self.dtype)
        level = level.reshape(-1, *(1,) * (z.ndim - 1))
        mix = mix.reshape(2, *(1,) * (z.ndim - 1), -1)
        out = gain * z + mix[0] * jnp.sin(level) + mix[1] * jnp.tanh(z)
        return nn.Dropout(0.5)(out, deterministic=not train)


def build(likelihood=None, schedule=None, **kwargs):
    schedule = learned_linear(6.0, -5.0) if schedule is None else schedule
    return VDM(schedule, Network(), discretised(17) if likelihood is None else likelihood, **kwargs)


def integers(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 17, shape), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def init(model, key, x, cond=None):
    return model.init(key, x, cond)


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def vlb(model, params, key, x, cond=None, noise_levels=None, num_steps=None, dropout_key=None):
    return model.vlb(
        params,
        key,
        x,
        cond,
        noise_levels=noise_levels,
        num_steps=num_steps,
        dropout_key=dropout_key,
    )


def test_parameters_are_laid_out_for_optimisers():
    params = init(build(), jax.random.key(0), integers((5, 3)))
    assert set(params) == {"schedule", "network"}
    assert set(params["schedule"]) == {"ends", "shape"}
    assert set(params["network"]) == {"gain", "mix"}
    fresh = learned_linear(6.0, -5.0).init(jax.random.key(0))
    chex.assert_trees_all_equal(params["schedule"], fresh)
    other = init(build(), jax.random.key(1), integers((5, 3)))
    assert not np.array_equal(params["network"]["mix"], other["network"]["mix"])


@pytest.mark.parametrize(("shape", "num_steps"), [*((s, None) for s in SHAPES), ((1, 2, 3), 4)])
def test_terms_are_those_of_the_losses_for_any_shape(shape, num_steps):
    model, x = build(), integers(shape)
    params = init(model, jax.random.key(0), x)
    t = jnp.asarray(np.linspace(0.0, 0.999, shape[0]))
    got = vlb(model, params, jax.random.key(3), x, None, t, num_steps)
    assert isinstance(got, VLB)
    for term in (*got, got.total):
        assert term.shape == shape[:1] and np.all(np.isfinite(term))
    np.testing.assert_allclose(got.total, got.prior + got.reconstruction + got.diffusion)
    np.testing.assert_allclose(
        got.prior, jax.jit(losses.prior_kl)((2 * np.asarray(x) + 1) / 17 - 1, -5.0), rtol=1e-9
    )
    ends = params["schedule"]["ends"]
    moved = {**params, "schedule": {"ends": {**ends, "width": ends["width"] + 1}, "shape": {}}}
    other = vlb(model, moved, jax.random.key(3), x, None, t, num_steps)
    np.testing.assert_array_equal(got.prior, other.prior)
    assert np.all(got.reconstruction > other.reconstruction)


def test_a_time_stands_for_the_step_that_ends_there_or_later():
    """⌈tT⌉, and 1 at t = 0: a whole tT is the step that ends at t."""
    model, x = build(), integers((7, 3))
    params = init(model, jax.random.key(0), x)
    at = lambda t: vlb(model, params, jax.random.key(3), x, None, jnp.asarray(t), 4).diffusion  # noqa: E731
    whole = at([0.0, 0.25, 0.5, 0.75, 1.0, 0.26, 0.51])
    inside = at([0.1, 0.01, 0.26, 0.6, 0.99, 0.5, 0.74])
    np.testing.assert_array_equal(whole, inside)
    later = at([0.26, 0.26, 0.51, 0.76, 0.75, 0.51, 0.76])
    assert np.all(whole != later)


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_vlb_is_the_same_with_and_without_jit(self):
        model, x, t = build(), integers((49, 3)), jnp.asarray(np.linspace(0.0, 0.999, 49))
        params = init(model, jax.random.key(0), x)
        got = self.variant(model.vlb)(params, jax.random.key(1), x, noise_levels=t)
        expected = vlb(model, params, jax.random.key(1), x, None, t)
        chex.assert_trees_all_close(got, expected, rtol=1e-10)


def test_vmap_over_parameters_is_a_loop():
    model, x = build(), integers((5, 3))
    many = jax.vmap(lambda key: init(model, key, x))(keys(0, 3))
    run = lambda params: vlb(model, params, jax.random.key(1), x)  # noqa: E731
    together = jax.jit(jax.vmap(run))(many)
    alone = [run(jax.tree.map(lambda leaf, n=n: leaf[n], many)) for n in range(3)]
    chex.assert_trees_all_close(together, jax.tree.map(lambda *v: jnp.stack(v), *alone))
    assert not np.array_equal(together.diffusion[0], together.diffusion[1])


@pytest.mark.parametrize("num_steps", [None, 5])
def test_gradients_are_the_slopes_at_fixed_noise(num_steps):
    model, x = build(), integers((5, 3))
    params = init(model, jax.random.key(0), x)

    @jax.jit
    def mean_loss(params):
        return model.vlb(params, jax.random.key(2), x, num_steps=num_steps).total.mean()

    gradients = jax.jit(jax.grad(mean_loss))(params)
    for path in [("schedule", "ends", "log_snr_min"), ("schedule", "ends", "width"),
                 ("network", "gain")]:  # fmt: skip

        def moved(h, path=path):
            outer, *inner = path
            tree = jax.tree.map(lambda leaf: leaf, params)
            leaf = functools.reduce(dict.get, inner[:-1], tree[outer])
            leaf[inner[-1]] = leaf[inner[-1]] + h
            return float(mean_loss(tree))

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(functools.reduce(dict.get, path, gradients), slope, rtol=1e-6)


def test_rows_depend_on_their_own_keys_alone():
    model, x = build(), integers((49, 3))
    params = init(model, jax.random.key(0), x)
    batch, chosen = keys(5, 49), jnp.asarray([40, 3, 17])
    everything = vlb(model, params, batch, x)
    few = vlb(model, params, batch[chosen], x[chosen])
    one = vlb(model, params, batch[17:18], x[17:18])
    chex.assert_trees_all_close(few, jax.tree.map(lambda v: v[chosen], everything), rtol=1e-12)
    chex.assert_trees_all_close(one, jax.tree.map(lambda v: v[17:18], everything), rtol=1e-12)
    assert len(np.unique(everything.diffusion)) == 49


class Clock(nn.Module):
    """A network whose error tells the noise level that it was given."""

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train):
        loud = self.param("loud", nn.initializers.constant(1e8), ())
        return loud * jnp.broadcast_to(log_snr[:, None], z.shape)


@pytest.mark.parametrize("per_example", [False, True])
def test_default_times_are_spread_over_the_batch(per_example):
    """With one key the 49 times are even; with a key each they cannot know of one another."""
    model, x = VDM(linear(12.0, 1.0), Clock(), gaussian(0.1)), jnp.zeros((49, 3))
    params = init(model, jax.random.key(0), x)
    key = keys(1, 49) if per_example else jax.random.key(1)
    log_snr = np.sqrt(vlb(model, params, key, x).diffusion * 2 / (11 * 3)) / 1e8
    t = np.sort((12.0 - log_snr) / 11)
    gaps = np.diff(np.append(t, t[0] + 1))
    assert np.allclose(gaps, 1 / 49, atol=1e-6) != per_example
    # In no order of the batch: copies side by side would have nearly the same time.
    steps = np.diff((12.0 - log_snr) / 11) % 1
    assert steps.std() > 0.2
    assert t[0] >= 0 and t[-1] < 1


def test_equal_models_share_one_compilation():
    params = init(build(), jax.random.key(0), integers((5, 3)))
    assert build() == build() and hash(build()) == hash(build())
    run = jax.jit(lambda model, params, x: model.vlb(params, jax.random.key(0), x).total,
                  static_argnums=0)  # fmt: skip
    run(build(), params, integers((5, 3)))
    run(build(), params, integers((5, 3)))
    assert run._cache_size() == 1
    run(build(prediction="x"), params, integers((5, 3)))
    assert run._cache_size() == 2


def test_denoiser_takes_cond_and_dropout():
    model, x = build(), integers((5, 3))
    cond = jnp.arange(5.0)
    params = init(model, jax.random.key(0), x, cond)
    z = model.likelihood.encode(x)

    @jax.jit
    def denoise(log_snr, cond=None, dropout_key=None):
        return model.denoiser(params, cond, dropout_key=dropout_key)(z, log_snr)

    plain = denoise(1.0)
    np.testing.assert_array_equal(plain, denoise(jnp.ones(5)))
    conditional = denoise(1.0, cond)
    np.testing.assert_array_equal(plain[0], conditional[0])
    assert not np.allclose(plain[1:], conditional[1:])
    dropped = denoise(1.0, None, jax.random.key(0))
    kept = dropped != 0
    assert 0 < kept.sum() < 15
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept])
    terms = [
        vlb(model, params, jax.random.key(0), x, dropout_key=jax.random.key(n)).diffusion
        for n in (0, 0, 1)
    ]
    np.testing.assert_array_equal(terms[0], terms[1])
    assert not np.array_equal(terms[0], terms[2])


@pytest.mark.float32
@pytest.mark.parametrize("num_steps", [None, 10])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_terms_are_float32_whatever_the_network(num_steps, dtype):
    key, x = jax.random.key(0), integers((49, 3))
    model = VDM(learned_linear(13.3, -5.0), Network(dtype), discretised(17))

    def run(key, x):
        params = model.init(key, x)
        terms = model.vlb(params, key, x, num_steps=num_steps)
        eps = model.denoiser(params)(model.likelihood.encode(x), jnp.asarray(1.0))
        return params, terms, bits_per_dim(terms.total, 3), eps

    leaves = jax.tree.leaves(jax.eval_shape(run, key, x))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.float32
def test_float32_agrees_with_float64():
    x, t = integers((49, 3)), np.linspace(0.0, 0.99, 49)
    params = {
        "schedule": {"ends": {}, "shape": {}},
        "network": {"gain": np.asarray(0.4), "mix": 0.1 * np.arange(6.0).reshape(2, 3)},
    }

    def run(dtype):
        model = VDM(linear(13.3, -13.3), Network(dtype), gaussian(0.01))
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        data = jnp.asarray(np.asarray(x) / 8 - 1, dtype)
        log_snr_fn, eps_fn = model.log_snr(tree), model.denoiser(tree)
        eps = jnp.asarray(np.random.default_rng(0).normal(size=(49, 3)), dtype)
        times = jnp.asarray(t, dtype)
        return np.asarray(losses.diffusion_loss(data, times, eps, log_snr_fn, eps_fn))

    single = run("float32")
    jax.config.update("jax_enable_x64", True)
    double = run("float64")
    assert single.dtype == np.float32 and double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=1e-5)


def test_samples_are_data():
    shape = (3, 2, 2, 1)
    for likelihood in (discretised(17), gaussian(0.1, 3.0, 2.0)):
        model = build(likelihood)
        x = integers(shape) if likelihood == discretised(17) else jnp.ones(shape)
        params = init(model, jax.random.key(0), x)
        sample = jax.jit(lambda key, m=model, p=params: m.sample(p, key, shape, num_steps=3))
        samples = sample(jax.random.key(1))
        assert samples.shape == shape
        if likelihood == discretised(17):
            assert samples.dtype == jnp.int32 and samples.min() >= 0 and samples.max() <= 16
        batch = keys(2, shape[0])
        np.testing.assert_allclose(sample(batch[::-1]), sample(batch)[::-1], rtol=1e-12)


def test_every_prediction_is_a_choice():
    for prediction in ("eps", "x", "v", "score"):
        assert build(prediction=prediction).prediction == prediction
    with pytest.raises(ValueError, match=r"unknown prediction 'scor'.*Did you mean 'score'"):
        build(prediction="scor")


def test_data_of_the_wrong_type(unchecked):
    model = build()
    params = init(model, jax.random.key(0), integers((5, 3)))
    with pytest.raises(TypeError, match="models integers"):
        model.vlb(params, jax.random.key(0), jnp.zeros((2, 3)))
    with pytest.raises(TypeError, match="models real numbers"):
        build(gaussian(1.0)).vlb(params, jax.random.key(0), integers((5, 3)))


def test_keys_and_times_that_do_not_fit(unchecked):
    model, x = build(), integers((5, 3))
    params = init(model, jax.random.key(0), x)
    with pytest.raises(TypeError, match="typed key"):
        model.vlb(params, jnp.zeros(2, jnp.uint32), x)
    with pytest.raises(ValueError, match=r"\(\) or \(5,\)"):
        model.vlb(params, keys(0, 4), x)
    with pytest.raises(ValueError, match=r"noise_levels.*\(5,\).*got shape \(4,\)"):
        model.vlb(params, jax.random.key(0), x, noise_levels=jnp.zeros(4))
    with pytest.raises(ValueError, match="num_steps must be at least 1: got 0"):
        model.vlb(params, jax.random.key(0), x, num_steps=0)
    with pytest.raises(ValueError, match="num_steps must be at least 1: got -2"):
        model.sample(params, jax.random.key(0), (5, 3), num_steps=-2)
    with pytest.raises(ValueError, match=r"unknown sampler 'ancestrel'.*'ancestral'"):
        model.sample(params, jax.random.key(0), (5, 3), num_steps=2, sampler="ancestrel")
