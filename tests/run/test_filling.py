"""Filling in what is missing of partly known examples: the exact law, and what comes back as is."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import runs
from oracles import within
from vdm.likelihoods import gaussian
from vdm.networks import from_apply
from vdm.run import cli, trained
from vdm.run.errors import UserError

pytestmark = pytest.mark.float32
# Two numbers of correlation 0.8 in units of their own, and one that is known.
CENTRE, SPREAD, RHO = np.array([40.0, -3.0]), np.array([5.0, 0.2]), 0.8
X = CENTRE[0] + 1.5 * SPREAD[0]
CONDITIONAL_MEAN = CENTRE[1] + RHO * SPREAD[1] / SPREAD[0] * (X - CENTRE[0])
CONDITIONAL_VARIANCE = SPREAD[1] ** 2 * (1 - RHO**2)
LEFT = np.arange(8)[:, None] < 4
EXAMPLES = np.random.default_rng(3).integers(0, 17, (5, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return runs.copy_of("images", tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A run whose denoiser is that of the two numbers, standardised."""

    def eps(params, z, log_snr, cond, *, train, key):
        a2 = 1 / (1 + jnp.exp(-log_snr))[:, None]
        # The two principal axes have the variances 1 ± ρ.
        axes = jnp.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
        along = z @ axes / (a2 * jnp.array([[1 + RHO, 1 - RHO]]) + 1 - a2)
        return jnp.sqrt(1 - a2) * (along @ axes)

    run = trained.load(runs.copy_of("points", tmp_path_factory.mktemp("points")))
    network = from_apply(lambda key, z, log_snr, cond: {}, eps)
    likelihood = gaussian(0.02, tuple(CENTRE), tuple(SPREAD))
    model = dataclasses.replace(run.model, network=network, likelihood=likelihood, prediction="eps")
    return run._replace(model=model, params=run.params | {"network": {}})


def filled(run, resample, num=3000):
    known = np.array([X, np.nan], np.float32)
    return run.inpaint(
        known, [1, 0], key=1, num=num, resample=resample, num_steps=100, batch_size=num
    )[:, 1].astype(np.float64)


def test_what_is_filled_in_has_the_conditional_law(exact):
    """In 5 standard errors, where each step is taken often enough for the chain's own error."""
    drawn = filled(exact, 80)
    assert within(drawn, CONDITIONAL_MEAN)
    assert within((drawn - CONDITIONAL_MEAN) ** 2, CONDITIONAL_VARIANCE)


def test_the_default_is_one_that_is_right(exact):
    """What is missed of the shift of the mean: 5 % with 8, and 39 % with a step taken once."""
    shift = CONDITIONAL_MEAN - CENTRE[1]
    missed = {n: 1 - (filled(exact, n).mean() - CENTRE[1]) / shift for n in (1, 8)}
    assert abs(missed[8]) < 0.1 and missed[1] > 0.3
    known = np.array([X, 0.0], np.float32)
    asked = {"key": 1, "num": 3, "num_steps": 5}
    by_default = exact.inpaint(known, [1, 0], **asked)
    np.testing.assert_array_equal(by_default, exact.inpaint(known, [1, 0], resample=8, **asked))


@pytest.mark.parametrize("final", ["mode", "draw"])
def test_known_entries_come_back_to_the_bit(images, exact, final):
    run = trained.load(images)
    mask = np.random.default_rng(4).random(EXAMPLES.shape) < 0.5
    holes = np.where(mask, EXAMPLES.astype(np.int64), -7)
    drawn = run.inpaint(holes, mask, key=0, num=10, final=final)
    assert drawn.shape == (10, 8, 8, 1) and drawn.min() >= 0 and drawn.max() <= 16
    np.testing.assert_array_equal(drawn[np.tile(mask, (2, 1, 1, 1))], np.tile(EXAMPLES[mask], 2))
    assert np.any(drawn[:5][~mask] != drawn[5:][~mask])
    x = np.float32([[37.123456, np.inf], [np.nan, -3.0123456]])
    drawn = exact.inpaint(x, np.isfinite(x), key=0, num_steps=3, final=final)
    assert drawn.dtype == np.float32 and np.all(np.isfinite(drawn))
    assert drawn[0, 0] == x[0, 0] and drawn[1, 1] == x[1, 1]


def test_masks_of_every_form_are_the_same_mask(images):
    run = trained.load(images)
    whole = np.broadcast_to(LEFT, (8, 8))
    one = run.inpaint(EXAMPLES[:3], whole, key=5)
    for mask in (
        whole[..., None],
        whole.astype(np.uint8),
        whole[..., None].astype(float),
        np.tile(whole, (3, 1, 1)),
        np.tile(whole[..., None], (3, 1, 1, 1)),
    ):
        np.testing.assert_array_equal(run.inpaint(EXAMPLES[:3], mask, key=5), one)
    # A sample depends on the key and its number alone.
    np.testing.assert_array_equal(run.inpaint(EXAMPLES[:3], whole, key=5, batch_size=2), one)
    np.testing.assert_array_equal(run.inpaint(EXAMPLES[0], whole, key=5), one[:1])
    # Several masks of one example.
    several = run.inpaint(EXAMPLES[0], np.stack([whole, ~whole]), key=5)
    np.testing.assert_array_equal(several[:1], one[:1])
    np.testing.assert_array_equal(several[1, 4:], EXAMPLES[0, 4:])


def test_the_command_fills_in(images, tmp_path, capsys):
    np.save(tmp_path / "mask.npy", np.broadcast_to(LEFT, (8, 8)))
    np.save(tmp_path / "x.npy", EXAMPLES)
    words = ["sample", f"--workdir={images}", f"--mask={tmp_path / 'mask.npy'}"]
    several = [*words, f"--known={tmp_path / 'x.npy'}"]
    out = tmp_path / "out.npy"
    assert cli.main([*several, f"--out={out}"]) == 0
    drawn, run = np.load(out), trained.load(images)
    np.testing.assert_array_equal(drawn, run.inpaint(EXAMPLES, np.tile(LEFT, (1, 8)), key=0))
    assert cli.main([*several, f"--out={out}", "--resample=2", "--num=10", "--seed=3"]) == 0
    again = run.inpaint(EXAMPLES, np.tile(LEFT, (1, 8)), key=3, num=10, resample=2)
    np.testing.assert_array_equal(np.load(out), again)
    for picture in ("grid.png", "folder"):
        assert cli.main([*several, f"--out={tmp_path / picture}"]) == 0
    assert len(list((tmp_path / "folder").glob("*.png"))) == 5
    capsys.readouterr()
    np.save(tmp_path / "x.npy", EXAMPLES[0])
    assert cli.main([*several, f"--out={out}"]) == 0 and len(np.load(out)) == 64
    assert cli.main([*several, "--dry_run"]) == 0
    assert "64 partly known samples by 3 × 8" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_images_are_known_examples(images, tmp_path):
    """Of 17 levels, as the pixels of a file."""
    (tmp_path / "in").mkdir()
    for i, one in enumerate(EXAMPLES):
        Image.fromarray(one[..., 0]).save(tmp_path / "in" / f"{i}.png")
    np.save(tmp_path / "mask.npy", np.broadcast_to(LEFT, (8, 8)))
    out = tmp_path / "out.npy"
    for known, num in (("in", 5), ("in/3.png", 64)):
        words = [f"--known={tmp_path / known}", f"--mask={tmp_path / 'mask.npy'}", f"--out={out}"]
        assert cli.main(["sample", f"--workdir={images}", *words]) == 0
        drawn = np.load(out)
        assert len(drawn) == num
        np.testing.assert_array_equal(drawn[:1, :4], EXAMPLES[3 * (num == 64)][None, :4])


def test_a_class_is_given_not_guessed(tmp_path, capsys):
    workdir = runs.copy_of("classes", tmp_path / "run")
    np.save(tmp_path / "mask.npy", np.broadcast_to(LEFT, (8, 8)))
    np.save(tmp_path / "x.npy", EXAMPLES)
    words = [f"--known={tmp_path / 'x.npy'}", f"--mask={tmp_path / 'mask.npy'}"]
    out = tmp_path / "out.npy"
    command = ["sample", f"--workdir={workdir}", *words, f"--out={out}"]
    assert cli.main(command) == 2
    assert "conditioned on one of 10 classes" in capsys.readouterr().err
    assert cli.main([*command, "--label=3"]) == 0
    run, mask = trained.load(workdir), np.tile(LEFT, (1, 8))
    threes = run.inpaint(EXAMPLES, mask, [3] * 5, key=0)
    np.testing.assert_array_equal(np.load(out), threes)
    # In a few steps of training the class has made no difference.
    rng = np.random.default_rng(0)
    other = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), run.params["network"])
    run = run._replace(params=run.params | {"network": other})
    threes, mixed = (
        run.inpaint(EXAMPLES, mask, classes, key=0) for classes in ([3] * 5, [3, 4, 3, 4, 3])
    )
    np.testing.assert_array_equal((mixed == threes).all((1, 2, 3)), [1, 0, 1, 0, 1])
    with pytest.raises(UserError, match="conditioned on one of 10 classes"):
        run.inpaint(EXAMPLES, mask, key=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "mask", "more", "message"),
    [
        (EXAMPLES[:, :4], LEFT, {}, r"known must be one example of shape \[8, 8, 1\] or several"),
        (EXAMPLES / 16, LEFT, {}, "known must be integers from 0 to 16: got float64"),
        (EXAMPLES, LEFT, {}, r"mask must have the shape \[8, 8, 1\] of an example, or \[8, 8\]"),
        (EXAMPLES, np.ones((4, 8, 8)), {}, "one for each of the 5 examples of known: got 4"),
        (EXAMPLES, 0.5 * np.ones((8, 8)), {}, "1 where an entry is known and 0 elsewhere: got 0.5"),
        (EXAMPLES, np.full((8, 8), np.nan), {}, "0 elsewhere: got nan"),
        (EXAMPLES, np.full((8, 8), "1"), {}, "0 elsewhere: got <U1"),
        (EXAMPLES, np.ones((8, 8)), {}, "all is known: nothing is left to fill in"),
        (EXAMPLES, np.zeros((8, 8)), {}, "nothing is known: sample without known entries"),
        (EXAMPLES + 1, np.eye(8), {}, r"known must hold integers from 0 to 16 .* got 17 at \["),
        (EXAMPLES, np.eye(8), {"num": 7}, "num must be a multiple of 5"),
        (EXAMPLES, np.eye(8), {"resample": 0}, "resample must be at least 1: got 0"),
        (EXAMPLES, np.eye(8), {"sampler": "dim"}, "'dim'.*'ddim'"),
        (EXAMPLES, np.eye(8), {"cond": [1] * 5}, "this model has no classes"),
        ([[1], [2, 3]], np.eye(8), {}, "known: "),
    ],
)
def test_what_cannot_be_filled_in_is_named(images, x, mask, more, message):
    with pytest.raises(UserError, match=message):
        trained.load(images).inpaint(x, mask, key=0, **more)


@pytest.mark.usefixtures("unchecked")
def test_known_real_numbers_are_finite(exact):
    for bad in (np.nan, -np.inf, 1e39):
        with pytest.raises(UserError, match=rf"finite numbers .* got {re.escape(str(bad))} at"):
            exact.inpaint(np.array([[bad, 0.0]]), [1, 0], key=0)
