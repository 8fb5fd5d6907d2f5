"""Parts of the user's own, named in a config: they are found, fit to be used, or refused."""

import dataclasses
import importlib
import itertools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
import vdm.run
from vdm import VDM, likelihoods, networks, schedules
from vdm.run import cli, data, train
from vdm.run.config import own
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.training import own_parts

pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("unchecked")]

# What a user has beside a config file; the modules of different tests have different names.
MODULE = """
import dataclasses
import equinox as eqx
import flax.linen as nn
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from vdm import likelihoods, networks, samplers, schedules


def linear(log_snr_max, log_snr_min):
    return schedules.linear(log_snr_max, log_snr_min)


def gaussian(scale):
    return likelihoods.gaussian(scale)


def ancestral():
    return samplers.ancestral()


def ddim(eta=0.0):
    return samplers.ddim(eta)


class Dense(nn.Module):
    width: int = 8
    log_snr_max: float = 0.0

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        h = nn.swish(nn.Dense(self.width)(jnp.concatenate([z, log_snr[:, None] / 10], 1)))
        return z + nn.Dense(z.shape[1], kernel_init=nn.initializers.zeros)(h)


class Mixing(Dense):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return Dense(self.width)(z - z.mean(0, keepdims=True), log_snr)


class Wide(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(z.shape[1] + 1)(z)


class Infinite(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(z.shape[1])(z) * jnp.exp(100 * log_snr[:, None])


@dataclasses.dataclass(frozen=True)
class Rising:
    log_snr_max: float = 8.0
    log_snr_min: float = -8.0

    def init(self, key):
        return {"ends": {}, "shape": {}}

    def log_snr(self, params, t):
        return self.log_snr_min + (self.log_snr_max - self.log_snr_min) * t

    def inverse(self, params, log_snr):
        return log_snr


def by_nnx(width=16):
    class Net(nnx.Module):
        def __init__(self, dims, rngs):
            self.into = nnx.Linear(dims + 1, width, rngs=rngs)
            self.out = nnx.Linear(width, dims, rngs=rngs)

        def __call__(self, z, log_snr):
            h = jnp.concatenate([z, log_snr[:, None] / 10], 1)
            return z + self.out(nnx.swish(self.into(h)))

    def graph(key, z):
        return nnx.split(Net(z.shape[1], nnx.Rngs(params=key)))

    def init(key, z, log_snr, cond):
        return nnx.to_pure_dict(graph(key, z)[1])

    def apply(params, z, log_snr, cond, *, train, key):
        definition, state = nnx.split(nnx.eval_shape(lambda: Net(z.shape[1], nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(definition, state)(z, log_snr)

    return networks.from_apply(init, apply)


def by_equinox(width=16):
    def net(key, z):
        return eqx.nn.MLP(z.shape[1] + 1, z.shape[1], width, 1, key=key)

    def init(key, z, log_snr, cond):
        return eqx.filter(net(key, z), eqx.is_array)

    def apply(params, z, log_snr, cond, *, train, key):
        _, rest = eqx.partition(eqx.filter_eval_shape(net, jax.random.key(0), z), eqx.is_array_like)
        model = eqx.combine(params, eqx.filter(rest, lambda leaf: callable(leaf)))
        return z + jax.vmap(model)(jnp.concatenate([z, log_snr[:, None] / 10], 1))

    return networks.from_apply(init, apply)


def points(split):
    return np.random.default_rng(len(split)).normal(size=(80, 2)).astype(np.float32)


def labelled(split, path):
    x = np.load(path)
    return x, np.arange(len(x)) % 3


def ragged(split):
    return [[1.0], [1.0, 2.0]]


def failing(split):
    raise RuntimeError("no such disk")


number = 3
"""
NUMBER = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of the user's module, in a folder beside the current one."""
    folder, name = tmp_path / "mine", f"own_module_{next(NUMBER)}"
    folder.mkdir()
    (folder / f"{name}.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    importlib.invalidate_caches()
    return name


def config(model=None, data=None, sampler=None, method=None, **changed):
    made = runs.points(**changed)
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, **(model or {})))
    if data is not None:
        made = dataclasses.replace(made, data=dataclasses.replace(made.data, **data))
    if sampler is not None:
        made = dataclasses.replace(made, sample=dataclasses.replace(made.sample, sampler=sampler))
    if method is not None:
        optimizer = dataclasses.replace(made.optimizer, method=method)
        made = dataclasses.replace(made, optimizer=optimizer)
    return made


def command(made, tmp_path, *more):
    path = runs.write_config_file(tmp_path / "mine/config.py", made)
    return ["train", f"--config={path}", f"--workdir={tmp_path / 'run'}", *more]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


LINEAR = {"log_snr_max": 8.0, "log_snr_min": -8.0}


def test_an_own_part_that_is_a_built_in_one_trains_bit_for_bit_alike(module, tmp_path):
    builtin = train.train(config(), tmp_path / "builtin")
    made = config(
        model={
            "schedule": {"name": f"{module}:linear", **LINEAR},
            "likelihood": {"name": f"{module}:gaussian", "scale": 0.02},
        },
        sampler=f"{module}:ddim:eta=0.5",
    )
    assert cli.main(command(made, tmp_path)) == 0
    run, other = (vdm.run.load(tmp_path / name, "raw") for name in ("run", "builtin"))
    for a, b in zip(*map(jax.tree.leaves, (run.params, builtin.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.config.train.own_parts == str(tmp_path / "mine")
    asked = {"key": 0, "num_steps": 3}
    np.testing.assert_array_equal(
        run.sample(4, **asked), other.sample(4, sampler="ddim:eta=0.5", **asked)
    )


@pytest.mark.parametrize("name", ["Dense", "by_nnx", "by_equinox"])
def test_an_own_network_trains_and_is_loaded_again(module, tmp_path, name):
    made = config(model={"network": {"name": f"{module}:{name}", "width": 12}}, num_steps=40)
    made = dataclasses.replace(
        made, optimizer=dataclasses.replace(made.optimizer, learning_rate=0.02)
    )
    assert cli.main(command(made, tmp_path)) == 0
    lines = metrics(tmp_path / "run")
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:3], lines[-3:]))
    assert last < first - 0.3
    run = vdm.run.load(tmp_path / "run")
    x = run.sample(5, key=0, num_steps=3)
    again = vdm.run.load(tmp_path / "run")
    np.testing.assert_array_equal(again.sample(5, key=0, num_steps=3), x)
    assert np.isfinite(run.score(x, key=0).bpd).all()
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--levels_per_example=1"]) == 0


def test_an_exported_run_finds_its_own_parts(module, tmp_path, monkeypatch):
    made = config(model={"network": {"name": f"{module}:Dense", "width": 12}})
    assert cli.main(command(made, tmp_path)) == 0
    words = ["export", f"--workdir={tmp_path / 'run'}", str(tmp_path / "out"), "--programs=none"]
    assert cli.main(words) == 0
    # As a new process does in another folder.
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(tmp_path / "mine")])
    monkeypatch.delitem(sys.modules, module)
    for place in ("out", "out/model.safetensors"):
        assert vdm.run.load(tmp_path / place).step == made.train.num_steps


def test_two_functions_are_the_network_that_they_describe():
    def init(key, z, log_snr, cond):
        return {"inner": [jnp.full((2, 2), 0.5), jnp.ones(2)]}

    def apply(params, z, log_snr, cond, *, train, key):
        kernel, bias = params["inner"]
        return z @ kernel + bias[None] * log_snr[:, None] + (0.0 if key is None else 100.0) * train

    network = networks.from_apply(init, apply)
    assert network == networks.from_apply(init, apply)
    model = VDM(schedules.linear(8.0, -6.0), network, likelihoods.gaussian(0.1))
    params = model.init(jax.random.key(0), jnp.zeros((3, 2)))
    assert sorted(params["network"]) == ["inner.0", "inner.1"]
    z, level = jnp.arange(6.0).reshape(3, 2), jnp.asarray([1.0, 2.0, 3.0])
    expected = np.asarray(z) @ np.full((2, 2), 0.5) + np.asarray(level)[:, None]
    np.testing.assert_allclose(model.denoiser(params)(z, level), expected, rtol=1e-6)
    dropped = model.denoiser(params, dropout_key=jax.random.key(1))(z, level)
    np.testing.assert_allclose(dropped, expected + 100, rtol=1e-6)


@pytest.mark.parametrize(
    "method", [{"name": "optax.contrib.muon"}, {"name": "optax:sgd", "momentum": 0.9}]
)
def test_any_optimiser_of_optax_trains_the_network(tmp_path, method):
    made = config(method=method, num_steps=2)
    state = train.train(made, tmp_path)
    assert int(state.step) == 2
    plain = train.train(config(num_steps=2), tmp_path / "plain")
    apart = [
        np.max(np.abs(np.asarray(a) - np.asarray(b)))
        for a, b in zip(*map(jax.tree.leaves, (state.params, plain.params)), strict=True)
    ]
    assert max(apart) > 1e-5


def test_own_data(module, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(90, 2)))
    made = config(data={"name": f"{module}:labelled", "path": str(tmp_path / "x.npy")})
    network = {**runs.MLP, "num_classes": 3}
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, network=network))
    assert cli.main(command(made, tmp_path)) == 0
    kept = json.loads((tmp_path / "run/data.json").read_text())
    assert (kept["num_examples"], kept["version"]) == (90, f"own/{module}:labelled")
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0


NETWORK = r"model\.network \(\S+\): "


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "Mixing"}, NETWORK.replace(": ", " ") + "mixes examples"),
        (
            {"network": "Wide"},
            "must return real numbers of z's shape",
        ),
        ({"network": "Infinite"}, NETWORK + "its output is not finite"),
        ({"network": "Dnse"}, r"name in own_module_\d+ 'Dnse'.*Did you mean 'Dense'"),
        ({"network": "number"}, "which is of type int: expected a class or a function"),
        ({"schedule": "Rising"}, r"λ\(0\) must be log_snr_max, 8: got -8"),
        ({"data": "ragged"}, r"ragged\('train'\) returned no array"),
        ({"data": "failing"}, r"failing\('train'\) raised RuntimeError: no such disk"),
        ({"data": "labelled"}, r"labelled\('train'\) raised"),
        ({"method": "points"}, "missing|unknown argument|which makes|takes no arguments"),
    ],
)
def test_an_own_part_that_is_not_fit_is_one_line(module, tmp_path, changed, message, capsys):
    ((part, name),) = changed.items()
    name = f"{module}:{name}"
    if part == "data":
        made = config(data={"name": name})
    elif part == "method":
        made = config(method={"name": name})
    else:
        made = config(model={part: {"name": name}})
    assert cli.main(command(made, tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("vdm: ") and error.count("\n") == 1, error
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere_at_all:Net",
            "there is no module 'nowhere_at_all': looked for in the current folder",
        ),
        ("os.nothing:Net", "there is no module 'os.nothing'|cannot be imported"),
        ("os:", "must be a name of this package, or package.module:Name: got 'os:'"),
        (":Net", "must be a name of this package, or package.module:Name: got ':Net'"),
        ("a b:Net", "must be a name of this package"),
        ("unett", "Did you mean 'unet'"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(config(model={"network": {"name": name}}), tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heun:churn=0.2,churn_max=3", ("heun", "churn=0.2,churn_max=3")),
        ("ancestral", ("ancestral", "")),
        ("a.b:C", ("a.b:C", "")),
        ("a.b:C:eta=0.5", ("a.b:C", "eta=0.5")),
        ("heun:churn", ("heun", "churn")),
    ],
)
def test_a_text_has_a_name_and_arguments(text, expected):
    assert own.split(text, ["heun", "ancestral"]) == expected


def test_a_module_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for content, message in (
        ("import not_there_either", "No module named 'not_there_either'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("def f(:", "SyntaxError: "),
    ):
        name = f"bad_module_{next(NUMBER)}"
        (tmp_path / f"{name}.py").write_text(content)
        importlib.invalidate_caches()
        with pytest.raises(UserError, match=message) as error:
            own.load("model.network", f"{name}:Net")
        assert "\n" not in str(error.value)


def test_built_in_parts_pass_the_checks_of_own_ones():
    name, dataset = "built:in", data.load(runs.images().data, "train")
    for schedule in (schedules.linear(8.0, -6.0), schedules.learned_monotone(8.0, -6.0)):
        own_parts.check_schedule(name, schedule)
        for network in (networks.MLP(width=16, num_blocks=1), networks.UNet(**TINY)):
            model = VDM(schedule, network, likelihoods.discretised(17))
            own_parts.check_network(name, model, Condition(), (4, 4, 1))
    own_parts.check_likelihood(name, model.likelihood, dataset)


def test_two_modules_of_one_name_are_not_taken_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"twice_{next(NUMBER)}"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(f"def part():\n    return {folder!r}\n")
    monkeypatch.chdir(tmp_path / "a")
    own.make_importable(tmp_path / "a")
    importlib.invalidate_caches()
    assert own.load("model.network", f"{name}:part")() == "a"
    own.make_importable(tmp_path / "b")
    with pytest.raises(UserError, match=f"there are several modules '{name}'") as error:
        own.load("model.network", f"{name}:part")
    assert "\n" not in str(error.value)


TINY = {key: value for key, value in runs.UNET.items() if key != "name"}


def test_every_record_reaches_the_caller(tmp_path):
    records = []
    train.train(runs.points(), tmp_path, on_record=records.append)
    lines = metrics(tmp_path)
    assert [dict(record) for record in records] == lines and len(lines) == 2
