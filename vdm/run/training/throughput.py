"""How fast a run goes: steps and examples per second, and the share of the chip that it uses."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdm.condition import Condition
from vdm.model import VDM, Params
from vdm.run.compiled import chips
from vdm.run.training import flops
from vdm.run.training.step import Batch, Trainer, TrainState


def step_flops(trainer: Trainer, template: TrainState, example: Batch) -> float:
    """Return the FLOPs of a training step over all devices: three times those of the network.

    `template` has the shapes of a state, `example` those of a batch of any size. A gradient
    takes two products for each one of the forward pass; the bound, the optimiser and the
    average have none. What `remat` computes again does not count.
    """
    size = trainer.config.train.batch_size
    return 3.0 * network_flops(trainer.model, template.params, example, size)


def network_flops(model: VDM, params: Params, example: Batch, size: int) -> float:
    """Return the FLOPs of the network, given a batch of `size` once, over all devices.

    Of `params` and the `example`, a batch of any size, only the shapes matter.
    """
    x, cond = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), tuple(example)
    )

    def forward(params: Params, x: jax.Array, cond: Condition | None) -> jax.Array:
        z = model.likelihood.encode(x)
        return model.denoiser(params, cond)(z, jnp.zeros(z.shape[:1], z.dtype))

    return flops.of(forward, params, x, cond)


def full_speed(trainer: Trainer, mesh: Mesh, template: TrainState, example: Batch) -> float | None:
    """Return the steps per second at the devices' peak, None where that is not known."""
    chip = chips.of(mesh.devices.flat[0].device_kind)
    if chip is None:  # as on a CPU: then nothing is traced
        return None
    return mesh.size * chip.flops / step_flops(trainer, template, example)


def rates(
    num_steps: int, seconds: float, batch_size: int, full_speed: float | None
) -> dict[str, float]:
    """Return the rates for the metrics; `mfu`, the share of the peak, only where it is known."""
    speed = num_steps / seconds
    found = {"steps_per_second": speed, "examples_per_second": batch_size * speed}
    return found if full_speed is None else {**found, "mfu": speed / full_speed}
