"""How fast a run goes: steps and examples per second, and the share of the chip that it uses."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from vdm.run.step import Batch, Trainer, TrainState, train_step

# Dense bfloat16 (V100: float16) FLOP/s by the beginning of the device's name; the longest
# name that fits counts.
# NVIDIA: the data sheets of V100, A100, H100, H200; figures "with sparsity" are twice these.
# TPU: cloud.google.com/tpu/docs, "peak compute per chip (bf16)".
PEAK_FLOPS: Mapping[str, float] = {
    "Tesla V100": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return what one device of a kind can do in FLOP/s, None where it is not known."""
    fitting = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def step_flops(trainer: Trainer, template: TrainState, example: Batch) -> float | None:
    """Return the FLOPs of a training step over all devices, None where XLA does not say.

    `template` has the shapes of a state, `example` those of a batch of any size.
    Counted before XLA optimises, when matrix products and convolutions are not yet calls of
    libraries that it cannot look into; and on the whole batch at once, for of a loop over
    micro-batches it counts a single round. What `remat` computes again is no work of the model.
    """
    train = dataclasses.replace(trainer.config.train, accumulation_steps=1)
    network = trainer.model.network.clone(remat=False)
    whole = trainer._replace(
        model=dataclasses.replace(trainer.model, network=network),
        config=dataclasses.replace(trainer.config, train=train),
    )
    # Without shardings: one program, over all the work there is.
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((train.batch_size, *leaf.shape[1:]), leaf.dtype), example
    )
    step_fn = functools.partial(train_step, trainer=whole)
    cost: Any = jax.jit(step_fn).lower(state, batch).cost_analysis()
    return cost.get("flops") if cost else None


def full_speed(trainer: Trainer, mesh: Mesh, template: TrainState, example: Batch) -> float | None:
    """Return the steps per second at the devices' peak, None where that is not known."""
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    if peak is None:  # as on a CPU: nothing is traced for nothing
        return None
    flops = step_flops(trainer, template, example)
    return mesh.size * peak / flops if flops else None


def rates(
    num_steps: int, seconds: float, batch_size: int, full_speed: float | None
) -> dict[str, float]:
    """Return the rates for the metrics; `mfu`, the share of the peak, only where it is known."""
    speed = num_steps / seconds
    found = {"steps_per_second": speed, "examples_per_second": batch_size * speed}
    return found if full_speed is None else {**found, "mfu": speed / full_speed}
