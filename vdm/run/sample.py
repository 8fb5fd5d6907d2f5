"""Drawing samples from a trained run, one key per sample."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from vdm import sets
from vdm.condition import Condition, Conditions, take
from vdm.few_steps import Chain
from vdm.losses import EpsFn
from vdm.model import VDM, Params
from vdm.networks import NumberNetwork
from vdm.run import figures, keys, mesh as meshes
from vdm.run.config import SampleConfig
from vdm.run.data import asked
from vdm.run.data.beside import Called
from vdm.run.errors import UserError, as_user_error
from vdm.run.keys import Key
from vdm.run.run import Run, dataset
from vdm.run.system import processes
from vdm.run.system.ahead import one_ahead
from vdm.run.system.progress import bar, say
from vdm.run.training import checks
from vdm.samplers import Sampler, grids

GRID_SIZE = 64  # samples in a grid
USUAL_GUIDANCE = 20.0  # beyond it samples saturate


def sample(
    trained: Run,
    num: int,
    settings: SampleConfig,
    *,
    given: Conditions | None = None,
    chain: Chain | None = None,
) -> np.ndarray:
    """Return `num` samples as data, with a bar; the rest and UserError are as in `chunks`."""
    drawn, with_chain = [], chain is not None
    if abs(settings.guidance) > USUAL_GUIDANCE:
        say(f"guidance {settings.guidance:g} is far beyond what is usual, from 1 to about 8")
    with bar("sample", num) as advance:
        for chunk in chunks(trained, num, settings, given=given, chain=chain):
            drawn.append(chunk)
            done = min(num, sum(map(len, drawn)))
            advance(
                done, f"{settings.sampler}, {settings.num_steps} steps{' of a chain' * with_chain}"
            )
    return np.concatenate(drawn)[:num]


def of_keys(
    trained: Run,
    num: int,
    cond: ArrayLike | Conditions | None,
    *,
    key: Key,
    asked: Mapping[str, Any],
    chain: Chain | None = None,
) -> np.ndarray:
    """Return samples of a key; what is `asked` for and not None replaces values of config.sample.

    `cond` is the condition of each sample of a conditional model, in the user's units. A `chain`
    takes the place of sampler, grid and number of steps. Raises UserError for a condition of
    another kind, for any of these beside a chain, and as `chunks`.
    """
    new = {name: value for name, value in asked.items() if value is not None}
    if chain is not None:
        if beside := [name for name in ("sampler", "grid", "num_steps") if name in new]:
            raise UserError(f"a chain has steps of its own: got {beside[0]} beside it")
        new |= {"sampler": "ancestral", "grid": "time", "num_steps": chain.num_steps}
    settings = dataclasses.replace(trained.config.sample, **new)
    given = None if cond is None else conditions_of(trained, cond, num)
    drawn = list(chunks(trained, num, settings, key=key, given=given, chain=chain))
    return np.concatenate(drawn)[:num]


def conditions_of(trained: Run, cond: ArrayLike | Conditions, num: int) -> Conditions:
    """Return the condition of each of `num` samples; raises UserError for another kind or form."""
    called = Called("cond", "cond", "cond")
    mask = None
    if isinstance(cond, Conditions):
        called = Called("cond.label", "cond.vector", "cond.field")
        mask, cond = _mask(trained, cond, num), cond._replace(mask=None)
        if mask is not None and all(part is None for part in cond) and not trained.condition.names:
            return Conditions(mask=mask)
    found = asked.parts(cond, trained.condition, called)
    return asked.checked(found, trained.condition, num, trained.shape, called)._replace(mask=mask)


def _mask(trained: Run, cond: Conditions, num: int) -> np.ndarray | None:
    """Return the mask that samples are to have; raises UserError for one that does not fit."""
    if cond.mask is None:
        return None
    if trained.condition.points is None:
        raise UserError("cond.mask is given, but this model is not one of sets")
    with as_user_error("cond.mask"):
        mask = np.asarray(cond.mask)
        sets.check_mask(mask, (num, *trained.shape))
    return mask


def with_numbers(trained: Run, num: int, given: Conditions | None) -> Conditions | None:
    """Return the conditions of `num` samples, in the user's units, those of sets with their masks.

    Without those that are `given` they are the run's own (`Condition.samples`). A mask that is
    given stays, and that of a training set whose points' conditions are taken. Otherwise sample i
    has as many points as the quantile of p(n), or of p(n|c) at the run's parameters and the
    sample's condition, that `Condition.masks` says. What is not of sets is returned as it is
    given. Every process has to call it.
    """
    condition, index = trained.condition, np.arange(num)
    if condition.points is None or (given is not None and given.mask is not None):
        return given
    if given is None:
        found = condition.samples(index)
        if found.field is not None:  # of points that there are
            return found
    else:
        found = given._replace(mask=condition.masks(index))
    if not isinstance(trained.model.number_law, NumberNetwork):
        return found
    cond = condition.of_parts(num, found)
    assert isinstance(cond, Conditions)  # it has a mask
    log_probs = _log_probs(
        {"number_law": trained.params["number_law"]},
        cond._replace(field=None, mask=None),
        model=trained.model,
        size=num,
        mesh=trained.mesh,
    )
    laws = sets.NumberLaws(np.asarray(log_probs))
    return found._replace(mask=condition.masks(index, laws))


@functools.partial(jax.jit, static_argnames=("model", "size", "mesh"))
def _log_probs(params: Params, cond: Conditions, *, model: VDM, size: int, mesh: Mesh) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        found = model.number_laws(params, cond, size).log_probs
    return jax.lax.with_sharding_constraint(found, meshes.whole(mesh))


def write(trained: Run, num: int, settings: SampleConfig, path: pathlib.Path) -> None:
    """Write `num` samples as a picture or an array; see `save`."""
    given = with_numbers(trained, num, None)
    x = np.concatenate(list(chunks(trained, num, settings, given=given)))[:num]
    save(x, trained, path, given)


def save(x: np.ndarray, trained: Run, path: pathlib.Path, given: Conditions | None = None) -> None:
    """Write the samples; points are drawn with as many points of the data set, if available.

    `given` are the conditions that they were drawn with, where those were given. Every process has
    to call it, and only the first writes.
    """
    given = with_numbers(trained, len(x), given)
    if processes.is_first():
        levels = trained.model.likelihood.levels
        if given is not None and given.mask is not None:
            figures.write_sets(x, np.asarray(given.mask), path)
            return
        points = figures.kind(path, trained.shape, levels) == "scatter"
        some = _data_points(trained, len(x)) if points else None
        figures.write(x, path, levels=levels, data=some)


def _data_points(trained: Run, num: int) -> np.ndarray | None:
    try:
        examples = dataset(trained, "train")
    except UserError as error:
        say(f"the picture shows the samples without the data: {error}")
        return None
    return examples.take(np.arange(min(num, len(examples)))).x


def chunks(
    trained: Run,
    num: int,
    settings: SampleConfig,
    *,
    key: Key | None = None,
    given: Conditions | None = None,
    chain: Chain | None = None,
) -> Iterator[np.ndarray]:
    """Yield `num` samples or a few more, as data; sample i depends only on the key and i.

    The key is that of the settings' seed where none is given. A conditional model draws with the
    conditions that are `given`, one for each sample in the user's units, or with those of
    `Condition.samples`, sets with the numbers of points of `with_numbers`; one that was trained
    with augmentation draws examples that are not augmented. A `chain` has the steps of its own that
    the settings ask for (`check_chain`). Raises UserError for an unknown sampler, grid or final,
    for fewer than one sample or step, for guidance or clipping that does not fit the model, and for
    samples that are not finite.
    """
    checks.check_sampling(trained.model, settings)
    if chain is not None:
        check_chain(settings)
    if num < 1:
        raise UserError(f"num must be at least 1: got {num}")
    given = with_numbers(trained, num, given)
    mesh = trained.mesh
    size = meshes.padded(mesh, min(num, settings.batch_size))
    fixed = _fixed(trained, settings, size)
    here = meshes.rows_here(mesh, size)
    numbers = keys.data(settings.seed if key is None else key)

    def dispatched() -> Iterator[jax.Array]:
        for start in range(0, num, size):
            index = start + here
            cond = trained.condition.of_samples(index)
            if given is not None:
                own = take(given, np.minimum(index, num - 1))
                cond = trained.condition.of_parts(len(index), own)
            batch = meshes.put(mesh, size, here, (index, cond))
            yield _draw(trained.params, numbers, *batch, chain, **fixed)

    # The devices draw the next batch while this one is fetched and used.
    for drawn in one_ahead(dispatched()):
        x = np.asarray(drawn)
        check_finite(x, trained, settings, "samples")
        yield x


class _Fixed(TypedDict):
    """What the function that draws samples is compiled for."""

    model: VDM
    shape: tuple[int, ...]
    sampler: Sampler
    settings: SampleConfig
    mesh: Mesh


def _fixed(trained: Run, settings: SampleConfig, size: int) -> _Fixed:
    # Key and batch size do not belong to the settings of a program.
    return _Fixed(
        model=trained.model,
        shape=(size, *trained.shape),
        sampler=checks.sampler(settings.sampler),
        settings=dataclasses.replace(settings, seed=0, batch_size=1),
        mesh=trained.mesh,
    )


def lowered(
    trained: Run, settings: SampleConfig, size: int, index: Any, cond: Any
) -> jax.stages.Lowered:
    """Return the program that draws `size` samples, from shapes alone, not compiled."""
    numbers = keys.data(settings.seed)
    fixed = _fixed(trained, settings, size)
    return _draw.lower(trained.params, numbers, index, cond, None, **fixed)


def check_finite(x: np.ndarray, trained: Run, settings: SampleConfig, what: str) -> None:
    """Raise UserError for samples that are not finite, which integers below 0 stand for."""
    if not np.all(x >= 0 if x.dtype.kind == "i" else np.isfinite(x)):
        raise UserError(
            f"{what} of step {trained.step} are not finite: {settings.sampler}, "
            f"{settings.num_steps} steps, guidance {settings.guidance:g}"
        )


def denoiser(
    model: VDM, params: Params, cond: Condition | None, settings: SampleConfig
) -> tuple[EpsFn, jax.Array]:
    """Return ε̂(z, λ) of a model and the noise levels of a sampler's steps, as settings ask."""
    eps_fn = model.denoiser(
        params,
        cond,
        guidance=None if settings.guidance == 1.0 else settings.guidance,
        clip_denoised=settings.clip_denoised,
    )
    return eps_fn, grids.on_schedule(settings.grid, model.log_snr(params), settings.num_steps)


def check_chain(settings: SampleConfig) -> None:
    """Raise UserError for settings that a chain has no use for, or that it was not fitted for."""
    if settings.guidance != 1.0:
        raise UserError(
            f"a chain is fitted to x̂ without guidance: got guidance={settings.guidance:g}, "
            "expected 1"
        )
    for name, own in (("sampler", "ancestral"), ("grid", "time")):
        value = getattr(settings, name)
        if value != own:
            raise UserError(
                f"a chain is for the ancestral sampler on its own levels: got {name}={value!r}, "
                f"expected {own!r}"
            )


# One function for all calls: the grids of samples of a training run are compiled once.
@functools.partial(jax.jit, static_argnames=("model", "shape", "sampler", "settings", "mesh"))
def _draw(
    params: Params,
    key: jax.Array | np.ndarray,
    index: jax.Array,
    cond: Condition | None,
    chain: Chain | None,
    *,
    model: VDM,
    shape: tuple[int, ...],
    sampler: Sampler,
    settings: SampleConfig,
    mesh: Mesh,
) -> jax.Array:
    with meshes.under(mesh):
        x = draw(
            params,
            key,
            index,
            cond,
            chain,
            model=model,
            shape=shape,
            sampler=sampler,
            settings=settings,
        )
    return jax.lax.with_sharding_constraint(x, meshes.whole(mesh))


def draw(
    params: Params,
    key: jax.Array | np.ndarray,
    index: jax.Array,
    cond: Condition | None,
    chain: Chain | None = None,
    *,
    model: VDM,
    shape: tuple[int, ...],
    sampler: Sampler,
    settings: SampleConfig,
) -> jax.Array:
    """Return the samples of an index as data, of the whole `shape` [b, *d]; to be compiled."""
    own_keys = keys.of_examples(key, index)
    with jax.default_matmul_precision(settings.precision):
        return model.sample(
            params,
            own_keys,
            shape,
            num_steps=settings.num_steps if chain is None else None,
            sampler=sampler if chain is None else "ancestral",
            chain=chain,
            cond=cond,
            guidance=None if settings.guidance == 1.0 else settings.guidance,
            grid=settings.grid,
            clip_denoised=settings.clip_denoised,
            final=settings.final,
        )
