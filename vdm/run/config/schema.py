"""The configuration of a run: frozen dataclasses, each field with its meaning and its rule.

A config file describes an experiment in plain values. It is turned once into the dataclasses
below; a key that they do not have, or a value of another type or outside its rule, is an error
that names the key before anything else happens. Everything about a value stands at its field: the
check, the options of a command, their help and the docs page are made from it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vdm.dequantisation import DEQUANTISATIONS
from vdm.few_steps.chain import VARIANCES
from vdm.laws import LAWS
from vdm.model import FINALS, HEADS
from vdm.ode.divergence import DIVERGENCES, EXACT_LIMIT
from vdm.run.config import words
from vdm.run.config.fields import needed, option
from vdm.run.config.rules import Counts, Name, Number, Word, Words
from vdm.samplers.grids import GRIDS
from vdm.sets import ORDERS

# Beyond this T, float32 no longer resolves the difference of λ between two steps.
MAX_STEPS = 100_000
LAST_STEP = 2**31 - 1  # a state counts its steps in 32 bits
STEPS = Number(1, MAX_STEPS)
TRAINING_STEPS = Number(1, LAST_STEP)
BATCH = Number(1, 2**20)
ROWS = Number(1, LAST_STEP)  # of which no array has to be that long
RATE = Number(above=0, at_most=1000)
SHARE = Number(0, below=1)
SEED = Number(0, 2**32 - 1)
RESAMPLE = 8  # what `vdm.samplers.inpaint` says of 1 is why
TIMES = Number(1, 1000)  # that a step is taken
COLUMNS = Number(2, 1000)  # of a film strip
# For texts that hold several numbers.
NUM_STEPS = Counts(1, MAX_STEPS, or_inf=True, or_chain=True)
NUM_SAMPLES = Counts(1, 1_000_000)
PRECISION = (
    "how float32 is multiplied: in full on every device, or as the device does by default, where "
    "a TPU rounds the factors to bfloat16 and an NVIDIA GPU to TF32"
)
MAX_LEVELS = 2000  # every pair of which is a step that a chain may take
CHAIN_STEPS = Counts(1, MAX_LEVELS - 1)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, and its use in training."""

    name: str = needed("a set of vdm.run.data, or an image set of tensorflow-datasets")
    path: str = option("", "file or folder of the user's own examples")
    key: str = option("", "of arrays: the name of the examples, where it is another than x")
    label_key: str = option("", "of arrays: the name of the classes, beside data.key")
    cond_key: str = option("", "of arrays: the name of the vectors, beside data.key")
    cond_field_key: str = option("", "of arrays: the name of the fields, beside data.key")
    augment: str = option(
        "none",
        "of images: every element of the group equally likely, or each kind with probability ½ "
        "(vdm)",
        Word(("none", *words.AUGMENTATIONS)),
    )
    in_memory: str = option(
        "auto", "whether examples are kept in memory or read while training", Word(words.IN_MEMORY)
    )
    standardise: str = option(
        "none",
        "take mean and standard deviation of the training examples off real numbers: one pair for "
        "all, or one for each entry of the last axis (per_feature); auto: per_feature of tables",
        Word(words.STANDARDISE),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The parts of the model; each block is a name and the arguments of its constructor."""

    schedule: Mapping[str, Any] = needed("λ(t) between its two ends", Name(words.SCHEDULES))
    network: Mapping[str, Any] = needed(
        "what predicts; its λ range is the schedule's unless set", Name(words.NETWORKS)
    )
    likelihood: Mapping[str, Any] = needed(
        "p(x|z₀), and with it the kind of data", Name(words.LIKELIHOODS)
    )
    prediction: str = option("eps", "what the network's output means", Word(HEADS))
    sigma_data: float = option(
        0.5,
        "standard deviation of the encoded data, for the edm prediction",
        Number(above=0, at_most=1000),
    )
    number_law: Mapping[str, Any] = option(
        {"name": "histogram"},
        "of sets: the law p(n) of the number of points, a part of the bound; that of the training "
        "examples, a network of the classes and vectors that model.network takes, or none for a "
        "bound given n",
        Name(words.NUMBER_LAWS),
    )
    order: str = option(
        "unordered",
        "of sets: whether a density is that of the set, or of its points in their order",
        Word(ORDERS),
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser with warm-up and clipping for the network, Adam for a learned schedule."""

    method: Mapping[str, Any] = option(
        {"name": "adamw"},
        "of the network; adamw and muon take b1, b2 and weight_decay from below",
        Name(words.OPTIMIZERS),
    )
    learning_rate: float = option(2e-4, "of the network, after the warm-up", RATE)
    schedule_learning_rate: float = option(1e-2, "of learned end points, in units of λ", RATE)
    shape_learning_rate: float = option(2e-2, "of a learned interior", RATE)
    decay: str = option(
        "constant", "of the learning rates after the warm-up; cosine ends at 0", Word(words.DECAYS)
    )
    warmup_steps: int = option(
        100, "steps in which the learning rates rise from 0", Number(0, LAST_STEP)
    )
    b1: float = option(0.9, "Adam's decay of the gradient's mean", SHARE)
    b2: float = option(0.99, "Adam's decay of the gradient's square", SHARE)
    weight_decay: float = option(
        0.01, "of the network's parameters, not the schedule's", Number(0, 1000)
    )
    clip_norm: float = option(
        1.0, "of the network's gradient and of the ends'; 0 turns it off", Number(0, 10**9)
    )
    ema_decay: float = option(0.9999, "of the averaged parameters, after its own warm-up", SHARE)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss, and how the noise levels of a batch are drawn."""

    weighting: Mapping[str, Any] = option(
        {"name": "elbo"}, "w(λ) of the loss; elbo is the bound itself", Name(words.WEIGHTINGS)
    )
    law: Mapping[str, Any] = option(
        {"name": "schedule"},
        "the density that λ is drawn with; no influence on what is minimised",
        Name(LAWS),
    )
    draw: str = option(
        "low_discrepancy", "positions of a batch, which the law maps to λ", Word(words.DRAWS)
    )
    num_steps: str = option(
        "inf", "T of the bound that is trained on", Counts(1, MAX_STEPS, or_inf=True, several=False)
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and how often to log, save and draw samples (all in steps)."""

    num_steps: int = needed("training steps in all", TRAINING_STEPS)
    batch_size: int = option(128, "examples per step, over all devices and processes", BATCH)
    cond_dropout: float = option(
        0.0, "share of examples shown without their condition, for guidance", SHARE
    )
    accumulation_steps: int = option(
        1, "micro-batches, one after the other, that make a batch", BATCH
    )
    log_every: int = option(100, "a line of metrics, the means since the last one", TRAINING_STEPS)
    checkpoint_every: int = option(
        1000, "a checkpoint; also at the end and on SIGTERM", TRAINING_STEPS
    )
    checkpoints_kept: int = option(2, "the latest ones", Number(1, LAST_STEP))
    sample_every: int = option(0, "a grid of samples; 0 for never", Number(0, LAST_STEP))
    own_parts: str = option(
        "", "folder with the modules of own parts; that of the config file unless another is set"
    )
    init_from: str = option("", "workdir of a run to begin with; empty for new parameters")
    init_optimizer: str = option(
        "fresh",
        "with init_from: a fresh optimiser and the averaged parameters, or the optimiser and all "
        "that it goes on with kept",
        Word(words.OPTIMIZER_STATES),
    )
    validation_examples: int = option(
        0,
        "training examples held out as the split validation; 0 for none, and no validation",
        Number(0, LAST_STEP),
    )
    validate_every: int = option(
        1000, "the bound of the validation split; also at the end", TRAINING_STEPS
    )
    keep: str = option(
        "latest",
        "the checkpoint that other commands use: the latest one, or the best in validation",
        Word(words.KEPT),
    )
    patience: int = option(
        0,
        "validations without a gain after which training stops; 0 for no limit",
        Number(0, LAST_STEP),
    )
    tensorboard: bool = option(False, "also write metrics as TensorBoard events")
    on_nan: str = option(
        "stop",
        "what to do when the loss is not finite: stop, or resume from the last checkpoint with "
        "other noise, a few times at most",
        Word(words.ON_NAN),
    )


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """How the work is divided: devices per copy of the parameters, and steps per dispatch.

    All devices of all processes divide the batch. Several steps per dispatch save an accelerator
    the wait for the host between two short steps; on CPU they are slower, since XLA's convolutions
    are slow in a loop there.
    """

    fsdp: int = option(
        1, "devices over which parameters and optimiser state are divided", Number(1, 2**20)
    )
    steps_per_dispatch: int = option(
        0,
        "training steps per dispatch; 0 for 1 on CPU, and elsewhere the most up to 8 that fit",
        Number(0, 10_000),
    )
    scan_blocks: str = option(
        "auto",
        "compute the equal blocks of the unet in a loop: faster to compile, and less for the host "
        "to do; auto: not on CPU, which is slow at it",
        Word(words.SCAN_BLOCKS),
    )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Which bounds to evaluate, and how carefully."""

    bound: str = option(
        "vlb", "which to measure: the variational bound, or that of the ODE", Words(words.BOUNDS)
    )
    batch_size: int = option(256, "rows per call; no influence on results", ROWS)
    levels_per_example: int = option(
        64,
        "stratified noise levels drawn for each example",
        Number(1, 100_000),
        needs_bound="vlb",
    )
    num_steps: str = option(
        "inf",
        "values of T, the number of steps; T:chain is the run's chain of vdm fit-chain",
        NUM_STEPS,
        needs_bound="vlb",
    )
    num_paths: int = option(
        0,
        "whole paths K for the importance bound of each finite T, beside the bound; 0 for none",
        Number(0, 1_000_000),
        needs_bound="vlb",
    )
    law: str = option(
        "training",
        "law of λ at T = inf: the run's own (training) or another; adaptive only if the run was "
        "trained with it",
        Word(words.EVALUATION_LAWS),
        needs_bound="vlb",
    )
    clip_denoised: bool = option(
        False, "also measure the bound with x̂ clipped to the data's range", needs_bound="vlb"
    )
    unconditional: bool = option(
        False,
        "without the condition of each example, for a model trained with train.cond_dropout",
    )
    precision: str = option(
        "highest",
        PRECISION,
        Word(words.PRECISIONS),
        needs_bound="vlb",
    )
    dequantisation: str = option(
        "truncated_normal",
        "how integers become real numbers",
        Words(DEQUANTISATIONS),
        needs_bound="ode",
    )
    num_samples: str = option(
        "1", "numbers of draws K per example, such as 1,10", NUM_SAMPLES, needs_bound="ode"
    )
    divergence: str = option(
        "hutchinson",
        f"estimated with random probes, or exact in at most {EXACT_LIMIT} dimensions",
        Word(DIVERGENCES),
        needs_bound="ode",
    )
    num_probes: int = option(
        1, "random probes of the hutchinson divergence", Number(1, 10_000), needs_bound="ode"
    )
    ode_steps: int = option(
        0,
        "number of even steps; 0 for adaptive steps",
        Number(0, MAX_STEPS),
        needs_bound="ode",
    )
    tolerance: float = option(
        1e-4,
        "tolerance of the local error, with adaptive steps",
        Number(above=0, at_most=1),
        needs_bound="ode",
    )
    seed: int = option(0, "of all noise of the evaluation", SEED)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How to draw samples."""

    batch_size: int = option(64, "samples per call; no influence on results", ROWS)
    num_steps: int = option(250, "steps from noise to data", STEPS, flag="steps")
    sampler: str = option(
        "ancestral",
        "a name, with arguments where it has them, as in heun:churn=0.2",
        Name(words.SAMPLERS),
    )
    grid: str = option("time", "grid of noise levels", Word(GRIDS))
    guidance: float = option(
        1.0, "above 1 exaggerates the condition, 0 ignores it", Number(-1000, 1000)
    )
    clip_denoised: bool = option(False, "keep x̂ in the range of integer data")
    final: str = option(
        "mode", "the last step, from z₀ to data: the mode of p(x|z₀) or a draw", Word(FINALS)
    )
    precision: str = option("highest", PRECISION, Word(words.PRECISIONS))
    seed: int = option(0, "sample i depends only on the seed and on i", SEED)


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """How to compress: the file's length is nearly the bound with `num_steps` steps."""

    num_steps: int = option(
        100, "number of steps T; the length follows the bound with this T", STEPS, flag="steps"
    )
    batch_size: int = option(16, "examples per call of the network", BATCH)
    per_block: int = option(
        1024,
        "examples per block; a damaged block is lost as a whole, and each block has its own "
        "start bits",
        Number(1, 2**31),
    )
    chain: bool = option(
        True,
        "take the steps of a chain that vdm fit-chain has fitted: that of --steps, or else the "
        "longest with no more steps than the config has; without one, even steps",
    )
    resolution: int = option(
        2, "latents are rounded to 2^-resolution of a step's standard deviation", Number(0, 20)
    )


@dataclasses.dataclass(frozen=True)
class FewStepsConfig:
    """How to fit chains of few steps, after training and to training examples alone."""

    num_steps: str = option("5,10,20,50", "numbers of steps T", CHAIN_STEPS, flag="steps")
    variance: str = option(
        "head",
        "what the variance of a step may depend on: nothing but its level, the channel, the "
        "position, or by a small network the noised example itself",
        Word(VARIANCES),
    )
    clip_denoised: bool = option(True, "keep x̂ in the range of integer data")
    num_levels: int = option(
        128,
        "noise levels that the steps are placed on, or two for each step if that is more",
        Number(2, MAX_LEVELS),
    )
    num_examples: int = option(
        10_000, "training examples at most, spread evenly over the split", Number(1, 2**31)
    )
    head_steps: int = option(3000, "steps that fit the network of variance=head", TRAINING_STEPS)
    batch_size: int = option(128, "examples per call of the network", BATCH)
    seed: int = option(0, "of all noise of the fit", SEED)


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
    few_steps: FewStepsConfig = FewStepsConfig()
    seed: int = option(0, "of parameters, noise and the order of examples", SEED)
