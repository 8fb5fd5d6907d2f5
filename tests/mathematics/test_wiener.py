"""The Wiener filter against dense linear algebra, scipy's transforms, and symmetries."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.fft

import vdm
from vdm import VDM, likelihoods, schedules
from vdm.networks import MLP, DiT, UNet, wiener
from vdm.networks.wiener import estimate, fitted, measured

LOG_SNR = np.array([-4.0, 0.5, 6.0])
SMALL = {"channels": 8, "num_blocks": 1, "num_groups": 4}
OF = {UNet: SMALL, DiT: {"channels": 8, "num_blocks": 1, "num_heads": 2}}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def solved(mean, covariance, z):
    """x̂ of each of three z at LOG_SNR, by one dense solve for each."""
    mean, found = mean.ravel(), []
    for one, log_snr in zip(z.reshape(len(z), -1), LOG_SNR, strict=True):
        share = 1 / (1 + np.exp(-log_snr))
        of_z = share * covariance + (1 - share) * np.eye(len(mean))
        part = np.linalg.solve(of_z, one - np.sqrt(share) * mean)
        found.append(mean + np.sqrt(share) * covariance @ part)
    return np.reshape(found, z.shape)


def of(x):
    """The mean and the covariance of all numbers of an example."""
    return x.mean(axis=0), np.atleast_2d(np.cov(x.reshape(len(x), -1).T, bias=True))


def filtered(statistics, z, padding):
    return estimate(statistics, jnp.asarray(z), jnp.asarray(LOG_SNR), padding)


@pytest.mark.parametrize("shape", [(5, 2), (3, 4, 2), (2, 3, 2, 1), (7,)])
def test_full_is_the_posterior_mean_of_gaussian_data(shape):
    size = np.prod(shape)
    x = (noise(80, size) @ noise(size, size, seed=1) / size + noise(size, seed=2)).reshape(
        80, *shape
    )
    statistics = measured([x[:30], x[30:31], x[31:]], "full", ("zero",) * (len(shape) - 1))
    z = noise(3, *shape, seed=3)
    found = filtered(statistics, z, ())
    np.testing.assert_allclose(found, solved(*of(x), z), atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 2), (5, 2), (3, 4, 2), (2, 3, 4, 1)])
def test_stationary_is_the_posterior_mean_of_fields_that_close(shape):
    # Of the three fields alone the same is found as of all their shifts and mirror images, whose
    # covariance is that of a stationary field.
    sizes, axes = shape[:-1], range(1, len(shape))
    x = noise(3, *shape) @ np.array([[1.0, 0.5], [0.0, 0.4]])[: shape[-1], : shape[-1]] + 0.7
    alone = x
    for axis in axes:
        x = np.concatenate([x, np.flip(x, axis)])
    shifts = itertools.product(*map(range, sizes))
    x = np.concatenate([np.roll(x, shift, axes[: len(sizes)]) for shift in shifts])
    padding = ("wrap",) * len(sizes)
    z = noise(3, *shape, seed=3)
    for given in (x, alone):
        found = filtered(measured([given], "stationary", padding), z, padding)
        np.testing.assert_allclose(found, solved(*of(x), z), atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 2), (3, 4, 2), (2, 3, 2, 1)])
def test_stationary_is_the_posterior_mean_where_cosines_are_independent(shape):
    # Each cosine of scipy's transform varies by itself, the channels of one of them together.
    sizes, channels = shape[:-1], shape[-1]
    mean, waves = noise(*shape, seed=4), []
    for place in itertools.product(*map(range, sizes)):
        for spread in noise(channels, channels, seed=5 + sum(place)):
            wave = np.zeros(shape)
            wave[place] = spread
            waves += [wave, -wave]
    axes = tuple(range(1, len(shape)))
    x = mean + scipy.fft.idctn(np.stack(waves), axes=axes, norm="ortho")
    padding = ("zero",) * len(sizes)
    z = noise(3, *shape, seed=3)
    found = filtered(measured([x[:5], x[5:]], "stationary", padding), z, padding)
    np.testing.assert_allclose(found, solved(*of(x), z), atol=1e-10)


def test_where_an_axis_closes_the_filter_moves_with_z():
    padding, x = ("wrap", "zero"), noise(9, 4, 5, 2) + noise(4, 5, 2, seed=1)
    statistics, z = measured([x], "stationary", padding), noise(3, 4, 5, 2, seed=3)
    found = filtered(statistics, z, padding)
    moved = [filtered(statistics, np.roll(z, 1, axis), padding) for axis in (1, 2)]
    np.testing.assert_allclose(moved[0], np.roll(found, 1, 1), atol=1e-12)
    assert np.abs(moved[1] - np.roll(found, 1, 2)).max() > 0.01


@pytest.mark.parametrize("kind", ["stationary", "full"])
def test_constant_data_are_known_at_every_level(kind):
    x = np.broadcast_to(noise(3, 2, 1), (9, 3, 2, 1))
    found = filtered(measured([x], kind, ("zero", "zero")), 5 * noise(3, 3, 2, 1), ("zero", "zero"))
    np.testing.assert_allclose(found, x[:3], atol=1e-12)


@functools.cache
def model(network=UNet, kind="stationary", **more):
    made = network(
        **OF[network], wiener=kind, residual=False, fourier_exponents=(), dropout=0.0, **more
    )
    return VDM(schedules.linear(5.0, -4.0), made, likelihoods.gaussian(0.1), "x")


DATA = np.cumsum(noise(40, 4, 4, 1), axis=1).astype(np.float32) / 2


@pytest.mark.parametrize("network", [UNet, DiT])
@pytest.mark.parametrize("kind", ["stationary", "full"])
def test_a_network_is_given_the_estimate_beside_z(network, kind):
    made = model(network, kind)
    z = noise(3, 4, 4, 1)

    def given(params):
        _, kept = made.network.apply(
            {"params": params["network"]},
            jnp.asarray(z, jnp.float32),
            jnp.asarray(LOG_SNR, jnp.float32),
            mutable=["intermediates"],
            capture_intermediates=True,
        )
        return kept["intermediates"]["wiener"]["__call__"][0]

    params = made.init(jax.random.key(0), DATA)
    # White noise of variance 1 before the data are known.
    at = np.sqrt(1 / (1 + np.exp(-LOG_SNR))).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(given(params), at * z, rtol=1e-5)
    after = given(fitted(made.network, params, [DATA]))
    padding = ("zero", "zero")
    expected = filtered(measured([DATA.astype(float)], kind, padding), z, padding)
    np.testing.assert_allclose(after, expected, atol=1e-4)


@pytest.mark.parametrize("network", [UNet, DiT])
def test_the_network_uses_the_estimate(network):
    # Channels that the first layer is given: z, and the estimate.
    made = model(network)
    params = made.init(jax.random.key(0), DATA)["network"]
    plain = network(**OF[network], fourier_exponents=())
    without = jax.eval_shape(plain.init, jax.random.key(0), DATA[:1], np.zeros(1, np.float32))
    name = "conv_in" if network is UNet else "dense_in"
    assert params[name]["kernel"].size == 2 * without["params"][name]["kernel"].size


def test_statistics_stay_as_they_are_whatever_the_optimiser():
    made = model()
    params = fitted(made.network, made.init(jax.random.key(0), DATA), [DATA])
    found, _ = vdm.fit(
        made,
        params,
        DATA,
        key=jax.random.key(1),
        optimizer=optax.adamw(0.1, weight_decay=0.5),
        num_steps=3,
        batch_size=8,
    )
    own, other = found["network"].pop("wiener"), params["network"].pop("wiener")
    jax.tree.map(np.testing.assert_array_equal, own, other)
    assert not np.array_equal(
        found["network"]["norm_out"]["scale"], params["network"]["norm_out"]["scale"]
    )


def test_an_mlp_is_given_the_estimate_of_data_of_any_shape():
    """The first layer sees z's numbers, and those of the estimate."""
    for shape in ((5,), (3, 2), ()):
        x = (noise(40, *shape).cumsum(axis=-1) + 1.0).astype(np.float32)
        network = MLP(width=16, num_blocks=1, wiener="full", residual=False)
        made = VDM(schedules.linear(5.0, -4.0), network, likelihoods.gaussian(0.1), "x")
        params = fitted(network, made.init(jax.random.key(0), x), [x])
        size = math.prod(shape)
        kernel = params["network"]["dense_in"]["kernel"]
        assert kernel.shape == (2 * size, 16)
        z = noise(3, *shape, seed=3).astype(np.float32)
        level = LOG_SNR.astype(np.float32)
        _, kept = network.apply(
            {"params": params["network"]},
            jnp.asarray(z),
            jnp.asarray(level),
            mutable=["intermediates"],
            capture_intermediates=True,
        )
        seen = np.concatenate([z.reshape(3, -1), solved(*of(x), z).reshape(3, -1)], axis=1)
        found = kept["intermediates"]["dense_in"]["__call__"][0]
        np.testing.assert_allclose(found, seen @ np.asarray(kernel), atol=1e-3)


def test_an_mlp_has_no_stationary_filter():
    with pytest.raises(ValueError, match="unknown wiener 'stationary': expected one of full, none"):
        MLP(wiener="stationary")


@pytest.mark.parametrize("network", [UNet, DiT])
def test_an_unknown_kind_is_refused(network):
    with pytest.raises(ValueError, match=r"unknown wiener 'ful'.*Did you mean 'full'"):
        network(wiener="ful")


def test_what_cannot_be_measured_is_refused():
    for kind, x, least in (("full", noise(12, 3, 4, 1), 13), ("stationary", noise(1, 3, 4, 1), 2)):
        with pytest.raises(ValueError, match=f"'{kind}' needs at least {least} examples of 12"):
            measured([x], kind, ("zero", "zero"))
    with pytest.raises(ValueError, match="unknown wiener 'none of it'"):
        measured([noise(5, 2)], "none of it", ())
    plain = UNet(**SMALL)
    with pytest.raises(ValueError, match="UNet has no filter"):
        fitted(plain, {}, [DATA])
    assert wiener.of(plain) == "none"
    for kind, size in (("full", (40, 40, 3)), ("stationary", (4097, 2, 1))):
        with pytest.raises(
            ValueError, match=f"at most 4096, got {4800 if kind == 'full' else 4097}"
        ):
            jax.eval_shape(
                UNet(**SMALL, wiener=kind).init,
                jax.random.key(0),
                jnp.zeros((1, *size)),
                jnp.zeros(1),
            )


def test_a_network_that_means_something_else_by_the_name_has_no_filter():
    class Own(nn.Module):
        wiener: str = "stationary"

    assert [wiener.of(one) for one in (Own(), "full", UNet(**SMALL, wiener="full"))] == [
        "none",
        "none",
        "full",
    ]
