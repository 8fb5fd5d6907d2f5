"""What accelerators are given, lowered here without one: every program, and how it multiplies.

A program that calls the host can neither be exported nor compiled for another platform.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from vdm.codec import codec as codecs
from vdm.few_steps import Chain
from vdm.run import export, keys, sample
from vdm.run.config import words
from vdm.run.evaluation import all_steps, bound, ode, paths
from vdm.run.scoring import scores
from vdm.run.trained import Trained
from vdm.run.training import checks, parts, program

pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("unchecked")]

ROWS = 4
NETWORK = {**runs.UNET, "attention": "middle"}
# As XLA's text has it: operands of float32, and the precision that they are multiplied with.
PRODUCT = re.compile(r"stablehlo\.(dot_general|convolution)\b(.*?) : \((.*?)\) -> ")


@functools.cache
def made():
    return parts.prepare(runs.images(NETWORK, batch_size=ROWS))


@functools.cache
def run(precision="highest", **settings):
    """A run with parameters of zeros: nothing is computed with them."""
    config, trainer = made().trainer.config, made().trainer
    shapes = program.template(trainer, made().mesh, made().example)
    evaluate = dataclasses.replace(config.evaluate, precision=precision, ode_steps=3, **settings)
    drawing = dataclasses.replace(config.sample, precision=precision)
    return Trained(
        dataclasses.replace(config, evaluate=evaluate, sample=drawing),
        trainer.model,
        made().mesh,
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.ema),
        step=1,
        shape=(8, 8, 1),
        condition=made().condition,
    )


def examples():
    """Arguments of a row after its state."""
    row = np.arange(ROWS)
    return row, row, np.zeros((ROWS, 8, 8, 1), np.int32), None


def chain():
    return Chain(jnp.linspace(-6.0, 8.0, 4), None, False)


def train_step():
    built = program.build(made().trainer, made().mesh, made().example)
    batch = jax.tree.map(lambda leaf: np.repeat(leaf[:1], ROWS, 0), made().example)
    return built.step.trace(built.template, [batch])


def of_bound(run, num_steps):
    fn = bound.row_fn(run, run.config.evaluate, clip_denoised=False)
    return fn.trace(bound.state(run, num_steps, keys.data(0)), *examples())


def of_chain(run, row_fn):
    fn = row_fn(run, run.config.evaluate.precision)
    return fn.trace((run.params, chain(), keys.data(0)), *examples())


def log_weights(run, **settings):
    settings = dataclasses.replace(run.config.evaluate, **settings)
    return ode.row_fn(run, settings, "uniform").trace(ode.state(run, keys.data(0)), *examples())


def estimate(run):
    return scores._estimate.trace(
        run.params,
        run.law_state,
        keys.data(0),
        *examples()[2:],
        model=run.model,
        law=run.law,
        mesh=run.mesh,
        precision=run.config.evaluate.precision,
    )


def drawn(run, sampler):
    return sample._draw.trace(
        run.params,
        keys.data(0),
        np.arange(ROWS),
        None,
        None,
        model=run.model,
        shape=(ROWS, 8, 8, 1),
        sampler=checks.sampler(sampler),
        settings=run.config.sample,
        mesh=run.mesh,
    )


def coded(run):
    made = run.model.codec(run.params, run.shape, num_steps=3, batch_size=ROWS)
    z = np.zeros((ROWS, *run.shape), np.float32)
    fns = codecs._as_partial(made.eps_fn), codecs._as_partial(made.variance_fn)
    return codecs._compiled("cpu").trace(*fns, z, np.float32(0.0), None)


def exported(run, name):
    fn, arguments = export.PROGRAM[name](run)
    taken = (*arguments.values(), *export._of_condition(run).values())
    return jax.jit(fn).trace(*(leaf.update(shape=shape_of(leaf)) for leaf in taken))


def shape_of(leaf):
    return tuple(n if isinstance(n, int) else ROWS for n in leaf.shape)


# Those that follow the setting, and those that multiply in full whatever it says.
SET = {
    "the bound": lambda run: of_bound(run, None),
    "the bound of some steps": lambda run: of_bound(run, 10),
    "the bound of a chain": lambda run: of_chain(run, all_steps.row_fn),
    "whole paths": lambda run: of_chain(run, paths.row_fn),
    "an estimate": estimate,
    **{name: functools.partial(drawn, sampler=name) for name in words.SAMPLERS},
    "exported sampler": lambda run: exported(run, "sample"),
    "exported score": lambda run: exported(run, "score"),
}
FULL = {
    "the ODE": log_weights,
    "the ODE by adaptive steps": lambda run: log_weights(run, ode_steps=0),
    "the codec": coded,
    "exported denoiser": lambda run: exported(run, "denoiser"),
}


def precisions(traced, platform):
    """What a program multiplies float32 with on a platform: the names, each once."""
    assert "callback" not in str(traced.jaxpr)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = [
        (kind, tuple(re.findall(r"\b(HIGHEST|HIGH|DEFAULT)\b", about)) or ("DEFAULT",) * 2)
        for kind, about, operands in PRODUCT.findall(text)
        if "f32" in operands
    ]
    assert {kind for kind, _ in found} == {"dot_general", "convolution"}
    assert len(found) == len(re.findall(r"stablehlo\.(?:dot_general|convolution)\b", text))
    return {precision for _, precision in found}


@pytest.mark.parametrize("name", [*SET, *FULL])
def test_results_are_computed_in_true_float32(name):
    traced = {**SET, **FULL}[name](run())
    for platform in ("tpu", "cuda"):
        assert precisions(traced, platform) == {("HIGHEST", "HIGHEST")}


@pytest.mark.parametrize("name", [*SET, *FULL])
def test_less_is_computed_where_it_is_asked_for(name):
    traced = {**SET, **FULL}[name](run("default"))
    wanted = ("DEFAULT",) * 2 if name in SET else ("HIGHEST",) * 2
    assert precisions(traced, "tpu") == {wanted}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_training_step_can_be_lowered(platform):
    assert precisions(train_step(), platform)
