"""Drawing samples from a trained run, one key per sample."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from vdm.model import VDM, Params
from vdm.run import figures, mesh as meshes
from vdm.run.config import SampleConfig
from vdm.run.errors import UserError
from vdm.run.system import processes
from vdm.run.system.progress import bar, say
from vdm.run.trained import Trained, dataset
from vdm.run.training import checks
from vdm.samplers import Sampler

GRID_SIZE = 64  # samples in a grid
USUAL_GUIDANCE = 20.0  # beyond it samples saturate


def sample(trained: Trained, num: int, settings: SampleConfig) -> np.ndarray:
    """Return `num` samples as data, with a bar; raises UserError as `chunks`."""
    drawn = []
    if abs(settings.guidance) > USUAL_GUIDANCE:
        say(f"guidance {settings.guidance:g} is far beyond what is usual, from 1 to about 8")
    with bar("sample", num) as advance:
        for chunk in chunks(trained, num, settings):
            drawn.append(chunk)
            done = min(num, sum(map(len, drawn)))
            advance(done, f"{settings.sampler}, {settings.num_steps} steps")
    return np.concatenate(drawn)[:num]


def write(trained: Trained, num: int, settings: SampleConfig, path: pathlib.Path) -> None:
    """Write `num` samples as a picture or an array; see `save`."""
    x = np.concatenate(list(chunks(trained, num, settings)))[:num]
    save(x, trained, path)


def save(x: np.ndarray, trained: Trained, path: pathlib.Path) -> None:
    """Write the samples; points are drawn with as many points of the data set, if available.

    Only the first of several processes writes.
    """
    if processes.is_first():
        levels = trained.model.likelihood.levels
        points = figures.kind(path, trained.shape, levels) == "scatter"
        some = _data_points(trained, len(x)) if points else None
        figures.write(x, path, levels=levels, data=some)


def _data_points(trained: Trained, num: int) -> np.ndarray | None:
    try:
        examples = dataset(trained, "train")
    except UserError as error:
        say(f"the picture shows the samples without the data: {error}")
        return None
    return examples.take(np.arange(min(num, len(examples)))).x


def chunks(trained: Trained, num: int, settings: SampleConfig) -> Iterator[np.ndarray]:
    """Yield `num` samples or a few more, as data; sample i depends only on the seed and i.

    A class-conditional model draws its classes in order: 0, 1, 2, ...; one that was trained with
    augmentation draws examples that are not augmented. Raises UserError for an unknown sampler,
    grid or final, for fewer than one sample or step, for guidance or clipping that does not fit
    the model, and for samples that are not finite.
    """
    sampler = checks.sampler(settings.sampler)
    checks.check_sampling(trained.model, settings)
    if num < 1:
        raise UserError(f"num must be at least 1: got {num}")
    mesh = trained.mesh
    # The static settings of the compiled function; seed and batch size do not belong to it.
    fixed = dataclasses.replace(settings, seed=0, batch_size=1)
    size = meshes.padded(mesh, min(num, settings.batch_size))
    here = meshes.rows_here(mesh, size)
    for start in range(0, num, size):
        index = start + here
        drawn = _draw(
            trained.params,
            np.uint32(settings.seed),  # an int would have to fit into 31 bits
            *meshes.put(mesh, size, here, (index, trained.condition.of_samples(index))),
            model=trained.model,
            shape=(size, *trained.shape),
            sampler=sampler,
            settings=fixed,
            mesh=mesh,
        )
        x = np.asarray(drawn)
        if not np.all(x >= 0 if x.dtype.kind == "i" else np.isfinite(x)):
            raise UserError(
                f"samples of step {trained.step} are not finite: {settings.sampler}, "
                f"{settings.num_steps} steps, guidance {settings.guidance:g}"
            )
        yield x


# One function for all calls: the grids of samples of a training run are compiled once.
@functools.partial(jax.jit, static_argnames=("model", "shape", "sampler", "settings", "mesh"))
def _draw(
    params: Params,
    seed: jax.Array | int,
    index: jax.Array,
    cond: jax.Array | None,
    *,
    model: VDM,
    shape: tuple[int, ...],
    sampler: Sampler,
    settings: SampleConfig,
    mesh: Mesh,
) -> jax.Array:
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
    x = model.sample(
        params,
        keys,
        shape,
        num_steps=settings.num_steps,
        sampler=sampler,
        cond=cond,
        guidance=None if settings.guidance == 1.0 else settings.guidance,
        grid=settings.grid,
        clip_denoised=settings.clip_denoised,
        final=settings.final,
    )
    return jax.lax.with_sharding_constraint(x, meshes.whole(mesh))
