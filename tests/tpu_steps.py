"""Compile training steps for TPU slices that are not here; print what each one is made of.

    python tests/tpu_steps.py CASES        a JSON list of [topology, {setting: value}]

Run by tests/run/compiled/test_tpu.py, in a process of its own: the compiler's library stays
loaded, and the tests' own flags are not those of a user.
"""

import json
import sys

import jax
import numpy as np

from vdm.run import config as configs, mesh as meshes
from vdm.run.compiled import cost, text, topology
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.training import parts, program as programs, throughput

SIDE = 16


def config(settings):
    values = {
        "data": {"name": "digits"},
        "model": {
            "schedule": {"name": "learned_monotone", "log_snr_max": 13.3, "log_snr_min": -5.0},
            "network": {"name": "unet", "channels": 64, "num_blocks": 2, "dropout": 0.1},
            "likelihood": {"name": "discretised", "levels": 256},
        },
        "train": {"num_steps": 10, "batch_size": 64},
        "devices": {},
    }
    for name, value in settings.items():
        *blocks, last = name.split(".")
        block = values
        for part in blocks:
            block = block[part]
        block[last] = value
    return configs.from_dict(values)


def compiled(slice_name, settings):
    made = config(settings)
    size = made.train.batch_size
    x = np.zeros((size, SIDE, SIDE, 3), np.uint8)
    devices = topology.devices(slice_name)
    noise = Dataset("noise", "train", Examples(x), "noise", levels=256)
    _, trainer, _, mesh, example = parts.of(made, noise, devices)
    program = programs.build(trainer, mesh, example)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (size, *leaf.shape[1:]), leaf.dtype, sharding=meshes.cut(mesh)
        ),
        example,
    )
    steps = made.devices.steps_per_dispatch or 1
    done = program.step.lower(program.layout.template, [batch] * steps).compile()
    memory = done.memory_analysis()
    found, words = cost.of(done), done.as_text()
    own, shapes = text.parse(words), program.layout.template
    network = jax.tree.leaves(shapes.params["network"])
    flops = (done.cost_analysis() or {}).get("flops", 0.0)
    return {
        "devices": mesh.size,
        "collectives": {one.kind: [one.times, one.num_bytes] for one in found.collectives},
        "dtypes": {one.kind: sorted(one.dtypes) for one in found.collectives},
        # The schedule's are few, and every device has what their gradient takes.
        "parameters": sum(leaf.size for leaf in network),
        "kernels": sum(leaf.size for leaf in network if leaf.ndim > 1),
        "held": memory.argument_size_in_bytes,
        "donated": memory.alias_size_in_bytes / memory.output_size_in_bytes,
        "work": memory.temp_size_in_bytes,
        "flops": flops * mesh.size / throughput.step_flops(trainer, shapes, batch),
        "loops": text.has_loops(own),
        # What a convolution is called whose channels come from other devices a few at a time.
        "slices": words.count("windowed_dot_general"),
        "seconds": found.seconds,
    }


if __name__ == "__main__":
    with topology.little_effort():
        results = [compiled(*case) for case in json.loads(sys.argv[1])]
    print(json.dumps(results))
