"""Five training steps on a mesh, as a process of its own: the devices are set before JAX starts.

    python tests/several.py OUT.npz --devices=8 --fsdp=4 --parts=1 [--port=P --processes=2 --index=0]

Writes the metrics of every step and the parameters after the last, gathered.
"""

import argparse
import functools

import jax
import numpy as np

from vdm.run import mesh as meshes, program as programs
from vdm.run.config import DevicesConfig
from vdm.run.dataset import batch_indices


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--dispatch", type=int, default=1)
    parser.add_argument("--single", action="store_true", help="float32")
    parser.add_argument("--port", type=int)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--index", type=int)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    jax.config.update("jax_enable_x64", not options.single)
    jax.config.update("jax_disable_most_optimizations", True)
    if options.port is not None:
        address = f"localhost:{options.port}"
        meshes.start_processes(address, options.processes, options.index)

    # Only now: nothing may touch a device before the processes have met.
    from test_run_step import MONOTONE, build

    size, rows = 64, np.random.default_rng(0).normal(0.4, 0.9, (200, 2))
    rows = rows.astype(np.float32 if options.single else np.float64)
    trainer, _, _ = build(MONOTONE, options.parts, size=size)
    mesh = meshes.make(DevicesConfig(fsdp=options.fsdp))
    meshes.check_batch(mesh, size, options.parts)
    program = programs.build(trainer, mesh, programs.Batch(rows[:1], None))

    def batch(step):
        index = batch_indices(0, step, size, len(rows))
        return meshes.batch(mesh, size, lambda where: programs.Batch(rows[index[where]], None))

    state, metrics = program.init(), []
    for first in range(0, 5, options.dispatch):
        steps = range(first, min(5, first + options.dispatch))
        state, values = program.step(state, [batch(step) for step in steps])
        metrics.append(jax.device_get(values))
    gather = functools.partial(jax.jit, out_shardings=meshes.whole(mesh))(lambda tree: tree)
    params, ema = jax.device_get(gather((state.params, state.ema)))
    if jax.process_index() == 0:
        leaves = {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path({"params": params, "ema": ema})
        }
        for key in metrics[0]:
            leaves[f"metric {key}"] = np.concatenate([values[key] for values in metrics])
        cut = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)]
        np.savez(options.out, cut=sum(cut), devices=jax.device_count(), **leaves)


if __name__ == "__main__":
    main()
