"""The conditions of `vdm sample`, `score`, `evaluate` and `report`, and of folders of images."""

import csv
import dataclasses
import shutil

import exact_conditions as exact
import jax
import numpy as np
import pytest
from PIL import Image

import runs
from vdm.condition import Conditions
from vdm.run import cli, config as configs, data, export, run as of_run, train, trained
from vdm.run.data import chosen, condition as conditions, kept_conditions, side_file
from vdm.run.errors import UserError
from vdm.run.training import parts

pytestmark = pytest.mark.float32
X, BESIDE = exact.pixels("test")
GIVEN = Conditions(*(BESIDE[name] for name in ("labels", "cond", "cond_field")))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.copy_of("conditions", tmp_path_factory.mktemp("conditions") / "run")


@pytest.fixture
def moved(workdir, monkeypatch):
    """The run with parameters of which none is zero, so that its conditions have an influence."""
    run = trained.load(workdir)
    rng = np.random.default_rng(3)
    run = run._replace(
        params={
            **run.params,
            "network": jax.tree.map(
                lambda p: p + 0.3 * rng.normal(size=p.shape).astype(p.dtype), run.params["network"]
            ),
        }
    )
    monkeypatch.setattr(trained, "load", lambda *_, **__: run)
    return run


def write(folder, num=None):
    """The conditions of the test split in one file each: all, and for each kind."""
    part = {name: array[:num] for name, array in BESIDE.items()}
    np.savez(folder / "all.npz", **part)
    np.savez(folder / "field.npz", cond_field=BESIDE["cond_field"][:1])
    with (folder / "table.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["pressure", "labels", "temperature"])
        for i, (a, b) in enumerate(part["cond"]):
            rows.writerow([repr(float(a)), part["labels"][i], repr(float(b))])


def test_samples_are_given_what_the_command_line_says(moved, workdir, tmp_path, capsys):
    write(tmp_path, 6)
    run = moved

    def drawn(*words, num=6):
        out = tmp_path / "x.npy"
        command = ["sample", f"--workdir={workdir}", f"--num={num}", f"--out={out}", *words]
        assert cli.main(command) == 0, capsys.readouterr().err
        return np.load(out)

    def expected(given):
        return run.sample(6, given, key=run.config.sample.seed)

    first = Conditions(*(part[:6] for part in GIVEN[:3]))
    np.testing.assert_array_equal(drawn(f"--cond_file={tmp_path / 'all.npz'}"), expected(first))
    one = Conditions(
        np.full(6, 2), np.tile([[291.5, 1010.0]], (6, 1)), np.repeat(GIVEN.field[:1], 6, axis=0)
    )
    words = ("--label=2", "--cond=291.5,1010", f"--cond_file={tmp_path / 'field.npz'}")
    np.testing.assert_array_equal(drawn(*words), expected(one))
    for kind, part in {"label": 0 * one.label, "vector": one.vector + 9}.items():
        assert np.any(expected(one._replace(**{kind: part})) != expected(one)), kind
    # By default conditions of the training split, each sample with its own, which a line says.
    capsys.readouterr()
    usual = drawn()
    assert "samples have the conditions of 60 training examples" in capsys.readouterr().err
    _, others = exact.pixels("train")
    kept = Conditions(*(others[name][:6] for name in ("labels", "cond", "cond_field")))
    np.testing.assert_array_equal(usual, expected(kept))
    assert np.any(usual != expected(Conditions(*(np.repeat(p[:1], 6, axis=0) for p in kept[:3]))))
    np.testing.assert_array_equal(usual, expected(None))
    assert cli.main(["sample", f"--workdir={workdir}", "--dry_run", *words]) == 0


def test_files_of_every_kind_are_read(workdir, tmp_path):
    write(tmp_path)
    np.save(tmp_path / "vectors.npy", BESIDE["cond"])
    two = dataclasses.replace(trained.load(workdir).condition, field=None)
    one = dataclasses.replace(two, num_classes=None)

    def read(name, condition, size=20, **others):
        options = chosen.Options(cond_file=tmp_path / name, **others)
        return chosen.read(options, condition, size, (8, 8, 1), "sample")

    found = read("table.csv", two)
    np.testing.assert_array_equal(found.label, BESIDE["labels"])
    np.testing.assert_array_equal(found.vector, BESIDE["cond"])
    found = read("vectors.npy", one)
    np.testing.assert_array_equal(found.vector, BESIDE["cond"])
    assert found.label is None
    np.testing.assert_array_equal(read("vectors.npy", two, label=1).label, np.ones(20))
    # Vectors of one number, in a row of them; and the only kind of a run of fields.
    single = dataclasses.replace(one, vector=conditions.Scale((0.0,), (1.0,)))
    np.save(tmp_path / "row.npy", np.arange(20))
    np.savez(tmp_path / "row.npz", cond=np.arange(20))
    for name in ("row.npy", "row.npz"):
        np.testing.assert_array_equal(read(name, single).vector, np.arange(20)[:, None])
    alone = dataclasses.replace(trained.load(workdir).condition, num_classes=None, vector=None)
    np.save(tmp_path / "fields.npy", BESIDE["cond_field"])
    np.testing.assert_array_equal(read("fields.npy", alone).field, BESIDE["cond_field"])
    assert chosen.read(chosen.Options(), two, 20, (8, 8, 1), "sample") is None


def test_scores_are_those_of_the_same_conditions(moved, workdir, tmp_path, capsys):
    write(tmp_path)
    np.savez(tmp_path / "x.npz", x=X, **BESIDE)
    np.save(tmp_path / "x.npy", X)
    run = moved
    ours = run.score(X, GIVEN, key=run.config.evaluate.seed).bpd
    other = run.score(X, GIVEN._replace(vector=GIVEN.vector[::-1]), key=0).bpd
    for words in (["x.npz"], ["x.npy", f"--cond_file={tmp_path / 'all.npz'}"]):
        out = tmp_path / "scores.npz"
        source = str(tmp_path / words[0])
        command = ["score", source, f"--workdir={workdir}", f"--out={out}", *words[1:]]
        assert cli.main(command) == 0, capsys.readouterr().err
        np.testing.assert_allclose(np.load(out)["bpd"], ours, rtol=1e-6)
    assert np.abs(other - ours).max() > 1e-3
    # The split of the run itself has the same examples.
    assert cli.main(["evaluate", f"--workdir={workdir}", "--levels_per_example=2"]) == 0
    kept = np.load(workdir / "evaluation_test.npz")
    np.testing.assert_allclose(kept["total_inf"], ours, rtol=1e-5)


WRONG = [
    (lambda c: c.vector, "this model has several conditions: expected cond=Conditions"),
    (lambda c: c._replace(vector=None), "a field of 1 channels: got no cond.vector"),
    (lambda c: c._replace(vector=c.vector[:, :1]), r"cond.vector has 1 number, expected 2 \(cond_"),
    (lambda c: c._replace(vector=c.vector[:3]), r"cond.vector must be .* got \[3, 2\]"),
    (lambda c: c._replace(label=c.label + 1), "cond.label must be a class from 0 to 2"),
    (lambda c: c._replace(field=c.field * np.nan), "cond.field must be finite .* for example 0"),
    (lambda c: c._replace(field=c.field[:, 1:]), r"cond.field must be .*shape \[20, 8, 8, 1\]"),
    (lambda c: c._replace(vector=[["a", "b"]] * 20), "cond.vector must be numbers"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
@pytest.mark.usefixtures("unchecked")
def test_what_is_given_in_python_is_checked(change, message, workdir):
    run = trained.load(workdir)
    for call in (
        lambda cond: run.score(X, cond, key=0),
        lambda cond: run.vlb(X, cond, key=0),
        lambda cond: run.sample(len(X), cond, key=0),
    ):
        with pytest.raises(UserError, match=message):
            call(change(GIVEN))


def test_an_exported_run_keeps_its_scales(workdir, tmp_path):
    run = trained.load(workdir)
    export.write(run, workdir, tmp_path / "one.safetensors", ())
    alone = trained.load(tmp_path / "one.safetensors")
    assert alone.condition == run.condition
    for one, other in zip(alone.condition.some, run.condition.some, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(alone.sample(3, key=0), run.sample(3, key=0))


def test_a_workdir_without_its_scales_says_so(tmp_path):
    broken = runs.copy_of("conditions", tmp_path / "run")
    file = broken / "conditions.npz"
    whole = file.read_bytes()
    for content, message in ((whole[:300], "is damaged"), (None, "has no conditions.npz")):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            trained.load(broken)
    np.savez(file, **{**dict(np.load(io_of(whole))), "vector_std": np.zeros(2)})
    with pytest.raises(UserError, match="is damaged"):
        trained.load(broken)


def io_of(content):
    import io

    return io.BytesIO(content)


def test_a_report_shows_the_conditions(workdir, tmp_path):
    page = tmp_path / "page.html"
    command = ["report", f"--workdir={workdir}", f"--out={page}", "--num=3"]
    assert cli.main(command) == 0
    text = page.read_text()
    _, others = exact.pixels("train")
    for i in range(3):
        vector = ", ".join(f"{value:.4g}" for value in others["cond"][i])
        assert f"sample {i + 1} of class {others['labels'][i]} and ({vector})" in text
    assert "conditions of training examples" in text


def folder_of(root, num=30):
    """A folder of images with their vectors beside them."""
    rng = np.random.default_rng(0)
    vectors = {}
    for i in range(num):
        name = f"{'ab'[i % 2]}/{i:02}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(root / name)
        vectors[name] = (float(i), rng.normal())
    lines = [f"{name},{a},{b!r}" for name, (a, b) in sorted(vectors.items(), reverse=True)]
    (root / "conditions.csv").write_text("\n".join(["file,time,depth", *lines]) + "\n")
    return vectors


def images_config(root, **network):
    config = runs.images(batch_size=4, validation_examples=3)
    return dataclasses.replace(
        config,
        data=configs.DataConfig("images", path=str(root)),
        model=dataclasses.replace(
            config.model,
            network={**config.model.network, **network},
            likelihood={"name": "discretised", "levels": 256},
        ),
    )


def test_images_have_the_vectors_of_their_side_file(tmp_path, capsys):
    vectors = folder_of(tmp_path / "data")
    config = images_config(tmp_path / "data", cond_dim=2, num_classes=2)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, sample_every=2))
    train.train(config, tmp_path / "run")
    assert (tmp_path / "run/samples/step_000002.png").exists()
    run = trained.load(tmp_path / "run")
    found, every = [], {}
    for split in ("train", "validation", "test"):
        part = of_run.dataset(run, split)
        examples = part.take(np.arange(len(part)))
        found += list(zip(part.files, examples.vector.tolist(), strict=True))
        every[split] = examples.vector
        ids = [name.rsplit(":", 1)[0] for name in examples.ids]
        assert ids == list(part.files)
    assert {name: tuple(vector) for name, vector in found} == vectors
    np.testing.assert_allclose(run.condition.vector.mean, every["train"].mean(0), rtol=1e-12)
    out = tmp_path / "scores.npz"
    command = ["score", str(tmp_path / "data"), f"--workdir={tmp_path / 'run'}", f"--out={out}"]
    assert cli.main(command) == 0, capsys.readouterr().err
    names = np.load(out)["name"]
    x = np.stack([np.asarray(Image.open(tmp_path / "data" / name)) for name in names])[..., None]
    labels = np.array([name.startswith("b") for name in names]).astype(int)
    cond = Conditions(labels, np.array([vectors[name] for name in names]))
    expected = run.score(x, cond, key=run.config.evaluate.seed).bpd
    np.testing.assert_allclose(np.load(out)["bpd"], expected, rtol=1e-6)
    check_names(tmp_path, run, np.load(out)["bpd"], capsys)


def check_names(root, run, scores, capsys):
    """Columns are taken by their names in every later file, also from an exported run."""
    assert run.condition.vector.names == ("time", "depth")
    export.write(run, root / "run", root / "run.safetensors", ())
    assert trained.load(root / "run.safetensors").condition == run.condition
    file = root / "data/conditions.csv"
    rows = [line.split(",") for line in file.read_text().splitlines()]
    file.write_text("".join(f"{depth},{name},{time}\n" for name, time, depth in rows))
    command = ["score", str(root / "data"), f"--workdir={root / 'run'}", f"--out={root / 's.npz'}"]
    assert cli.main(command) == 0, capsys.readouterr().err
    np.testing.assert_array_equal(np.load(root / "s.npz")["bpd"], scores)
    part = of_run.dataset(run, "test")
    assert part.vector_names == ("time", "depth")
    (root / "given.csv").write_text("depth,labels,time\n0.5,1,7\n")
    given = chosen.Options(cond_file=root / "given.csv")
    found = chosen.read(given, run.condition, 2, run.shape, "sample")
    np.testing.assert_array_equal(found.vector, [[7.0, 0.5], [7.0, 0.5]])
    file.write_text(file.read_text().replace("depth,", "height,", 1))
    capsys.readouterr()
    assert cli.main(command) == 2
    expected = "expected those that this model was trained with, time, depth"
    assert f"has the columns height, time: {expected}" in capsys.readouterr().err
    assert cli.main(["sample", f"--workdir={root / 'run'}", "--label=0"]) == 2
    assert "a vector of 2 numbers (time, depth)" in capsys.readouterr().err


def test_columns_in_another_order_are_those_that_a_run_began_with(tmp_path):
    folder_of(tmp_path / "data", 12)
    config = images_config(tmp_path / "data", cond_dim=2)
    train.train(config, tmp_path / "first")
    kept = kept_conditions.read(tmp_path / "first", trained.load(tmp_path / "first").model.network)
    assert kept_conditions.names(tmp_path / "first") == kept.vector.names == ("time", "depth")
    assert kept_conditions.names(tmp_path) == ()
    begun = dataclasses.replace(config.train, init_from=str(tmp_path / "first"), num_steps=1)
    begun = dataclasses.replace(config, train=begun)
    file = tmp_path / "data/conditions.csv"
    rows = [line.split(",") for line in file.read_text().splitlines()]
    file.write_text("".join(f"{name},{depth},{time}\n" for name, time, depth in rows))

    def trained_on(run, config):
        """The vectors of a config's training set as a run takes them, named."""
        names = kept_conditions.names(tmp_path / run)
        found = parts.prepare(config, names=names).dataset
        return found.vector_names, found.take(np.arange(len(found))).vector

    names, first = trained_on("first", config)
    assert names == ("time", "depth") and np.all(first[:, 0] == np.round(first[:, 0]))
    train.train(
        dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=4)),
        tmp_path / "first",
    )  # resumed: the scale is that of the same columns
    train.train(begun, tmp_path / "second")
    assert trained_on("second", begun)[0] == ("time", "depth")
    shutil.rmtree(tmp_path / "first")  # what a run has begun it can go on with alone
    names, second = trained_on("second", configs.load(tmp_path / "second"))
    assert names == ("time", "depth")
    np.testing.assert_array_equal(second, first)


def test_names_that_are_damaged_are_no_names(tmp_path):
    folder_of(tmp_path / "data", 8)
    config = images_config(tmp_path / "data", cond_dim=2)
    made = parts.of(config, data.load(config.data, "train"))
    kept_conditions.write(tmp_path, made.condition)
    assert kept_conditions.read(tmp_path, made.trainer.model.network) == made.condition
    arrays = kept_conditions.to_arrays(made.condition)
    for bad in (b'["time"]', b'{"time": 1}', b"[1, 2]", b"time"):
        arrays["vector_names"] = np.frombuffer(bad, np.uint8)
        with pytest.raises(ValueError):
            kept_conditions.from_arrays(arrays)
    (tmp_path / "conditions.npz").write_bytes(b"PK")
    assert kept_conditions.names(tmp_path) == ()


SIDE = {
    "lacking": (lambda t: t.replace("a/02.png,", "a/none.png,"), "'a/none.png', which is no image"),
    "one short": (lambda t: "\n".join(t.splitlines()[:-1]), "has no row for 'a/00.png'"),
    "doubled": (lambda t: t + "a/02.png,1,2\n", "has two rows for 'a/02.png'"),
    "text": (lambda t: t.replace(",2.0,", ",two,"), "has 'two' as 'time': expected a finite"),
    "nan": (lambda t: t.replace(",2.0,", ",nan,"), "has 'nan' as 'time': expected a finite"),
    "columns": (lambda t: t.replace("time,depth", "time,depth,x"), "its header 4"),
    "no file": (lambda t: t.replace("file,", "image,"), "has no column 'file'"),
    "labels": (lambda t: t.replace("depth", "labels"), "classes of images are their subfolders"),
}


@pytest.mark.parametrize("case", SIDE)
def test_a_bad_side_file_is_one_line(case, tmp_path):
    folder_of(tmp_path, 8)
    file = tmp_path / "conditions.csv"
    change, message = SIDE[case]
    file.write_text(change(file.read_text()))
    network = trained.build.model(images_config(tmp_path, cond_dim=2)).network
    with pytest.raises(UserError, match=message) as error:
        for split in ("train", "test"):
            side_file.joined(
                data.load(configs.DataConfig("images", path=str(tmp_path)), split),
                tmp_path,
                network,
            )
    assert "\n" not in str(error.value)
    # A network that takes no vectors does not read it.
    plain = trained.build.model(images_config(tmp_path)).network
    part = data.load(configs.DataConfig("images", path=str(tmp_path)), "train")
    assert side_file.joined(part, tmp_path, plain) is part
    (line,) = side_file.unused(part, tmp_path, plain)
    assert line.endswith(
        "conditions.csv is not used: the network takes its numbers with model.network.cond_dim"
    )
    assert side_file.unused(part, tmp_path, network) == []
    file.unlink()
    assert side_file.unused(part, tmp_path, plain) == []


def test_a_folder_without_a_side_file_or_of_another_size(tmp_path):
    folder_of(tmp_path, 8)
    config = images_config(tmp_path, cond_dim=3)
    with pytest.raises(UserError, match=r"cond_dim is 3, but .*conditions.csv has 2 columns"):
        train.train(config, tmp_path / "run")
    (tmp_path / "conditions.csv").unlink()
    with pytest.raises(UserError, match=r"cond_dim is 3, but .* has no conditions.csv: expected"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samples_have_only_the_kinds_that_the_model_is_given():
    """A run keeps the classes of its data too, whether or not its network takes them."""
    some = Conditions(np.array([2, 1, 0]), np.arange(6.0).reshape(3, 2))
    vectors = conditions.Condition(vector=conditions.Scale((0.0, 0.0), (1.0, 1.0)), some=some)
    found = vectors.samples(np.array([1, 4]))
    assert found.label is None and found.field is None
    np.testing.assert_array_equal(found.vector, [[2.0, 3.0], [2.0, 3.0]])
    found = dataclasses.replace(vectors, num_classes=3).samples(np.array([1, 3]))
    np.testing.assert_array_equal(found.label, [1, 2])
