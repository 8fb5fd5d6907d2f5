"""A trained run, read back from its workdir: to score, to sample, to evaluate and to code.

Nothing here but `dataset` needs the data set: the shape of an example is kept in the workdir, and
the scales of its conditions too.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from vdm.choices import unknown
from vdm.condition import Conditions
from vdm.few_steps import Chain
from vdm.laws import Law, LawState, ScheduleLaw
from vdm.losses import VLB
from vdm.model import VDM, Params
from vdm.run import config as configs, data, mesh as meshes, sample as samples
from vdm.run.config import Config
from vdm.run.config.schema import RESAMPLE
from vdm.run.config.words import PARAMS as PARAMS
from vdm.run.data import condition as conditions, kept_conditions
from vdm.run.data.condition import Condition
from vdm.run.errors import UserError
from vdm.run.filling import fill
from vdm.run.keys import Key
from vdm.run.run import dataset as dataset
from vdm.run.scoring import scores
from vdm.run.scoring.scores import Scores
from vdm.run.training import build, layout, program as programs
from vdm.run.training.step import Batch
from vdm.run.workdir import checkpoint, exported


class Trained(NamedTuple):
    """A model with its parameters, averaged ("ema") or not ("raw"), and the run they come from."""

    config: Config
    model: VDM
    mesh: Mesh
    params: Params
    step: int
    shape: tuple[int, ...]  # of one example
    condition: Condition
    kind: str = "ema"
    law: Law = ScheduleLaw()  # of λ in training; its last state is law_state
    law_state: LawState = ()

    def score(
        self,
        x: ArrayLike,
        cond: ArrayLike | Conditions | None = None,
        *,
        key: Key,
        bound: str = "vlb",
        levels_per_example: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Scores:
        """Return the bits per dimension of every example x [n, *shape], with their errors.

        The `bound` is the variational one in continuous time, or "ode", that of the
        probability-flow ODE. Every example gets `levels_per_example` noise levels, spread evenly.
        Their offset and all noise follow from the key, a seed or a typed key, and the example's
        position: the `batch_size` and the number of devices have no influence. Both numbers and
        all other options are by default those of config.evaluate, but two levels at least. With its
        seed as the key the scores of a split are the columns that `vdm evaluate` keeps. `cond` is
        the condition of each example of a conditional model in the user's units: an array of
        classes [n], vectors [n, c] or fields [n, *d, c], or `vdm.condition.Conditions` of several;
        without it a model that was trained with and without gives its unconditional bound.
        `progress` shows a bar. No data set is needed. Raises UserError for examples, conditions or
        options that do not fit the run.
        """
        return scores.score(
            self,
            x,
            cond,
            key=key,
            bound=bound,
            levels_per_example=levels_per_example,
            batch_size=batch_size,
            progress=progress,
        )

    def sample(
        self,
        num: int,
        cond: ArrayLike | Conditions | None = None,
        *,
        key: Key,
        sampler: str | None = None,
        num_steps: int | None = None,
        grid: str | None = None,
        guidance: float | None = None,
        clip_denoised: bool | None = None,
        final: str | None = None,
        batch_size: int | None = None,
        chain: Chain | None = None,
    ) -> np.ndarray:
        """Return `num` samples as data, [num, *shape]; sample i depends only on the key and on i.

        What is not given is as in config.sample. A `chain` of `vdm.few_steps`, such as
        `few_steps.chain` makes and `vdm.run.workdir.chains.find` reads, takes the place of
        sampler, grid and number of steps. `cond` is the condition of each sample, as
        in `score`: by default the classes 0, 1, 2, ... in order, or where there are vectors or
        fields those of training examples that are kept with the run, one after the other. Sets have
        the mask of `vdm.run.sample.with_numbers(run, num, given)`, whose result may be given as
        `cond`. Raises UserError as `vdm sample`.
        """
        asked = {
            "sampler": sampler,
            "num_steps": num_steps,
            "grid": grid,
            "guidance": guidance,
            "clip_denoised": clip_denoised,
            "final": final,
            "batch_size": batch_size,
        }
        return samples.of_keys(self, num, cond, key=key, asked=asked, chain=chain)

    def inpaint(
        self,
        known: ArrayLike,
        mask: ArrayLike,
        cond: ArrayLike | Conditions | None = None,
        *,
        key: Key,
        num: int | None = None,
        resample: int = RESAMPLE,
        sampler: str | None = None,
        num_steps: int | None = None,
        grid: str | None = None,
        guidance: float | None = None,
        clip_denoised: bool | None = None,
        final: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return partly known examples with the rest drawn by the model, [num, *shape].

        `known` is one example of the run's shape or several, and `mask` is True or 1 where it is
        known: of the shape of an example, without its channels, or one such mask for each example.
        What is known comes back as it is; what is not may hold anything, NaN too. Sample i is of
        example i modulo their number, and `num` is a multiple of that number, once each by default.
        Every step is taken `resample` times (`vdm.samplers.inpaint`): with 1 the rest hardly
        fits what is known. What else is not given is as in config.sample. `cond` is the
        condition of each sample, as in `score`, which a conditional model needs. Raises UserError
        as `vdm sample --known`.
        """
        asked = {
            "sampler": sampler,
            "num_steps": num_steps,
            "grid": grid,
            "guidance": guidance,
            "clip_denoised": clip_denoised,
            "final": final,
            "batch_size": batch_size,
        }
        return fill.of_keys(
            self, known, mask, cond, num=num, key=key, resample=resample, values=asked
        )

    def vlb(self, x: ArrayLike, cond: ArrayLike | Conditions | None = None, *, key: Key) -> VLB:
        """Return one estimate of the bound's terms for every example x [n, *shape], in nats.

        It is `vdm.VDM.vlb` with the run's parameters: one noise level for each example, spread
        evenly over the batch under the run's law of λ. `score` tells more of a single example.
        Conditions and errors are as in `score`.
        """
        return scores.vlb(self, x, cond, key=key)


def load(
    workdir: str | pathlib.Path,
    params: str = "ema",
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Return the run of a workdir at its latest checkpoint; the data set need not be available.

    With train.keep="best" it is the checkpoint that was best in validation. In place of a workdir
    it takes a file that `vdm export` wrote.
    `params` is "ema" for the averaged parameters or "raw" for the last ones; `devices` are all
    available devices by default. Where these scan the blocks of a U-Net, its parameters are
    stacked (`vdm.networks.stacked`); the model takes either layout. Raises UserError if there is no
    run, or for another value of params.
    """
    if params not in PARAMS:
        raise UserError(unknown("params", params, PARAMS))
    workdir = pathlib.Path(workdir)
    file = exported.found(workdir)
    alone = None if file is None else exported.read(file)
    if alone is not None and params != alone.kind:
        raise UserError(f"{file} holds the parameters {alone.kind!r} only: got {params!r}")
    config = configs.load(workdir) if alone is None else alone.config
    if workdir.is_dir():
        config = data.located(config, workdir)
    trainer = build.trainer(config)
    shape = data.kept_shape(workdir) if alone is None else alone.data.shape
    network = trainer.model.network
    if alone is None:
        kept = kept_conditions.read(workdir, network)
    else:
        kept = exported.condition(alone, network, workdir)
    law = trainer.model.number_law
    condition = conditions.build(network, shape, config.data.augment, kept, law)
    mesh = meshes.for_results(config, devices)
    example = Batch(build.blank(trainer.model, shape), condition.of_samples(np.arange(1)))
    template = programs.template(trainer, mesh, example)
    if alone is None or file is None:
        state = checkpoint.load(workdir, template, best=config.train.keep == "best")
        taken = state.ema if params == "ema" else state.params
        step, law_state = int(state.step), state.law_state
    else:
        taken = exported.fill(template.params, alone, exported.PARAMS, file)
        step, law_state = alone.step, exported.fill(template.law_state, alone, exported.LAW, file)
    return Trained(
        config=config,
        model=trainer.model,
        mesh=mesh,
        params=layout.held_params(config, trainer.model.network, mesh, taken),
        step=step,
        shape=shape,
        condition=condition,
        kind=params,
        law=trainer.objective.law,
        law_state=law_state,
    )


def one_device() -> Sequence[jax.Device]:
    """Return this process's first device: a codec's numbers must come from one executable."""
    return jax.local_devices()[:1]
