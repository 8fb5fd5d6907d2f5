"""What can be asked of a model's denoiser: guidance and clipping, in bounds and in samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm import VDM, likelihoods, networks, schedules
from vdm.denoisers import clip_denoised

SCHEDULE = schedules.linear(6.0, -6.0)
LEVELS = likelihoods.discretised(8)


def build(likelihood=LEVELS, **fields):
    """A model of three dimensions with parameters away from their start, and data for it."""
    model = VDM(SCHEDULE, networks.MLP(width=8, num_blocks=1, **fields), likelihood, "v")
    x = jnp.asarray(np.random.RandomState(0).randint(0, 8, (49, 3)))
    x = x if likelihood is LEVELS else 0.3 * x.astype(float)
    cond = jnp.arange(49) % 4 if fields else None
    params = model.init(jax.random.key(0), x, cond)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [p + 0.4 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    return model, tree.unflatten(moved), x, cond


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5, -1.0])
def test_guidance_goes_from_without_to_with_the_condition_and_beyond(guidance):
    model, params, _, cond = build(num_classes=4, optional_cond=True)
    z = jax.random.normal(jax.random.key(2), (49, 3))
    told, untold = (model.denoiser(params, c)(z, jnp.asarray(0.5)) for c in (cond, None))
    assert np.abs(told - untold).min() > 1e-6
    got = model.denoiser(params, cond, guidance=guidance)(z, jnp.asarray(0.5))
    np.testing.assert_allclose(got, untold + guidance * (told - untold), atol=1e-12)


def test_samples_are_guided():
    model, params, x, cond = build(num_classes=4, optional_cond=True)
    keys = jax.random.split(jax.random.key(3), 49)

    def draw(cond, **options):
        return model.sample(params, keys, x.shape, num_steps=5, cond=cond, **options)

    np.testing.assert_array_equal(draw(cond, guidance=1.0), draw(cond))
    np.testing.assert_array_equal(draw(cond, guidance=0.0), draw(None))
    assert np.any(draw(cond, guidance=4.0) != draw(cond))


def test_guidance_needs_a_model_that_knows_both():
    model, params, x, cond = build(num_classes=4)
    with pytest.raises(ValueError, match=r"got MLP with optional_cond=False$"):
        model.denoiser(params, cond, guidance=2.0)
    model, params, x, cond = build(num_classes=4, optional_cond=True)
    with pytest.raises(ValueError, match="guidance needs a condition: got cond=None"):
        model.sample(params, jax.random.key(0), x.shape, num_steps=2, guidance=2.0)


@pytest.mark.parametrize("num_steps", [None, 7])
def test_a_clipped_bound_is_that_of_the_clipped_denoiser_and_never_looser(num_steps):
    model, params, x, _ = build()
    keys = jax.random.split(jax.random.key(4), 49)
    plain, clipped = (
        model.vlb(params, keys, x, num_steps=num_steps, clip_denoised=clip)
        for clip in (False, True)
    )
    for name in ("prior", "reconstruction"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(clipped, name))
    assert np.all(clipped.diffusion <= plain.diffusion + 1e-12)
    assert np.mean(clipped.diffusion < plain.diffusion - 1e-6) > 0.2
    # x̂ stays within the midpoints of the outer bins, ±7/8.
    z = jax.random.normal(jax.random.key(5), (49, 3))
    eps_hat = model.denoiser(params, clip_denoised=True)(z, jnp.asarray(1.0))
    by_hand = clip_denoised(model.denoiser(params), -7 / 8, 7 / 8)(z, jnp.asarray(1.0))
    np.testing.assert_array_equal(eps_hat, by_hand)
    assert np.any(eps_hat != model.denoiser(params)(z, jnp.asarray(1.0)))


def test_real_numbers_have_no_range():
    model, params, x, _ = build(likelihoods.gaussian(0.1))
    with pytest.raises(ValueError, match="clip_denoised needs a range"):
        model.vlb(params, jax.random.key(0), x, clip_denoised=True)
