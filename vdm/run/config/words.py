"""The names that a config and a command can use, most of them with what they stand for."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
import optax

from vdm import (
    likelihoods,
    networks,
    noise_levels,
    optimizers,
    samplers,
    schedules,
    sde,
    sets,
    weightings,
)
from vdm.laws import LAWS
from vdm.likelihoods import Likelihood
from vdm.networks import MLP, DiT, NumberNetwork, SetTransformer, UNet
from vdm.samplers import Sampler
from vdm.schedules import Schedule

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "learned_linear": schedules.learned_linear,
    "learned_monotone": schedules.learned_monotone,
    "learned_unpinned": schedules.learned_unpinned,
    "beta_linear": schedules.beta_linear,
    "flow_matching": schedules.flow_matching,
    "edm": schedules.edm,
    "from_betas": schedules.from_betas,
}
NETWORKS: Mapping[str, Callable[..., DiT | MLP | SetTransformer | UNet]] = {
    "dit": networks.DiT,
    "mlp": networks.MLP,
    "set_transformer": networks.SetTransformer,
    "unet": networks.UNet,
}
LIKELIHOODS: Mapping[str, Callable[..., Likelihood]] = {
    "discretised": likelihoods.discretised,
    "gaussian": likelihoods.gaussian,
}


def _histogram(probs: tuple[float, ...] = ()) -> sets.NumberLaw | None:
    return sets.NumberLaw(probs) if probs else None  # not found yet


def _none() -> None:
    return None


def _number_network(largest: int = 0, width: int = 64) -> functools.partial[NumberNetwork] | None:
    # Its conditions are those of the model's network.
    return functools.partial(NumberNetwork, largest, width) if largest else None  # as above


NUMBER_LAWS: Mapping[
    str, Callable[..., sets.NumberLaw | functools.partial[NumberNetwork] | None]
] = {
    "histogram": _histogram,
    "network": _number_network,
    "none": _none,
}
SAMPLERS: Mapping[str, Callable[..., Sampler]] = {
    **samplers.SAMPLERS,
    "euler_maruyama": sde.euler_maruyama,
    "exponential": sde.exponential,
}
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "muon": optimizers.muon,
}
WEIGHTINGS: Mapping[str, Callable[..., jax.Array]] = {
    "elbo": weightings.elbo,
    "simple": weightings.simple,
    "v": weightings.v,
    "edm": weightings.edm,
    "edm_monotone": weightings.edm_monotone,
    "min_snr": weightings.min_snr,
    "p2": weightings.p2,
    "sigmoid": weightings.sigmoid,
}
# Of the uniform positions that a law maps to noise levels.
DRAWS: Mapping[str, Callable[[jax.Array, int], jax.Array]] = {
    "low_discrepancy": noise_levels.low_discrepancy,
    "stratified": noise_levels.stratified,
    "uniform": noise_levels.uniform,
}
# The laws of λ in an evaluation: the run's own (training), or another.
EVALUATION_LAWS = ("training", *LAWS)
# From an element of the group of augmentations to the network's condition (`vdm.run.data.augment`).
AUGMENTATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "group": lambda which: which,  # the element itself
    "vdm": lambda which: np.minimum(which, 1),  # whether there is one
}

STANDARDISE = ("none", "all", "per_feature", "auto")  # what shares a mean and a scale
IN_MEMORY = ("auto", "yes", "no")  # where examples are: auto decides by their size
SCAN_BLOCKS = ("auto", "yes", "no")  # auto: wherever the devices are not CPUs
DECAYS = ("constant", "cosine")  # of the learning rate, after the warm-up
ON_NAN = ("stop", "roll_back")  # what to do when the loss is not finite
BOUNDS = ("vlb", "ode")  # the variational one, and that of the probability-flow ODE
PRECISIONS = ("highest", "default")  # of float32: in full, or what the devices are fastest with
PARAMS = ("ema", "raw")  # averaged, or of the last step
SPLITS = ("train", "test")
VALIDATION = "validation"  # a split that a run holds out of "train"
KEPT = ("latest", "best")
PROGRAMS = ("denoiser", "sample", "score")  # of an export
OPTIMIZER_STATES = ("fresh", "kept")
FORMATS = ("official",)  # of other code's checkpoints: google-research/vdm
