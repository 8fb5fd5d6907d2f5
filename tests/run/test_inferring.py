"""`vdm infer`: the table is the profile of the library in the user's units, or a clear refusal."""

import csv
import dataclasses

import jax
import numpy as np
import pytest
from scipy.stats import norm

import runs
import vdm.run
from vdm import inference
from vdm.run import calibrating, cli, inferring, train
from vdm.run.config import DataConfig

pytestmark = pytest.mark.float32

RNG = np.random.default_rng(0)
THETA = RNG.uniform(100.0, 140.0, (400, 2))
X = (THETA[:, [0, 1, 0]] / 40 - 3 + 0.2 * RNG.normal(size=(400, 3))).astype(np.float32)


def made(folder, theta):
    """The workdir of a run that is conditioned on some columns of θ."""
    np.savez(folder / "data.npz", x=X, cond=theta)
    config = runs.points()
    config.model.network.update(cond_dim=theta.shape[1])
    config = dataclasses.replace(config, data=DataConfig("arrays", path=str(folder / "data.npz")))
    train.train(config, folder / "run")
    np.save(folder / "x.npy", X[:3])
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return made(tmp_path_factory.mktemp("two"), THETA)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return made(tmp_path_factory.mktemp("one"), THETA[:, :1])


def infer(folder, grid, *words):
    return cli.main(
        ["infer", str(folder / "x.npy"), f"--workdir={folder / 'run'}", f"--grid={grid}", *words]
    )


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    return dict(zip(names, np.asarray(rows, float).T, strict=True))


@pytest.mark.parametrize(("name", "grid"), [("one", "105:135:4"), ("two", "105:135:3,110:130:2")])
def test_the_table_is_the_profile_in_the_units_of_the_data(name, grid, request, capsys):
    folder = request.getfixturevalue(name)
    assert infer(folder, grid, "--num_samples=32", "--seed=5") == 0
    found = table(folder / "run" / "profile.csv")
    run = vdm.run.load(folder / "run")
    axes = [
        np.linspace(*map(float, part.split(":")[:2]), int(part[-1])) for part in grid.split(",")
    ]
    points = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], 1)
    theta = THETA[:, : len(axes)]
    train_set = vdm.run.data.load(run.config.data, "train").take(np.arange(360)).vector
    assert len(train_set) == 360
    scaled = (points - train_set.mean(0, np.float64)) / train_set.std(0, dtype=np.float64)
    assert np.abs(train_set - theta[:1]).max() < 40.1  # the units are those of the file
    for i in range(3):
        own = found["index"] == i
        for j, axis in enumerate(points.T):
            np.testing.assert_allclose(found[f"cond_{j}"][own], axis)
        there = inference.profile(
            run.model,
            run.params,
            X[i : i + 1],
            scaled.astype(np.float32),
            jax.random.fold_in(jax.random.key(5), i),
            num_samples=32,
        )
        np.testing.assert_allclose(found["nats"][own], there.mean[0], rtol=1e-4)
        np.testing.assert_allclose(found["excess"][own], there.excess[0], rtol=1e-3, atol=1e-3)
        assert abs(found["excess"][own].min()) < 1e-5
        weight = np.exp(-found["excess"][own])
        np.testing.assert_allclose(found["weight"][own], weight / weight.sum(), rtol=1e-4)
    assert (folder / "run" / "profile.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "T=10" in said and "T=inf" in said and "example 2" in said
    assert "beyond" not in said


def test_moments_of_a_grid_are_those_of_its_weights():
    grid = inferring.Grid(np.asarray([[1.0, 5.0], [2.0, 7.0], [4.0, 9.0]]), ("a", "b"), ())
    mean, std = inferring.moments(grid, np.asarray([[0.5, 0.25, 0.25]]))
    np.testing.assert_allclose(mean, [[2.0, 6.5]])
    np.testing.assert_allclose(std, np.sqrt([[1.5, 2.75]]))


def test_a_grid_beyond_the_training_examples_is_said_and_taken(one, capsys):
    assert infer(one, "90:135:2", "--num_samples=16") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the grid of cond_0 goes from 90 to 135, and 64 training examples have 100" in said


@pytest.mark.parametrize(
    ("grid", "words", "said"),
    [
        ("1:2:3,1:2:3", (), "for each of 1 parameters, cond_0"),
        ("1:2", (), "LOW:HIGH:NUM, such as 0.5:2:16: got '1:2'"),
        ("1:2:3:4", (), "LOW:HIGH:NUM"),
        ("a:2:3", (), "LOW:HIGH:NUM"),
        ("1:2:1", (), "NUM of --grid"),
        ("2:1:3", (), "from LOW up to HIGH"),
        ("1:nan:3", (), "from LOW up to HIGH"),
        ("1:2:3", ("--num_samples=40",), "multiple of 16: got 40"),
        ("1:2:3", ("--num_samples=0",), "--num_samples"),
        ("1:2:3", ("--seed=-1",), "at least 0"),
        ("1:2:3", ("--out=profile.png",), "written as .csv"),
        ("1:2:3", ("--params=last",), "last"),
    ],
)
def test_what_is_no_grid_is_refused(one, capsys, grid, words, said):
    assert infer(one, grid, *words) == 2
    assert said in capsys.readouterr().err


def test_other_runs_and_other_examples_are_refused(one, tmp_path, capsys):
    for name, kinds in (("points", "nothing"), ("classes", "one of 10 classes")):
        workdir = runs.copy_of(name, tmp_path / name)
        words = ["infer", str(one / "x.npy"), f"--workdir={workdir}", "--grid=0:1:2"]
        assert cli.main(words) == 2
        assert f"conditioned on {kinds}" in " ".join(capsys.readouterr().err.split())
    np.save(tmp_path / "wide.npy", np.zeros((2, 5), np.float32))
    words = ["infer", str(tmp_path / "wide.npy"), f"--workdir={one / 'run'}", "--grid=0:1:2"]
    assert cli.main(words) == 2
    assert "shape [3]" in capsys.readouterr().err


AXES = (np.linspace(0, 4, 41), np.linspace(10, 12, 21))
GRID = inferring.Grid(
    np.stack([a.ravel() for a in np.meshgrid(*AXES, indexing="ij")], 1), ("a", "b"), AXES
)
NOISE = np.asarray([0.5, 0.3])


def posteriors(num, narrower=1.0, seed=0):
    """θ drawn evenly over the cells of the grid, and their exact posteriors, seen with noise."""
    rng = np.random.default_rng(seed)
    half = np.asarray([0.05, 0.05])
    low, high = GRID.points.min(0) - half, GRID.points.max(0) + half
    theta = rng.uniform(low, high, (num, 2))
    seen = theta + NOISE * rng.normal(size=theta.shape)
    # Of a cell, in closed form for a flat prior: a product of two truncated normals.
    edges = [np.linspace(a, b, len(x) + 1) for a, b, x in zip(low, high, AXES, strict=True)]
    parts = [
        np.diff(norm.cdf(edge, seen[:, i : i + 1], NOISE[i] * narrower))
        for i, edge in enumerate(edges)
    ]
    weight = np.einsum("na,nb->nab", *parts).reshape(num, -1)
    return theta, weight / weight.sum(axis=1, keepdims=True)


def test_exact_posteriors_are_calibrated_and_narrow_ones_are_not():
    theta, weight = posteriors(400)
    found = calibrating.calibrated(GRID.names, AXES, weight, theta, 0)
    assert found.ranks.shape == (400, 2)
    assert (found.p_value > 0.01).all()
    off = np.abs(found.coverage.share - found.coverage.nominal[:, None])
    # The greatest of 38, many of them of the same examples.
    assert (off < 4.5 * found.coverage.standard_error[:, None]).all()
    narrow = calibrating.calibrated(GRID.names, AXES, posteriors(400, narrower=0.5)[1], theta, 0)
    assert (narrow.p_value < 1e-6).all()
    mixed = calibrating.calibrated(GRID.names, AXES, weight, theta[::-1], 0)
    assert (mixed.p_value < 1e-6).all()


def test_a_fine_grid_far_from_zero_is_calibrated_as_near_it():
    theta, weight = posteriors(200)
    near = calibrating.calibrated(GRID.names, AXES, weight, theta, 0)
    # Where float32 would have the points of the grid, and many θ, as one number.
    far = tuple(1e7 + 1e-3 * axis for axis in AXES)
    found = calibrating.calibrated(GRID.names, far, weight, 1e7 + 1e-3 * theta, 0)
    assert np.mean(found.ranks == near.ranks) > 0.95


def test_a_grid_too_coarse_for_the_posteriors_is_said():
    axes = (np.linspace(0, 10, 11),)
    grid = inferring.Grid(axes[0][:, None], ("a",), axes)
    for width, said in ((0.1, 1), (2.0, 0)):
        excess = (axes[0] - 5.0) ** 2 / (2 * width**2) * np.ones((3, 1))
        profile = inference.Profile(*(excess,) * len(inference.Profile._fields))
        assert len(inferring.coarse(grid, profile)) == said


def test_known_conditions_of_a_file_are_ranked_in_their_posteriors(one, tmp_path, capsys):
    theta = np.linspace(101, 142, 30)  # the last three are beyond the grid
    np.savez(tmp_path / "known.npz", x=X[:30], cond=theta[:, None])
    words = ["infer", str(tmp_path / "known.npz"), f"--workdir={one / 'run'}", "--num_samples=16"]
    assert cli.main([*words, "--grid=100:138:20", f"--out={tmp_path / 'p.csv'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "calibration: 27 known θ of 30 within the grid" in said
    assert "50% hold" in said and "uniform ranks: p =" in said
    assert (tmp_path / "p_calibration.png").stat().st_size > 1000
    assert cli.main([*words, "--grid=100:120:5", f"--out={tmp_path / 'q.csv'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no calibration: 16 known θ are within the grid, and 20 are needed" in said
    assert not (tmp_path / "q_calibration.png").exists()
    np.savez(tmp_path / "known.npz", x=X[:30], cond=np.zeros((30, 2)))
    assert cli.main([*words, "--grid=100:138:20"]) == 2
    assert "cond must be 1 numbers of each example, cond_0: got 2" in capsys.readouterr().err
