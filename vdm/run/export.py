"""A run to give away: one file with parameters and config, its records, and programs for JAX alone.

The programs are serialised by jax.export, for CPUs, CUDA GPUs and TPUs, with the parameters in them
and for any number of examples b:

    denoiser(z [b, *d], log_snr [b]) → ε̂ [b, *d]
    sample(seed, index [b]) → x [b, *d]
    score(seed, index [b], x [b, *d]) → terms of the bound in bits per dimension, [b, levels, 3]

A conditional model takes its conditions as arguments more, those that it has in this order: classes
[b], vectors [b, c] and fields [b, *d, c], the last two in the user's units. `programs.json` says
what the programs of a model of vectors or fields take.
"""

import dataclasses
import functools
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as exports

from vdm.condition import Condition as Given, Conditions
from vdm.losses import bits_per_dim
from vdm.networks import stacked
from vdm.run import config as configs, data, sample
from vdm.run.config.words import PROGRAMS
from vdm.run.data import condition as conditions
from vdm.run.data.condition import KINDS, Scale
from vdm.run.errors import UserError
from vdm.run.evaluation import bound
from vdm.run.evaluation.files import RESULT_FILE, examples_file
from vdm.run.run import refuse_sets
from vdm.run.system import document
from vdm.run.system.files import new_folder, replacing, write_json
from vdm.run.trained import Trained
from vdm.run.training import checks
from vdm.run.training.objective import for_evaluation
from vdm.run.workdir import chains, exported
from vdm.run.workdir.exported import Exported
from vdm.run.workdir.metrics import METRICS_FILE
from vdm.run.workdir.phases import PHASES_FILE
from vdm.run.workdir.sessions import SESSIONS_FILE

PLATFORMS = ("cpu", "cuda", "tpu")
ENDING = ".jax_export"
ABOUT_FILE = "programs.json"
# What is said of the arguments there.
SAID = {
    "z": "noised examples, as the model sees them",
    "log_snr": "their noise level, log(alpha^2 / sigma^2)",
    "seed": "whole number that all noise follows from",
    "index": "number of each example or sample, that its noise follows from",
    "x": "examples as data",
}
# What `vdm report` shows of a run beside its model.
RECORDS = (
    METRICS_FILE,
    SESSIONS_FILE,
    PHASES_FILE,
    RESULT_FILE,
    *map(examples_file, ("test", "train", "validation")),
)
SHAPE = jax.ShapeDtypeStruct


def write(
    run: Trained, workdir: pathlib.Path, out: pathlib.Path, names: Collection[str]
) -> list[tuple[str, str]]:
    """Write a run into a .safetensors file, or with records and programs into a new folder.

    Returns a name and a size for each file; a folder has the run's chains of few steps too. Raises
    UserError for another ending, for a folder that exists and for a program that cannot be made.
    """
    kept = data.kept(workdir) if workdir.is_dir() else exported.read(workdir).data
    if out.suffix == exported.ENDING:
        # Its path to the data would be seen from the workdir, and a file is no workdir.
        exported.write(out, _alone(run, dataclasses.replace(kept, path=None)))
        return [(out.name, _bytes(out))]
    if out.suffix:
        raise UserError(
            f"a run is exported into a {exported.ENDING} file or a new folder: got {out.name!r}"
        )
    if out.exists():
        raise UserError(f"{out} exists already: expected a new folder")
    if names:
        refuse_sets(run, "a program of an export")
    # Of a relative data.path, seen from the new folder.
    if kept.path is not None:
        kept = dataclasses.replace(kept, path=os.path.relpath(workdir / kept.path, out))
    with new_folder(out) as folder:
        exported.write(folder / exported.MODEL_FILE, _alone(run, kept))
        configs.keep(run.config, folder)
        write_json(folder / data.DATA_FILE, document.plain(kept))
        for name in RECORDS:
            if (workdir / name).is_file():
                shutil.copyfile(workdir / name, folder / name)
        if (workdir / chains.FOLDER).is_dir():  # also those that a compressed file may need
            shutil.copytree(workdir / chains.FOLDER, folder / chains.FOLDER)
        for name in names:
            with replacing(folder / f"{name}{ENDING}") as temporary:
                temporary.write_bytes(program(run, name))
        if names and {"vector", "field"} & {*run.condition.names}:
            write_json(folder / ABOUT_FILE, {name: described(run, name) for name in names})
        return [(path.name, _bytes(path)) for path in sorted(folder.iterdir()) if path.is_file()]


def program(run: Trained, name: str) -> bytes:
    """Return a program of a run, serialised; see the head of this module for its arguments."""
    fn, arguments = PROGRAM[name](run)
    taken = (*arguments.values(), *_of_condition(run).values())
    made = exports.export(jax.jit(fn), platforms=PLATFORMS)(*taken)
    return bytes(made.serialize())


def described(run: Trained, name: str) -> list[dict[str, Any]]:
    """Return what a program takes, in order: name, type, shape and unit of each argument."""
    _, arguments = PROGRAM[name](run)
    optional = conditions.is_optional(run.model.network)
    said = {
        "labels": f"class, from 0 to {(run.condition.num_classes or 0) - 1}",
        "cond": "vector in the units of the data that the model was trained with",
        "cond_field": "field in the units of the data that the model was trained with",
    }
    if optional:
        said["labels"] += ", or -1 for an example without its condition"
        said |= {key: f"{said[key]}, or NaN without" for key in ("cond", "cond_field")}
    return [
        {
            "name": key,
            "dtype": str(np.dtype(one.dtype)),
            "shape": [side if isinstance(side, int) else str(side) for side in one.shape],
            "what": said.get(key, SAID.get(key)),
        }
        for key, one in {**arguments, **_of_condition(run)}.items()
    ]


Program = tuple[Callable[..., jax.Array], dict[str, SHAPE]]


def _denoiser(run: Trained) -> Program:
    params = _constant(stacked.unstack(run.params))

    def denoiser(z: jax.Array, log_snr: jax.Array, *cond: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return run.model.denoiser(params, _condition(run, z.shape[0], cond))(z, log_snr)

    z = SHAPE((_any(), *run.shape), np.float32)
    return denoiser, {"z": z, "log_snr": SHAPE((_any(),), np.float32)}


def _sample(run: Trained) -> Program:
    params, settings = _constant(stacked.unstack(run.params)), run.config.sample
    checks.check_sampling(run.model, settings)
    sampler = checks.sampler(settings.sampler)

    def draw(seed: jax.Array, index: jax.Array, *cond: jax.Array) -> jax.Array:
        return sample.draw(
            params,
            _key(seed),
            index,
            _condition(run, index.shape[0], cond),
            model=run.model,
            shape=(index.shape[0], *run.shape),
            sampler=sampler,
            settings=settings,
        )

    return draw, {"seed": SHAPE((), np.uint32), "index": SHAPE((_any(),), np.int32)}


def _score(run: Trained) -> Program:
    state = _constant((stacked.unstack(run.params), run.law_state))
    levels = max(2, run.config.evaluate.levels_per_example)
    dtype = np.float32 if run.model.likelihood.levels is None else np.int32
    law = for_evaluation(run.config.evaluate.law, run.law)
    row = functools.partial(
        bound.row, model=run.model, law=law, num_levels=levels, clip_denoised=False
    )

    def score(seed: jax.Array, index: jax.Array, x: jax.Array, *cond: jax.Array) -> jax.Array:
        def each(values: jax.Array) -> jax.Array:
            return jnp.repeat(values, levels, axis=0)

        level = jnp.tile(jnp.arange(levels), index.shape[0])
        own = jax.tree.map(each, _condition(run, index.shape[0], cond))
        shared = (*state, None, _key(seed))
        with jax.default_matmul_precision(run.config.evaluate.precision):
            *terms, _ = row(shared, each(index), level, each(x), own)
        found = jnp.stack(terms, axis=-1).reshape(index.shape[0], levels, 3)
        return jnp.asarray(bits_per_dim(found, math.prod(run.shape)))

    arguments = {"seed": SHAPE((), np.uint32), "index": SHAPE((_any(),), np.int32)}
    return score, {**arguments, "x": SHAPE((_any(), *run.shape), dtype)}


PROGRAM = dict(zip(PROGRAMS, (_denoiser, _sample, _score), strict=True))


def _alone(run: Trained, kept: data.Kept) -> Exported:
    arrays = exported.named(stacked.unstack(run.params), exported.PARAMS)
    arrays |= exported.named(run.law_state, exported.LAW)
    arrays |= exported.of_condition(run.condition)
    return Exported(run.config, kept, run.step, run.kind, arrays)


def _of_condition(run: Trained) -> dict[str, SHAPE]:
    """Return the arguments that are the conditions, by the names of their arrays."""
    known = run.condition
    every = {
        "label": SHAPE((_any(),), np.int32),
        "vector": SHAPE((_any(), _size(known.vector)), np.float32),
        "field": SHAPE((_any(), *run.shape[:-1], _size(known.field)), np.float32),
    }
    return {name: every[kind] for kind, _, name in KINDS if kind in known.names}


def _condition(run: Trained, size: Any, given: tuple[jax.Array, ...]) -> Given | None:
    """Return what the model is given of examples that are not augmented, as `Condition.of_parts`.

    A class of −1, an example without its condition, stays one.
    """
    known, flags = run.condition, run.condition.num_flags
    parts = Conditions(**dict(zip(known.names, given, strict=True)))
    label = parts.label
    if label is not None and flags is not None:
        label = jnp.where(label < 0, label, label * flags)
    if label is None and flags is not None:
        label = jnp.zeros(size, jnp.int32)
    found = Conditions(
        label, _scaled(known.vector, parts.vector), _scaled(known.field, parts.field)
    )
    there = jax.tree.leaves(found)
    if not there:
        return None
    return there[0] if len(there) == 1 else found


def _scaled(scale: Scale | None, values: jax.Array | np.ndarray | None) -> jax.Array | None:
    """Return (values − mean)/std in float32, with the mean as the sum of two float32.

    One would lose the digits of values whose mean is far above their deviation.
    """
    if scale is None or values is None:
        return None
    mean, std = np.asarray(scale.mean), np.asarray(scale.std)
    high = mean.astype(np.float32)
    low = (mean - high).astype(np.float32)
    near = jnp.asarray(values) - jnp.expand_dims(high, range(values.ndim - 1))
    by = jnp.expand_dims(std.astype(np.float32), range(values.ndim - 1))
    return (near - jnp.expand_dims(low, range(values.ndim - 1))) / by


@functools.cache
def _any() -> Any:
    """Return the number of examples, which is open."""
    return exports.symbolic_shape("b")[0]


def _constant(tree: Any) -> Any:
    """Return a tree whose arrays are parts of the program."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _key(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed))


def _bytes(path: pathlib.Path) -> str:
    return f"{path.stat().st_size:,} bytes"


def _size(scale: Scale | None) -> int:
    return 0 if scale is None else len(scale.mean)
