"""Sets of points from the command line: however they are stored, the numbers are the same."""

import dataclasses
import json
import math

import numpy as np
import pytest

import runs
import vdm.run
from vdm import sets
from vdm.condition import Conditions
from vdm.run import cli, config as configs, data, evaluate, train
from vdm.run.data import point_sets
from vdm.run.errors import UserError
from vdm.run.evaluation import units
from vdm.run.training import build

pytestmark = pytest.mark.float32

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 6, 40)
POINTS = (RNG.normal(size=(LENGTHS.sum(), 2)) * [1.0, 30.0] + [0.0, 100.0]).astype(np.float32)
ENDS = np.cumsum(LENGTHS)[:-1]


def padded(extra, garbage):
    """The sets with their points anywhere among rows of garbage, in order."""
    size = LENGTHS.max() + extra
    mask = np.zeros((len(LENGTHS), size), bool)
    for row, n in zip(mask, LENGTHS, strict=True):
        row[np.sort(RNG.permutation(size)[:n])] = True
    x = np.full((*mask.shape, 2), garbage, np.float32)
    x[mask] = POINTS
    return {"x": x, "mask": mask}


FORMS = {
    "ragged": {"x": POINTS, "lengths": LENGTHS},
    "10 rows": padded(10, np.nan),
    "20 rows": padded(20, 1e30),
}


def written(arrays, path):
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdirs of runs on the same sets in all forms."""
    found = {}
    for name, arrays in FORMS.items():
        folder = tmp_path_factory.mktemp("sets")
        train.train(runs.sets(written(arrays, folder / "sets.npz")), folder / "run")
        found[name] = folder / "run"
    return found


def evaluated(workdir):
    run = vdm.run.load(workdir)
    asked = {"bound": "vlb,ode", "num_steps": "inf,3", "num_paths": 2, "levels_per_example": 1}
    settings = dataclasses.replace(run.config.evaluate, **asked)
    found = evaluate.evaluate(run, "test", settings, workdir)
    with np.load(workdir / "evaluation_test.npz") as columns:
        return found, {name: columns[name] for name in columns.files}


def test_the_form_that_sets_are_stored_in_changes_no_bit(trained):
    whole = {name: evaluated(workdir) for name, workdir in trained.items()}
    for name in ("10 rows", "20 rows"):
        for here, there in zip(
            whole[name][0]["results"], whole["ragged"][0]["results"], strict=True
        ):
            assert here["bpd"] == there["bpd"]
            assert here.get("terms") == there.get("terms")
        for column, values in whole["ragged"][1].items():
            np.testing.assert_array_equal(whole[name][1][column], values)
    samples = [vdm.run.load(w).sample(3, key=1) for w in trained.values()]
    np.testing.assert_array_equal(samples[1], samples[0])
    np.testing.assert_array_equal(samples[2], samples[0])


def test_bits_are_those_of_each_set_by_its_own_dimensions(trained):
    run = vdm.run.load(trained["ragged"])
    test = data.load(run.config.data, "test")
    np.testing.assert_array_equal(test.dims, 2 * test.points)
    found, columns = evaluated(trained["ragged"])
    scores = run.score(
        test.x, Conditions(mask=test.examples.mask), key=0, levels_per_example=1, batch_size=16
    )
    np.testing.assert_allclose(columns["total_inf"], scores.bpd, rtol=1e-5)
    assert found["bpd"]["mean"] == pytest.approx(np.mean(columns["total_inf"]), rel=1e-6)
    assert found["order"] == "unordered"
    assert found["mean_dims"] == pytest.approx(2 * test.points.mean())
    # Nats of the whole, over the dimensions of each.
    nats = np.arange(1.0, len(test) + 1)
    np.testing.assert_allclose(
        units.in_bits(nats, test.dims), nats / (2 * test.points * math.log(2))
    )
    assert units.so_far(nats[:3].repeat(2), test, 2) == (
        f"{np.mean(nats[:3] / (2 * test.points[:3] * math.log(2))):.3f} bpd"
    )


def test_the_law_of_the_number_is_that_of_the_training_sets(trained):
    run = vdm.run.load(trained["ragged"])
    points = data.load(run.config.data, "train").points
    counts = np.bincount(points, minlength=LENGTHS.max() + 1)[1:] + 0.5
    np.testing.assert_allclose(run.model.number_law.probs, counts / counts.sum())
    # Without it, and in order, the prior term is less by what the number says.
    test = data.load(run.config.data, "test")
    x, cond = test.x, Conditions(mask=test.examples.mask)
    there = run.vlb(x, cond, key=0).prior
    values = configs.to_dict(run.config)
    values["model"]["number_law"] = {"name": "none"}
    plain = build.model(configs.from_dict(values))
    alone = run._replace(model=plain).vlb(x, cond, key=0).prior
    orders = [math.lgamma(n + 1) for n in test.points]
    expected = -np.log(counts / counts.sum())[test.points - 1] - orders
    np.testing.assert_allclose(there - alone, expected, rtol=1e-5, atol=1e-6)
    values = configs.to_dict(run.config)
    values["model"]["order"] = "ordered"
    ordered = build.model(configs.from_dict(values))
    found = run._replace(model=ordered).vlb(x, cond, key=0).prior
    np.testing.assert_allclose(found - there, orders, rtol=1e-5, atol=1e-5)


def test_samples_have_numbers_of_points_by_their_law(trained, tmp_path):
    run = vdm.run.load(trained["ragged"])
    num = 4000
    mask = run.condition.masks(np.arange(num))
    share = np.bincount(mask.sum(1), minlength=run.shape[0] + 1)[1:] / num
    # Evenly spread: the discrepancy of the golden ratio is about log(N)/N.
    np.testing.assert_allclose(share, run.model.number_law.probs, atol=3 * math.log(num) / num)
    words = ["sample", f"--workdir={trained['ragged']}", "--num=5", "--steps=2"]
    assert cli.main([*words, f"--out={tmp_path / 'x.npz'}"]) == 0
    with np.load(tmp_path / "x.npz") as found:
        np.testing.assert_array_equal(found["mask"], mask[:5])
        assert np.all(found["x"][~found["mask"]] == 0) and np.all(np.isfinite(found["x"]))
        np.testing.assert_array_equal(
            found["x"], run.sample(5, key=run.config.sample.seed, num_steps=2)
        )
    assert cli.main([*words, f"--out={tmp_path / 'x.png'}"]) == 0
    own = sets.of_lengths(np.asarray([2, 1]), run.shape[0])
    x = run.sample(2, Conditions(mask=own), key=0, num_steps=2)
    np.testing.assert_array_equal((x != 0).any(-1), own)


def test_a_file_of_sets_is_scored_whatever_its_form(trained, tmp_path, capsys):
    columns = []
    for name, arrays in FORMS.items():
        source = written(arrays, tmp_path / "some.npz")
        out = tmp_path / f"{name}.csv"
        assert (
            cli.main(["score", str(source), f"--workdir={trained['ragged']}", f"--out={out}"]) == 0
        )
        columns.append(out.read_text())
    assert columns[1] == columns[0] and columns[2] == columns[0]
    capsys.readouterr()
    # A set by itself, of fewer points than the most of training.
    run = vdm.run.load(trained["ragged"])
    one = np.split(POINTS, ENDS)[3][None]
    alone = run.score(one, Conditions(mask=np.ones(one.shape[:2], bool)), key=0)
    assert np.isfinite(alone.bpd[0])


def test_conditions_of_sets_and_of_their_points(tmp_path):
    arrays = {
        **FORMS["ragged"],
        "labels": LENGTHS % 3,
        "cond": RNG.normal(size=(40, 2)) * 7,
        "cond_field": POINTS[:, :1] * 3.0,
    }
    config = runs.sets(written(arrays, tmp_path / "sets.npz"))
    config.model.network.update(num_classes=3, cond_dim=2, cond_channels=1)
    train.train(config, tmp_path / "run")
    run = vdm.run.load(tmp_path / "run")
    test = data.load(config.data, "test")
    # Standardised by the points that there are.
    train_set = data.load(config.data, "train")
    of_points = train_set.examples.field[train_set.examples.mask]
    np.testing.assert_allclose(run.condition.field.mean, of_points.mean(0), rtol=1e-5)
    there = train_set.x[train_set.examples.mask]
    np.testing.assert_allclose(run.model.likelihood.mean, there.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(run.model.likelihood.std, there.std(0, dtype=np.float64), rtol=1e-6)
    parts = test.examples
    cond = Conditions(parts.labels, parts.vector, parts.field, parts.mask)
    found = run.score(test.x, cond, key=0)
    assert np.all(np.isfinite(found.bpd))
    moved = run.score(test.x, cond._replace(field=parts.field + 50.0), key=0)
    assert np.abs(moved.bpd - found.bpd).max() > 0
    # Samples take kept conditions, the number of points with them.
    x = run.sample(3, key=0, num_steps=2)
    assert np.all((x != 0).any((1, 2)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", "ARRAY", "OUT.vdm"], "vdm compress is for examples of one shape"),
        (["sample", "--trajectory"], "--trajectory is for examples of one shape"),
        (["sample", "--known=FILE", "--mask=FILE"], "--known is for examples of one shape"),
        (["sample", "--out=OUT.npy"], "sets are written as .npz or .png"),
        (["export", "OUT", "--programs=score"], "a program of an export is for examples"),
        (["fit-chain", "--steps=3", "--variance=table"], "points of sets have no places"),
    ],
)
def test_what_needs_one_shape_is_refused(trained, tmp_path, capsys, words, said):
    source = written(FORMS["ragged"], tmp_path / "some.npz")
    array = tmp_path / "some.npy"
    np.save(array, np.zeros((2, 5, 2), np.uint8))
    for name, path in (("FILE", source), ("ARRAY", array), ("OUT", tmp_path / "out")):
        words = [word.replace(name, str(path)) for word in words]
    assert cli.main([*words, f"--workdir={trained['ragged']}"]) == 2
    assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"some.npz", "some.npy"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda x, m: (x, None), "expected cond=Conditions\\(mask=...\\)"),
        (lambda x, m: (x, m), "expected cond=Conditions\\(mask=...\\)"),
        (lambda x, m: (np.pad(x, ((0, 0), (0, 3), (0, 0))), np.pad(m, ((0, 0), (0, 3)))), None),
        (lambda x, m: (np.repeat(x, 2, 1), Conditions(mask=np.repeat(m, 2, 1))), "at most"),
        (lambda x, m: (x.astype(int), Conditions(mask=m)), "real numbers"),
        (lambda x, m: (x, Conditions(np.zeros(len(x), int), mask=m)), "has no classes"),
    ],
)
def test_sets_that_do_not_fit_a_run_are_refused(trained, arguments, said):
    run = vdm.run.load(trained["ragged"])
    test = data.load(run.config.data, "test")
    x, cond = arguments(test.x, test.examples.mask)
    if said is None:  # more padding is none
        found = run.score(x, Conditions(mask=cond), key=0).bpd
        there = run.score(test.x, Conditions(mask=test.examples.mask), key=0).bpd
        np.testing.assert_array_equal(found, there)
        return
    with pytest.raises(UserError, match=said):
        run.score(x, cond, key=0)


def test_an_own_function_may_return_sets(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_sets.py").write_text(
        "import numpy as np\n"
        "def data(split):\n"
        "    n = np.asarray([3, 1, 2, 2, 4]) if split == 'train' else np.asarray([5])\n"
        "    return np.arange(2.0 * n.sum()).reshape(-1, 2), {'lengths': n}\n"
    )
    config = configs.DataConfig("own_sets:data")
    found = [data.load(config, split) for split in data.SPLITS]
    assert [one.shape for one in found] == [(5, 2)] * 2
    assert [one.points.tolist() for one in found] == [[3, 1, 2, 2, 4], [5]]
    np.testing.assert_array_equal(found[0].x[1, 0], [6.0, 7.0])


def test_the_chain_and_the_validation_of_sets(tmp_path):
    path = written(FORMS["ragged"], tmp_path / "sets.npz")
    config = runs.sets(path, validation_examples=6, validate_every=2)
    train.train(config, tmp_path / "run")
    words = [f"--workdir={tmp_path / 'run'}"]
    chain = ["fit-chain", *words, "--steps=2", "--variance=channel", "--num_levels=9"]
    assert cli.main(chain) == 0
    assert cli.main(["evaluate", *words, "--num_steps=2:chain", "--num_paths=2"]) == 0
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record["num_steps"] == 2
    assert cli.main(["sample", *words, "--chain", "--steps=2", "--num=2"]) == 0
    assert cli.main(["report", *words]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "dimensions on average, unordered sets of points" in page


def test_points_are_read_in_their_order():
    found = [point_sets.read(arrays, "x") for arrays in FORMS.values()]
    for one in found:
        np.testing.assert_array_equal(one.mask.sum(1), LENGTHS)
        np.testing.assert_array_equal(one.x[one.mask], POINTS)
        assert np.all(one.x[~one.mask] == 0)
