"""The loss of a run over its steps, as a picture, beside a code that knows only histograms.

    python benchmarks/curve.py --workdir=runs/cifar10_small --out=docs/pictures/cifar10.png

Prints the entropy of the histogram of each channel (the last axis) of the test images, averaged,
in bits per dimension: a model that has learned anything stays below it.
"""

import argparse
import json
import pathlib

import numpy as np
from matplotlib.figure import Figure

from vdm.run import config as configs, data
from vdm.run.workdir.metrics import METRICS_FILE


def histogram_entropy(x, levels):
    """Return the mean over channels of the entropy of each one's histogram, in bits."""
    entropies = []
    for channel in np.moveaxis(x, -1, 0):
        p = np.bincount(channel.reshape(-1), minlength=levels) / channel.size
        entropies.append(-np.sum(p * np.log2(np.where(p > 0, p, 1.0))))
    return float(np.mean(entropies))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    config = configs.load(options.workdir)
    test = data.load(config.data, "test")
    entropy = histogram_entropy(test.x, test.levels)
    print(f"{test.version}: histogram entropy per channel {entropy:.4f} bits per dimension")
    lines = (options.workdir / METRICS_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
    axes.plot(steps, losses, label="training batches")
    axes.axhline(entropy, color="grey", ls="--", label=f"histograms: {entropy:.2f}")
    evaluation = options.workdir / "evaluation.json"
    if evaluation.exists():
        bpd = json.loads(evaluation.read_text())["bpd"]
        axes.plot(steps[-1], bpd["mean"], "o", label=f"{bpd['n']:,} test images: {bpd['mean']:.2f}")
    axes.set(xlabel="step", ylabel="bits per dimension", ylim=(0, 1.3 * entropy))
    axes.legend()
    figure.savefig(options.out, dpi=120)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
