"""Samplers by what they cost and how near their samples come to held-out digits.

    make demo
    python benchmarks/sampling.py --workdir=runs/demo

Every row draws the same number of samples from the same seeds, one per sample. The distance is
the sliced Wasserstein distance to the held-out digits, W₂ over 200 fixed directions, root mean
square: once in the pixels (0 to 1), once in the 64 features of a small classifier that is
trained on the training digits and then held. ± is the standard deviation over 100 bootstraps of
samples and digits alike; "− first row" is the difference to the first row with its own ±, both
resampled together. The row "training digits" is what real digits come to. Where the run has chains
of few steps (`vdm fit-chain`), these are the last rows, after even steps of the same small numbers.
"""

import argparse
import dataclasses
import pathlib
import time

import numpy as np
from sklearn.neural_network import MLPClassifier

from vdm.run import data, sample, trained
from vdm.run.workdir import chains

NUM_DIRECTIONS = 200
NUM_BOOTSTRAPS = 100
# The sampler, its grid, and its steps; the first row is what the others are compared with.
ROWS = [
    ("ancestral", "time", (250, 100, 50, 20)),
    ("exponential:noise_level=0.5", "time", (100, 50, 20)),
    ("euler_maruyama", "time", (250, 100)),
    ("ddim", "time", (100, 50, 20, 10)),
    ("heun", "time", (25, 10, 5)),
    ("heun", "edm", (25, 10, 5)),
    ("dpmpp_2m", "time", (50, 20, 10)),
    ("dpmpp_2m", "edm", (50, 20, 10)),
]
CHAIN = "chain"  # the levels and variances of the run's fitted chains
CALLS_A_STEP = {"heun": 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--num", type=int, default=1024)
    parser.add_argument("--only", default="", help="comma-separated samplers")
    options = parser.parse_args()
    run = trained.load(options.workdir)
    splits = {split: data.load(run.config.data, split) for split in ("train", "test")}
    spaces = Spaces(splits["train"], splits["test"])
    real = spaces.of(splits["train"].x[: options.num])
    print(f"{options.num} samples, {len(splits['test'])} held-out digits, step {run.step}")
    print(
        f"{'sampler':32s}{'grid':>6s}{'steps':>6s}{'NFE':>5s}{'ms per sample':>14s}"
        f"{'pixels':>20s}{'− first row':>20s}{'features':>20s}{'− first row':>20s}"
    )
    first = None
    show("training digits", "", "", "", "", spaces.bootstraps(real), first)
    rows = list(ROWS)
    if known := chains.steps(options.workdir, run.params):
        rows += [
            ("ancestral", "time", tuple(n for n in known if n < 20)),
            ("ancestral", CHAIN, known),
        ]
    for name, grid, all_steps in rows:
        if options.only and name.split(":")[0] not in options.only.split(","):
            continue
        for steps in all_steps:
            chain = None
            if grid == CHAIN:
                chain = chains.find(options.workdir, run.params, steps).chain
            drawn, seconds = timed(run, name, grid, steps, options.num, chain)
            found = spaces.bootstraps(spaces.of(drawn))
            first = found if first is None else first
            calls = steps * CALLS_A_STEP.get(name.split(":")[0], 1)
            show(name, grid, steps, calls, f"{1e3 * seconds:.1f}", found, first)


def timed(run, name, grid, steps, num, chain):
    """Return the samples and the seconds that one took, compilation apart."""
    settings = dataclasses.replace(
        run.config.sample,
        sampler=name,
        grid="time" if chain is not None else grid,
        num_steps=steps,
        batch_size=min(num, 256),
    )
    next(sample.chunks(run, num, settings, chain=chain))
    start = time.perf_counter()
    drawn = np.concatenate(list(sample.chunks(run, num, settings, chain=chain)))
    return drawn[:num], (time.perf_counter() - start) / len(drawn)


class Spaces:
    """Pixels and a classifier's features, with what the held-out digits are in them."""

    def __init__(self, train, test):
        self.largest = train.levels - 1
        self.classifier = MLPClassifier((64,), random_state=0, max_iter=500)
        self.classifier.fit(self.pixels(train.x), train.labels)
        accuracy = self.classifier.score(self.pixels(test.x), test.labels)
        print(f"the classifier is right about {accuracy:.1%} of the held-out digits")
        rng = np.random.default_rng(0)
        self.directions = rng.normal(size=(2, 64, NUM_DIRECTIONS))
        self.directions /= np.linalg.norm(self.directions, axis=1, keepdims=True)
        self.held_out = self.of(test.x)

    def pixels(self, x):
        return x.reshape(len(x), -1) / self.largest

    def of(self, x):
        """Return the projections of images in both spaces, [2, n, directions]."""
        pixels = self.pixels(x)
        weights, biases = self.classifier.coefs_[0], self.classifier.intercepts_[0]
        features = np.maximum(pixels @ weights + biases, 0.0)
        return np.stack([pixels @ self.directions[0], features @ self.directions[1]])

    def bootstraps(self, projections):
        """Return the distance in both spaces and its bootstraps, [2, 1 + bootstraps]."""
        rng = np.random.default_rng(1)  # the same resampling of every row
        n, m = projections.shape[1], self.held_out.shape[1]
        found = [distance(projections, self.held_out)]
        for _ in range(NUM_BOOTSTRAPS):
            i, j = rng.integers(0, n, n), rng.integers(0, m, m)
            found.append(distance(projections[:, i], self.held_out[:, j]))
        return np.stack(found, axis=1)


def distance(one, other):
    """Return W₂ along each direction, root mean square over directions, for both spaces."""
    levels = (np.arange(200) + 0.5) / 200
    a, b = (quantiles(np.sort(x, axis=1), levels) for x in (one, other))
    return np.sqrt(np.mean((a - b) ** 2, axis=(1, 2)))


def quantiles(ordered, levels):
    """Return the quantiles along axis 1 of values in order, linear between them."""
    place = levels * ordered.shape[1] - 0.5
    below = np.clip(np.floor(place).astype(int), 0, ordered.shape[1] - 2)
    share = np.clip(place - below, 0.0, 1.0)[None, :, None]
    return (1.0 - share) * ordered[:, below] + share * ordered[:, below + 1]


def show(name, grid, steps, calls, milliseconds, found, first):
    line = f"{name:32s}{grid:>6s}{steps:>6}{calls:>5}{milliseconds:>14s}"
    for space in range(2):
        value, spread = found[space, 0], found[space, 1:].std()
        line += f"{value:11.4f} ± {spread:.4f}"
        if first is None:
            line += " " * 20
        else:
            apart = found[space] - first[space]
            line += f"{apart[0]:+11.4f} ± {apart[1:].std():.4f}"
    print(line.rstrip(), flush=True)


if __name__ == "__main__":
    main()
