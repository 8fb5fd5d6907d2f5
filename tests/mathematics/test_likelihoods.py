"""Decoders against scipy's densities, sums over every level and integrals over data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from oracles import arrays, expectation, keys, normal, scales
from vdm import VDM, likelihoods, losses, networks, schedules

LEVELS = [2, 17, 256]
SHAPES = [(49, 3), (1, 2, 3), (7, 2, 3, 1), (5, 2, 2, 3, 2)]
log_prob = jax.jit(lambda likelihood, *args: likelihood.log_prob(*args), static_argnums=0)
decode = jax.jit(lambda likelihood, *args: likelihood.decode(*args), static_argnums=0)
MEAN, STD = (0.4, -1.5, 7.0), (0.2, 1.0, 3.5)


@pytest.mark.parametrize("levels", LEVELS)
def test_encode_gives_the_midpoints_of_equal_bins(levels):
    edges = np.linspace(-1, 1, levels + 1)
    x = jnp.arange(levels)[:, None]
    encoded = likelihoods.discretised(levels).encode(x)
    np.testing.assert_allclose(encoded[:, 0], (edges[1:] + edges[:-1]) / 2, atol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_encode_takes_any_integer_type(dtype):
    x = jnp.asarray([[0, 255]], dtype)
    np.testing.assert_allclose(likelihoods.discretised(256).encode(x), [[-255 / 256, 255 / 256]])


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("log_snr", [-3.0, 2.0, 13.3])
def test_decode_inverts_encode_without_noise(levels, log_snr):
    likelihood = likelihoods.discretised(levels)
    x = jnp.arange(levels)[:, None]
    z = scales(log_snr)[0] * likelihood.encode(x)
    np.testing.assert_array_equal(decode(likelihood, z, log_snr), x)


@pytest.mark.parametrize("levels", LEVELS)
def test_decode_is_the_most_probable_level(levels):
    likelihood, log_snr = likelihoods.discretised(levels), jnp.asarray(3.0)
    z = jnp.linspace(-2.5, 2.2, 101)[:, None]
    log_probs = [log_prob(likelihood, np.full((101, 1), n), z, log_snr) for n in range(levels)]
    np.testing.assert_array_equal(decode(likelihood, z, log_snr)[:, 0], np.argmax(log_probs, 0))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("log_snr", [-5.0, 1.0, 13.3])
def test_discretised_sums_to_one_over_the_levels(levels, log_snr):
    likelihood = likelihoods.discretised(levels)
    z = jnp.asarray([[-1.7], [-0.21], [0.4], [1.1]])
    log_probs = [log_prob(likelihood, np.full((4, 1), n), z, log_snr) for n in range(levels)]
    np.testing.assert_allclose(np.sum(np.exp(log_probs), 0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_discretised_is_the_normalised_density_of_the_latent(shape, levels):
    x = np.random.default_rng(levels).integers(0, levels, shape)
    z, log_snr = arrays(0, shape), np.linspace(-4.0, 5.0, shape[0])
    got = log_prob(likelihoods.discretised(levels), x, z, log_snr)

    a, s = (p.reshape(-1, *(1,) * len(shape)) for p in scales(np.asarray(log_snr)))
    values = (2 * np.arange(levels) + 1) / levels - 1
    density = stats.norm.logpdf(np.asarray(z)[..., None], a * values, s)
    chosen = np.take_along_axis(density, np.asarray(x)[..., None], -1)[..., 0]
    expected = chosen - np.logaddexp.reduce(density, -1)
    expected = expected.reshape(shape[0], -1).sum(1)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_discretised_takes_one_level_for_the_whole_batch():
    x, z = jnp.asarray([[3], [0]]), jnp.asarray([[0.1], [-0.4]])
    likelihood = likelihoods.discretised(5)
    np.testing.assert_allclose(
        log_prob(likelihood, x, z, 2.0), log_prob(likelihood, x, z, np.full(2, 2.0)), rtol=1e-12
    )


# The bits that an interior 8-bit level costs, by direct arithmetic on the lattice of levels.
@pytest.mark.parametrize(("log_snr", "published"), [(13.3, 0.0105), (8.0, 3.28)])
def test_cost_of_the_8_bit_decoder(log_snr, published):
    likelihood = likelihoods.discretised(256)

    def cost(x, eps):
        return losses.reconstruction(x, eps, jnp.asarray(log_snr), likelihood)

    (nats,) = expectation(cost, np.array([[100]]), normal(801))
    bits = losses.bits_per_dim(jnp.asarray(nats), 1)
    np.testing.assert_allclose(bits, published, rtol=5e-3)


@pytest.mark.float32
def test_discretised_is_steady_in_float32_where_it_is_sharpest():
    likelihood = likelihoods.discretised(256)
    x = jnp.arange(256)[:, None]
    noise = np.linspace(-2.5, 2.5, 256, dtype=np.float32)[:, None]
    a, s = scales(13.3)
    z = np.float32(a) * np.asarray(likelihood.encode(x)) + np.float32(s) * noise
    got = log_prob(likelihood, x, z, np.float32(13.3))

    log_snr = float(np.float32(13.3))
    values = (2 * np.arange(256) + 1) / 256 - 1
    density = -0.5 * np.exp(log_snr) * (z.astype(float) / scales(log_snr)[0] - values) ** 2
    expected = np.diag(density) - np.logaddexp.reduce(density, 1)
    np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_is_the_density_of_the_data_itself(shape):
    channels = shape[-1]
    mean, std = MEAN[:channels], STD[:channels]
    x, z, log_snr = arrays(0, shape) * std, arrays(1, shape), np.linspace(-1.0, 4.0, shape[0])
    likelihood = likelihoods.gaussian(0.3, mean, std)
    got = log_prob(likelihood, x, z, log_snr)

    a = scales(np.asarray(log_snr))[0].reshape(-1, *(1,) * (len(shape) - 1))
    centre = np.asarray(z) / a * np.asarray(std) + np.asarray(mean)
    expected = stats.norm.logpdf(np.asarray(x), centre, 0.3 * np.asarray(std))
    np.testing.assert_allclose(got, expected.reshape(shape[0], -1).sum(1), rtol=1e-10)
    np.testing.assert_allclose(decode(likelihood, z, log_snr), centre, rtol=1e-10)


def test_gaussian_integrates_to_one_in_the_data_s_own_units():
    x = np.linspace(-40.0, 60.0, 20001)[:, None]
    for mean, std in ((2.0, 4.0), ((2.0,), (4.0,))):
        likelihood = likelihoods.gaussian(0.5, mean, std)
        density = np.exp(log_prob(likelihood, x, np.full(x.shape, 0.3), 1.0))
        assert abs(density.sum() * 0.005 - 1) < 1e-9


def test_gaussian_encode_standardises_and_decode_undoes_it():
    likelihood = likelihoods.gaussian(0.1, MEAN, STD)
    x = jnp.asarray(3 * arrays(0, (7, 2, 3)))
    encoded = likelihood.encode(x)
    np.testing.assert_allclose(encoded, (np.asarray(x) - MEAN) / STD, rtol=1e-12)
    z = scales(4.0)[0] * encoded
    np.testing.assert_allclose(likelihood.decode(z, jnp.asarray(4.0)), x, rtol=1e-12)


draw = jax.jit(lambda likelihood, *args: likelihood.draw(*args), static_argnums=0)


@pytest.mark.parametrize("log_snr", [-1.0, 0.5])
def test_discretised_draws_have_the_likelihood_s_probabilities(log_snr):
    """A χ² test at level 10⁻³ of each of two pixels of five levels."""
    likelihood, n = likelihoods.discretised(5), 20001
    z = np.asarray([-0.9, 0.13])
    x = np.asarray(draw(likelihood, jax.random.key(1), np.tile(z, (n, 1)), log_snr))
    assert x.dtype == np.int32
    for pixel in range(2):
        one = np.full((5, 1), z[pixel])
        probs = np.exp(log_prob(likelihood, np.arange(5)[:, None], one, log_snr))
        counts = np.bincount(x[:, pixel], minlength=5)
        assert stats.chisquare(counts, n * probs).pvalue > 1e-3
    # One pixel says nothing of the other.
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / np.sqrt(n)


def test_gaussian_draws_are_normal_in_the_data_s_own_units():
    likelihood = likelihoods.gaussian(0.3, MEAN, STD)
    z, log_snr = np.tile([-0.9, 0.13, 1.2], (2001, 1)), 1.5
    x = np.asarray(draw(likelihood, jax.random.key(2), z, log_snr))
    centre = z / scales(log_snr)[0] * STD + MEAN
    residual = (x - centre) / (0.3 * np.asarray(STD))
    for pixel in range(3):
        assert stats.kstest(residual[:, pixel], "norm").pvalue > 1e-3


def test_a_draw_follows_its_own_key():
    batch = keys(3, 7)
    z = arrays(4, (7, 2, 3))
    for likelihood in (likelihoods.discretised(17), likelihoods.gaussian(0.5, MEAN, STD)):
        whole = draw(likelihood, batch, z, 2.0)
        np.testing.assert_array_equal(draw(likelihood, batch[4:5], z[4:5], 2.0)[0], whole[4])
        levels = np.full(7, 2.0)
        np.testing.assert_array_equal(draw(likelihood, batch, z, levels), whole)


@pytest.mark.parametrize("levels", LEVELS)
def test_bounds_are_the_outer_levels(levels):
    likelihood = likelihoods.discretised(levels)
    ends = likelihood.encode(jnp.asarray([[0, levels - 1]]))[0]
    np.testing.assert_allclose(ends, likelihood.bounds, rtol=1e-15)
    assert likelihoods.gaussian(1.0).bounds is None


def test_likelihoods_are_equal_by_value():
    assert likelihoods.discretised(17) == likelihoods.discretised(17)
    assert hash(likelihoods.gaussian(0.1, MEAN, STD)) == hash(likelihoods.gaussian(0.1, MEAN, STD))
    assert likelihoods.discretised(17) != likelihoods.discretised(16)


@pytest.mark.usefixtures("unchecked")
def test_data_of_the_wrong_type():
    with pytest.raises(TypeError, match=r"integers 0\.\.255.*float.*gaussian"):
        likelihoods.discretised(256).encode(jnp.zeros((2, 3)))
    with pytest.raises(TypeError, match=r"int32 data.*discretised"):
        likelihoods.gaussian(1.0).encode(jnp.zeros((2, 3), jnp.int32))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("levels", [1, 0, -3, 2.5])
def test_levels_that_are_not_a_whole_number_above_one(levels):
    with pytest.raises(ValueError, match="levels must be a whole number"):
        likelihoods.discretised(levels)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_gaussian_scales_must_be_positive_and_finite(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        likelihoods.gaussian(scale)
    with pytest.raises(ValueError, match="std must be positive"):
        likelihoods.gaussian(1.0, 0.0, (1.0, scale))


def test_gaussian_mean_must_be_finite():
    with pytest.raises(ValueError, match="mean must be finite"):
        likelihoods.gaussian(1.0, float("nan"))


@pytest.mark.parametrize(
    ("levels", "dtype", "value"), [(17, np.int32, 17), (17, np.uint8, 40), (256, np.int16, -1)]
)
def test_an_integer_that_is_no_level_has_no_probability(levels, dtype, value):
    likelihood = likelihoods.discretised(levels)
    x, z_0 = np.array([[0, levels - 1], [3, value]], dtype), jnp.zeros((2, 2))
    found = jax.jit(likelihood.log_prob)(x, z_0, jnp.asarray(8.0))
    assert np.isfinite(found[0]) and found[1] == -np.inf
    log_snr = jnp.asarray(8.0)
    cost = jax.jit(lambda x: losses.reconstruction(x, z_0, log_snr, likelihood))(x)
    assert np.isfinite(cost[0]) and cost[1] == np.inf
    message = rf"levels 0\.\.{levels - 1}: got {value}"
    for look in (likelihood.encode, lambda x: likelihood.log_prob(x, z_0, log_snr)):
        with pytest.raises(ValueError, match=message):
            look(jnp.asarray(x))
    with pytest.raises(ValueError, match=message):
        losses.reconstruction(jnp.asarray(x), z_0, log_snr, likelihood)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_every_level_is_taken(dtype):
    x = jnp.arange(256).astype(dtype)[:, None]
    assert np.all(
        np.isfinite(likelihoods.discretised(256).log_prob(x, x / 128 - 1, jnp.asarray(8.0)))
    )


@pytest.mark.float32
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_data_cost_what_the_same_numbers_cost_in_float32(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), dtype)
    likelihood = likelihoods.gaussian(np.exp(-6.65), (0.5, 0.0, -0.25), 2.0)
    model = VDM(schedules.linear(13.3, -5.0), networks.MLP(width=8, num_blocks=1), likelihood)
    params = model.init(jax.random.key(0), x)
    half, whole = (
        model.vlb(params, jax.random.key(1), data) for data in (x, x.astype(jnp.float32))
    )
    for one, other in zip(half, whole, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)
