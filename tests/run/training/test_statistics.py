"""A run whose network has a Wiener filter: what is measured, when, and that it stays."""

import dataclasses

import numpy as np
import pytest

import runs
import vdm.run
from vdm.networks import wiener
from vdm.run import data, train
from vdm.run.errors import UserError
from vdm.run.training import parts

pytestmark = pytest.mark.float32


def config(kind="full", **changed):
    """A run whose decay of weights would shrink the statistics at once."""
    made = runs.images({**runs.UNET, "wiener": kind}, **changed)
    optimizer = dataclasses.replace(made.optimizer, weight_decay=100.0, warmup_steps=0)
    return dataclasses.replace(made, optimizer=optimizer)


def measured(made, kind, padding=("zero", "zero")):
    """The statistics of the encoded training split, at once."""
    x = (data.load(made.data, "train").x.astype(float) - 8) * 2 / 17
    return wiener.measured([x], kind, padding)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    made = tmp_path_factory.mktemp("wiener")
    train.train(config(), made)
    return made


def covariance(statistics):
    """Of each frequency, or of all numbers: the eigenvectors themselves may have either sign."""
    basis, variance = np.asarray(statistics["basis"]), np.asarray(statistics["variance"])
    return basis * variance[..., None, :] @ np.swapaxes(basis, -1, -2)


def assert_measured(params, statistics):
    own, expected = params["network"]["wiener"], statistics._asdict()
    np.testing.assert_allclose(own["mean"], expected["mean"], atol=2e-6)
    np.testing.assert_allclose(covariance(own), covariance(expected), atol=2e-6)


@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_the_run_has_the_statistics_of_its_training_split(workdir, kind):
    assert_measured(vdm.run.load(workdir, kind).params, measured(config(), "full"))


def test_a_run_that_begins_with_another_one_keeps_its_statistics(workdir, tmp_path):
    # Trained on half of the examples, for which its own would be others.
    later = config(init_from=str(workdir), validation_examples=750)
    train.train(later, tmp_path)
    assert_measured(vdm.run.load(tmp_path).params, measured(config(), "full"))


def test_a_split_with_too_few_examples_is_refused_before_anything_is_compiled():
    made = config(validation_examples=1450)
    with pytest.raises(
        UserError, match=r"wiener='full' needs at least 65 .*: got 50; 'stationary'"
    ):
        parts.prepare(made)
    parts.prepare(config("stationary", validation_examples=1450))


def test_statistics_of_fields_that_close_are_none_of_fields_with_ends(tmp_path):
    train.train(config("stationary", num_steps=1), tmp_path / "one")
    later = config("stationary", init_from=str(tmp_path / "one"))
    network = {**later.model.network, "padding": "wrap"}
    later = dataclasses.replace(later, model=dataclasses.replace(later.model, network=network))
    with pytest.raises(UserError, match=r"network.padding is .*'zero'.* and .*'wrap'.* here"):
        train.train(later, tmp_path / "two")
