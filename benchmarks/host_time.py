"""What a training step costs the host: the time to dispatch it, by the layout of the state.

    python benchmarks/host_time.py --config=experiments/cifar10.py

A device must not wait for the host, so a dispatch has to take less time than a step. Its time grows
with the number of arrays in the state and with that of devices, whatever is computed. So the step
here returns what it is given, in arrays of one number each, as many as the config's state has: with
an entry for each block, as in files and on CPU, and stacked, as other devices hold it, alone and
with as many steps a dispatch as are chosen there. The state is donated. Devices are those that this
machine's CPU is divided into. Counted are the processor's seconds of the thread that dispatches, on
which other programs have little influence. Ends with exit code 1 where a step as it is taken on
other devices than CPUs costs more than 1 ms.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from vdm.networks import stacked
from vdm.run import cli, mesh as meshes
from vdm.run.config import DevicesConfig
from vdm.run.training import build, program as programs
from vdm.run.training.step import Batch

DEVICES = (1, 4, 8)
SHAPE = (32, 32, 3)  # of an image; it has no influence on the number of arrays
DISPATCHES, WINDOWS = 50, 9
MOST = 1.0  # ms a step


def milliseconds(state, steps, count):
    """Return the median time for a step, of some in a dispatch, of as many arrays as a state's."""
    mesh = meshes.make(DevicesConfig(), jax.devices()[:count])
    one = jax.device_put(jnp.zeros(()), meshes.whole(mesh))
    state = jax.tree.map(lambda _: jnp.copy(one), state)
    batches = [jax.device_put(np.zeros(count, np.int32), meshes.cut(mesh)) for _ in range(steps)]

    def dispatch(state, batches):
        return jax.tree.map(lambda leaf: leaf + 1.0, state), jnp.sum(jnp.stack(batches))

    places = (jax.tree.map(lambda _: meshes.whole(mesh), state), meshes.whole(mesh))
    compiled = jax.jit(dispatch, donate_argnums=0, out_shardings=places)
    found = []
    for _ in range(WINDOWS):
        start = time.thread_time()
        for _ in range(DISPATCHES):
            state, metrics = compiled(state, batches)
        found.append(1e3 * (time.thread_time() - start) / DISPATCHES / steps)
        jax.block_until_ready((state, metrics))
    return statistics.median(found[1:])  # in the first it was compiled


def main(arguments):
    config = cli.read_config(arguments)
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    trainer = build.trainer(config)
    mesh = meshes.make(DevicesConfig(), jax.devices()[:1])
    example = Batch(build.blank(trainer.model, SHAPE), None)
    single = programs.template(trainer, mesh, example)
    held = stacked.stack(single, lambda leaves: leaves[0])  # here only their number counts
    chosen = programs.steps_per_dispatch(config, "tpu")
    rows = (("an entry for each block", single, 1), ("stacked", held, 1), ("stacked", held, chosen))
    heads = ("layout", "arrays", "steps a dispatch", *(f"{count} devices" for count in DEVICES))
    table = Table(*heads, title="Time of the host for a step")
    for layout, state, steps in rows:
        times = [milliseconds(state, steps, count) for count in DEVICES]
        arrays = f"{len(jax.tree.leaves(state)):,}"
        table.add_row(layout, arrays, str(steps), *(f"{found:.2f} ms" for found in times))
    Console().print(table)
    return int(max(times) > MOST)  # of the last row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
