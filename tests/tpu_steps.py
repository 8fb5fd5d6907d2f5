"""Compile training steps for TPU slices that are not here; print what each one is made of.

    python tests/tpu_steps.py CASES        a JSON list of [topology, {setting: value}]

Run by tests/run/compiled/test_tpu.py, in a process of its own: the compiler's library stays
loaded, and the tests' own flags are not those of a user.
"""

import json
import sys

import jax
import numpy as np

from vdm.run import config as configs, dry_run
from vdm.run.compiled import cost, text, topology
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.training import parts, throughput

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
        "devices": {"steps_per_dispatch": 1},
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
    of_run = parts.of(made, noise, devices)
    done = dry_run.lowered(of_run).compile()
    memory = done.memory_analysis()
    found, words = cost.of(done), done.as_text()
    own, held = text.parse(words), dry_run.held_template(of_run)
    network = jax.tree.leaves(held.params["network"])
    flops = (done.cost_analysis() or {}).get("flops", 0.0)
    return {
        "devices": of_run.mesh.size,
        "collectives": {one.kind: [one.times, one.num_bytes] for one in found.collectives},
        "dtypes": {one.kind: sorted(one.dtypes) for one in found.collectives},
        # The schedule's are few, and every device has what their gradient takes.
        "parameters": sum(leaf.size for leaf in network),
        "kernels": sum(leaf.size for leaf in network if leaf.ndim > 1),
        "held": memory.argument_size_in_bytes,
        "donated": memory.alias_size_in_bytes / memory.output_size_in_bytes,
        "work": memory.temp_size_in_bytes,
        "flops": flops
        * of_run.mesh.size
        / throughput.step_flops(of_run.trainer, held, of_run.example),
        "loops": text.has_loops(own),
        # What a convolution is called whose channels come from other devices a few at a time.
        "slices": words.count("windowed_dot_general"),
        "seconds": found.seconds,
    }


if __name__ == "__main__":
    with topology.little_effort():
        results = [compiled(*case) for case in json.loads(sys.argv[1])]
    print(json.dumps(results))
