"""The configuration of a run: from an ml_collections file to frozen, checked dataclasses.

A config file describes an experiment in plain values. It is turned once into the
dataclasses below; a key that they do not have, or a value of the wrong type, is an
error that names the key (and the nearest valid one) before anything else happens.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Beyond this T, float32 no longer resolves the difference of λ between two steps.
MAX_STEPS = 100_000
MAX_COMPRESS_BATCH, MAX_RESOLUTION = 2**20, 20
ON_NAN = ("stop", "roll_back")
BOUNDS = ("vlb", "ode")
DEQUANTISATIONS = ("truncated_normal", "uniform")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and what is done with it in training.

    `name` is one of `vdm.run.data` or an image set of tensorflow-datasets; `path` is the file
    or folder of "arrays" and "images". `augment`: "none", "vdm" or "group" (see
    `vdm.run.data.augment`). `in_memory`: "yes" or "no" (read while training), or "auto", by size.
    """

    name: str  # digits, swirl, mixture, arrays, images, or a set of tensorflow-datasets
    path: str = ""  # file or folder of "arrays" and "images"
    augment: str = "none"  # of images: "none", "vdm" (each kind with probability ½) or "group"
    in_memory: str = "auto"  # "yes", "no" (read while training) or "auto", by size


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The parts of the model; each block is a name and the arguments of its constructor."""

    schedule: Mapping[str, Any]  # λ(t) between its two ends
    network: Mapping[str, Any]  # what predicts; its λ range is the schedule's unless set
    likelihood: Mapping[str, Any]  # p(x|z₀), and with it the kind of data
    prediction: str = "eps"  # what the network's output means: "eps", "x", "v", "score", "edm"
    sigma_data: float = 0.5  # of the encoded data; used by the "edm" prediction


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and clipping for the network, Adam for a learned schedule."""

    learning_rate: float = 2e-4  # of the network, after the warm-up
    schedule_learning_rate: float = 1e-2  # of learned end points, in units of λ
    shape_learning_rate: float = 2e-2  # of a learned interior
    decay: str = "constant"  # after the warm-up: "constant" or "cosine" (to zero)
    warmup_steps: int = 100  # linear, from zero
    b1: float = 0.9  # Adam's decay of the gradient's mean
    b2: float = 0.99  # Adam's decay of the gradient's square
    weight_decay: float = 0.01  # of the network's parameters, not the schedule's
    clip_norm: float = 1.0  # of the network's gradient and of the ends'; 0 turns it off
    ema_decay: float = 0.9999  # of the averaged parameters, after its own warm-up


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the network descends, and how the noise levels of a batch are drawn.

    `weighting` is a name of `vdm.weightings` with its arguments; "elbo" is the bound.
    `law` of λ: "schedule" (uniform times), "sigmoid" or "adaptive", with its arguments;
    `draw` of the uniform positions: "low_discrepancy", "stratified" or "uniform".
    `num_steps` is the T of the bound that is trained on, "inf" or a number.
    """

    # w(λ) of the loss; "elbo" is the bound itself
    weighting: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "elbo"})
    # the density that λ is drawn with; no influence on what is minimised
    law: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "schedule"})
    draw: str = "low_discrepancy"  # "low_discrepancy", "stratified" or "uniform" positions
    num_steps: str = "inf"  # T of the bound that is trained on: "inf" or a number


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and how often to write things down (all in steps).

    `on_nan`, when the loss is not finite: "stop", or "roll_back" to the last checkpoint and go
    on from there with other noise, a few times at most.
    """

    num_steps: int  # training steps in all
    batch_size: int = 128  # examples a step, over all devices and processes
    cond_dropout: float = 0.0  # share of examples shown without their class, for guidance
    accumulation_steps: int = 1  # micro-batches, one after the other, that make a batch
    log_every: int = 100  # a line of metrics, the means since the last one
    checkpoint_every: int = 1000  # and at the end, and on SIGTERM
    checkpoints_kept: int = 2  # the latest ones
    sample_every: int = 0  # a page of samples; 0 for never
    tensorboard: bool = False  # metrics as TensorBoard's events too
    on_nan: str = "stop"  # a loss that is not finite: "stop", or "roll_back" to a checkpoint


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """How the work is cut: over how many devices parameters are, and steps a dispatch.

    All devices of all processes take part; those that do not cut parameters cut the batch
    alone. Several steps a dispatch spare an accelerator the wait for the host between two
    short steps; on CPU they are slower, for XLA's convolutions are slow in a loop there.
    """

    fsdp: int = 1  # devices over which parameters and optimiser state are cut
    steps_per_dispatch: int = 1  # training steps in one call of the accelerator


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Which bounds to evaluate, and how carefully; what may be several is comma-separated.

    `bound`: "vlb", "ode" or both. The variational bound: `law` of λ for T = ∞ is "training" (as
    the run was trained), "schedule" or "sigmoid", with an influence on the standard error alone;
    `clip_denoised` measures it with x̂ clipped to the data's range as well. The ODE's:
    `dequantisation` of integers, "truncated_normal" or "uniform"; `num_samples`, the draws K
    of an example; `divergence`, "hutchinson" with `num_probes` or "exact"; `ode_steps` even
    steps, or with 0 as many as keep the local error below `tolerance`.
    """

    bound: str = "vlb"  # "vlb", "ode" or "vlb,ode"
    batch_size: int = 256  # rows a call; no influence on results
    levels_per_example: int = 64  # stratified noise levels drawn for each example
    num_steps: str = "inf"  # comma-separated values of T
    law: str = "training"  # of λ at T = inf: "training", "schedule" or "sigmoid"
    clip_denoised: bool = False  # measure the bound with x̂ clipped as well
    dequantisation: str = "truncated_normal"  # ode: or "uniform", or both
    num_samples: str = "1"  # ode: comma-separated numbers K of draws of an example
    divergence: str = "hutchinson"  # ode: or "exact", at most 256 dimensions
    num_probes: int = 1  # ode: of "hutchinson"
    ode_steps: int = 0  # ode: even steps; 0 for as many as the tolerance asks for
    tolerance: float = 1e-4  # ode: of the local error, where steps adapt
    seed: int = 0  # of all the evaluation's noise


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How to draw samples.

    `sampler` is a name with its arguments, such as "heun:churn=0.2". `grid` of noise levels:
    "time" (even on the schedule), "lambda" or "edm". `guidance` above 1 exaggerates the class,
    0 ignores it (for networks with optional_cond). `clip_denoised` keeps x̂ within the range of
    integer data; `final` is the "mode" of p(x|z₀) or a "draw" from it.
    """

    batch_size: int = 64  # samples a call; no influence on results
    num_steps: int = 250  # from noise to data
    sampler: str = "ancestral"  # a name, with arguments as in "heun:churn=0.2"
    grid: str = "time"  # of noise levels: "time", "lambda" or "edm"
    guidance: float = 1.0  # above 1 exaggerates the class, 0 ignores it
    clip_denoised: bool = False  # keep x̂ in the range of integer data
    final: str = "mode"  # from z₀ to data: the "mode" of p(x|z₀) or a "draw" from it
    seed: int = 0  # sample i depends on it and on i alone


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """How to compress: the file's length is nearly the bound with `num_steps` steps.

    `batch_size` examples go through the network together; `per_block` examples stand and fall
    together, and share the bits that each block needs to begin with. Latents are rounded to
    2^-`resolution` of a step's standard deviation.
    """

    num_steps: int = 100  # T of the bound that the length follows
    batch_size: int = 16  # examples a call of the network
    per_block: int = 1024  # examples that stand and fall together
    resolution: int = 2  # latents are rounded to 2^-this of a step's standard deviation


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    devices: DevicesConfig = DevicesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sample: SampleConfig = SampleConfig()
    compress: CompressConfig = CompressConfig()
    seed: int = 0  # of parameters, noise and the order of examples
