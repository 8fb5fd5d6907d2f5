"""A run that begins with what another run has learned, on other data or with another recipe."""

import contextlib
import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vdm.model import Params
from vdm.networks import wiener
from vdm.run import config as configs, data
from vdm.run.config import Config
from vdm.run.config.blocks import parameters
from vdm.run.config.own import find
from vdm.run.config.words import NETWORKS
from vdm.run.data import condition as conditions, kept_conditions
from vdm.run.data.condition import Condition
from vdm.run.data.kept_conditions import CONDITIONS_FILE
from vdm.run.errors import UserError
from vdm.run.training import build, program as programs
from vdm.run.training.step import Batch, Trainer, TrainState
from vdm.run.workdir import checkpoint, exported


class Source(NamedTuple):
    """The other run's averaged parameters and, unless it was exported, its whole state."""

    workdir: pathlib.Path
    step: int
    params: Params
    state: TrainState | None
    same_schedule: bool  # as that of the new run
    same_number: bool  # whether a network of the number of points has the new run's form


def resolved(config: Config) -> Config:
    """Return the config with the network's range of λ that of the run it begins with.

    A network sees λ relative to this range, by default that of its schedule: with another one its
    parameters would mean something else. Raises UserError where there is no such run.
    """
    network = dict(config.model.network)
    if not config.train.init_from:
        return config
    taken = parameters(find("model.network", network["name"], NETWORKS))
    missing = ({"log_snr_max", "log_snr_min"} & set(taken)) - network.keys()
    if not missing:
        return config
    source = build.trainer(_config(config)).model.network
    network |= {name: getattr(source, name) for name in missing if hasattr(source, name)}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, network=network))


def read(config: Config, trainer: Trainer, mesh: Mesh, example: Batch) -> Source:
    """Return the run that config.train.init_from names, on the new run's mesh.

    `example` is a batch of the new run. Raises UserError where there is no such run, where its
    network is another one, and where its optimiser is to be kept but is another one.
    """
    workdir, there = pathlib.Path(config.train.init_from), _config(config)
    other = build.trainer(there)
    file = exported.found(workdir)
    alone = None if file is None else exported.read(file)
    shape = data.kept_shape(workdir) if alone is None else alone.data.shape
    network = other.model.network
    condition = conditions.build(network, shape, there.data.augment, _kept(workdir, alone, network))
    blank = Batch(build.blank(other.model, shape), condition.of_samples(np.arange(1)))
    template = programs.template(other, mesh, blank)
    own = programs.template(trainer, mesh, example)
    _check_same(workdir, "network", template.params["network"], own.params["network"])
    both = (network, trainer.model.network)
    filters = [wiener.padding_of(one) for one in both if wiener.of(one) == "stationary"]
    if len(set(filters)) > 1:
        raise UserError(
            f"model.network.padding is {filters[0]} in {workdir} and {filters[1]} here: expected "
            "the same, or the statistics of the network's filter would mean something else"
        )
    for key in ("prediction", "sigma_data") if other.model.prediction == "edm" else ("prediction",):
        one, here = getattr(there.model, key), getattr(config.model, key)
        if one != here:
            raise UserError(
                f"model.{key} is {one!r} in {workdir} and {here!r} here: expected the same, "
                "without which the network's output would mean something else"
            )
    same = dict(there.model.schedule) == dict(config.model.schedule)
    its, ours = (_forms(one.params.get("number_law", {})) for one in (template, own))
    same_number = its == ours
    if config.train.init_optimizer == "kept":
        if alone is not None:
            raise UserError(
                f"train.init_optimizer='kept' needs an optimiser: {workdir} is an exported run, "
                "which has none"
            )
        if not same:
            raise UserError(
                "train.init_optimizer='kept' needs the schedule of the run it begins with, "
                f"{there.model.schedule['name']!r} in {workdir}: got another one"
            )
        if not same_number:
            raise UserError(
                "train.init_optimizer='kept' needs the model.number_law of the run it begins with, "
                f"{dict(there.model.number_law)} in {workdir}: got another one"
            )
        _check_same(workdir, "optimiser", template.opt_state, own.opt_state)
    if alone is None or file is None:
        state = checkpoint.load(workdir, template, best=there.train.keep == "best")
        return Source(workdir, int(state.step), state.ema, state, same, same_number)
    params = exported.fill(template.params, alone, exported.PARAMS, file)
    return Source(workdir, alone.step, params, None, same, same_number)


def kept_condition(config: Config, network: object) -> Condition | None:
    """Return the scales of vectors and fields of the run to begin with, None where there are none.

    What its network has learned of a condition is in these units. None too where that run cannot
    be read, or has other conditions, which `read` refuses before a run begins with it.
    """
    if not (config.train.init_from and conditions.needs_scale(network)):
        return None
    workdir = pathlib.Path(config.train.init_from)
    with contextlib.suppress(UserError):
        file = exported.found(workdir)
        return _kept(workdir, None if file is None else exported.read(file), network)
    return None


def check_scale(config: Config, network: object, workdir: pathlib.Path) -> None:
    """Raise UserError where a workdir's run took its scales from another one, and both are gone."""
    begun = config.train.init_from and checkpoint.latest_step(workdir)
    if begun and conditions.needs_scale(network) and kept_condition(config, network) is None:
        raise UserError(
            f"{workdir} has lost {CONDITIONS_FILE}, the scales of its run's conditions, which it "
            f"took from {config.train.init_from}: expected one of the two"
        )


def _kept(workdir: pathlib.Path, alone: exported.Exported | None, network: object) -> Condition:
    if alone is None:
        return kept_conditions.read(workdir, network)
    return exported.condition(alone, network, workdir)


def applied(first: TrainState, source: Source, config: Config) -> TrainState:
    """Return the first state of a run with what it takes from the source.

    That are the averaged parameters, which also begin the average, and a new optimiser. If the
    optimiser is kept, it goes on with the last parameters, their average and its moments, and the
    learning rate begins anew. A schedule of another kind begins as its config says, and so does
    a network of the number of points of another form.
    """
    state = source.state
    if config.train.init_optimizer == "kept" and state is not None:
        opt_state = jax.tree.map(_from_the_start, state.opt_state, is_leaf=_is_rate)
        # Copies, as below: the buffers of a state are donated.
        taken = (state.params, state.ema, opt_state)
        params, ema, opt_state = jax.tree.map(jnp.copy, taken)
        return first._replace(params=params, ema=ema, opt_state=opt_state)
    begun = {**first.params, "network": source.params["network"]}
    if source.same_schedule:
        begun["schedule"] = source.params["schedule"]
    if source.same_number and "number_law" in begun:
        begun["number_law"] = source.params["number_law"]
    # A copy for each: a donated buffer must not be donated twice.
    params, ema = (jax.tree.map(jnp.copy, begun) for _ in range(2))
    return first._replace(params=params, ema=ema)


def words(source: Source, config: Config, condition: Condition) -> str:
    """Return what a run begins with, in a line."""
    line = _words(source, config)
    if condition.vector is None and condition.field is None:
        return line
    return f"{line}; conditions are standardised as there"


def _words(source: Source, config: Config) -> str:
    where = f"{source.workdir} at step {source.step:,}"
    if config.train.init_optimizer == "kept":
        return (
            f"begins with the parameters of {where}, their average and the optimiser's moments; "
            "the learning rate begins anew"
        )
    anew = "" if source.same_schedule else "; the schedule is another one, and begins anew"
    if config.model.number_law["name"] == "network" and not source.same_number:
        anew += "; the network of the number of points is another one, and begins anew"
    return f"begins with the averaged parameters of {where}, and with a new optimiser{anew}"


def _config(config: Config) -> Config:
    """Return the config of the run to begin with."""
    workdir = pathlib.Path(config.train.init_from)
    try:
        file = exported.found(workdir)
        return configs.load(workdir) if file is None else exported.read(file).config
    except UserError as error:
        raise UserError(
            f"train.init_from: {error}. A run that has begun resumes without it, by "
            "`vdm train --workdir=...` without --config"
        ) from error


def _check_same(workdir: pathlib.Path, what: str, there: object, here: object) -> None:
    """Raise UserError unless two trees have the same leaves, of the same shapes and types."""
    one, other = _forms(there), _forms(here)
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            raise UserError(
                f"the {what} of {workdir} is another one: {name} is {one.get(name, 'absent')} "
                f"there and {other.get(name, 'absent')} here"
            )


def _forms(tree: object) -> dict[str, str]:
    """Return type and shape of every leaf by its name."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {list(leaf.shape)}"
        for path, leaf in named
    }


def _is_rate(state: object) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)


def _from_the_start(state: Any) -> Any:
    """Return the optimiser's state with a learning rate that is at its first step again."""
    return state._replace(count=jnp.zeros_like(state.count)) if _is_rate(state) else state
