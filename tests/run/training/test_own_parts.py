"""A user's own parts are tried before training: what is fit passes, and what is not is named."""

import dataclasses

import numpy as np
import pytest

import runs
from vdm.run import cli
from vdm.run.errors import UserError
from vdm.run.training import parts

pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("modules", "unchecked")]

NETWORKS = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from vdm.networks import from_apply

class Fine(nn.Module):
    log_snr_min: float
    log_snr_max: float = 0.0
    num_classes: int | None = None

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        assert (self.log_snr_min, self.log_snr_max) == (-8.0, 8.0)
        h = nn.LayerNorm()(nn.Dense(8)(jnp.concatenate([z, log_snr[:, None]], 1)))
        if self.num_classes is not None:
            h += nn.Embed(self.num_classes, 8)(cond)
        h = nn.Dropout(0.5, deterministic=not train)(nn.swish(h))
        return nn.Dense(z.shape[1], kernel_init=nn.initializers.zeros)(h)

class Mean(nn.Module):  # it mixes only where the last layer is not zero
    only_training: bool = False

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        h = nn.Dense(8)(z)
        if train or not self.only_training:
            h -= h.mean(0, keepdims=True)
        return nn.Dense(z.shape[1], kernel_init=nn.initializers.zeros)(h)

class BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(z.shape[1])(z))

class Levels(nn.Module):  # λ of one example reaches another
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(z.shape[1])(z) * log_snr.max()

class Classes(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(z.shape[1])(z) + nn.Embed(3, 2)(cond).sum(0, keepdims=True)

class Wide(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(3)(z)

class Whole(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(2)(z).astype(int)

class Root(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(2)(z) * jnp.sqrt(log_snr + 7)[:, None]

class Raising(nn.Module):
    @nn.compact
    def __call__(self, z, log_snr, cond=None, *, train=False):
        return nn.Dense(2)(z) + {}["no"]

def counting():
    init = lambda key, z, log_snr, cond: {"n": jnp.zeros((), int), "w": jnp.ones(2)}
    return from_apply(init, lambda params, z, *rest, train, key: z * params["w"])

def nothing():
    return None
"""
SCHEDULES = """
import dataclasses
import jax.numpy as jnp

@dataclasses.dataclass(frozen=True)
class Power:
    log_snr_max: float
    log_snr_min: float
    exponent: float = 1.0
    fault: str = ""

    def init(self, key):
        return {} if self.fault == "groups" else {"ends": {}, "shape": {}}

    def log_snr(self, params, t):
        part = t**self.exponent
        part = {"rises": 1.0 - part, "flat": jnp.minimum(part, 0.5) * 2}.get(self.fault, part)
        if self.fault == "shape":
            part = part.mean()
        if self.fault == "nan":
            part = jnp.where(t == 0.5, jnp.nan, part)
        top = self.log_snr_max + (self.fault == "end")
        return (1.0 - part) * top + part * self.log_snr_min

    def inverse(self, params, log_snr):
        part = (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)
        return part if self.fault == "inverse" else part ** (1.0 / self.exponent)

class Changing(Power):
    __hash__ = None

class Little:
    log_snr_max, log_snr_min = 8.0, -8.0
"""
OTHERS = """
import dataclasses
import jax
import jax.numpy as jnp
import optax
from vdm import likelihoods, samplers

@dataclasses.dataclass(frozen=True)
class Likelihood(likelihoods.Gaussian):
    scale: float = 0.02
    fault: str = ""

    def encode(self, x):
        return super().encode(x) * (jnp.inf if self.fault == "inf" else 1)

    def log_prob(self, x, z_0, log_snr):
        found = super().log_prob(x, z_0, log_snr)
        return found.sum() if self.fault == "sum" else found

    def decode(self, z_0, log_snr):
        return super().decode(z_0, log_snr)[:, : 1 if self.fault == "cut" else None]

@dataclasses.dataclass(frozen=True)
class Sampler(samplers.DDIM):
    fault: float = 0.0

    def step(self, *args):
        z, carry = super().step(*args)
        return (z[0] if self.fault else z), carry

def double(learning_rate, power=2):
    return optax.sgd(lambda step: power * learning_rate(step))

def halves(learning_rate):
    def update(updates, state, params=None):
        return jax.tree.map(lambda u: u.astype(jnp.float16), updates), state
    return optax.GradientTransformation(lambda params: (), update)

def rateless(rate):
    return optax.sgd(rate)

def number(learning_rate):
    return 3
"""


@pytest.fixture
def prepare(modules):
    """A function that prepares a run of the points with other parts."""
    (modules / "nets.py").write_text(NETWORKS)
    (modules / "times.py").write_text(SCHEDULES)
    (modules / "others.py").write_text(OTHERS)

    def of(key, value):
        config = runs.points()
        if "." in key:
            block, _, name = key.partition(".")
            changes = {block: dataclasses.replace(getattr(config, block), **{name: value})}
        else:
            changes = {key: dataclasses.replace(getattr(config, key), **value)}
        return parts.prepare(dataclasses.replace(config, **changes))

    return of


LINEAR = {"log_snr_max": 8.0, "log_snr_min": -8.0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.network", {"name": "nets:Fine"}),
        ("model.network", {"name": "nets:Fine", "num_classes": 3}),
        ("model.schedule", {"name": "times:Power", **LINEAR, "exponent": 1.5}),
        ("model.likelihood", {"name": "others:Likelihood"}),
        ("sample.sampler", "others:Sampler:eta=0.5"),
        ("optimizer", {"method": {"name": "others:double", "power": 3}}),
        ("optimizer", {"method": {"name": "optax.contrib.muon", "weight_decay": 0.1}}),
        ("optimizer", {"method": {"name": "optax.lion"}}),
    ],
)
def test_a_part_that_is_fit_passes(prepare, key, value):
    prepare(key, value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mean", r"^model.network \(nets:Mean\) mixes examples: the output of one changes"),
        ("Levels", "mixes examples:"),
        ("Classes", "mixes examples:"),
        ("BatchNorm", "has variables besides its parameters, batch_stats: expected none"),
        ("Wide", r"of z's shape: for \[3, 2\] it returns float32 \[3, 3\]"),
        ("Whole", r"real numbers of z's shape: for \[3, 2\] it returns int32"),
        ("Root", "its output is not finite at λ = -8"),
        ("Raising", r"raises KeyError: 'no' \(nets.py, line \d+\)"),
        ("counting", r"its parameter \['n'\] is int32: expected a floating type"),
        ("nothing", "must return a Flax Linen module or networks.from_apply.*: got NoneType"),
    ],
)
def test_a_network_that_is_not_fit_is_refused(prepare, name, message):
    with pytest.raises(UserError, match=message) as error:
        prepare("model.network", {"name": f"nets:{name}"})
    assert "\n" not in str(error.value)


def test_a_network_that_mixes_in_training_alone_is_refused(prepare):
    with pytest.raises(UserError, match="mixes examples in training: "):
        prepare("model.network", {"name": "nets:Mean", "only_training": True})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("rises", r"λ\(0\) must be log_snr_max, 8: got -8"),
        ("flat", r"λ\(t\) must fall with t: it does not after t = 0.71"),
        ("end", r"λ\(0\) must be log_snr_max, 8: got 9"),
        ("nan", "must be finite"),
        ("shape", r"log_snr must act on every entry: of shape \[129\] it makes \[\]"),
        ("groups", r"init must return \{'ends': ..., 'shape': ...\}: got \{\}"),
        ("inverse", "inverse must return the time of λ"),
    ],
)
def test_a_schedule_that_is_not_fit_is_refused(prepare, fault, message):
    block = {"name": "times:Power", **LINEAR, "exponent": 2.0, "fault": fault}
    with pytest.raises(UserError, match=r"model.schedule \(times:Power\): .*" + message):
        prepare("model.schedule", block)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Changing", "must be a value with a hash, such as a frozen dataclass"),
        ("Little", "Little has no init and no log_snr and no inverse"),
    ],
)
def test_what_is_no_schedule_is_refused(prepare, name, message):
    block = {"name": f"times:{name}", **(LINEAR if name == "Changing" else {})}
    with pytest.raises(UserError, match=message):
        prepare("model.schedule", block)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.likelihood", {"name": "others:Likelihood", "fault": "inf"}, "encode must return f"),
        (
            "model.likelihood",
            {"name": "others:Likelihood", "fault": "sum"},
            r"log_prob must return shape \[2\] for data \[2, 2\]: got \[\]",
        ),
        (
            "model.likelihood",
            {"name": "others:Likelihood", "fault": "cut"},
            r"decode must return shape \[2, 2\] for data \[2, 2\]: got \[2, 1\]",
        ),
        ("sample.sampler", "others:Sampler:fault=1", r"^sample.sampler \(others:Sampler\) raises"),
        ("sample.sampler", "others:double", "learning_rate' is missing"),
        (
            "optimizer",
            {"method": {"name": "others:halves"}},
            "have the shapes and types of the par",
        ),
        ("optimizer", {"method": {"name": "others:number"}}, "makes int: expected an optimiser"),
        (
            "optimizer",
            {"method": {"name": "optax.adamm"}},
            "name in optax 'adamm'.*Did you mean 'adam",
        ),
    ],
)
def test_another_part_that_is_not_fit_is_refused(prepare, key, value, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(key, value)
    assert "\n" not in str(error.value)


def test_a_part_that_is_not_fit_leaves_no_workdir(prepare, modules, capsys):
    config = runs.points()
    network = {"name": "nets:Mean"}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, network=network))
    path = runs.write_config_file(modules / "config.py", config)
    assert cli.main(["train", f"--config={path}", f"--workdir={modules / 'new'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (modules / "new").exists()


def test_the_librarys_own_parts_are_not_tried(monkeypatch):
    from vdm.run.training import own_parts

    for name in ("check_schedule", "check_network", "check_likelihood"):
        monkeypatch.setattr(own_parts, name, None)
    monkeypatch.setattr(own_parts, "check_optimizer", None)
    parts.prepare(runs.points())
    assert np.isfinite(parts.prepare(runs.points()).example.x).all()
