"""Whether a user's own part is fit to be trained, tried before a run begins with it.

Every function here costs a little: shapes are traced, a schedule and a network are also computed,
on three examples. The parts of this library are not tried.
"""

import contextlib
import functools
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm.likelihoods import Likelihood
from vdm.model import VDM
from vdm.networks.applied import Applied
from vdm.run.config import own
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import Dataset
from vdm.run.errors import UserError
from vdm.samplers import Sampler
from vdm.schedules import Schedule
from vdm.schedules.base import log_snr_and_rate

TIMES = 129  # at which λ(t) is looked at
NEAR = 1e-4  # of the ends of λ, and of t after there and back
CHANGE = 0.3  # of the parameters, in units of 1/√inputs, so that none is zero
MIXED = 1e-5  # of an output, by which one example may change another's
QUICK = {"xla_backend_optimization_level": 0}  # called a few times, compiled once
NETWORK = "a Flax Linen module or networks.from_apply(init, apply)"


def errors(key: str, name: str) -> contextlib.AbstractContextManager[None]:
    """Turn whatever a user's own part raises into a UserError that names the part."""
    return own.errors(_called(key, name)) if own.is_own(name) else contextlib.nullcontext()


def check_kind(key: str, name: str, part: object, kind: type | tuple[type, ...]) -> None:
    """Raise UserError unless a user's own part is of its kind, and can be compared by its value."""
    if not own.is_own(name):
        return
    what = _called(key, name)
    if not isinstance(part, kind):
        if kind == (nn.Module, Applied):
            raise UserError(f"{what} must return {NETWORK}: got {type(part).__name__}")
        assert isinstance(kind, type)
        members = [member for member in vars(kind) if not member.startswith("_")]
        missing = [member for member in members if not hasattr(part, member)]
        raise UserError(
            f"{what} must return a {kind.__name__.lower()}, with {', '.join(members)}: "
            f"{type(part).__name__} has no {' and no '.join(missing)}"
        )
    try:
        hash(part)
    except TypeError as error:
        raise UserError(
            f"{what} must be a value with a hash, such as a frozen dataclass: {error}"
        ) from error


def check_schedule(name: str, schedule: Schedule) -> None:
    """Raise UserError unless a user's own λ(t) falls from one end to the other."""
    what = _called("model.schedule", name)
    with errors("model.schedule", name):
        ends = float(schedule.log_snr_max), float(schedule.log_snr_min)
        params = schedule.init(jax.random.key(0))
        if not isinstance(params, dict) or set(params) != {"ends", "shape"}:
            raise UserError(
                f"{what}: init must return {{'ends': ..., 'shape': ...}}: got {params!r:.80}"
            )
        t = jnp.linspace(0.0, 1.0, TIMES)
        found, rate = log_snr_and_rate(lambda t: schedule.log_snr(params, t), t)
        back = schedule.inverse(params, found)
    for word, array in (("log_snr", found), ("inverse", back)):
        if array.shape != t.shape:
            raise UserError(
                f"{what}: {word} must act on every entry: of shape {list(t.shape)} it makes "
                f"{list(array.shape)}"
            )
    if not (np.all(np.isfinite(found)) and np.all(np.isfinite(rate))):
        raise UserError(f"{what}: λ(t) and its derivative must be finite: they are not")
    for said, end, value in (("max", ends[0], found[0]), ("min", ends[1], found[-1])):
        if abs(float(value) - end) > NEAR * max(1.0, abs(end)):
            raise UserError(
                f"{what}: λ({int(said == 'min')}) must be log_snr_{said}, {end:g}: got "
                f"{float(value):g}"
            )
    if np.any(rises := np.diff(np.asarray(found)) >= 0):
        at = float(t[int(np.argmax(rises))])
        raise UserError(f"{what}: λ(t) must fall with t: it does not after t = {at:.3g}")
    if np.max(np.abs(back - t)) > 100 * NEAR:
        raise UserError(f"{what}: inverse must return the time of λ: it is off by more than 0.01")


def check_likelihood(name: str, likelihood: Likelihood, data: Dataset) -> None:
    """Raise UserError unless a user's own p(x|z₀) takes these data to numbers and back."""
    what = _called("model.likelihood", name)
    x = data.take(np.arange(min(2, len(data)))).x
    key, log_snr = jax.random.key(0), jnp.full(len(x), 5.0)
    with errors("model.likelihood", name):
        encoded = likelihood.encode(jnp.asarray(x))
        found = {
            "log_prob": jax.eval_shape(likelihood.log_prob, x, encoded, log_snr),
            "decode": jax.eval_shape(likelihood.decode, encoded, log_snr),
            "draw": jax.eval_shape(likelihood.draw, key, encoded, log_snr),
        }
    if not jnp.issubdtype(encoded.dtype, jnp.floating) or not np.all(np.isfinite(encoded)):
        raise UserError(f"{what}: encode must return finite real numbers: got {encoded.dtype}")
    expected = {"encode": x.shape, "log_prob": x.shape[:1], "decode": x.shape, "draw": x.shape}
    for word, shape in expected.items():
        got = encoded.shape if word == "encode" else found[word].shape
        if got != shape:
            raise UserError(
                f"{what}: {word} must return shape {list(shape)} for data {list(x.shape)}: got "
                f"{list(got)}"
            )


def check_network(name: str, vdm: VDM, condition: Condition, shape: tuple[int, ...]) -> None:
    """Raise UserError unless a user's own network predicts each example by itself.

    Its output has z's shape and a floating type, and is finite at both ends of λ. With parameters
    that are not zero, another first example does not change the output of the others, neither in
    training nor in evaluation.
    """
    what = _called("model.network", name)
    network: Any = vdm.network
    rng = np.random.default_rng(0)
    ends = vdm.schedule.log_snr_max, vdm.schedule.log_snr_min
    dtype = jnp.result_type(float)
    # NumPy's: every operation of JAX alone would be compiled for every shape.
    z, other = rng.normal(size=(2, 3, *shape)).astype(dtype)
    log_snr = np.array([*ends, 0.5 * (ends[0] + ends[1])], dtype)
    cond, other_cond = (condition.of_samples(np.arange(3) + i) for i in (0, 1))

    def init(z: Any, log_snr: Any, cond: Any) -> Any:
        return network.init(jax.random.key(0), z, log_snr, cond, train=False)

    # Both ways in which it is called, in one program.
    def outputs(params: Any, *inputs: Any) -> tuple[jax.Array, ...]:
        variables, rngs = {"params": params}, {"dropout": jax.random.key(1)}
        return (
            network.apply(variables, *inputs, train=False, rngs=None),
            network.apply(variables, *inputs, train=True, rngs=rngs),
        )

    with errors("model.network", name):
        shapes = jax.eval_shape(init, z, log_snr, cond)
        _check_variables(what, shapes)
        for out in jax.eval_shape(outputs, shapes.get("params", {}), z, log_snr, cond):
            if out.shape != z.shape or not jnp.issubdtype(out.dtype, jnp.floating):
                raise UserError(
                    f"{what} must return real numbers of z's shape: for {list(z.shape)} it "
                    f"returns {out.dtype} {list(out.shape)}"
                )
        quick = functools.partial(jax.jit, compiler_options=QUICK)
        params, compute = quick(init)(z, log_snr, cond).get("params", {}), quick(outputs)
        fresh = compute(params, z, log_snr, cond)
        moved = jax.tree.map(lambda p: _moved(rng, np.asarray(p)), params)
        before = compute(moved, z, log_snr, cond)
        others = other, log_snr[::-1], other_cond
        after = compute(moved, *jax.tree.map(_first_of, others, (z, log_snr, cond)))
    for out in fresh:
        bad = ~np.isfinite(np.asarray(out, np.float64)).reshape(3, -1).all(1)
        if bad.any():
            at = float(log_snr[int(np.argmax(bad))])
            raise UserError(f"{what}: its output is not finite at λ = {at:g}")
    for training, one, two in zip((False, True), before, after, strict=True):
        rest, same = (np.asarray(out[1:], np.float64) for out in (one, two))
        if not np.allclose(rest, same, rtol=0, atol=MIXED * _size(rest), equal_nan=True):
            raise UserError(
                f"{what} mixes examples{' in training' * training}: the output of one changes "
                "with another example of the batch, as with batch normalisation"
            )


def check_optimizer(name: str, optimizer: optax.GradientTransformation, params: Any) -> None:
    """Raise UserError unless an optimiser of another name takes these parameters' gradients."""
    if not own.is_own(name):
        return
    what = _called("optimizer", name)
    with errors("optimizer", name):
        state = jax.eval_shape(optimizer.init, params)
        updates, after = jax.eval_shape(optimizer.update, params, state, params)
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    except AssertionError as error:
        raise UserError(
            f"{what}: an update must have the shapes and types of the parameters, and leave those "
            "of the state as they are"
        ) from error


def check_sampler(
    text: str, vdm: VDM, sampler: Sampler, condition: Condition, params: Any, shape: tuple[int, ...]
) -> None:
    """Raise UserError unless a user's own sampler turns noise into examples of this shape."""
    name, _ = own.split(text)
    if not own.is_own(name):
        return

    def draw(params: Any) -> jax.Array:
        cond = condition.of_samples(np.arange(2))
        key, whole = jax.random.key(0), (2, *shape)
        return vdm.sample(params, key, whole, num_steps=3, sampler=sampler, cond=cond)

    with errors("sample.sampler", name):
        out = jax.eval_shape(draw, params)
    if out.shape != (2, *shape):
        raise UserError(
            f"{_called('sample.sampler', name)}: a step must keep z's shape, {[2, *shape]}: got "
            f"{list(out.shape)}"
        )


def _called(key: str, name: str) -> str:
    return f"{key} ({name})"


def _check_variables(what: str, variables: Any) -> None:
    if others := [kind for kind in variables if kind != "params"]:
        raise UserError(
            f"{what} has variables besides its parameters, {', '.join(others)}: expected none "
            "(batch normalisation, for one, mixes examples)"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get("params", {})):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"{what}: its parameter {jax.tree_util.keystr(path)} is {leaf.dtype}: expected a "
                "floating type (keys and counters are no parameters)"
            )


def _moved(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """Return a parameter without zeros, of about the size that its inputs ask for."""
    change = rng.normal(size=p.shape) * CHANGE / math.sqrt(max(1, math.prod(p.shape[:-1])))
    return (p + change).astype(p.dtype)


def _first_of(other: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return an array with the first example of another one."""
    return np.concatenate([other[:1], rest[1:]])


def _size(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return max(1.0, float(finite.max())) if finite.size else 1.0
