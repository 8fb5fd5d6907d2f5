"""Parity with the official VDM computation: its own numbers, and a NumPy version of the rest.

The fixture holds what the official code gave for one case, in float32. `official` recomputes
all of it in NumPy and float64 and is held against the fixture first; it then stands for the
cases that the fixture has not.
"""

import dataclasses
import functools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import official
from vdm import bits_per_dim, draws, interop, losses, samplers, schedules
from vdm.losses import VLB

NAMES = {"prior": "loss_klz", "reconstruction": "loss_recon", "diffusion": "loss_diff"}
# Ten times what a recomputation in float64 differed by (README of the fixture), read so:
# - γ, prior and z_s in absolute terms: 10 × (2e-6, 4e-5, 4e-5).
# - Diffusion, 10 × 1e-7 relative, for the mean of the batch. Single examples differ by up to 4e-6
#   in float32 and 1.4e-6 in float64, for z_t is rounded before sin(2⁸π z): they are held to 1e-5.
# - Reconstruction, 10 × 3e-5 relative, more tightly: to 3e-4 nats and 5e-6 relative. Of sums of
#   about 200 nats single examples differ by up to 9e-4 nats in float32 and 4.5e-4 in float64.
# Of gradients it says nothing: they agree to 7e-5 of a leaf's norm, in either precision.
PRIOR, RECONSTRUCTION, DIFFUSION, LEVEL, STEP = 4e-4, 3e-4, 1e-5, 2e-5, 4e-4
GRADIENT = 5e-4
needs_fixture = pytest.mark.skipif(
    official.ABSENT,
    reason=f"no arrays of the official code in {official.FIXTURES} (VDM_OFFICIAL_FIXTURES)",
)


def read(name):
    path = official.FIXTURES / name
    if path.suffix == ".npz":
        return dict(np.load(path))
    return flax.serialization.msgpack_restore(path.read_bytes())


def doubled(tree):
    return official.mapped(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.fixture(scope="module")
def case():
    return read("case_learnable_scalar_T0_perturbed.npz")


@pytest.fixture(scope="module")
def tree():
    return read("params_learnable_scalar_perturbed.msgpack")


def in_double(model):
    return dataclasses.replace(model, network=model.network.clone(dtype="float64"))


def terms(params, given, model):
    """The three terms at the noise and times of a case."""
    x, log_snr_fn = given["images"], model.log_snr(params)
    encoded = model.likelihood.encode(x)
    log_snr_0, log_snr_1 = (log_snr_fn(jnp.asarray(t)) for t in (0.0, 1.0))
    eps_fn = model.denoiser(params, given["conditioning"][:, None])
    return VLB(
        losses.prior_kl(encoded, log_snr_1),
        losses.reconstruction(x, given["eps_0"], log_snr_0, model.likelihood),
        losses.diffusion_loss(encoded, given["t"], given["eps"], log_snr_fn, eps_fn),
    )


def check_terms(found, expected):
    for name, ours in found._asdict().items():
        theirs = np.asarray(expected[NAMES[name]], np.float64)
        ours = np.asarray(ours, np.float64)
        if name == "diffusion":
            np.testing.assert_allclose(ours, theirs, rtol=DIFFUSION)
            np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=1e-6)
        else:
            limit, relative = (PRIOR, 0.0) if name == "prior" else (RECONSTRUCTION, 5e-6)
            np.testing.assert_allclose(ours, theirs, atol=limit, rtol=relative)


def given_of(case, precision):
    keys = ("images", "conditioning", "t", "eps_0", "eps")
    return {k: jnp.asarray(case[k] if k == "images" else case[k].astype(precision)) for k in keys}


def test_a_folder_that_was_named_is_not_skipped_where_it_is_missing(tmp_path):
    missing = tmp_path / "nowhere"
    assert official.fixtures({"VDM_OFFICIAL_FIXTURES": str(missing)}) == (missing, False)
    assert official.fixtures({}) == (official.BESIDE, not official.BESIDE.is_dir())


@needs_fixture
def test_numpy_gives_the_official_numbers(case, tree):
    tree, few = doubled(tree), slice(3)
    schedule = read("gamma_learnable_scalar_perturbed.npz")
    value, rate = official.gamma(tree, schedule["t"])
    np.testing.assert_allclose(value, schedule["gamma"], atol=LEVEL)
    np.testing.assert_allclose(rate, schedule["dgamma_dt"], atol=LEVEL)
    x, t, eps = case["images"], case["t"][few], case["eps"][few].astype(float)
    np.testing.assert_allclose(official.prior(tree, x), case["loss_klz"], atol=PRIOR)
    found = official.reconstruction(tree, x[few], case["eps_0"][few])
    np.testing.assert_allclose(found, case["loss_recon"][few], rtol=5e-6, atol=RECONSTRUCTION)
    z, gamma_t = official.noised(tree, x[few], t, eps)
    np.testing.assert_allclose(z, case["z_t"][few], atol=1e-6)
    predicted = official.eps_hat(tree, z, gamma_t, case["conditioning"][few])
    # 2⁸π times the rounding of z_t and another of the angle.
    np.testing.assert_allclose(predicted, case["eps_hat"][few], atol=5e-4)
    found = official.diffusion(tree, x[few], t, eps, case["conditioning"][few])
    np.testing.assert_allclose(found, case["loss_diff"][few], rtol=DIFFUSION)
    steps = read("sampler_learnable_scalar_perturbed.npz")
    for i in (0, 1, 50, 98, 99):
        found = official.sampler_step(
            tree,
            steps["z_t"][:1].astype(float),
            i,
            100,
            steps[f"eps_T100_i{i}"][:1],
            steps["conditioning"][:1],
        )
        np.testing.assert_allclose(found, steps[f"z_s_T100_i{i}"][:1], atol=STEP)


def check_case(case, model, params, precision):
    """γ and its rate, the terms, ε̂ and z_t, the sampler's steps; returns nothing."""
    schedule = read("gamma_learnable_scalar_perturbed.npz")
    log_snr, rate = schedules.log_snr_and_rate(
        model.log_snr(params), jnp.asarray(schedule["t"].astype(precision))
    )
    np.testing.assert_allclose(-log_snr, schedule["gamma"], atol=LEVEL)
    np.testing.assert_allclose(-rate, schedule["dgamma_dt"], atol=LEVEL)

    steps = read("sampler_learnable_scalar_perturbed.npz")
    cond = jnp.asarray(steps["conditioning"][:4].astype(precision))[:, None]
    step = jax.jit(
        lambda z, eps, t, s: samplers.ancestral().step(
            model.denoiser(params, cond), z, (), eps, *map(model.log_snr(params), (t, s))
        )[0]
    )
    for i in (0, 1, 50, 98, 99):
        times = [jnp.asarray((100 - j) / 100, precision) for j in (i, i + 1)]
        arrays = [jnp.asarray(steps[k][:4].astype(precision)) for k in ("z_t", f"eps_T100_i{i}")]
        z_s = step(*arrays, *times)
        assert z_s.dtype == precision
        np.testing.assert_allclose(z_s, steps[f"z_s_T100_i{i}"][:4], atol=STEP)


@needs_fixture
@pytest.mark.float32
def test_float32_gives_the_official_numbers(case, tree):
    model, params = interop.official(tree)
    check_case(case, model, params, np.float32)
    (_, found), gradient = graded(model, params, given_of(case, np.float32))
    check_terms(found, case)
    # Where a leaf has no influence (a bias before one group per channel) both are rounding.
    check_gradient(gradient, tree, least=1e-5)


@needs_fixture
def test_float64_gives_the_official_numbers_and_every_gradient(case, tree):
    model, params = interop.official(doubled(tree))
    model = in_double(model)
    check_case(case, model, params, np.float64)
    (bpd, found), gradient = graded(model, params, given_of(case, np.float64))
    check_terms(found, case)
    np.testing.assert_allclose(bpd, case["bpd"], rtol=1e-6)
    check_gradient(gradient, tree, slack=1e-7)


def graded(model, params, given):
    """The bound and its terms, and the gradient of the bound, compiled once."""

    def loss(params):
        found = terms(params, given, model)
        return jnp.mean(bits_per_dim(found.total, 3072)), found

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def check_gradient(gradient, tree, least=0.0, slack=0.0):
    """Every leaf whose norm there is above `least`, relative to that norm but for `slack`."""
    theirs = official.leaves(read("grads_learnable_scalar_T0_perturbed.msgpack"))
    ours = in_official_names(gradient["network"]) | scalar_gradient(
        gradient["schedule"]["ends"], float(tree["gamma"]["w"][0])
    )
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        difference = np.linalg.norm(ours[name] - expected)
        limit = GRADIENT * np.linalg.norm(expected) + slack
        assert np.linalg.norm(expected) <= least or difference <= limit, name


def in_official_names(network):
    """Our network's leaves by their names there."""
    found = {}
    for name, leaf in official.leaves(jax.tree.map(np.asarray, network)).items():
        for kind in ("down", "mid", "up"):
            for part in ("block", "attn"):
                name = name.replace(f"{kind}_{part}_", f"{kind}.{part}_")
        name = name.replace("norm2/", "GroupNorm_1/").replace("norm1/", "GroupNorm_0/")
        name = name.replace("norm_out/", "GroupNorm_0/").replace("norm/", "GroupNorm_0/")
        found[f"score_model/{name}"] = leaf
    return found


def scalar_gradient(ends, w):
    """The gradient by b and w: λ_1 = −b − |w|, the width's parameter is ln(e^(|w| − 0.01) − 1)."""
    by_level, by_width = float(ends["log_snr_min"]), float(ends["width"])
    by_fall = -by_level + by_width / -np.expm1(0.01 - abs(w))
    return {"gamma/b": np.array([-by_level]), "gamma/w": np.array([np.sign(w) * by_fall])}


# -- what the fixture has not -------------------------------------------------------------------

CASES = {
    "network schedule": (
        {"schedule": "network", "blocks": 1, "channels": 8},
        0,
        {"num_groups": 4},
    ),
    "every block attends, T = 4": ({"everywhere": True, "channels": 8}, 4, {"num_groups": 4}),
    "fixed schedule, no Fourier features": (
        {"schedule": "fixed", "with_fourier": False, "channels": 8, "blocks": 1},
        0,
        {"num_groups": 4},
    ),
    # 9 features are 4 sines, 4 cosines and a zero.
    "odd width, one channel, network schedule, T = 5": (
        {"schedule": "network", "channels": 9, "data_channels": 1},
        5,
        {"num_groups": 3},
    ),
}


def shorter():
    """The network schedule is in two of the cases."""
    twice = "network schedule"
    return [pytest.param(n, marks=pytest.mark.long) if n == twice else n for n in CASES]


@pytest.mark.parametrize("name", shorter())
def test_every_case_is_the_numpy_computation(name):
    layout, num_steps, arguments = CASES[name]
    groups = arguments.get("num_groups", 32)
    tree = official.parameters(seed=len(name), **layout)
    model, params = interop.official(tree, **arguments)
    model = in_double(model)
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (5, 6, 5, layout.get("data_channels", 3)))
    cond = rng.normal(size=5)
    # Whole tT among them, but for t = 0, which the official code gives a step of its own.
    t = np.array([0.25, 0.4, 0.5, 0.9, 1.0])
    key = jax.random.key(3)
    _, key_0, key_eps = draws.split(key, 3)
    eps_0, eps = (np.asarray(draws.normal(k, x.shape, float)) for k in (key_0, key_eps))
    vlb = functools.partial(
        model.vlb, noise_levels=jnp.asarray(t), num_steps=num_steps if num_steps else None
    )

    def loss(params):
        found = vlb(params, key, x, jnp.asarray(cond)[:, None])
        return jnp.mean(bits_per_dim(found.total, x[0].size)), found

    (bpd, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = VLB(
        official.prior(tree, x),
        official.reconstruction(tree, x, eps_0),
        official.diffusion(tree, x, t, eps, cond, num_steps, groups),
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)

    # Finite differences of NumPy's bound against the gradient along what the leaves become.
    def official_bpd(moved):
        return official.bpd(moved, x, t, eps_0, eps, cond, num_steps, groups)

    np.testing.assert_allclose(bpd, official_bpd(tree), rtol=1e-10)
    for part in tree:
        h, along = 1e-6, rng
        direction = official.mapped(lambda leaf: along.normal(size=leaf.shape), tree)  # noqa: B023
        ahead, behind = (
            tree
            | {part: official.mapped(lambda p, d: p + sign * h * d, tree[part], direction[part])}  # noqa: B023
            for sign in (1, -1)
        )
        slope = (official_bpd(ahead) - official_bpd(behind)) / (2 * h)
        ends = [interop.official(moved, **arguments)[1] for moved in (ahead, behind)]
        tangent = jax.tree.map(lambda a, b: (a - b) / (2 * h), *ends)  # noqa: B023
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, tangent)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-5)

    eps_fn = jax.jit(model.denoiser(params, jnp.asarray(cond)[:, None]))
    for i in (0, 3, 6):
        z, noise = rng.normal(size=x.shape), rng.normal(size=x.shape)
        level_t, level_s = (model.log_snr(params)(jnp.asarray((7 - j) / 7)) for j in (i, i + 1))
        ours, _ = samplers.ancestral().step(
            eps_fn, jnp.asarray(z), (), jnp.asarray(noise), level_t, level_s
        )
        theirs = official.sampler_step(tree, z, i, 7, noise, cond, groups)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_model_without_the_conditioning_row_is_one_told_nothing():
    tree = official.parameters(channels=8, blocks=1)
    model, params = interop.official(tree, num_groups=4, keep_conditioning=False)
    assert model.network.cond_dim is None
    rng = np.random.default_rng(0)
    z, level = rng.normal(size=(2, 4, 3, 3)), np.array([-7.0, 2.0])
    ours = in_double(model).denoiser(params)(jnp.asarray(z), jnp.asarray(-level))
    expected = official.eps_hat(tree, z, level, np.zeros(2), 4)
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-11)
    assert np.max(np.abs(official.eps_hat(tree, z, level, np.ones(2), 4) - expected)) > 0.01
