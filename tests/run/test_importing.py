"""`vdm import`: from an official checkpoint to an evaluated run, and everything it refuses."""

import json
import pathlib
import pickle

import chex
import flax.serialization
import numpy as np
import pytest

import official
import runs
from vdm.run import cli, config as configs, importing, trained
from vdm.run.workdir import checkpoint

pytestmark = pytest.mark.float32

SMALL = {"channels": 8, "blocks": 1, "schedule": "network", "everywhere": True}
D = 6 * 5 * 3
STEP = 123


def single(tree):
    return official.mapped(lambda leaf: np.asarray(leaf, np.float32), tree)


@pytest.fixture(scope="module")
def trees():
    made = [official.parameters(seed=seed, **SMALL) for seed in (1, 2)]
    for tree in made:
        tree["gamma"]["l1"]["bias"] += 4.0  # or reconstruction would cost nothing
    return tuple(single(tree) for tree in made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trees):
    """A checkpoint, a data set of a few images and a config that names both."""
    folder = tmp_path_factory.mktemp("official")
    params, ema = trees
    state = {
        "step": STEP,
        "params": params,
        "ema_params": ema,
        "opt_state": {"0": {"count": np.int32(STEP), "mu": params, "nu": params}, "1": {}},
    }
    (folder / "ckpt-1.flax").write_bytes(flax.serialization.msgpack_serialize(state))
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.integers(0, 256, (40, 6, 5, 3), np.uint8))
    np.save(folder / "grey.npy", rng.integers(0, 256, (40, 6, 5, 1), np.uint8))
    values = configs.to_dict(runs.images({"name": "unet", "num_groups": 4}))
    values["data"] = {"name": "arrays", "path": str(folder / "x.npy")}
    values["model"] = {
        "schedule": {"name": "learned_linear", "log_snr_max": 13.3, "log_snr_min": -5.0},
        "network": {"name": "unet", "num_groups": 4, "channels": 64, "dropout": 0.2},
        "likelihood": {"name": "discretised", "levels": 256},
    }
    values["train"]["num_steps"] = STEP + 1
    values["evaluate"] |= {"levels_per_example": 64}
    runs.write_config_file(folder / "config.py", configs.from_dict(values))
    return folder


def bring(folder, workdir, *more, path="ckpt-1.flax"):
    file = f"--config={folder / 'config.py'}"
    arguments = [str(folder / path), f"--workdir={workdir}", file, *more]
    return cli.main(["import", "--format=official", *arguments])


@pytest.fixture(scope="module")
def workdir(folder):
    assert bring(folder, folder / "run") == 0
    return folder / "run"


def test_an_imported_run_holds_the_parameters_and_what_they_show(workdir, trees):
    files = {path.name for path in workdir.iterdir()}
    assert files == {".lock", "config.json", "data.json", "checkpoints"}
    run, raw = trained.load(workdir), trained.load(workdir, "raw")
    network = run.model.network
    assert (network.channels, network.num_blocks, network.attention) == (8, 1, "everywhere")
    assert (network.num_groups, network.dropout, network.cond_dim) == (4, 0.2, None)
    assert (network.log_snr_max, network.log_snr_min) == (13.3, -5.0)
    assert (run.model.schedule.width, run.model.prediction, run.step) == (11, "eps", STEP)
    for params, tree in ((raw.params, trees[0]), (run.params, trees[1])):
        expected = tree["score_model"]["dense0"]["kernel"][:-1]
        np.testing.assert_array_equal(params["network"]["dense0"]["kernel"], expected)
        ends = params["schedule"]["ends"]
        np.testing.assert_array_equal(ends["hidden_bias"], tree["gamma"]["l2"]["bias"])


def terms(folder, split="test"):
    kept = np.load(folder / f"evaluation_{split}.npz")
    return {name: kept[f"{name}_inf"] for name in ("prior", "reconstruction", "diffusion")}


def test_evaluation_measures_the_official_bound_of_the_averaged_parameters(workdir, trees):
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 0
    record = json.loads((workdir / "evaluation.json").read_text())
    assert (record["step"], record["params"], record["bpd"]["n"]) == (STEP, "ema", 4)
    ours = terms(workdir)
    tree = official.mapped(lambda leaf: leaf.astype(np.float64), trees[1])
    order = np.random.RandomState(0).permutation(40)
    x = np.load(workdir.parent / "x.npy")[np.sort(order[:4])]
    bits = D * np.log(2)
    np.testing.assert_allclose(ours["prior"], official.prior(tree, x) / bits, rtol=1e-4)
    rng, draws = np.random.default_rng(5), 200
    for i, image in enumerate(x):
        many = np.repeat(image[None], draws, 0)
        t, noise = rng.uniform(size=draws), rng.normal(size=(2, *many.shape))
        found = {
            "reconstruction": official.reconstruction(tree, many, noise[0]),
            "diffusion": official.diffusion(tree, many, t, noise[1], np.zeros(draws), groups=4),
        }
        for name, nats in found.items():
            # Five standard errors; ours is the mean of 64 draws, better spread over t.
            error = nats.std() * np.sqrt(1 / draws + 1 / 64) / bits
            assert abs(ours[name][i] - nats.mean() / bits) < 5 * error


# That they are loaded is seen above, and that a command takes them in test_cli.py.
@pytest.mark.long
def test_the_raw_parameters_are_there_too(workdir, trees):
    arguments = ["--params=raw", "--levels_per_example=1"]
    assert cli.main(["evaluate", f"--workdir={workdir}", *arguments]) == 0
    order = np.random.RandomState(0).permutation(40)
    x = np.load(workdir.parent / "x.npy")[np.sort(order[:4])]
    bits = D * np.log(2)
    expected = [official.prior(tree, x) / bits for tree in trees]
    np.testing.assert_allclose(terms(workdir)["prior"], expected[0], rtol=1e-4)
    assert not np.allclose(*expected, rtol=1e-3)


def test_samples_are_drawn(workdir, tmp_path):
    out = tmp_path / "samples.npy"
    assert cli.main(["sample", f"--workdir={workdir}", "--num=2", "--steps=2", f"--out={out}"]) == 0
    x = np.load(out)
    assert x.shape == (2, 6, 5, 3) and 0 <= x.min() < x.max() <= 255


def test_a_parameter_tree_alone_is_its_own_average(folder, trees, tmp_path):
    tree = trees[0]
    joined = {"params": official.leaves(tree)}
    for name, form in {"bare": tree, "params": {"params": tree}, "joined": joined}.items():
        (folder / f"{name}.flax").write_bytes(flax.serialization.msgpack_serialize(form))
    for name in ("bare", "params"):
        step, *both = importing.read(folder / f"{name}.flax")
        assert step == 0
        for read in both:
            chex.assert_trees_all_equal(read, tree)
    assert bring(folder, tmp_path / "run", path="joined.flax") == 0
    run = trained.load(tmp_path / "run")
    assert run.step == 0
    kernel = tree["score_model"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(run.params["network"]["conv_in"]["kernel"], kernel)


def test_the_command_shows_what_was_inferred(folder, tmp_path, capsys):
    assert bring(folder, tmp_path / "run") == 0
    shown = capsys.readouterr().out
    size = sum(leaf.size for leaf in official.leaves(official.parameters(**SMALL)).values())
    for words in ("everywhere", "learned_unpinned, λ from", f"{STEP}", f"{size:,}", "has 64"):
        assert words in shown


def altered(trees, change):
    def make():
        state = {"step": 1, "params": trees[0], "ema_params": trees[1], "opt_state": {}}
        state = official.mapped(lambda leaf: leaf, state)
        change(state)
        return flax.serialization.msgpack_serialize(state)

    return make


def renamed(state):
    network = state["ema_params"]["score_model"]
    network["conv_inn"] = network.pop("conv_in")


def reshaped(state):
    state["params"]["score_model"]["up.block_1"]["conv2"]["kernel"] = np.zeros((3, 3, 8, 9))


def not_finite(state):
    state["ema_params"]["gamma"]["l3"]["kernel"] = np.full((11, 1), np.inf, np.float32)


def wider(state):
    state["ema_params"] = single(official.parameters(**SMALL, schedule_width=12))


def unconditioned(state):
    layer = state["ema_params"]["score_model"]["dense0"]
    layer["kernel"] = layer["kernel"][:-1]


def flat(state):
    for layer in ("l1", "l3"):
        kernel = state["params"]["gamma"][layer]["kernel"]
        state["params"]["gamma"][layer]["kernel"] = np.zeros_like(kernel)


BAD_FILES = {
    "truncated": (lambda good, _: good[: len(good) // 2], "damaged or has another format"),
    "text": (lambda good, _: b"model_checkpoint_path: 'ckpt-1'\n", "damaged or has another format"),
    "empty": (lambda good, _: b"", "damaged or has another format"),
    "pickle": (lambda good, _: pickle.dumps({"params": 1}), "is a pickle"),
    "a list": (lambda *_: flax.serialization.msgpack_serialize([1, 2]), "got list"),
    "other keys": (
        lambda *_: flax.serialization.msgpack_serialize({"weights": np.zeros(2)}),
        "got 'weights'",
    ),
    "no network": (
        lambda *_: flax.serialization.msgpack_serialize({"params": {"dense": np.zeros(2)}}),
        "(params): expected the parameters of the official network",
    ),
    "step": (lambda _, t: altered(t, lambda s: s.update(step=-1))(), "got -1"),
    "key of two lines": (
        lambda *_: flax.serialization.msgpack_serialize({"a\nb\x1b": np.zeros(2)}),
        r"got 'a\nb\x1b'",
    ),
    "step of many": (
        lambda _, t: altered(t, lambda s: s.update(step=np.zeros((90, 90))))(),
        "got array([[0., 0., 0., ..., 0., 0., 0.], [0., 0., 0., ..., 0., 0., 0.], [0., 0.,...\n",
    ),
    "no tree": (
        lambda *_: flax.serialization.msgpack_serialize({"params": 3}),
        "(params): the tree itself must be a mapping: got int",
    ),
    "step text": (lambda _, t: altered(t, lambda s: s.update(step="a"))(), "got 'a'"),
    "renamed": (
        lambda _, t: altered(t, renamed)(),
        "(ema_params): missing leaf 'score_model/conv_in/bias'",
    ),
    "reshaped": (
        lambda _, t: altered(t, reshaped)(),
        "'score_model/up.block_1/conv2/kernel' has another shape than the model inferred from the "
        "others: got (3, 3, 8, 9), expected (3, 3, 8, 8)",
    ),
    "not finite": (lambda _, t: altered(t, not_finite)(), "'gamma/l3/kernel' must be finite"),
    "two models": (
        lambda _, t: altered(t, lambda s: s["ema_params"].pop("gamma"))(),
        "belong to different models: leaf 'gamma/l1/bias' has shape (1,) in one and nothing in "
        "the other",
    ),
    "two widths": (
        lambda _, t: altered(t, wider)(),
        "leaf 'gamma/l2/bias' has shape (11,) in one and (12,) in the other",
    ),
    "one conditioned": (
        lambda _, t: altered(t, unconditioned)(),
        "leaf 'score_model/dense0/kernel' has shape (9, 32) in one and (8, 32) in the other",
    ),
    "no range": (
        lambda _, t: altered(t, flat)(),
        "(params): leaf 'gamma/l1/kernel' gives λ almost no range",
    ),
}


def refused(code, workdir, capsys):
    """The one line that a refused command says; it has left no run, nor a part of one."""
    assert code == cli.EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("vdm: ") and "Traceback" not in error
    assert {path.name for path in pathlib.Path(workdir).glob("*")} <= {".lock"}
    return error


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_checkpoint_is_one_clear_line(case, folder, trees, tmp_path, capsys):
    make, message = BAD_FILES[case]
    path = tmp_path / "bad.flax"
    path.write_bytes(make((folder / "ckpt-1.flax").read_bytes(), trees))
    code = bring(folder, tmp_path / "run", path=path)
    error = refused(code, tmp_path / "run", capsys)
    assert message in error and str(path) in error


BAD_COMMANDS = {
    "folder": (".", [], "expected a file in it, such as ckpt-1.flax"),
    "missing": ("ckpt-2.flax", [], "No such file"),
    "stray": ("ckpt-1.flax", ["--bogus=1"], "see `vdm import --help`"),
    "contradiction": (
        "ckpt-1.flax",
        ["--config.model.network.channels=16"],
        "--config.model.network.channels=16 contradicts the checkpoint, which has 8",
    ),
    "another schedule": (
        "ckpt-1.flax",
        ["--config.model.schedule.name=linear"],
        "which has 'learned_unpinned'",
    ),
    "groups": ("ckpt-1.flax", ["--config.model.network.num_groups=32"], "multiple of num_groups"),
    "no data": ("ckpt-1.flax", ["--config.data.path=nowhere.npy"], "nothing was written: no file"),
    "grey data": ("ckpt-1.flax", ["--config.data.path=grey"], "models images [height, width, 3]"),
    "weighting": ("ckpt-1.flax", ["--config.objective.weighting.name=v"], "need the elbo"),
    "augmented": ("ckpt-1.flax", ["--config.data.augment=vdm"], "which has 'none'"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_command_is_one_clear_line(case, folder, tmp_path, capsys):
    path, more, message = BAD_COMMANDS[case]
    more = [word.replace("=grey", f"={folder / 'grey.npy'}") for word in more]
    error = refused(bring(folder, tmp_path / "run", *more, path=path), tmp_path / "run", capsys)
    assert message in error


def test_the_default_config_can_be_set_from_the_command(folder, tmp_path, capsys):
    arguments = ["import", str(folder / "ckpt-1.flax"), f"--workdir={tmp_path / 'run'}"]
    arguments += ["--format=official", "--config.data.name=digits"]
    code = cli.main([*arguments, "--config.model.network.num_groups=4"])
    error = refused(code, tmp_path / "run", capsys)
    assert "models images [height, width, 3]: got digits:1" in error


def bring_by_default(folder, workdir, *more):
    """Import with the default config, but for the data and the groups."""
    arguments = ["import", str(folder / "ckpt-1.flax"), f"--workdir={workdir}", "--format=official"]
    words = ["data.name=arrays", f"data.path={folder / 'x.npy'}", "model.network.num_groups=4"]
    return cli.main([*arguments, *(f"--config.{word}" for word in (*words, *more))])


def test_the_normalisation_is_the_network_s_own_and_can_be_set(folder, tmp_path):
    """The schedule's ends, another setting, leave it alone."""
    settings = ["model.schedule.log_snr_max=9.0", "model.network.log_snr_min=-6.0"]
    settings += ["model.network.dtype=bfloat16", "model.network.remat=True"]
    assert bring_by_default(folder, tmp_path / "run", *settings) == 0
    model = trained.load(tmp_path / "run").model
    assert (model.schedule.log_snr_max, model.schedule.log_snr_min) == (9.0, -5.0)
    assert (model.network.log_snr_max, model.network.log_snr_min) == (13.3, -6.0)
    assert (model.network.dtype, model.network.remat) == ("bfloat16", True)


@pytest.mark.usefixtures("unchecked")
def test_the_default_config_s_network_can_be_contradicted(folder, tmp_path, capsys):
    for setting, shown in (("channels=16", "8"), ("num_blocks=4", "1")):
        code = bring_by_default(folder, tmp_path / "run", f"model.network.{setting}")
        error = refused(code, tmp_path / "run", capsys)
        assert f"{setting} contradicts the checkpoint, which has {shown}" in error


def test_an_unknown_format(folder, tmp_path, capsys):
    arguments = ["import", str(folder / "ckpt-1.flax"), f"--workdir={tmp_path / 'run'}"]
    error = refused(cli.main([*arguments, "--format=oficial"]), tmp_path / "run", capsys)
    assert "Did you mean 'official'?" in error


def test_a_workdir_that_holds_a_run_is_left_alone(folder, workdir, capsys):
    before = (workdir / "config.json").read_bytes()
    assert bring(folder, workdir) == cli.EXIT_USER_ERROR
    assert "holds a run already (config.json)" in capsys.readouterr().err
    assert (workdir / "config.json").read_bytes() == before


def test_an_import_that_fails_in_writing_leaves_no_run(folder, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing.official.configs, "keep", full)
    code = bring(folder, tmp_path / "run")
    assert "No space left" in refused(code, tmp_path / "run", capsys)
    assert not checkpoint.folder_of(tmp_path / "run").exists()


def test_the_default_config_is_that_of_the_official_cifar10_model():
    config = configs.from_dict(importing.official_values().to_dict())
    assert config.data.name == "cifar10" and config.model.likelihood["levels"] == 256
    ends = [config.model.schedule[key] for key in ("log_snr_max", "log_snr_min")]
    assert ends == [13.3, -5.0] and config.model.network["dropout"] == 0.1
    kept = config.optimizer
    assert (kept.learning_rate, kept.b1, kept.b2, kept.weight_decay) == (2e-4, 0.9, 0.99, 0.01)
    assert (kept.warmup_steps, kept.ema_decay, kept.clip_norm) == (100, 0.9999, 0.0)
    assert config.train.batch_size == 128
