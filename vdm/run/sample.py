"""Drawing samples from a trained run, one key per sample."""

import functools

import jax
import numpy as np

from vdm.choices import unknown
from vdm.run import condition, data
from vdm.run.config import SampleConfig
from vdm.run.errors import UserError
from vdm.run.progress import bar
from vdm.run.trained import Trained
from vdm.samplers import SAMPLERS


def sample(trained: Trained, num: int, settings: SampleConfig) -> np.ndarray:
    """Return `num` samples as data; sample i depends on the seed and i alone.

    A class-conditional model draws its classes in turn: 0, 1, 2, ...; one that was trained
    with augmentation draws what is not augmented.
    Raises UserError for an unknown sampler and for fewer than one sample or step.
    """
    if settings.sampler not in SAMPLERS:
        raise UserError(unknown("sampler", settings.sampler, SAMPLERS))
    for name, value in (("num", num), ("steps", settings.num_steps)):
        if value < 1:
            raise UserError(f"{name} must be at least 1: got {value}")
    dataset = data.load(trained.config.data, "train")
    told = condition.build(trained.model.network, dataset, trained.config.data.augment)
    size = min(num, settings.batch_size)
    draw = jax.jit(
        functools.partial(
            trained.model.sample,
            shape=(size, *dataset.shape),
            num_steps=settings.num_steps,
            sampler=settings.sampler,
        )
    )
    seed = jax.random.key(settings.seed)
    chunks = []
    with bar("sample", num) as advance:
        for start in range(0, num, size):
            index = np.arange(start, start + size)
            keys = jax.vmap(lambda i: jax.random.fold_in(seed, i))(index)
            chunks.append(np.asarray(draw(trained.params, keys, cond=told.of_samples(index))))
            advance(min(num, start + size), f"{settings.sampler}, {settings.num_steps} steps")
    return np.concatenate(chunks)[:num]
