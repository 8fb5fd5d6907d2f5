"""Training steps on several meshes, as a process of its own: devices are set before JAX starts.

    python tests/several.py OUT.npz                                      one process of 8 devices
    python tests/several.py OUT.npz --port=P --processes=2 --index=0     one of two of 4 each

Writes of a mesh, all arrays gathered: in float64 the parameters and metrics of five steps, in
float32 a gradient of a U-Net, each where it says most.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import runs
from vdm.run import mesh as meshes
from vdm.run.config import DevicesConfig
from vdm.run.system import processes
from vdm.run.training import parts, program as programs
from vdm.run.training.batches import make_batch
from vdm.run.training.step import Batch

SIZE = 64
# By name: how many devices, fsdp, micro-batches, steps a dispatch.
MESHES = {
    "one": (1, 1, 1, 1),
    "fsdp": (8, 4, 1, 1),
    "everything": (8, 2, 2, 5),
}
# What each number of processes computes on a mesh: all that is compiled, every process compiles.
ALONE = {"one": ("steps", "unet"), "fsdp": ("unet",), "everything": ("steps",)}
TOGETHER = {"everything": ("steps",)}
UNET = {**runs.UNET, "attention": "middle"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--port", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--index", type=int)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8 // options.processes)
    jax.config.update("jax_disable_most_optimizations", True)
    meshes.MIN_CUT = 1  # the networks are small, and are to be cut nevertheless
    if options.processes > 1:
        processes.start(f"localhost:{options.port}", options.processes, options.index)
    found = {}
    for name, asked in (ALONE if options.processes == 1 else TOGETHER).items():
        devices, fsdp, parts, dispatch = MESHES[name]
        mesh = meshes.make(DevicesConfig(fsdp=fsdp), jax.devices()[:devices])
        jax.config.update("jax_enable_x64", True)
        if "steps" in asked:
            for key, value in five_steps(mesh, parts, dispatch).items():
                found[f"{name} float64 {key}"] = value
        jax.config.update("jax_enable_x64", False)
        if "unet" in asked:
            for key, value in gradient(mesh, UNET).items():
                found[f"{name} unet {key}"] = value
    if processes.is_first():
        np.savez(options.out, **found)


def five_steps(mesh, parts, dispatch):
    # Only now: nothing may touch a device before the processes have met.
    from trainers import MONOTONE, trainer_of

    x = np.random.default_rng(0).normal(0.4, 0.9, (200, 2))
    trainer = trainer_of(MONOTONE, parts, size=SIZE)
    program = programs.build(trainer, mesh, Batch(x[:1], None))
    here = meshes.rows_here(mesh, SIZE)
    put = functools.partial(meshes.put, mesh, SIZE, here)
    batches = [put(Batch(x[7 * step + np.arange(SIZE)][here], None)) for step in range(5)]
    state, metrics = program.init(), []
    for first in range(0, 5, dispatch):
        state, values = program.step(state, batches[first : first + dispatch])
        metrics.append(jax.device_get(values))
    cut = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)]
    whole = gathered(mesh, {"params": state.params, "ema": state.ema, "moments": state.opt_state})
    joined = jax.tree.map(lambda *values: np.concatenate(values), *metrics)
    return {**whole, **joined, "cut": sum(cut)}


def gradient(mesh, network):
    config = runs.images(network, batch_size=SIZE)
    dataset, trainer, condition, _, example = parts.prepare(config)
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
    )
    trainer = trainer._replace(optimizer=keep)
    program = programs.build(trainer, mesh, example)
    here = meshes.rows_here(mesh, SIZE)
    batch = meshes.put(mesh, SIZE, here, make_batch(dataset, condition, config, 0, here))
    state, metrics = program.step(away(program.init()), [batch])
    return {**gathered(mesh, state.opt_state), **jax.device_get(metrics)}


def away(state):
    """The state with other parameters: where a network starts, most of its gradients are zero."""

    rng = np.random.default_rng(1)

    def moved(leaf):
        noise = rng.normal(size=leaf.shape).astype(leaf.dtype)
        return jax.device_put(np.asarray(leaf) + 0.1 * noise, leaf.sharding)

    return state._replace(params=jax.tree.map(moved, state.params))


def gathered(mesh, tree):
    whole = jax.device_get(jax.jit(lambda tree: tree, out_shardings=meshes.whole(mesh))(tree))
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


if __name__ == "__main__":
    main()
