"""How often a classifier recognises the class that a sample is conditioned on, by guidance.

    make demo DEMO_CONFIG=experiments/digits_guided.py DEMO_DIR=runs/guided
    python benchmarks/guidance.py --workdir=runs/guided

The classifier is that of sampling.py; samples by dpmpp_2m in 20 steps, classes in order.
"""

import argparse
import dataclasses
import pathlib

import numpy as np
from sampling import Spaces

from vdm.run import data, sample, trained


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--num", type=int, default=1000)
    options = parser.parse_args()
    run = trained.load(options.workdir)
    splits = [data.load(run.config.data, split) for split in ("train", "test")]
    spaces = Spaces(*splits)
    for guidance in (0.0, 1.0, 2.0, 4.0):
        settings = dataclasses.replace(
            run.config.sample, sampler="dpmpp_2m", num_steps=20, guidance=guidance, batch_size=250
        )
        x = np.concatenate(list(sample.chunks(run, options.num, settings)))[: options.num]
        asked = np.arange(options.num) % splits[0].num_classes
        seen = np.mean(spaces.classifier.predict(spaces.pixels(x)) == asked)
        error = np.sqrt(seen * (1 - seen) / options.num)
        print(f"guidance {guidance:g}: {100 * seen:.1f} ± {100 * error:.1f} %", flush=True)


if __name__ == "__main__":
    main()
