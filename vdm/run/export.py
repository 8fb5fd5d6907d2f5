"""A run to give away: one file with parameters and config, its records, and programs for JAX alone.

The programs are serialised by jax.export, for CPUs, CUDA GPUs and TPUs, with the parameters in them
and for any number of examples b:

    denoiser(z [b, *d], log_snr [b]) → ε̂ [b, *d]
    sample(seed, index [b]) → x [b, *d]
    score(seed, index [b], x [b, *d]) → terms of the bound in bits per dimension, [b, levels, 3]

A class-conditional model takes the classes [b] as one argument more.
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

from vdm.losses import bits_per_dim
from vdm.networks import stacked
from vdm.run import config as configs, data, sample
from vdm.run.config.words import PROGRAMS
from vdm.run.data import asked
from vdm.run.errors import UserError
from vdm.run.evaluation import bound
from vdm.run.evaluation.files import RESULT_FILE, examples_file
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
        return [(out.name, _size(out))]
    if out.suffix:
        raise UserError(
            f"a run is exported into a {exported.ENDING} file or a new folder: got {out.name!r}"
        )
    if out.exists():
        raise UserError(f"{out} exists already: expected a new folder")
    # Of a relative data.path, seen from the new folder.
    if kept.path is not None:
        kept = dataclasses.replace(kept, path=os.path.relpath(workdir / kept.path, out))
    kinds = [asked.WORDS[kind] for kind in run.condition.names if kind != "label"]
    if names and kinds:
        raise UserError(
            f"a model conditioned on {' and '.join(kinds)} has no programs: expected "
            "--programs=none, or a .safetensors file"
        )
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
        return [(path.name, _size(path)) for path in sorted(folder.iterdir()) if path.is_file()]


def program(run: Trained, name: str) -> bytes:
    """Return a program of a run, serialised; see the head of this module for its arguments."""
    fn, arguments = PROGRAM[name](run)
    if run.condition.num_classes is not None:
        arguments = (*arguments, SHAPE((_any(),), np.int32))
    made = exports.export(jax.jit(fn), platforms=PLATFORMS)(*arguments)
    return bytes(made.serialize())


Program = tuple[Callable[..., jax.Array], tuple[SHAPE, ...]]


def _denoiser(run: Trained) -> Program:
    params = _constant(stacked.unstack(run.params))

    def denoiser(z: jax.Array, log_snr: jax.Array, *classes: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return run.model.denoiser(params, _condition(run, z.shape[0], classes))(z, log_snr)

    return denoiser, (SHAPE((_any(), *run.shape), np.float32), SHAPE((_any(),), np.float32))


def _sample(run: Trained) -> Program:
    params, settings = _constant(stacked.unstack(run.params)), run.config.sample
    checks.check_sampling(run.model, settings)
    sampler = checks.sampler(settings.sampler)

    def draw(seed: jax.Array, index: jax.Array, *classes: jax.Array) -> jax.Array:
        return sample.draw(
            params,
            _key(seed),
            index,
            _condition(run, index.shape[0], classes),
            model=run.model,
            shape=(index.shape[0], *run.shape),
            sampler=sampler,
            settings=settings,
        )

    return draw, (SHAPE((), np.uint32), SHAPE((_any(),), np.int32))


def _score(run: Trained) -> Program:
    state = _constant((stacked.unstack(run.params), run.law_state))
    levels = max(2, run.config.evaluate.levels_per_example)
    dtype = np.float32 if run.model.likelihood.levels is None else np.int32
    law = for_evaluation(run.config.evaluate.law, run.law)
    row = functools.partial(
        bound.row, model=run.model, law=law, num_levels=levels, clip_denoised=False
    )

    def score(seed: jax.Array, index: jax.Array, x: jax.Array, *classes: jax.Array) -> jax.Array:
        def each(values: jax.Array) -> jax.Array:
            return jnp.repeat(values, levels, axis=0)

        level = jnp.tile(jnp.arange(levels), index.shape[0])
        cond = _condition(run, index.shape[0], classes)
        own = None if cond is None else each(cond)
        shared = (*state, None, _key(seed))
        with jax.default_matmul_precision(run.config.evaluate.precision):
            *terms, _ = row(shared, each(index), level, each(x), own)
        found = jnp.stack(terms, axis=-1).reshape(index.shape[0], levels, 3)
        return jnp.asarray(bits_per_dim(found, math.prod(run.shape)))

    arguments = (SHAPE((), np.uint32), SHAPE((_any(),), np.int32))
    return score, (*arguments, SHAPE((_any(), *run.shape), dtype))


PROGRAM = dict(zip(PROGRAMS, (_denoiser, _sample, _score), strict=True))


def _alone(run: Trained, kept: data.Kept) -> Exported:
    arrays = exported.named(stacked.unstack(run.params), exported.PARAMS)
    arrays |= exported.named(run.law_state, exported.LAW)
    arrays |= exported.of_condition(run.condition)
    return Exported(run.config, kept, run.step, run.kind, arrays)


def _condition(run: Trained, size: Any, classes: tuple[jax.Array, ...]) -> jax.Array | None:
    """Return what the model is given of examples that are not augmented, as `Condition.of`."""
    known, flags = run.condition.num_classes, run.condition.num_flags
    if known is None:
        return None if flags is None else jnp.zeros(size, jnp.int32)
    return classes[0] * (flags or 1)


@functools.cache
def _any() -> Any:
    """Return the number of examples, which is open."""
    return exports.symbolic_shape("b")[0]


def _constant(tree: Any) -> Any:
    """Return a tree whose arrays are parts of the program."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _key(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed))


def _size(path: pathlib.Path) -> str:
    return f"{path.stat().st_size:,} bytes"
