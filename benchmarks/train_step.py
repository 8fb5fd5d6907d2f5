"""A training step in its variants beside a plain one: medians of interleaved repetitions.

    python benchmarks/train_step.py --config=experiments/cifar10_small.py --reduced
    python benchmarks/train_step.py --config=experiments/digits.py --only=float32,remat --inside

The paper's CIFAR-10 network, for an accelerator:

    python benchmarks/train_step.py --config=experiments/cifar10_small.py --full

`--full` sets the size of the paper's network (128 channels, 32 blocks a side, attention in the
middle, dropout 0.1, batches of 128, the learned linear schedule), `--reduced` the same with 32
channels, 4 blocks and batches of 16; both can be changed by flags that follow, and without them
the config counts as it is. Steps are taken on one batch that stays on the device. Where the
images are not prepared, it is made of random numbers of the same shape, and the output says so:
a step takes as long.

Variants (`--only`): the network in float32 and in bfloat16 (the loss is float32 always), with
`remat`, with the batch in four micro-batches (`accumulation`), with float32 products of full
precision (`highest`; an accelerator's default rounds them), with the generator that accelerators
have built in (`rbg`), and `plain`, the floor of plain_step.py, where that is of the same model.
`CPU ms` is the processor time of a step over all cores. `temp` is what XLA plans as the work
space of a step, `peak` that with the state and the batch. MFU is 3 × the FLOPs of the network's
forward pass ÷ (time × the dense bfloat16 peak of the device). `--inside` shows where the time
of the first variant goes.
"""

import contextlib
import dataclasses
import functools
import statistics
import sys
import time

import jax
import numpy as np

import plain_step
from vdm.run import cli, data
from vdm.run.compiled import chips
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.errors import UserError
from vdm.run.training import build, parts, program as programs, throughput
from vdm.run.training.batches import make_batch, on_devices
from vdm.run.training.step import init_state

REPETITIONS = 15
SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1), "downsampled_imagenet": (32, 32, 3)}
SIZES = {"--reduced": (32, 4, 16), "--full": (128, 32, 128)}
ON_CPU = ("float32", "plain", "accumulation")
ON_ACCELERATOR = ("bfloat16", "bfloat16 rbg", "float32", "highest", "plain")


def main(arguments):
    own = [a for a in arguments if a.startswith("--only=") or a in (*SIZES, "--inside")]
    only = next((a.removeprefix("--only=").split(",") for a in own if a.startswith("--only=")), ())
    sized = [flag for name in SIZES if name in own for flag in of_size(*SIZES[name])]
    # What is asked for on the command line comes last and counts.
    config = cli.read_config(sized + [a for a in arguments if a not in own])
    names = only or (ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR)
    if unknown := set(names) - {"plain", *VARIANTS}:
        raise UserError(f"unknown variants {unknown}: expected some of {['plain', *VARIANTS]}")
    if "plain" in names and not plain_is_equal(config):
        print("without the plain step, which is of U-Nets for 256 levels as the paper has them")
        names = [name for name in names if name != "plain"]
    if not set(names) & set(VARIANTS):
        raise UserError("expected a step of the library too, such as --only=plain,float32")
    dataset = load(config)
    variants = {}
    for name in names:
        start = time.perf_counter()
        variants[name] = (
            Plain(config, dataset) if name == "plain" else VARIANTS[name](config, dataset)
        )
        print(f"{name}: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    first = next(one for one in variants.values() if isinstance(one, Variant))
    size = config.train.batch_size
    devices = f"{first.mesh.size} × {jax.devices()[0].device_kind}"
    flops = first.flops
    print(f"{first.parameters:,} parameters, batch {size}, {devices}, {flops:.4g} FLOPs a step")
    times = medians({name: one.step for name, one in variants.items()})
    reference = times.get("plain", times[names[0]])
    against = "÷ plain" if "plain" in times else "÷ first"
    print(
        f"{'step':18s}{'ms':>10s}{against:>9s}{'CPU ms':>10s}{against:>9s}{'images/s':>10s}"
        f"{'MFU':>8s}{'temp, MB':>10s}{against:>9s}{'peak, MB':>10s}"
    )
    planned = variants["plain" if "plain" in times else names[0]].temp
    chip = chips.of(jax.devices()[0].device_kind)
    for name, (seconds, processor) in times.items():
        one = variants[name]
        mfu = f"{flops / (seconds * first.mesh.size * chip.flops):.1%}" if chip else ""
        print(
            f"{name:18s}{1e3 * seconds:10.2f}{seconds / reference[0]:9.2f}"
            f"{1e3 * processor:10.1f}{processor / reference[1]:9.2f}{size / seconds:10.1f}"
            f"{mfu:>8s}{one.temp / 1e6:10.1f}{one.temp / planned:9.2f}"
            f"{(one.temp + one.kept) / 1e6:10.1f}"
        )
    if "--inside" in own:
        print(f"\n{'within a step':30s}{'ms':>8s}{'CPU ms':>10s}")
        for name, (seconds, processor) in medians(inside(config, dataset)).items():
            print(f"{name:30s}{1e3 * seconds:8.2f}{1e3 * processor:10.1f}")


def plain_is_equal(config):
    """Whether the plain step computes what the config describes."""
    network, model = config.model.network, config.model
    return (
        network["name"] == "unet"
        and network.get("attention", "middle") != "everywhere"
        and tuple(network.get("fourier_exponents", (6, 7))) == (6, 7)
        and network.get("num_classes") is None
        and model.prediction == "eps"
        and model.likelihood.get("levels", 256) == 256
        and (model.schedule["log_snr_max"], model.schedule["log_snr_min"]) == (13.3, -5.0)
    )


def of_size(channels, num_blocks, batch_size):
    network = {
        "channels": channels,
        "num_blocks": num_blocks,
        "num_groups": 32,
        "attention": "middle",
        "dropout": 0.1,
    }
    return [
        *(f"--config.model.network.{key}={value}" for key, value in network.items()),
        f"--config.train.batch_size={batch_size}",
        "--config.model.schedule.name=learned_linear",
        "--config.objective.law.name=schedule",
    ]


def load(config):
    """Return the training set, or where it is not there one batch of random images of its shape."""
    try:
        return data.load(config.data, "train")
    except (UserError, ImportError) as error:
        if config.data.name not in SHAPES:
            raise
        print(f"synthetic images, for the time of a step depends on their shape alone: {error}")
    rng, size = np.random.default_rng(0), config.train.batch_size
    x = rng.integers(0, 256, (size, *SHAPES[config.data.name]), np.uint8)
    labels = rng.integers(0, 10, size, np.int32)
    return Dataset(config.data.name, "train", Examples(x, labels), "synthetic", num_classes=10)


class Variant:
    """A compiled step, which is given back the state that it made."""

    def __init__(self, config, dataset, around=contextlib.nullcontext):
        _, trainer, condition, self.mesh, example = parts.of(config, dataset)
        with around():
            program = programs.build(trainer, self.mesh, example)
            self.batch = next(on_devices(dataset, condition, config, self.mesh, 0))
            self.state = program.layout.hold(program.init())
            self.compiled = program.step.lower(self.state, [self.batch]).compile()
        self.flops = throughput.step_flops(trainer, program.template, example)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(program.template.params))
        self.temp, self.kept = memory(self.compiled)

    def step(self):
        self.state, metrics = self.compiled(self.state, [self.batch])
        return metrics


class Plain:
    """The plain step on the same images."""

    def __init__(self, config, dataset):
        network = build.model(config).network
        module = plain_step.Network(
            channels=network.channels,
            num_blocks=network.num_blocks,
            num_groups=network.num_groups,
            dropout=network.dropout,
            attention=network.attention != "none",
        )
        self.images = jax.device_put(dataset.take(np.arange(config.train.batch_size)).x)
        self.state, self.compiled = plain_step.build(module, jax.random.key(0), self.images)
        self.temp, self.kept = memory(self.compiled)

    def step(self):
        self.state, loss = self.compiled(self.state, self.images)
        return loss


def memory(compiled):
    """Return the bytes that XLA plans for a step's work and those of what it is given."""
    planned = compiled.memory_analysis()
    return planned.temp_size_in_bytes, planned.argument_size_in_bytes


def variant(config, dataset, *, network=None, train=None, around=contextlib.nullcontext):
    model = dataclasses.replace(config.model, network={**config.model.network, **(network or {})})
    train = dataclasses.replace(config.train, **(train or {}))
    return Variant(dataclasses.replace(config, model=model, train=train), dataset, around)


def make(**changes):
    return functools.partial(variant, **changes)


VARIANTS = {
    "float32": make(network={"dtype": "float32"}),
    "bfloat16": make(network={"dtype": "bfloat16"}),
    "remat": make(network={"remat": True}),
    "bfloat16 remat": make(network={"dtype": "bfloat16", "remat": True}),
    "accumulation": make(train={"accumulation_steps": 4}),
    "highest": make(around=functools.partial(jax.default_matmul_precision, "highest")),
    "bfloat16 rbg": make(
        network={"dtype": "bfloat16"}, around=functools.partial(jax.default_prng_impl, "unsafe_rbg")
    ),
}


def inside(config, dataset):
    _, trainer, condition, _, _ = parts.of(config, dataset)
    batch = jax.device_put(make_batch(dataset, condition, config, 0))
    params = init_state(trainer, batch).params
    key, model = jax.random.key(1), trainer.model

    def loss(params, batch, key, dropout_key):
        terms = model.vlb(params, key, batch.x, batch.cond, dropout_key=dropout_key)
        return terms.total.mean()

    def sampler_step(params, batch, key):
        return model.sample(params, key, batch.x.shape, num_steps=1, cond=batch.cond)

    bound, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    return {
        "bound and its gradient": functools.partial(gradient, params, batch, key, key),
        "the same without dropout": functools.partial(gradient, params, batch, key, None),
        "bound alone": functools.partial(bound, params, batch, key, key),
        "a step of ancestral sampling": functools.partial(
            jax.jit(sampler_step), params, batch, key
        ),
    }


def medians(work):
    """Return the median seconds, and of the processor, of each piece of work.

    The first repetition compiles what is not compiled yet.
    """
    seconds = {name: [] for name in work}
    for _ in range(REPETITIONS + 1):
        for name, run in work.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            end = time.perf_counter(), time.process_time()
            seconds[name].append([b - a for a, b in zip(start, end, strict=True)])
    return {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)]
        for name, rows in seconds.items()
    }


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"train_step.py: {error}")
